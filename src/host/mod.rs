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
mod lookout;
mod opening;
mod process;
mod program;
mod slot;
mod softhsm;
mod trial;
mod users;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::link::Patience;
use crate::link::v1::{self, open::Token};
use crate::model::{ClusterId, HsmId, Password, Username};

pub use admin::{AdminError, AdminWorker, Joining, Kek, Made};
pub use lookout::Lookout;
pub use opening::{OpeningError, WorkerLink};
pub use process::WorkerProcess;
pub use program::{PasswordChange, Program, ProgramError, Vacant};
pub use softhsm::TokenDirectory;
pub use trial::Trial;
pub use users::{UserError, UserStanding};

/// Everything a worker needs to know of its node and user.
#[derive(Debug, Clone)]
pub struct WorkerSpec {
    pub cluster: ClusterId,
    pub hsm: HsmId,
    pub username: Username,
    /// The vendor's PKCS#11 library.
    pub module: PathBuf,
    pub token: Token,
    pub environment: BTreeMap<String, String>,
    /// How many sessions the worker's pool has.
    pub sessions: u32,
    pub patience: Patience,
    /// Resident memory beyond which a worker is replaced, in bytes.
    pub memory_limit: u64,
    /// The file with the SO PIN, for tokens we manage.
    pub so_pin_file: Option<PathBuf>,
}

impl WorkerSpec {
    /// How the slot shows in file names and in the process list.
    fn slot_name(&self) -> String {
        format!("{}.{}.{}", self.cluster, self.hsm, self.username)
    }

    fn open_frame(&self, sessions: u32) -> v1::Open {
        v1::Open {
            module: self.module.to_string_lossy().into_owned(),
            token: Some(self.token.clone()),
            sessions,
            patience_ms: milliseconds(self.patience.quick),
            slow_patience_ms: milliseconds(self.patience.slow),
        }
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// The right to start or log in on one node, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _held: tokio::sync::OwnedMutexGuard<()>,
}

/// Starts workers on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    /// Slot locks, pid files and token copies.
    directory: PathBuf,
    /// One turn at a time for whoever starts or logs in on a node.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Host {
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(directory: PathBuf) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory, turns: Arc::default() })
    }

    /// Starts the slot's serving worker once its predecessor is gone, and opens its sessions. Nobody is logged in yet.
    pub async fn start(&self, spec: &WorkerSpec) -> Result<WorkerLink, OpeningError> {
        let lock = slot::take(&self.directory, &spec.slot_name(), spec.patience.longest()).await?;
        let _turn = self.turn(spec).await;
        softhsm::repair(&self.directory, spec)?;
        let mut link = process::spawn(&self.directory, spec, lock)?;
        link.open(spec.open_frame(spec.sessions)).await?;
        Ok(link)
    }

    /// Logs a started worker's user in: one login attempt, which the caller has written down in the node's turn, so that
    /// no two are begun at once. `pin` is the text the token wants.
    pub async fn log_in(
        &self,
        _turn: &Turn,
        spec: &WorkerSpec,
        link: &mut WorkerLink,
        pin: &Password,
    ) -> Result<(), OpeningError> {
        softhsm::save(&self.directory, spec)?;
        attempts::counted(&self.directory, spec, link.log_in(pin)).await
    }

    /// Keeps a copy of the token as it is, from before a PIN change or after one, to be put back when a kill empties it.
    pub fn keep_token(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<(), OpeningError> {
        softhsm::save(&self.directory, spec)
    }

    /// Waits for the node's turn.
    pub async fn turn(&self, spec: &WorkerSpec) -> Turn {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(format!("{}.{}", spec.cluster, spec.hsm)).or_default().clone()
        };
        Turn { _held: turn.lock_owned().await }
    }
}

/// The PIN's text for a user of a SoftHSM2 or CloudHSM token: `user:password`.
pub fn pin_text(username: &Username, password: &Password) -> Password {
    Password::trusted(format!("{username}:{}", password.expose()))
}
