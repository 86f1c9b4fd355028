//! Making a key: in the records and in two zones' HSMs, or in neither.
//!
//! ```text
//!   record CREATING, with the nodes about to be asked ─▶ made on one node, wrapped for the others
//!     ─▶ unwrapped there, each answering the key's probe ─▶ two zones answered: ENABLED, and the caller told
//!                                                        └▶ else: destroyed wherever it was, record gone
//! ```
//!
//! The work runs in a task of its own: a caller who leaves changes nothing. Whatever ends it
//! midway, a record that is still CREATING names every node that may hold the key, and [`super::reconcile`] settles it by looking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms, Made, Member, Members, Quorum, zones};
use crate::keystore::lifecycle::Event;
use crate::keystore::{self, Store};
use crate::link::v1::presence::Found;
use crate::model::{AliasName, CkaId, HsmId, KeyId, KeySpec, KeyVersion};
use crate::records::{self, BegunKey, KeyLimits, Proof, Unavailable};

pub use crate::records::RequestClaim;

use super::{Description, Error, Keys};

/// Steps of a creation are waited for this long: longer than a worker's patience, so that a step
/// has either been answered or its worker is gone.
const STEP: Duration = Duration::from_secs(10 * 60);
/// Once two zones have the key, the other nodes get this long before the caller is told.
const GRACE: Duration = Duration::from_millis(250);
/// How long a request id is remembered.
const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// What a caller asks for.
#[derive(Debug)]
pub struct NewKey {
    pub store: crate::model::KeyStoreId,
    pub spec: KeySpec,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    pub alias: Option<AliasName>,
    pub request: Option<RequestClaim>,
}

/// A key on its way.
struct Creation {
    id: KeyId,
    spec: KeySpec,
    connection: Arc<Connection>,
    /// The nodes named in the record, in the order they are asked.
    nodes: Vec<Arc<Member>>,
    /// So many must have proved the key before anybody is told of it.
    needed: Quorum,
}

impl Keys {
    pub async fn create(
        &self,
        _permit: Permit<action::CreateKey>,
        new: NewKey,
        deadline: Instant,
    ) -> Result<Description, Error> {
        let store = self.0.stores.get(&new.store)?;
        if deadline <= Instant::now() {
            // Too late to tell the caller of a key: none is begun.
            return Err(Error::Hsm(Failure::Late));
        }
        let keys = self.clone();
        let (answer, answered) = oneshot::channel();
        let (begun, id) = oneshot::channel();
        self.0.runtime.spawn(async move {
            let made = keys.create_now(&store, new, begun, answer).await;
            if let Err((answer, error)) = made {
                let _ = answer.send(Err(error));
            }
        });
        let outcome = tokio::time::timeout_at(deadline, answered).await;
        match outcome {
            Ok(Ok(Ok(id))) => {
                let record = self.0.records.key(id).await?.ok_or_else(|| Error::NotFound(id.to_string()))?;
                Ok(self.describe_record(record))
            }
            Ok(Ok(Err(error))) => Err(error),
            // The deadline passed, or the task panicked.
            Ok(Err(_)) | Err(_) => match id.await {
                Ok(id) => Err(Error::OutcomeUnknown(id)),
                Err(_) => Err(Error::Hsm(Failure::Late)),
            },
        }
    }

    /// Answers through `answer` as soon as the key is enabled, and goes on to the nodes that are still missing it.
    async fn create_now(
        &self,
        store: &Store,
        new: NewKey,
        begun: oneshot::Sender<KeyId>,
        answer: Answer,
    ) -> Result<(), (Answer, Error)> {
        let (creation, live) = match self.begin(store, new).await {
            Ok(Begun::New(creation, live)) => (creation, live),
            Ok(Begun::Replay(id)) => {
                let _ = answer.send(Ok(id));
                return Ok(());
            }
            Err(error) => return Err((answer, error)),
        };
        let _ = begun.send(creation.id);
        #[cfg(debug_assertions)]
        crate::seams::stop_point("create-begun");
        let (maker, made) = match self.make(&creation).await {
            Ok(made) => made,
            Err(error) => return Err((answer, error)),
        };
        #[cfg(debug_assertions)]
        crate::seams::stop_point("create-made");
        let spread = self.spread(&creation, maker, made, answer).await?;
        if spread == Spread::Everywhere {
            live.settled();
        }
        Ok(())
    }

    async fn begin(&self, store: &Store, new: NewKey) -> Result<Begun, Error> {
        let record = store.record();
        let connection = self.connection_of(store, Event::CreateKey)?;
        let nodes = connection.ready_for_new_keys();
        self.0.stores.may_create_key(&record.cluster)?;
        let needed = self.0.stores.quorum(&record.cluster);
        if !needed.is_met_by(nodes.len(), zones(&nodes)) {
            return Err(Error::TooFewNodes { nodes: nodes.len(), zones: zones(&nodes), needed });
        }
        let id = KeyId::random();
        let live = Live::new(self.clone(), id);
        let row = records::NewKey {
            id,
            store: record.id.clone(),
            store_state: record.state,
            cluster: record.cluster.clone(),
            spec: new.spec,
            description: new.description,
            tags: new.tags,
            alias: new.alias.clone(),
            created: clock::now(),
            hsms: hsms(nodes.iter()),
            request: new.request,
        };
        let limits = KeyLimits { keys_per_store: self.0.settings.per_key_store, request_retention: REQUEST_RETENTION };
        match self.0.records.begin_key(&row, &limits).await? {
            BegunKey::Begun => Ok(Begun::New(Creation { id, spec: new.spec, connection, nodes, needed }, live)),
            BegunKey::Replay { id, state: crate::model::KeyState::Enabled } => Ok(Begun::Replay(id)),
            BegunKey::Replay { id, state: crate::model::KeyState::Creating } => Err(Error::StillCreating(id)),
            BegunKey::RequestReused => Err(Error::RequestReused),
            BegunKey::AliasInUse => Err(Error::AliasInUse(new.alias.expect("only a named alias can be in use"))),
            BegunKey::TooManyKeys => Err(Error::TooManyKeys(self.0.settings.per_key_store)),
            BegunKey::StoreChanged => {
                let why = self.connection_of(store, Event::CreateKey).err();
                Err(why.unwrap_or(Error::KeyStore(keystore::Error::Conflict)))
            }
        }
    }

    /// Makes the key on the first node that does. A node that refused before it began is passed over;
    /// an answer that was lost ends the creation, for the key may be there.
    async fn make(&self, creation: &Creation) -> Result<(Arc<Member>, Made), Error> {
        let cka = CkaId::of(creation.id, KeyVersion::FIRST);
        let mut last = Failure::NoNode;
        for member in &creation.nodes {
            match creation.connection.make_key(member, cka, creation.spec, Instant::now() + STEP).await {
                Ok(made) => return Ok((member.clone(), made)),
                Err(Failure::OutcomeUnknown | Failure::OutOfTurn | Failure::Poisonous) => {
                    self.abandon(creation).await;
                    return Err(Error::OutcomeUnknown(creation.id));
                }
                Err(failure) => last = failure,
            }
        }
        self.abandon(creation).await;
        Err(Error::Hsm(last))
    }

    /// Copies the key to the other nodes. Two zones make it ENABLED; the rest follow, now or when they come back.
    async fn spread(
        &self,
        creation: &Creation,
        maker: Arc<Member>,
        made: Made,
        answer: Answer,
    ) -> Result<Spread, (Answer, Error)> {
        let key = KeyInHsms { id: CkaId::of(creation.id, KeyVersion::FIRST), probe: made.probe };
        let mut copies = creation.copy(&key, &maker, &made.wrapped);
        let mut proven = vec![maker.clone()];
        creation.ask_only(&proven, &key.id);
        while !creation.needed.is_met_by(proven.len(), zones(&proven)) {
            match creation.next_proven(&mut copies, &key.id).await {
                Some(member) => proven.push(member),
                None => {
                    drop(copies);
                    self.abandon(creation).await;
                    let (nodes, zones, needed) = (proven.len(), zones(&proven), creation.needed);
                    return Err((answer, Error::TooFewNodes { nodes, zones, needed }));
                }
            }
        }
        // The others are mostly as quick, and one write for all costs less than one each.
        let _ = tokio::time::timeout(GRACE, async {
            while let Some(member) = creation.next_proven(&mut copies, &key.id).await {
                proven.push(member);
            }
        })
        .await;
        match self.enable(creation, &key, &proven).await {
            Ok(true) => drop(answer.send(Ok(creation.id))),
            // Whether it was written is not known. Reconciling settles it, once no copy is on its way any more.
            unknown @ (Ok(false) | Err(_)) => {
                tracing::error!(key = %creation.id, ?unknown, "whether a key was enabled is not known");
                while creation.next_proven(&mut copies, &key.id).await.is_some() {}
                return Err((answer, Error::OutcomeUnknown(creation.id)));
            }
        }
        while let Some(member) = creation.next_proven(&mut copies, &key.id).await {
            self.note_presence(creation, &member, Proof::Used).await;
            proven.push(member);
        }
        // A node that is away gets it when it is back: nothing is left to do for now.
        let members = creation.connection.members();
        let mut here = members.iter().filter(|member| member.is_proved());
        if here.all(|member| is_among(&proven, member)) { Ok(Spread::Everywhere) } else { Ok(Spread::Enough) }
    }

    async fn enable(&self, creation: &Creation, key: &KeyInHsms, proven: &[Arc<Member>]) -> Result<bool, Unavailable> {
        let members = creation.ask_only(proven, &key.id);
        let others = members.iter().filter(|member| !is_among(proven, member));
        let nodes = (&hsms(proven.iter())[..], &hsms(others)[..]);
        let enabled = self.0.records.finish_key(creation.id, KeyVersion::FIRST, &key.probe, nodes, clock::now()).await;
        // Who has joined meanwhile may have looked at the records before the key stood in them.
        let now = creation.connection.members();
        for member in now.iter().filter(|member| !is_among(&members, member) && !is_among(proven, member)) {
            member.lacks([key.id]);
            self.note_presence(creation, member, Proof::Unknown).await;
        }
        enabled
    }

    async fn note_presence(&self, creation: &Creation, member: &Member, proof: Proof) {
        let hsm = member.node.hsm();
        let place = (&creation.connection.cluster, hsm);
        let noted = self.0.records.set_presence(creation.id, KeyVersion::FIRST, place, proof, clock::now()).await;
        if let Err(error) = noted {
            tracing::warn!(%hsm, key = %creation.id, %error, "a copy could not be written down; it is looked for again");
        }
    }

    /// The key was never acknowledged: destroy what there may be of it, as far as its nodes answer now. The rest is settled when they come back.
    async fn abandon(&self, creation: &Creation) {
        let cka = CkaId::of(creation.id, KeyVersion::FIRST);
        for member in creation.connection.members().iter() {
            // Nobody asks for it anywhere: there is nothing to remember as missing.
            member.has_now(&cka);
        }
        for member in &creation.nodes {
            let destroyed = creation.connection.destroy_key(member, cka, Instant::now() + STEP).await;
            if destroyed.is_ok()
                && let Err(error) = self.0.records.clear_creating(creation.id, member.node.hsm()).await
            {
                tracing::warn!(key = %creation.id, %error, "an abandoned key stays in the records for now");
            }
        }
    }
}

impl Creation {
    /// Until a node has answered the probe, nothing is asked of it under this key. Who the members are.
    fn ask_only(&self, proven: &[Arc<Member>], key: &CkaId) -> Members {
        let members = self.connection.members();
        for member in members.iter().filter(|member| !is_among(proven, member)) {
            member.lacks([*key]);
        }
        members
    }

    /// Gives the key to every other node at once.
    fn copy<'a>(
        &'a self,
        key: &'a KeyInHsms,
        maker: &'a Member,
        wrapped: &'a [u8],
    ) -> FuturesUnordered<impl Future<Output = (&'a Arc<Member>, Result<Found, Failure>)> + 'a> {
        let others = self.nodes.iter().filter(move |member| member.node.hsm() != maker.node.hsm());
        let copying = others.map(move |member| async move {
            let deadline = Instant::now() + STEP;
            (member, self.connection.unwrap_key(member, key, self.spec, wrapped.to_vec(), deadline).await)
        });
        copying.collect()
    }

    /// The next node that proved the key; `None` when no more will.
    async fn next_proven<'a>(
        &self,
        copies: &mut (impl Stream<Item = (&'a Arc<Member>, Result<Found, Failure>)> + Unpin),
        key: &CkaId,
    ) -> Option<Arc<Member>> {
        while let Some((member, found)) = copies.next().await {
            match found {
                Ok(Found::Proven) => {
                    member.has_now(key);
                    return Some(member.clone());
                }
                Ok(other) => {
                    tracing::warn!(hsm = %member.node.hsm(), key = %self.id, ?other, "a new key could not be proved");
                }
                Err(error) => {
                    tracing::warn!(hsm = %member.node.hsm(), key = %self.id, %error, "a new key could not be copied");
                }
            }
        }
        None
    }
}

fn is_among(members: &[Arc<Member>], member: &Arc<Member>) -> bool {
    members.iter().any(|other| Arc::ptr_eq(other, member))
}

fn hsms<'a>(members: impl Iterator<Item = &'a Arc<Member>>) -> Vec<HsmId> {
    members.map(|member| member.node.hsm().clone()).collect()
}

type Answer = oneshot::Sender<Result<KeyId, Error>>;

enum Begun {
    New(Creation, Live),
    Replay(KeyId),
}

/// How far a key that is enabled has come.
#[derive(PartialEq, Eq)]
enum Spread {
    /// Every node that serves has it.
    Everywhere,
    Enough,
}

/// Marks a creation as this daemon's live work, until it ends however it ends.
struct Live {
    keys: Keys,
    id: KeyId,
    settled: bool,
}

impl Live {
    fn new(keys: Keys, id: KeyId) -> Self {
        keys.lock_creating().insert(id);
        Self { keys, id, settled: false }
    }

    /// Nothing is left for anybody else to do.
    fn settled(mut self) {
        self.settled = true;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.keys.lock_creating().remove(&self.id);
        if !self.settled {
            self.keys.0.unsettled.notify_waiters();
        }
    }
}

impl Keys {
    pub(super) fn lock_creating(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<KeyId>> {
        self.0.creating.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
