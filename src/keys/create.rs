//! Making a key: in the records and in two zones' HSMs, or in neither.
//!
//! A crypto user's own key goes the same way as a key store's, through the Connection of his login and under his own
//! key-encryption key.
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

use aws_lc_rs::digest;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms, KeyTemplate, Made, Member, Members, Quorum, zones};
use crate::keystore::lifecycle::Event;
use crate::keystore::{self, Store};
use crate::link::v1::presence::Found;
use crate::model::{
    AliasName, CkaId, ClusterId, HsmId, HsmKeyMark, HsmLabel, KeyId, KeySpec, KeyState, KeyStoreId, KeyVersion,
    Username,
};
use crate::records::{self, BegunKey, KeyLimits, KeyStoreRecord, NewKeyHome, Proof, Unavailable};
use crate::users::{self, Acting, ShownLogins};

pub use crate::records::RequestClaim;

use super::describe::hsm_key;
use super::owner::connection_of_user;
use super::{Description, Error, Keys, copy};

/// Steps of a creation are waited for this long: longer than a worker's patience, so that a step
/// has either been answered or its worker is gone.
const STEP: Duration = Duration::from_secs(10 * 60);
/// Once two zones have the key, the other nodes get this long before the caller is told.
const GRACE: Duration = Duration::from_millis(250);
/// How long a request id is remembered.
pub(super) const REQUEST_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// What a caller asks for.
#[derive(Debug)]
pub struct NewKey {
    pub home: NewHome,
    pub spec: KeySpec,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    pub alias: Option<AliasName>,
    pub request: Option<RequestClaim>,
}

/// Where a key is to be made.
#[derive(Debug, Clone)]
pub enum NewHome {
    KeyStore(KeyStoreId),
    /// In the tokens of the crypto user that the caller is logged in as.
    User {
        cluster: ClusterId,
        label: HsmLabel,
    },
}

/// Where it is made, and in whose name.
enum Target {
    KeyStore(Arc<Store>),
    User { acting: Acting, label: HsmLabel },
}

/// A key on its way, or a new version of one that is there ([`super::rotation`]).
pub(super) struct Creation {
    pub(super) id: KeyId,
    pub(super) version: KeyVersion,
    /// What callers know it by.
    pub(super) name: String,
    pub(super) template: KeyTemplate,
    pub(super) connection: Arc<Connection>,
    /// The nodes named in the record, in the order they are asked.
    pub(super) nodes: Vec<Arc<Member>>,
    /// So many must have proved the key before anybody is told of it.
    pub(super) needed: Quorum,
}

impl Keys {
    pub async fn create(
        &self,
        permit: Permit<action::CreateKey>,
        logins: &ShownLogins,
        new: NewKey,
        deadline: Instant,
    ) -> Result<Description, Error> {
        let target = match &new.home {
            NewHome::KeyStore(store) => Target::KeyStore(self.0.stores.get(store)?),
            NewHome::User { cluster, label } => {
                let acting = self.acting(&permit, logins, cluster, deadline).await?;
                Target::User { acting, label: label.clone() }
            }
        };
        if deadline <= Instant::now() {
            // Too late to tell the caller of a key: none is begun.
            return Err(Error::Hsm(Failure::Late));
        }
        let keys = self.clone();
        let (answer, answered) = oneshot::channel();
        let (begun, name) = oneshot::channel();
        self.0.runtime.spawn(async move {
            let made = keys.create_now(&target, (new, deadline), begun, answer).await;
            if let Err((answer, error)) = made {
                let _ = answer.send(Err(error));
            }
        });
        let id = outcome(answered, name, deadline).await?;
        let record = self.0.records.key(id).await?.ok_or_else(|| Error::NotFound(id.to_string()))?;
        Ok(self.describe_record(record))
    }

    /// Answers through `answer` as soon as the key is enabled, and goes on to the nodes that are still missing it.
    async fn create_now(
        &self,
        target: &Target,
        (new, deadline): (NewKey, Instant),
        begun: oneshot::Sender<String>,
        answer: Answer,
    ) -> Result<(), (Answer, Error)> {
        let (creation, live) = match self.begin(target, new, deadline).await {
            Ok(Begun::New(creation, live)) => (creation, live),
            Ok(Begun::Replay(id)) => {
                let _ = answer.send(Ok(id));
                return Ok(());
            }
            Err(error) => return Err((answer, error)),
        };
        let _ = begun.send(creation.name.clone());
        #[cfg(debug_assertions)]
        crate::seams::stop_point("create-begun");
        self.carry_out(&creation, live, answer, "create-made").await
    }

    /// From the first node to the last one. Tests can have it stop in between.
    pub(super) async fn carry_out(
        &self,
        creation: &Creation,
        live: Live,
        answer: Answer,
        #[cfg_attr(not(debug_assertions), expect(unused_variables))] stop: &'static str,
    ) -> Result<(), (Answer, Error)> {
        let (maker, made) = match self.make(creation).await {
            Ok(made) => made,
            Err(error) => return Err((answer, error)),
        };
        #[cfg(debug_assertions)]
        crate::seams::stop_point(stop);
        let spread = self.spread(creation, maker, made, answer).await?;
        if spread == Spread::Everywhere {
            live.settled();
        }
        Ok(())
    }

    async fn begin(&self, target: &Target, new: NewKey, deadline: Instant) -> Result<Begun, Error> {
        let (cluster, home, connection) = match target {
            Target::KeyStore(store) => {
                let KeyStoreRecord { id, cluster, state, .. } = store.record();
                let connection = self.connection_of_store(store, Event::CreateKey)?;
                (cluster, NewKeyHome::KeyStore { store: id, state }, connection)
            }
            Target::User { acting, label } => {
                let home = NewKeyHome::User { username: acting.username.clone(), label: label.clone() };
                (acting.cluster.clone(), home, connection_of_user(acting)?)
            }
        };
        self.0.stores.may_create_key(&cluster)?;
        let needed = self.0.stores.quorum(&cluster);
        if let Target::User { .. } = target {
            // Who has just logged in finds his HSMs on their way.
            let _ = tokio::time::timeout_at(deadline, decided(&connection, needed)).await;
        }
        let nodes = connection.ready_for_new_keys();
        if !needed.is_met_by(nodes.len(), zones(&nodes)) {
            return Err(Error::TooFewNodes { nodes: nodes.len(), zones: zones(&nodes), needed });
        }
        let id = KeyId::random();
        let (name, label) = match target {
            Target::KeyStore(_) => (id.to_string(), None),
            Target::User { label, .. } => {
                self.must_be_free(&connection, label, deadline).await?;
                (hsm_key(&cluster, HsmKeyMark::Label(label.clone())), Some(label))
            }
        };
        if deadline <= Instant::now() {
            return Err(Error::Hsm(Failure::Late));
        }
        let request = match target {
            Target::KeyStore(_) => new.request,
            Target::User { acting, .. } => new.request.map(|claim| claimed_as(&acting.username, claim)),
        };
        let live = Live::new(self.clone(), id);
        let row = records::NewKey {
            id,
            home,
            cluster,
            spec: new.spec,
            description: new.description,
            tags: new.tags,
            alias: new.alias.clone(),
            created: clock::now(),
            hsms: hsms(nodes.iter()),
            request,
        };
        let limits = KeyLimits { keys: self.0.settings.per_key_store, request_retention: REQUEST_RETENTION };
        let template = copy::template(new.spec, &CkaId::of(id, KeyVersion::FIRST), label);
        let version = KeyVersion::FIRST;
        let creation = Creation { id, version, name, template, connection, nodes, needed };
        match self.0.records.begin_key(&row, &limits).await? {
            BegunKey::Begun => Ok(Begun::New(creation, live)),
            BegunKey::Replay { id, state: KeyState::Creating } => {
                let told = if label.is_some() { creation.name } else { id.to_string() };
                Err(Error::StillCreating(told))
            }
            BegunKey::Replay { id, state: _ } => Ok(Begun::Replay(id)),
            BegunKey::RequestReused => Err(Error::RequestReused),
            BegunKey::AliasInUse => Err(Error::AliasInUse(new.alias.expect("only a named alias can be in use"))),
            BegunKey::LabelInUse => Err(Error::LabelInUse { name: creation.name, hsm: None }),
            BegunKey::TooManyKeys => Err(Error::TooManyKeys(self.0.settings.per_key_store)),
            BegunKey::StoreChanged => {
                let why = match target {
                    Target::KeyStore(store) => self.connection_of_store(store, Event::CreateKey).err(),
                    Target::User { .. } => None,
                };
                Err(why.unwrap_or(Error::KeyStore(keystore::Error::Conflict)))
            }
            BegunKey::UserLeaves => Err(users::Error::LoginExpired.into()),
        }
    }

    /// That no key in the user's tokens goes by the label yet, as far as the nodes tell. One that the records know is theirs to
    /// judge: the request may be a repetition.
    async fn must_be_free(&self, connection: &Connection, label: &HsmLabel, deadline: Instant) -> Result<(), Error> {
        if self.0.records.user_key(&connection.user(), label).await?.is_some() {
            return Ok(());
        }
        let mark = HsmKeyMark::Label(label.clone());
        let hsm = match self.sight(connection, &mark, deadline).await {
            Ok(None) => return Ok(()),
            Ok(Some(seen)) => seen.on.into_iter().next(),
            Err(Error::Ambiguous { hsm, .. }) => Some(hsm),
            Err(other) => return Err(other),
        };
        Err(Error::LabelInUse { name: hsm_key(&connection.cluster, mark), hsm })
    }

    /// Makes the key on the first node that does. A node that refused before it began is passed over;
    /// an answer that was lost ends the creation, for the key may be there.
    async fn make(&self, creation: &Creation) -> Result<(Arc<Member>, Made), Error> {
        let cka = creation.cka_id();
        let mut last = Failure::NoNode;
        for member in &creation.nodes {
            match creation.connection.make_key(member, cka, &creation.template, Instant::now() + STEP).await {
                Ok(made) => return Ok((member.clone(), made)),
                Err(Failure::OutcomeUnknown | Failure::OutOfTurn | Failure::Poisonous) => {
                    self.abandon(creation).await;
                    return Err(Error::OutcomeUnknown(creation.name.clone()));
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
        let key = KeyInHsms { id: creation.cka_id(), found: None, probe: made.probe };
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
                return Err((answer, Error::OutcomeUnknown(creation.name.clone())));
            }
        }
        while let Some(member) = creation.next_proven(&mut copies, &key.id).await {
            self.note_presence(creation, &member, Proof::Used).await;
        }
        // A node that is away gets it when it is back: nothing is left to do for now.
        let members = creation.connection.members();
        let mut here = members.iter().filter(|member| member.is_proved());
        if here.all(|member| member.has(&key.id)) { Ok(Spread::Everywhere) } else { Ok(Spread::Enough) }
    }

    async fn enable(&self, creation: &Creation, key: &KeyInHsms, proven: &[Arc<Member>]) -> Result<bool, Unavailable> {
        let members = creation.ask_only(proven, &key.id);
        let others = members.iter().filter(|member| !is_on_one_of(proven, member));
        let nodes = (&hsms(proven.iter())[..], &hsms(others)[..]);
        let are_enough = |staying: &[HsmId]| {
            let staying: Vec<_> = proven.iter().filter(|it| staying.contains(it.node.hsm())).cloned().collect();
            creation.needed.is_met_by(staying.len(), zones(&staying))
        };
        let (records, version) = (&self.0.records, creation.version);
        let enabled = if version == KeyVersion::FIRST {
            records.finish_key(creation.id, version, &key.probe, nodes, are_enough, clock::now()).await
        } else {
            records.finish_version((creation.id, version), &key.probe, nodes, are_enough, clock::now()).await
        };
        // Whoever remembers the key does not know this version.
        self.forget(creation.id);
        // Who has joined meanwhile may have looked at the records before the key stood in them.
        let now = creation.connection.members();
        let has_joined = |member: &&Arc<Member>| !members.iter().any(|before| Arc::ptr_eq(before, member));
        for member in now.iter().filter(has_joined).filter(|member| !is_on_one_of(proven, member)) {
            member.lacks([key.id]);
            self.note_presence(creation, member, Proof::Unknown).await;
        }
        enabled
    }

    async fn note_presence(&self, creation: &Creation, member: &Member, proof: Proof) {
        let hsm = member.node.hsm();
        let place = (&creation.connection.cluster, hsm);
        let noted = self.0.records.set_presence(creation.id, creation.version, place, proof, clock::now()).await;
        if let Err(error) = noted {
            tracing::warn!(%hsm, key = %creation.id, %error, "a copy could not be written down; it is looked for again");
        }
    }

    /// The key was never acknowledged: destroy what there may be of it, as far as its nodes answer now. The rest is settled when they come back.
    async fn abandon(&self, creation: &Creation) {
        let cka = creation.cka_id();
        for member in creation.connection.members().iter() {
            // Nobody asks for it anywhere: there is nothing to remember as missing.
            member.has_now(&cka);
        }
        let is_first = creation.version == KeyVersion::FIRST;
        if !is_first && let Err(error) = self.0.records.abandon_version(creation.id, clock::now()).await {
            tracing::warn!(key = %creation.id, %error, "an abandoned version stays in the records for now");
        }
        for member in &creation.nodes {
            let destroyed = creation.connection.destroy_key(member, cka, Instant::now() + STEP).await;
            if destroyed.is_ok()
                && is_first
                && let Err(error) = self.0.records.clear_creating(creation.id, member.node.hsm()).await
            {
                tracing::warn!(key = %creation.id, %error, "an abandoned key stays in the records for now");
            }
        }
    }
}

/// The same request under another user's login is another one.
fn claimed_as(user: &Username, claim: RequestClaim) -> RequestClaim {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&claim.body_sha256);
    context.update(user.as_str().as_bytes());
    let body_sha256 = context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
    RequestClaim { body_sha256, ..claim }
}

/// Resolves when so many nodes take new keys, or no other is on its way there.
async fn decided(connection: &Connection, needed: Quorum) {
    let are_enough = || {
        let nodes = connection.ready_for_new_keys();
        needed.is_met_by(nodes.len(), zones(&nodes))
    };
    connection.until(|| are_enough() || !connection.any_on_its_way() || connection.is_closed()).await;
}

impl Creation {
    fn cka_id(&self) -> CkaId {
        CkaId::of(self.id, self.version)
    }

    /// Until a node has answered the probe, nothing is asked of it under this key. Who the members are.
    fn ask_only(&self, proven: &[Arc<Member>], key: &CkaId) -> Members {
        let members = self.connection.members();
        for member in members.iter().filter(|member| !is_on_one_of(proven, member)) {
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
            (member, self.connection.unwrap_key(member, key, &self.template, wrapped.to_vec(), deadline).await)
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

/// What one of them proved holds of its HSM, also when that has left and joined anew meanwhile.
fn is_on_one_of(members: &[Arc<Member>], member: &Member) -> bool {
    members.iter().any(|other| other.node.hsm() == member.node.hsm())
}

fn hsms<'a>(members: impl Iterator<Item = &'a Arc<Member>>) -> Vec<HsmId> {
    members.map(|member| member.node.hsm().clone()).collect()
}

pub(super) type Answer = oneshot::Sender<Result<KeyId, Error>>;

/// What has become of a creation that began under this name, if it began, for a caller who waits no longer than this.
pub(super) async fn outcome(
    answered: oneshot::Receiver<Result<KeyId, Error>>,
    begun: oneshot::Receiver<String>,
    deadline: Instant,
) -> Result<KeyId, Error> {
    match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(answer)) => answer,
        // The deadline passed, or the task panicked.
        Ok(Err(_)) | Err(_) => match begun.await {
            Ok(name) => Err(Error::OutcomeUnknown(name)),
            Err(_) => Err(Error::Hsm(Failure::Late)),
        },
    }
}

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
pub(super) struct Live {
    keys: Keys,
    id: KeyId,
    settled: bool,
}

impl Live {
    fn new(keys: Keys, id: KeyId) -> Self {
        keys.lock_creating().insert(id);
        Self { keys, id, settled: false }
    }

    /// Unless somebody is at work on the key already.
    pub(super) fn alone(keys: Keys, id: KeyId) -> Option<Self> {
        let is_alone = keys.lock_creating().insert(id);
        is_alone.then(|| Self { keys, id, settled: false })
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
