//! A worker's process: how it is started, and how its end is noticed.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Notify, watch};

use super::slot::{self, SlotLock};
use super::{LocalToken, OpeningError, Purpose, WorkerSpec};

/// What a worker, or an operator's program, inherits of the daemon's environment, beside what it is given.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// A process whose link has ended is gone within this time, unless it is stuck in its library.
const LEAVING: Duration = Duration::from_secs(1);

/// A worker's process, here or on another host.
#[derive(Debug)]
pub struct WorkerProcess(Whose);

#[derive(Debug)]
enum Whose {
    /// Pinned: a signal reaches this process or none.
    Ours {
        pinned: OwnedFd,
        pid: u32,
        /// How it ended, once it has.
        end: watch::Receiver<Option<End>>,
    },
    /// The order goes to the host, past whatever waits for the worker.
    Another(Carried),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself, with its link.
    Left,
    /// By a signal, or a bug of ours.
    Died,
}

/// What is known here of a worker on another host.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) host: String,
    pub(super) kill: Arc<Notify>,
    /// Why its link was cut, once it was.
    pub(super) cut: Arc<OnceLock<String>>,
    /// Whether the host said that it died, before its link ended.
    pub(super) died: Arc<AtomicBool>,
}

impl WorkerProcess {
    pub(super) fn carried(carried: Carried) -> Self {
        Self(Whose::Another(carried))
    }

    /// SIGKILL: only for a call past its patience, since killing in the middle of a login or key generation damages SoftHSM2 tokens.
    pub fn kill(&self) {
        match &self.0 {
            Whose::Ours { pinned, .. } => drop(pidfd_send_signal(pinned, Signal::KILL)),
            Whose::Another(carried) => carried.kill.notify_one(),
        }
    }

    /// Why the link to it was cut, if it is on another host and the link was.
    pub fn cut(&self) -> Option<OpeningError> {
        match &self.0 {
            Whose::Ours { .. } => None,
            Whose::Another(Carried { host, cut, .. }) => {
                cut.get().map(|why| OpeningError::Cut { host: host.clone(), why: why.clone() })
            }
        }
    }

    /// Whether it is known to be dead, once its link has ended. The link of one on this machine lasts as long as the process
    /// does. One that leads to another host also ends with the network and with the host, so that the host's word counts.
    pub fn has_died(&self) -> bool {
        match &self.0 {
            Whose::Ours { .. } => true,
            Whose::Another(carried) => carried.died.load(Relaxed),
        }
    }

    /// Whether one of ours died, rather than left, whose link has ended: a stuck one is neither gone nor dead.
    pub(super) async fn is_seen_to_have_died(&self) -> bool {
        let Whose::Ours { end, .. } = &self.0 else { return false };
        let mut end = end.clone();
        let ended = tokio::time::timeout(LEAVING, end.wait_for(Option::is_some)).await;
        matches!(ended, Ok(Ok(end)) if *end == Some(End::Died))
    }
}

impl fmt::Display for WorkerProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Whose::Ours { pid, .. } => write!(f, "process {pid}"),
            Whose::Another(carried) => write!(f, "a process on {}", carried.host),
        }
    }
}

/// Starts a serving worker with its end of the link as standard input and its slot's lock as standard output.
pub(super) fn spawn_serving(
    directory: &Path,
    spec: &WorkerSpec,
    token: &LocalToken,
    lock: SlotLock,
) -> Result<(UnixStream, WorkerProcess), OpeningError> {
    let slot = spec.slot_name();
    let (link, process, pid) = spawn_as(token, &slot, Stdio::from(lock.0))?;
    slot::note_holder(directory, &slot, pid)
        .map_err(|source| OpeningError::Files { path: directory.to_owned(), source })?;
    Ok((link, process))
}

/// Starts a worker that holds no slot.
pub(super) fn spawn(
    spec: &WorkerSpec,
    token: &LocalToken,
    purpose: Purpose,
) -> Result<(UnixStream, WorkerProcess), OpeningError> {
    let (link, process, _pid) = spawn_as(token, &name(spec, purpose), Stdio::null())?;
    Ok((link, process))
}

/// Starts a worker for one job, which holds the slot as long as it lives.
pub(super) fn spawn_alone(
    spec: &WorkerSpec,
    token: &LocalToken,
    purpose: Purpose,
    lock: SlotLock,
) -> Result<(UnixStream, WorkerProcess), OpeningError> {
    let (link, process, _pid) = spawn_as(token, &name(spec, purpose), Stdio::from(lock.0))?;
    Ok((link, process))
}

/// How it shows in the process list.
fn name(spec: &WorkerSpec, purpose: Purpose) -> String {
    let slot = spec.slot_name();
    match purpose {
        Purpose::Serve => slot,
        Purpose::Administer | Purpose::MakeToken => format!("{slot}.admin"),
        Purpose::Try => format!("{slot}.trial"),
        Purpose::Look => format!("{slot}.lookout"),
    }
}

/// What a child inherits of the daemon's environment.
pub(super) fn inherited() -> impl Iterator<Item = (&'static str, std::ffi::OsString)> {
    INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

fn spawn_as(token: &LocalToken, name: &str, stdout: Stdio) -> Result<(UnixStream, WorkerProcess, u32), OpeningError> {
    let (ours, theirs) = StdStream::pair().map_err(OpeningError::Spawn)?;
    ours.set_nonblocking(true).map_err(OpeningError::Spawn)?;
    // This very executable, even when the file was replaced since: both ends of a link are of one build.
    let mut child = Command::new("/proc/self/exe")
        .arg0("keyway")
        .args(["worker", name])
        .env_clear()
        .envs(inherited())
        .envs(&token.environment)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(stdout)
        // A group of its own: what a terminal sends to the daemon's group is not meant for a worker.
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
        .map_err(OpeningError::Spawn)?;
    let pid = child.id().expect("not waited for yet");
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a child's pid is positive");
    let pinned = pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| OpeningError::Spawn(errno.into()))?;
    // Reaped whenever it ends; the link's end tells everybody else.
    let (ends, end) = watch::channel(None);
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) if status.success() => {
                tracing::debug!(pid, "worker ended");
                ends.send_replace(Some(End::Left));
            }
            Ok(status) => {
                tracing::warn!(pid, %status, "worker ended");
                ends.send_replace(Some(End::Died));
            }
            Err(error) => tracing::warn!(pid, %error, "worker could not be waited for"),
        }
    });
    let link = UnixStream::from_std(ours).map_err(OpeningError::Spawn)?;
    Ok((link, WorkerProcess(Whose::Ours { pinned, pid, end }), pid))
}
