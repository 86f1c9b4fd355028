//! The host: starts workers and watches them end, one slot each, and runs admin jobs on tokens we manage.
//!
//! Failed logins are counted here, as an HSM counts them, and lock the users of tokens that we manage.
//!
//! A *slot* is one node and one crypto user: at most one serving worker holds its lock, and a
//! successor waits until the former one is gone before it looks at what that one did. Starts and
//! logins on one node take turns, because a start during another process's login may not see the token.
//! The host never decides whether a login may be tried; it only makes the attempt it is told to make.

mod admin;
mod attempts;
mod carry;
#[cfg(test)]
mod example;
mod fault;
mod home;
mod keeper;
mod local;
mod location;
mod lookout;
mod opening;
mod process;
mod program;
mod remote;
pub mod served;
mod slot;
mod softhsm;
mod tally;
mod trial;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use crate::link::Patience;
use crate::link::v1;
use crate::model::{ClusterId, HsmId, Password, TrustAnchor, Username};
use crate::tls::ClientFiles;

use local::Local;
use remote::Remote;

pub use admin::{AdminWorker, Joining, Kek, Made};
pub use home::HsmHome;
pub use location::{LocalToken, Location, RemoteNode, TokenName};
pub use lookout::Lookout;
pub use opening::{OpeningError, WorkerLink};
pub use process::WorkerProcess;
pub use program::{PasswordChange, Program, ProgramError};
pub use remote::DialError;
pub use softhsm::{TokenDirectory, usual_softhsm2};
pub use tally::{End, Tallies, Tally};
pub use trial::Trial;
pub use users::{UserError, UserStanding};

/// A worker on another host is no more patient than this, whatever a daemon says.
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

/// Everything a worker needs to know of its node and user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    pub cluster: ClusterId,
    pub hsm: HsmId,
    pub username: Username,
    pub location: Location,
    /// How many sessions the worker's pool has.
    pub sessions: u32,
    pub patience: Patience,
    /// Resident memory beyond which a worker is replaced, in bytes.
    pub memory_limit: u64,
}

impl WorkerSpec {
    /// How the slot shows in file names and in the process list.
    fn slot_name(&self) -> String {
        format!("{}.{}.{}", self.cluster, self.hsm, self.username)
    }

    fn open_frame(&self, token: &LocalToken, sessions: u32) -> v1::Open {
        v1::Open {
            module: token.module.to_string_lossy().into_owned(),
            token: Some(token.name.clone().into()),
            sessions,
            patience_ms: milliseconds(self.patience.quick),
            slow_patience_ms: milliseconds(self.patience.slow),
        }
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What a worker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The slot's one worker, for as long as it is good.
    Serve,
    /// One of the SO's jobs.
    Administer,
    /// Giving a user a password, and a token if he has none. Done alone, and never asked for on a link.
    MakeToken,
    /// One login, to try a password.
    Try,
    /// Looking whether the token is there.
    Look,
}

impl Purpose {
    const fn sessions(self, spec: &WorkerSpec) -> u32 {
        match self {
            Self::Serve => spec.sessions,
            Self::Administer | Self::Try => 1,
            // There may be no token to have them with.
            Self::MakeToken | Self::Look => 0,
        }
    }
}

/// The right to start or log in on one node, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _held: tokio::sync::OwnedMutexGuard<()>,
}

/// Starts workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    local: Local,
    remote: Remote,
    tallies: Tallies,
}

impl Host {
    /// `identity` is what this daemon shows to `keyway node`s.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(directory: PathBuf, identity: Option<ClientFiles>) -> std::io::Result<Self> {
        Ok(Self { local: Local::new(directory)?, remote: Remote::new(identity), tallies: Tallies::default() })
    }

    /// Whether this daemon is somebody to `keyway node`s.
    pub fn has_identity(&self) -> bool {
        self.remote.has_identity()
    }

    /// What was asked of the HSMs, and what came of it.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Starts the slot's serving worker once its predecessor is gone, and opens its sessions. Nobody is logged in yet.
    pub async fn start(&self, spec: &WorkerSpec) -> Result<WorkerLink, OpeningError> {
        self.open(spec, Purpose::Serve).await
    }

    /// Keeps a copy of the token as it is, from before a PIN change or after one, to be put back when a kill empties it.
    pub async fn keep_token(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<(), OpeningError> {
        match &spec.location {
            Location::Here(token) => self.local.keep_token(spec, token),
            Location::There(node) => self.remote.keep_token(spec, node).await,
        }
    }

    /// Waits for the node's turn.
    pub async fn turn(&self, spec: &WorkerSpec) -> Turn {
        self.local.turn(spec).await
    }

    async fn open(&self, spec: &WorkerSpec, purpose: Purpose) -> Result<WorkerLink, OpeningError> {
        match &spec.location {
            Location::Here(token) => self.local.open(spec, token, purpose).await,
            Location::There(node) => self.remote.open(spec, node, purpose).await,
        }
    }

    /// Whether the node that answers there has a certificate under this trust anchor.
    pub async fn believe(&self, node: &RemoteNode, anchor: &TrustAnchor) -> Result<(), DialError> {
        self.remote.believe(node, anchor).await
    }

    /// Whether a node on another host is one under its trust anchor that has this HSM.
    pub async fn has(&self, node: &RemoteNode, cluster: &ClusterId, hsm: &HsmId) -> Result<(), DialError> {
        self.remote.has(node, cluster, hsm).await
    }
}

/// The PIN's text for a user of a SoftHSM2 or CloudHSM token: `user:password`.
pub fn pin_text(username: &Username, password: &Password) -> Password {
    Password::trusted(format!("{username}:{}", password.expose()))
}
