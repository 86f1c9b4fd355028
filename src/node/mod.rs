//! One HSM node seen from the daemon: its worker's link, what is outstanding on it, its login, its health.
//!
//! A node knows one crypto user at a time. It is brought up and kept up by its own task
//! ([`supervise()`]): start a worker, log in when the login budget allows it, serve until the link
//! ends, and again with back-off. It knows nothing of keys, of other nodes, or of which request matters more.
//!
//! ```text
//!   Absent ──worker started──▶ (login) ──▶ Syncing ──proved and level──▶ Healthy
//!     ▲  ▲                        │            │                            │
//!     │  └──────back-off──────────┼────────────┴──────link ended────────────┘
//!     └── operator ── LoginRefused ◀── refused, or no attempt left
//! ```

mod link;
mod login;
mod supervise;

use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::host::WorkerSpec;
use crate::link::v1::{Fault, Request, response::Outcome};
use crate::model::{HsmId, Password, PasswordVersion, Username, Zone};

pub use link::{Link, Load};
pub use login::LoginRefusal;
pub use supervise::supervise;

/// A crypto user's password, and which one it is.
#[derive(Debug)]
pub struct Credential {
    pub username: Username,
    pub password: Password,
    pub version: PasswordVersion,
}

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
    /// Counts the logins of this node, so that what was proved of one worker is not believed of the next.
    pub login: u64,
}

/// What a token says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The link ended after the request was handed over; it may have been done.
    #[error("the node's worker ended before it answered")]
    Lost,
    #[error("the request does not fit into a frame")]
    TooLong,
    /// The worker answered with a fault.
    #[error("{} answered 0x{:x} ({})", .0.function, .0.ckr, .0.detail)]
    Fault(Fault),
}

/// One HSM node of a Connection.
#[derive(Debug)]
pub struct Node {
    pub spec: WorkerSpec,
    pub zone: Zone,
    queue_limit: NonZeroU32,
    status: watch::Sender<Status>,
    serving: RwLock<Option<Arc<Link>>>,
}

impl Node {
    pub fn new(spec: WorkerSpec, zone: Zone, queue_limit: NonZeroU32) -> Arc<Self> {
        let status = Status {
            health: Health::NotProbed,
            reason: "not connected yet".to_owned(),
            since: clock::now(),
            last_error: None,
            login_refusal: None,
            worker_restarts: 0,
            next_retry: None,
            token: None,
            login: 0,
        };
        Arc::new(Self { spec, zone, queue_limit, status: watch::Sender::new(status), serving: RwLock::new(None) })
    }

    pub fn hsm(&self) -> &HsmId {
        &self.spec.hsm
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What is outstanding here, `None` when nobody is logged in.
    pub fn load(&self) -> Option<Load> {
        self.link().map(|link| link.load())
    }

    /// One round trip to the worker. `request` is lent, so that it can be sent elsewhere when this node fails.
    pub async fn call(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let link = self.link().ok_or(CallError::NotServing)?;
        match link.call(request, deadline).await? {
            Outcome::Fault(fault) => Err(CallError::Fault(fault)),
            outcome => Ok(outcome),
        }
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

    /// The room above has brought the token of this login level.
    pub fn level(&self, login: u64) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && status.health == Health::Syncing;
            if applies {
                change(status, Health::Healthy, "logged in, proved and level");
            }
            applies
        });
    }

    /// Says why a node that is logged in is not level yet.
    pub fn not_level(&self, login: u64, reason: &str) {
        self.status.send_if_modified(|status| {
            let applies = status.login == login && matches!(status.health, Health::Syncing | Health::Healthy);
            if applies {
                change(status, Health::Syncing, reason);
                status.last_error = Some((reason.to_owned(), clock::now()));
            }
            applies
        });
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, link: Option<Arc<Link>>) {
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = link;
    }
}

/// A new health; the time of change is kept when only the reason is new.
fn change(status: &mut Status, health: Health, reason: &str) {
    if status.health != health {
        status.since = clock::now();
    }
    status.health = health;
    reason.clone_into(&mut status.reason);
}
