//! One HSM node seen from the daemon: its worker's link, what is outstanding on it, its login, its health.
//!
//! A node knows one crypto user at a time. It is brought up and kept up by its own task
//! ([`supervise()`]): start a worker, log in when the login budget allows it, serve until the link
//! ends, and again with back-off. It knows nothing of keys, of other nodes, or of which request matters more.
//!
//! ```text
//!                             ┌────────── too slow ──────────┐ (and back)
//!                             ▼                              ▼
//!   NotProbed ──login──▶ Syncing ──proved and level──▶ Healthy, Slow
//!    ▲  ▲  │                  │                              │
//!    │  │  └─▶ LoginRefused   └──── worker ended, useless ───┤
//!    │  │      WrongIdentity                                 ▼
//!    │  └─ operator ─┘ └────────── reached again ─────── Unreachable
//!    └─ operator ── Drained ◀── operator, from anywhere
//! ```

mod begun;
mod gate;
mod latency;
mod link;
mod login;
mod lookout;
mod passwords;
mod rotate;
mod settle;
mod supervise;
mod trial;

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::host::WorkerSpec;
use crate::link::v1::fault::Kind;
use crate::link::v1::{Fault, Request, response::Outcome};
use crate::model::{HsmId, PasswordVersion, Zone};

use link::GivenUp;

pub use begun::heard_out;
pub use latency::Latency;
pub use link::{Link, Load};
pub use login::{LoginRefusal, refusal};
pub use lookout::{Reach, look_out};
pub use passwords::{Credential, Passwords, Sharing};
pub use rotate::{Change, change_password};
pub use supervise::{Common, supervise};
pub use trial::{Slot, Tried, try_password, try_user};

/// How a node is, as far as the daemon can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nobody is logged in; nothing is known but, at most, that the token can be reached.
    NotProbed,
    /// Logged in, proved, and level with the records.
    Healthy,
    /// No worker can be started, or the last one has just ended.
    Unreachable,
    /// The token refused the password, or no attempt is left for it.
    LoginRefused,
    /// Logged in; being proved and brought level. Serves the keys that are known to be there.
    Syncing,
    /// As healthy as `Healthy`, but much slower than its siblings: asked when no other can be.
    Slow,
    /// An operator took it out of use.
    Drained,
    /// Its token is not the one it was. No password is sent there.
    WrongIdentity,
}

impl Health {
    /// Whether somebody is logged in, so that calls can be made.
    pub const fn is_logged_in(self) -> bool {
        match self {
            Self::Healthy | Self::Syncing | Self::Slow => true,
            Self::NotProbed | Self::Unreachable | Self::LoginRefused | Self::Drained | Self::WrongIdentity => false,
        }
    }
}

/// What an operator wants of a node.
#[derive(Debug, Clone, Default)]
struct Orders {
    drained: Option<Drained>,
    /// Counts the times it was resumed.
    resumed: u64,
}

#[derive(Debug, Clone)]
struct Drained {
    note: String,
    /// How long running calls get.
    limit: Duration,
}

/// A node's health with its reasons, for people and for whoever waits for a change.
#[derive(Debug, Clone)]
pub struct Status {
    pub health: Health,
    pub reason: String,
    pub since: SystemTime,
    pub last_error: Option<(String, SystemTime)>,
    pub login_refusal: Option<LoginRefusal>,
    pub worker_restarts: u32,
    pub next_retry: Option<SystemTime>,
    pub token: Option<TokenFacts>,
    /// Which password is in force there, as far as it is known.
    pub password: Option<PasswordVersion>,
    /// Counts the logins of this node, so that what was proved of one worker is not believed of the next.
    pub login: u64,
}

impl Status {
    /// Whether a login may be tried there before an operator allows one.
    pub fn may_log_in(&self) -> bool {
        self.login_refusal.is_none()
    }
}

/// What a token says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFacts {
    pub serial: String,
    pub model: String,
    pub firmware_version: String,
    pub sessions: u32,
}

/// Why a call on a node brought no answer of the worker's.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Refused before anything was sent.
    #[error("the node's queue is full")]
    Full,
    /// Refused before anything was sent.
    #[error("nobody is logged in to the node")]
    NotServing,
    /// The deadline passed while waiting for a place: nothing was sent.
    #[error("the deadline passed before the node was free")]
    LateBefore,
    /// The deadline passed after the request was handed over; it may yet be done.
    #[error("the deadline passed before the node answered")]
    LateAfter,
    /// The worker died after the request was handed over, which may be why; it may have been done.
    #[error("the node's worker died before it answered")]
    Died,
    /// The link ended after the request was handed over, and nobody said that the worker died; it may have been done.
    #[error("the link to the node's worker was lost before it answered")]
    Cut,
    #[error("the request does not fit into a frame")]
    TooLong,
    /// The worker answered with a fault.
    #[error("{} answered 0x{:x} ({})", .0.function, .0.ckr, .0.detail)]
    Fault(Fault),
}

impl CallError {
    /// Whether the request went to the worker, so that its HSM may have been asked.
    pub const fn was_handed_over(&self) -> bool {
        match self {
            Self::Full | Self::NotServing | Self::LateBefore | Self::TooLong => false,
            Self::LateAfter | Self::Died | Self::Cut | Self::Fault(_) => true,
        }
    }
}

/// What a node is made of. What is declared otherwise needs another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blueprint {
    pub spec: WorkerSpec,
    pub zone: Zone,
    pub queue_limit: NonZeroU32,
}

/// One HSM node of a Connection.
#[derive(Debug)]
pub struct Node {
    pub spec: WorkerSpec,
    pub zone: Zone,
    queue_limit: NonZeroU32,
    status: watch::Sender<Status>,
    orders: watch::Sender<Orders>,
    serving: RwLock<Option<Arc<Link>>>,
    /// Links that take no new calls, until their workers are gone.
    leaving: watch::Sender<Vec<Arc<Link>>>,
}

impl Node {
    /// A node at rest. `drained` is the operator's note on one that is out of use.
    pub fn new(Blueprint { spec, zone, queue_limit }: Blueprint, drained: Option<String>) -> Arc<Self> {
        let status = Status {
            health: Health::NotProbed,
            reason: "not connected yet".to_owned(),
            since: clock::now(),
            last_error: None,
            login_refusal: None,
            worker_restarts: 0,
            next_retry: None,
            token: None,
            password: None,
            login: 0,
        };
        let drained = drained.map(|note| Drained { note, limit: Duration::ZERO });
        Arc::new(Self {
            spec,
            zone,
            queue_limit,
            status: watch::Sender::new(status),
            orders: watch::Sender::new(Orders { drained, resumed: 0 }),
            serving: RwLock::new(None),
            leaving: watch::Sender::default(),
        })
    }

    pub fn hsm(&self) -> &HsmId {
        &self.spec.hsm
    }

    /// Whether another one of this blueprint would be the same.
    pub fn is_of(&self, Blueprint { spec, zone, queue_limit }: &Blueprint) -> bool {
        self.spec == *spec && self.zone == *zone && self.queue_limit == *queue_limit
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What is outstanding here, `None` when nobody is logged in.
    pub fn load(&self) -> Option<Load> {
        self.link().map(|link| link.load())
    }

    /// How many requests may wait here.
    pub fn queue_limit(&self) -> u32 {
        self.queue_limit.get()
    }

    /// How long its worker has answered nothing at all. `None` when nobody is logged in.
    pub fn silent_for(&self) -> Option<Duration> {
        Some(self.link()?.silent_for())
    }

    /// Whether its worker was given work that takes long by its nature, and has not answered it.
    pub fn is_at_slow_work(&self) -> bool {
        self.link().is_some_and(|link| link.is_at_slow_work())
    }

    /// What recent operations took, as the caller of this room waited for them. `None` without any.
    pub fn latency(&self) -> Option<Latency> {
        self.link()?.latency()
    }

    /// One round trip to the worker. `request` is lent, so that it can be sent elsewhere when this node fails.
    pub async fn call(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let link = self.link().ok_or(CallError::NotServing)?;
        heeded(&link, link.call(request, deadline).await?)
    }

    /// As [`Node::call`], past the queue, for looking after the node.
    pub async fn call_beside(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let link = self.link().ok_or(CallError::NotServing)?;
        heeded(&link, link.call_beside(request, deadline).await?)
    }

    /// The worker of this login is good for nothing any more: it is replaced.
    pub fn give_up(&self, login: u64, reason: &str) {
        if let Some(link) = self.link().filter(|link| link.load().login == login) {
            link.give_up(GivenUp::Useless(reason.to_owned()));
        }
    }

    /// Which password is in force there, or that nobody knows.
    pub fn has_password(&self, version: Option<PasswordVersion>) {
        self.status.send_if_modified(|status| {
            let news = status.password != version;
            status.password = version;
            news
        });
    }

    /// Something went wrong that leaves it as healthy as it was.
    pub fn note_trouble(&self, what: &str) {
        self.status.send_modify(|status| status.last_error = Some((what.to_owned(), clock::now())));
    }

    /// Takes the node out of use until it is resumed; running calls get `limit`.
    pub fn drain(&self, note: String, limit: Duration) {
        self.orders.send_modify(|orders| orders.drained = Some(Drained { note, limit }));
    }

    /// As [`Node::drain`], until every worker that served is gone.
    pub async fn drain_out(&self, note: &str, limit: Duration) {
        let link = self.link();
        self.drain(note.to_owned(), limit);
        if let Some(link) = link {
            link.ended().await;
        }
        self.vacated().await;
    }

    /// Back into use, whatever it waited for the operator for.
    pub fn resume(&self) {
        self.orders.send_modify(|orders| {
            orders.drained = None;
            orders.resumed += 1;
        });
    }

    /// The room above finds it much slower than its siblings, or no longer so.
    pub fn pace(&self, login: u64, slow: bool, reason: &str) {
        self.status.send_if_modified(|status| {
            let to = match (status.health, slow) {
                (Health::Healthy, true) => Health::Slow,
                (Health::Slow, false) => Health::Healthy,
                (
                    Health::Healthy
                    | Health::Slow
                    | Health::Syncing
                    | Health::NotProbed
                    | Health::Unreachable
                    | Health::LoginRefused
                    | Health::Drained
                    | Health::WrongIdentity,
                    _,
                ) => return false,
            };
            let applies = status.login == login;
            if applies {
                change(status, to, reason);
            }
            applies
        });
    }

    /// The room above has proved the worker of this login.
    pub fn proved(&self, login: u64) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health == Health::Syncing;
            if applies {
                change(status, Health::Syncing, "proved; keys it lacks are being copied to it");
            }
            applies
        });
    }

    /// How far the room above has come with bringing the token of this login level.
    pub fn getting_level(&self, login: u64, progress: &str) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health == Health::Syncing && status.reason != progress;
            if applies {
                change(status, Health::Syncing, progress);
            }
            applies
        });
    }

    /// The room above has brought the token of this login level. Whether that is news.
    pub fn level(&self, login: u64) -> bool {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health == Health::Syncing;
            if applies {
                change(status, Health::Healthy, "logged in, proved and level");
            }
            applies
        })
    }

    /// Says why a node that is logged in is not level yet.
    pub fn not_level(&self, login: u64, reason: &str) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health.is_logged_in();
            if applies {
                change(status, Health::Syncing, reason);
                status.last_error = Some((reason.to_owned(), clock::now()));
            }
            applies
        });
    }

    /// The login cannot be used yet, and nothing is wrong with it.
    pub fn waits(&self, login: u64, reason: &str) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health.is_logged_in();
            if applies {
                change(status, Health::Syncing, reason);
            }
            applies
        });
    }

    /// The worker that serves now.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The workers through which calls may run: the one that serves, and those that are let go.
    pub fn links(&self) -> Vec<Arc<Link>> {
        let serving = self.serving.read().unwrap_or_else(PoisonError::into_inner);
        self.leaving.borrow().iter().chain(serving.as_ref()).cloned().collect()
    }

    /// Resolves when no worker is being let go.
    pub async fn vacated(&self) {
        let _ = self.leaving.subscribe().wait_for(Vec::is_empty).await;
    }

    fn publish(&self, link: Arc<Link>) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }

    /// No new call reaches the link; the one that was there. It is known to be leaving until its worker is gone.
    fn unpublish(self: &Arc<Self>) -> Option<Arc<Link>> {
        let link = {
            let mut serving = self.serving.write().unwrap_or_else(PoisonError::into_inner);
            let link = serving.take()?;
            // Under the lock: at no moment is it neither here nor there.
            self.leaving.send_modify(|leaving| leaving.push(link.clone()));
            link
        };
        let (node, gone) = (self.clone(), link.clone());
        tokio::spawn(async move {
            gone.ended().await;
            node.leaving.send_modify(|leaving| leaving.retain(|other| !Arc::ptr_eq(other, &gone)));
        });
        Some(link)
    }
}

/// Some faults say more about the worker than about the call: it is replaced, which is also how a lost login comes back,
/// once for however many calls met it.
fn heeded(link: &Link, outcome: Outcome) -> Result<Outcome, CallError> {
    let Outcome::Fault(fault) = outcome else {
        return Ok(outcome);
    };
    let useless = match fault.kind() {
        Kind::LoginLost => Some("its login was lost"),
        Kind::TokenAbsent => Some("its token is gone"),
        Kind::DeviceRemoved => Some("its device was removed"),
        // Without a value it is our own: the library lacks a function, which another worker's would lack as well.
        Kind::Module if fault.ckr != 0 => Some("its library does not work any more"),
        Kind::Module
        | Kind::Unspecified
        | Kind::BadCiphertext
        | Kind::BadInput
        | Kind::KeyMissing
        | Kind::Late
        | Kind::Unsupported
        | Kind::PinIncorrect
        | Kind::PinLocked
        | Kind::UserLoggedIn
        | Kind::UserNotFound
        | Kind::PinRefused
        | Kind::Capacity
        | Kind::Protocol
        | Kind::Device => None,
    };
    if let Some(useless) = useless {
        link.give_up(GivenUp::Useless(format!("{useless}: {} answered 0x{:x}", fault.function, fault.ckr)));
    }
    Err(CallError::Fault(fault))
}

/// A new health; the time of change is kept when only the reason is new.
fn change(status: &mut Status, health: Health, reason: &str) {
    if status.health != health {
        status.since = clock::now();
    }
    status.health = health;
    reason.clone_into(&mut status.reason);
}
