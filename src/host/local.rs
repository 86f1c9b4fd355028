//! The workers of this machine: one slot each, started and logged in one at a time for each node.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::keeper::Keeper;
use super::slot::SlotLock;
use super::{LocalToken, OpeningError, Purpose, Turn, WorkerLink, WorkerProcess, WorkerSpec, process, slot, softhsm};

/// Starts workers on this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Local {
    /// Slot locks, pid files and token copies.
    directory: PathBuf,
    /// One turn at a time for whoever starts or logs in on a node.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    /// How long a link's end may go unnoticed here.
    unnoticed: Duration,
}

/// A worker that has not opened its token, and has nothing to lose: killed when that is given up or fails. Its library may
/// block for long.
struct Unwanted(Option<Arc<WorkerProcess>>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some(worker) = &self.0 {
            worker.kill();
        }
    }
}

impl Local {
    /// For a daemon on this machine, whose end its workers notice at once.
    pub(super) fn new(directory: PathBuf) -> std::io::Result<Self> {
        Self::for_daemons_elsewhere(directory, Duration::ZERO)
    }

    /// For daemons that may be gone so long before it is noticed.
    pub(super) fn for_daemons_elsewhere(directory: PathBuf, unnoticed: Duration) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory, turns: Arc::default(), unnoticed })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) async fn turn(&self, spec: &WorkerSpec) -> Turn {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(format!("{}.{}", spec.cluster, spec.hsm)).or_default().clone()
        };
        Turn { _held: turn.lock_owned().await }
    }

    /// Starts a worker and has it open its token. A job, and a login to try, are opened in the node's turn, which whoever
    /// calls this has; the others wait for it here.
    pub(super) async fn open(
        &self,
        spec: &WorkerSpec,
        token: &LocalToken,
        purpose: Purpose,
    ) -> Result<WorkerLink, OpeningError> {
        let keeper = Keeper::new(&self.directory, spec, token, purpose)?;
        let _turn;
        let (stream, process) = match purpose {
            Purpose::Serve => {
                let lock = self.slot(spec).await?;
                _turn = self.turn(spec).await;
                keeper.repair()?;
                process::spawn_serving(&self.directory, spec, token, lock)?
            }
            Purpose::Look => {
                _turn = self.turn(spec).await;
                process::spawn(spec, token, purpose)?
            }
            Purpose::Administer | Purpose::MakeToken | Purpose::Try => process::spawn(spec, token, purpose)?,
        };
        opened(WorkerLink::kept(stream, process, keeper), spec, token, purpose).await
    }

    /// As [`Local::open`] for a job or a login to try, in a worker that is given the slot: no other one uses the token
    /// meanwhile, not even one of a daemon before this. SoftHSM2 rewrites a token at each login from what it has in memory,
    /// and would take back what was changed.
    pub(super) async fn open_alone(
        &self,
        spec: &WorkerSpec,
        token: &LocalToken,
        purpose: Purpose,
        slot: SlotLock,
    ) -> Result<WorkerLink, OpeningError> {
        let keeper = Keeper::new(&self.directory, spec, token, purpose)?;
        keeper.repair()?;
        let (stream, process) = process::spawn_alone(spec, token, purpose, slot)?;
        opened(WorkerLink::kept(stream, process, keeper), spec, token, purpose).await
    }

    /// Waits until the slot has no worker, and keeps it so. A former one that does not know yet that its daemon is gone is
    /// not stuck.
    pub(super) async fn slot(&self, spec: &WorkerSpec) -> Result<SlotLock, OpeningError> {
        slot::take(&self.directory, &spec.slot_name(), self.unnoticed + spec.patience.longest()).await
    }

    pub(super) fn keep_token(&self, spec: &WorkerSpec, token: &LocalToken) -> Result<(), OpeningError> {
        softhsm::save(&self.directory, spec, token)
    }
}

async fn opened(
    mut link: WorkerLink,
    spec: &WorkerSpec,
    token: &LocalToken,
    purpose: Purpose,
) -> Result<WorkerLink, OpeningError> {
    let mut unwanted = Unwanted(matches!(purpose, Purpose::Look | Purpose::Try).then(|| link.process()));
    link.open(spec.open_frame(token, purpose.sessions(spec))).await?;
    unwanted.0 = None;
    Ok(link)
}
