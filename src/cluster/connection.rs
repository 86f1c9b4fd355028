//! A crypto user logged in on every reachable node of a cluster, with the nodes' session pools.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::link::v1::{self, Request, request::Verb, response::Outcome};
use crate::model::{CkaId, ClusterId, CryptoUser, HsmId, KeyKind, Plaintext, Probe, PublicKey, Username, Zone};
use crate::node::{self, CallError, Change, Common, Credential, Node, Passwords, Status};
use crate::records::KekRecord;

use super::abilities::{Learnt, Needed};
use super::failover::{Effect, History, Next};
use super::member::{Member, Members, Supervision};
use super::repeat::{Freely, Repeat};
use super::route::{self, Candidate};
use super::{health, prove};

/// A key as the HSMs know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInHsms {
    /// Its `CKA_ID`, if keyway made it. For us its name in any case.
    pub id: CkaId,
    /// Its `CKA_ID`, if another program made it.
    pub found: Option<Arc<[u8]>>,
    pub probe: Probe,
}

impl KeyInHsms {
    pub(super) fn cka_id(&self) -> Vec<u8> {
        self.found.as_deref().unwrap_or(self.id.as_bytes()).to_vec()
    }
}

/// An encryption's result: the IV the HSM's generator gave, and the ciphertext with its tag.
#[derive(Debug)]
pub struct Sealed {
    pub iv: Vec<u8>,
    pub sealed: Vec<u8>,
}

/// A data key made in an HSM.
#[derive(Debug)]
pub struct Generated {
    pub plaintext: Plaintext,
    pub sealed: Sealed,
}

/// What a key is made as, on every node alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate {
    pub kind: KeyKind,
    /// Its `CKA_LABEL`.
    pub label: String,
}

/// A key just made on one node, ready to travel to the others.
#[derive(Debug)]
pub struct Made {
    pub wrapped: Vec<u8>,
    pub probe: Probe,
    /// Of an asymmetric key.
    pub public_key: Option<PublicKey>,
}

/// Why a Connection could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the ciphertext was not made with this key and encryption context")]
    BadCiphertext,
    #[error("the HSM refused the request's form")]
    BadInput,
    #[error("no HSM of the cluster answers")]
    NoNode,
    #[error("no HSM that answers has the key")]
    KeyUnavailable,
    #[error("every session is busy and the queue is full")]
    Busy,
    #[error("the deadline passed")]
    Late,
    #[error("the HSM does not support {0}")]
    Unsupported(String),
    #[error("the answer was lost and the work may have been done")]
    OutcomeUnknown,
    #[error("two workers died under this request")]
    Poisonous,
    #[error("the worker answered out of turn")]
    OutOfTurn,
}

/// How a Connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// Running requests get this long, and then no answer.
    Drain(Duration),
    /// The kill switch: they get none.
    Now,
}

/// See the module's words.
#[derive(Debug)]
pub struct Connection {
    pub cluster: ClusterId,
    /// Those of now, in the order of their HSMs. Exchanged as a whole by [`super::membership`].
    pub(super) members: watch::Sender<Members>,
    pub(super) common: Common,
    /// What the HSMs can do.
    pub(super) learnt: Learnt,
    /// The daemon's own availability zone, if it has one.
    zone: Option<Zone>,
    /// The cluster's key-encryption key, once it is made for good.
    pub(super) kek: OnceLock<KekRecord>,
    /// One ceremony at a time.
    pub(super) ceremony: tokio::sync::Mutex<()>,
    turn: AtomicUsize,
    /// Requests under which a worker has died: one at a time is let onto another.
    suspects: Semaphore,
    /// Counts what became known of the members: logins proved, keys found missing.
    changes: watch::Sender<u64>,
    stage: watch::Sender<Stage>,
}

/// How far a Connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    Closing,
    Closed,
}

impl Connection {
    /// A Connection whose nodes are known and at rest. Nobody is logged in until [`Connection::bring_up`].
    pub fn new(
        cluster: ClusterId,
        nodes: Vec<Arc<Node>>,
        common: Common,
        zone: Option<Zone>,
        learnt: Learnt,
    ) -> Arc<Self> {
        let members: Members = nodes.into_iter().map(|node| Arc::new(Member::new(node, &learnt))).collect();
        Arc::new(Self {
            cluster,
            members: watch::Sender::new(members),
            common,
            learnt,
            zone,
            kek: OnceLock::new(),
            ceremony: tokio::sync::Mutex::default(),
            turn: AtomicUsize::new(0),
            suspects: Semaphore::new(1),
            changes: watch::Sender::new(0),
            stage: watch::Sender::new(Stage::Open),
        })
    }

    /// Who is logged in: what is in his tokens is used through this Connection, and nobody else's is.
    pub fn user(&self) -> CryptoUser {
        CryptoUser { cluster: self.cluster.clone(), username: self.common.passwords.username().clone() }
    }

    /// The members as of now. Others may join meanwhile, and some of these may leave: whoever still has one finds nobody
    /// logged in there.
    pub fn members(&self) -> Members {
        self.members.borrow().clone()
    }

    pub fn member(&self, hsm: &HsmId) -> Option<Arc<Member>> {
        self.members.borrow().iter().find(|member| member.node.hsm() == hsm).cloned()
    }

    /// Tells when something became known of the members.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells whoever follows [`Connection::changes`] to look again.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Resolves when any node changes, joins or leaves after this call.
    pub fn next_move(&self) -> impl Future<Output = ()> + Send + use<> {
        // Before the members: one that joins between the two is a change.
        let mut changes = self.changes();
        let mut statuses: Vec<_> = self.members().iter().map(|member| member.node.status()).collect();
        async move {
            tokio::select! {
                () = any_changed(&mut statuses) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Waits until the condition holds, looking again at each [`Connection::next_move`].
    pub async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let moved = self.next_move();
            if condition() {
                return;
            }
            moved.await;
        }
    }

    /// Whether a node that does not serve may do so in a moment.
    pub fn any_on_its_way(&self) -> bool {
        self.members().iter().any(|it| !it.is_proved() && !it.is_out() && it.stuck().is_none())
    }

    /// Whether a node serves.
    pub fn any_proved(&self) -> bool {
        self.members.borrow().iter().any(|member| member.is_proved())
    }

    /// Resolves when the Connection is being closed.
    pub async fn closed(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| *stage >= Stage::Closing).await;
    }

    pub fn is_closed(&self) -> bool {
        *self.stage.borrow() >= Stage::Closing
    }

    /// Resolves when it was closed: nobody waits for a call through it any more.
    pub async fn ended(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Closed).await;
    }

    /// Whether a node has refused the password and none was found to accept it.
    pub fn is_refused(&self) -> bool {
        self.common.passwords.are_refused()
    }

    /// Whether an operator had granted the HSM a login before the Connection began.
    pub fn has_granted_login(&self, hsm: &HsmId) -> bool {
        self.common.passwords.have_granted_login(hsm)
    }

    /// The passwords of its nodes.
    pub fn passwords(&self) -> &Arc<Passwords> {
        &self.common.passwords
    }

    /// Whether all that is in its tokens is keyway's, as in kmsuser's. Other people have objects of their own.
    pub fn is_keyways_alone(&self) -> bool {
        *self.common.passwords.username() == Username::kmsuser()
    }

    /// Gives a node that serves a new password. Its worker is replaced, and the next one finds out what came of it.
    pub async fn change_password(&self, member: &Member, new: Arc<Credential>) -> Change {
        node::change_password(&member.node, &self.common, new).await
    }

    /// Starts keeping a node up: worker, login (one attempt, if the budget has one), proof. Nothing happens when that is under way,
    /// or when the node has left.
    pub fn bring_up(self: &Arc<Self>, member: &Arc<Member>) {
        let mut supervision = member.lock_supervision();
        if supervision.is_some() || self.is_closed() || !self.is_member(member) {
            return;
        }
        let (stop, stopped) = watch::channel(false);
        let keep_up = node::supervise(member.node.clone(), self.common.clone(), stopped.clone());
        let tasks = vec![
            tokio::spawn(keep_up),
            tokio::spawn(prove::keep_proved(self.clone(), member.clone(), stopped.clone())),
            tokio::spawn(health::keep_checked(self.clone(), member.clone(), stopped)),
        ];
        *supervision = Some(Supervision { stop, tasks });
    }

    /// Takes every node down. Workers end by themselves afterwards, in any case.
    pub async fn close(&self, closing: Closing) {
        self.stage.send_replace(Stage::Closing);
        let patience = match closing {
            Closing::Drain(patience) => patience,
            Closing::Now => Duration::ZERO,
        };
        let members = self.members();
        let all = futures_util::future::join_all(members.iter().map(|member| member.take_down()));
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(cluster = %self.cluster, "closing while calls may still be running");
            let links: Vec<_> = members.iter().flat_map(|member| member.node.links()).collect();
            // Each is closed before any lets go of its calls: none of them is to go on to the next.
            links.iter().for_each(|link| link.close());
            links.iter().for_each(|link| link.cut_off());
            for member in members.iter() {
                if let Some(supervision) = member.lock_supervision().take() {
                    supervision.stop.send_replace(true);
                }
            }
        }
        self.stage.send_replace(Stage::Closed);
    }

    /// One of `uses` is taken before each attempt after one that may have encrypted.
    pub async fn encrypt<R: Repeat>(
        &self,
        key: &KeyInHsms,
        aad: Vec<u8>,
        plaintext: Plaintext,
        deadline: Instant,
        uses: &R,
    ) -> Result<Sealed, R::Refused> {
        let verb = Verb::Encrypt(v1::Encrypt {
            cka_id: key.cka_id(),
            aad,
            plaintext: plaintext.into_exposed(),
            probe: key.probe.0.clone(),
        });
        match self.run(Wanted::with(&key.id), verb, deadline, uses).await? {
            Outcome::Sealed(v1::Sealed { iv, sealed }) => Ok(Sealed { iv, sealed }),
            _ => Err(Failure::OutOfTurn.into()),
        }
    }

    pub async fn decrypt(
        &self,
        key: &KeyInHsms,
        aad: Vec<u8>,
        sealed: Sealed,
        deadline: Instant,
    ) -> Result<Plaintext, Failure> {
        let verb = Verb::Decrypt(v1::Decrypt {
            cka_id: key.cka_id(),
            aad,
            iv: sealed.iv,
            sealed: sealed.sealed,
            probe: key.probe.0.clone(),
        });
        match self.run(Wanted::with(&key.id), verb, deadline, &Freely).await? {
            Outcome::Opaque(opaque) => Ok(Plaintext::new(opaque.bytes)),
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// A data key of `number_of_bytes`, whose plaintext leaves the worker only when asked for. It is encrypted as in
    /// [`Connection::encrypt`].
    pub async fn generate_data_key<R: Repeat>(
        &self,
        key: &KeyInHsms,
        aad: Vec<u8>,
        number_of_bytes: u32,
        with_plaintext: bool,
        deadline: Instant,
        uses: &R,
    ) -> Result<Generated, R::Refused> {
        let verb = Verb::GenerateDataKey(v1::GenerateDataKey {
            cka_id: key.cka_id(),
            aad,
            number_of_bytes,
            with_plaintext,
            probe: key.probe.0.clone(),
        });
        match self.run(Wanted::with(&key.id), verb, deadline, uses).await? {
            Outcome::DataKey(v1::DataKey { plaintext, iv, sealed }) => {
                Ok(Generated { plaintext: Plaintext::new(plaintext), sealed: Sealed { iv, sealed } })
            }
            _ => Err(Failure::OutOfTurn.into()),
        }
    }

    pub async fn generate_random(&self, number_of_bytes: u32, deadline: Instant) -> Result<Plaintext, Failure> {
        let verb = Verb::GenerateRandom(v1::GenerateRandom { number_of_bytes });
        match self.run(Wanted::default(), verb, deadline, &Freely).await? {
            Outcome::Opaque(opaque) => Ok(Plaintext::new(opaque.bytes)),
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// Repeatable work, on whichever node serves it. `repeat` gives its leave before an HSM is given again what another, or the
    /// same, may have done.
    pub(super) async fn run<R: Repeat>(
        &self,
        wanted: Wanted<'_>,
        verb: Verb,
        deadline: Instant,
        repeat: &R,
    ) -> Result<Outcome, R::Refused> {
        let mut request = Request { verb: Some(verb), ..Request::default() };
        let mut history = History::default();
        let mut asked = Vec::new();
        let mut again = None;
        let mut left: Option<Arc<Member>> = None;
        let mut suspicion = None;
        let mut may_be_done = false;
        loop {
            // Those of now: one that has joined since the request began may be all there is.
            let Some((member, others)) = again.take().or_else(|| self.choose(wanted, &asked)) else {
                return Err(history.exhausted(self.why_nobody(wanted)).into());
            };
            if let Some(left) = left.take() {
                self.common.host.tallies().of(&left.node.spec).request_moved_on();
            }
            if history.is_suspect() && suspicion.is_none() {
                suspicion = Some(self.alone(deadline).await?);
            }
            if std::mem::take(&mut may_be_done) {
                repeat.leave().await?;
            }
            let now = Instant::now();
            let attempt = now + history.attempt(deadline.saturating_duration_since(now), others);
            let error = match member.node.call(&mut request, attempt).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            heed(&member, wanted.key, &error);
            may_be_done |= error.was_handed_over();
            match history.after(&error, Effect::Repeatable, Instant::now() >= deadline) {
                Next::SameNode => again = Some((member, others)),
                Next::OtherNode => {
                    tracing::debug!(hsm = %member.node.hsm(), %error, "asking another node");
                    left = Some(member.clone());
                    asked.push(member);
                }
                Next::Stop(failure) => {
                    if matches!(failure, Failure::BadInput | Failure::Poisonous) {
                        tracing::warn!(hsm = %member.node.hsm(), %error, "request given up");
                    }
                    return Err(failure.into());
                }
            }
        }
    }

    /// A worker died under the request, and under everything else that was on it. One such request at a time goes on, so that
    /// if another worker dies, it is clear under which.
    async fn alone(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Failure> {
        match tokio::time::timeout_at(deadline, self.suspects.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Failure::Late),
        }
    }

    /// The one to ask next, and how many others could be asked after it.
    fn choose(&self, wanted: Wanted<'_>, asked: &[Arc<Member>]) -> Option<(Arc<Member>, usize)> {
        let members = self.members();
        let mut candidates = 0;
        let chosen = route::choose(
            self.candidates(&members, wanted, asked).inspect(|_| candidates += 1),
            self.turn.fetch_add(1, Relaxed),
            members.len(),
        );
        chosen.map(|index| (members[index].clone(), candidates - 1))
    }

    fn candidates(
        &self,
        members: &[Arc<Member>],
        wanted: Wanted<'_>,
        asked: &[Arc<Member>],
    ) -> impl Iterator<Item = Candidate> {
        let was_asked = |member| asked.iter().any(|asked| Arc::ptr_eq(asked, member));
        let able = members.iter().enumerate().filter(move |(_, member)| !was_asked(member) && wanted.is_met_by(member));
        able.filter_map(|(index, member)| {
            Some(Candidate {
                index,
                load: member.proved_load()?,
                near: self.zone.as_ref().is_none_or(|zone| *zone == member.node.zone),
                slow: member.is_slow(),
            })
        })
    }

    fn why_nobody(&self, wanted: Wanted<'_>) -> Failure {
        let Wanted { key, ability } = wanted;
        match (key, ability) {
            (Some(key), Some(needed)) if self.lack_of_holders(key, needed).is_some() => {
                Failure::Unsupported(needed.name().to_owned())
            }
            (Some(_), _) if self.any_proved() => Failure::KeyUnavailable,
            _ => Failure::NoNode,
        }
    }

    // ---- one node at a time, for the rooms above ----------------------------------------------

    /// One request to one node, repeated on a fresh session at most once.
    pub(super) async fn ask(
        &self,
        member: &Member,
        verb: Verb,
        effect: Effect,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let mut request = Request { verb: Some(verb), ..Request::default() };
        let mut history = History::default();
        loop {
            let error = match member.node.call(&mut request, deadline).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            match history.after(&error, effect, Instant::now() >= deadline) {
                Next::SameNode => {}
                Next::OtherNode => {
                    tracing::debug!(hsm = %member.node.hsm(), %error, "node failed");
                    return Err(history.exhausted(Failure::NoNode));
                }
                Next::Stop(failure) => {
                    tracing::debug!(hsm = %member.node.hsm(), %error, "node failed");
                    return Err(failure);
                }
            }
        }
    }

    /// The nodes a new key can be made on or copied to, in the order in which they are asked.
    pub fn ready_for_new_keys(&self) -> Vec<Arc<Member>> {
        let members = self.members();
        let ready = self.candidates(&members, Wanted::default(), &[]);
        let in_order = route::in_order(ready, self.turn.fetch_add(1, Relaxed), members.len());
        let mut nodes: Vec<_> = in_order.into_iter().map(|index| members[index].clone()).collect();
        // One that could not take a key would leave it unknown whether it had made the next.
        nodes.sort_by_key(|member| !member.is_level());
        nodes
    }
}

/// What a node must have, and be able to do, to be asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted<'a> {
    key: Option<&'a CkaId>,
    /// One that has not said whether it can may be asked.
    ability: Option<Needed>,
}

impl<'a> Wanted<'a> {
    pub(super) const fn with(key: &'a CkaId) -> Self {
        Self { key: Some(key), ability: None }
    }

    pub(super) const fn that_can(self, needed: Needed) -> Self {
        Self { ability: Some(needed), ..self }
    }

    fn is_met_by(self, member: &Member) -> bool {
        self.key.is_none_or(|key| member.has(key)) && self.ability.is_none_or(|needed| member.lack(needed).is_none())
    }
}

/// In how many zones these nodes are.
pub fn zones(members: &[Arc<Member>]) -> usize {
    members.iter().map(|member| &member.node.zone).collect::<BTreeSet<_>>().len()
}

/// What an error on a node says beside what it means for the request.
fn heed(member: &Member, key: Option<&CkaId>, error: &CallError) {
    let CallError::Fault(fault) = error else { return };
    match (fault.kind(), key) {
        (v1::fault::Kind::KeyMissing, Some(key)) => {
            tracing::warn!(hsm = %member.node.hsm(), ?key, "a key is missing on a node that should have it");
            member.doubt(*key);
        }
        // Whether the node is to blame, or the request, only the node's own key can tell.
        (v1::fault::Kind::Device, _) => member.suspected.notify_one(),
        _ => {}
    }
}

/// Resolves when one of them changes. Never without any.
async fn any_changed(statuses: &mut [watch::Receiver<Status>]) {
    if statuses.is_empty() {
        return std::future::pending().await;
    }
    let _ = select_all(statuses.iter_mut().map(|status| Box::pin(status.changed()))).await;
}

/// A kind of key as the link names it.
pub(super) fn kind(kind: KeyKind) -> Result<i32, Failure> {
    let named = v1::KeyKind::of(kind).map(Into::into);
    named.ok_or_else(|| Failure::Unsupported(format!("{} for {}", kind.spec(), kind.usage())))
}
