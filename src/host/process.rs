//! A worker's process: how it is started, and how its end is noticed.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::process::Command;

use super::slot::{self, SlotLock};
use super::{OpeningError, WorkerLink, WorkerSpec};

/// What a worker, or an operator's program, inherits of the daemon's environment, beside what it is given.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];

/// A worker's process, pinned: a signal reaches this process or none.
#[derive(Debug)]
pub struct WorkerProcess {
    pinned: OwnedFd,
    pub pid: u32,
}

impl WorkerProcess {
    /// SIGKILL: only for a call past its patience, since killing in the middle of a login or key generation damages SoftHSM2 tokens.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pinned, Signal::KILL);
    }
}

/// Starts the worker with its end of the link as standard input and its slot's lock as standard output.
pub(super) fn spawn(directory: &Path, spec: &WorkerSpec, lock: SlotLock) -> Result<WorkerLink, OpeningError> {
    let slot = spec.slot_name();
    let (link, process) = spawn_as(spec, &slot, Stdio::from(lock.0))?;
    slot::note_holder(directory, &slot, process.pid)
        .map_err(|source| OpeningError::Files { path: directory.to_owned(), source })?;
    Ok(WorkerLink::new(link, process))
}

/// What a child inherits of the daemon's environment.
pub(super) fn inherited() -> impl Iterator<Item = (&'static str, std::ffi::OsString)> {
    INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// Starts an admin worker, which holds no slot.
pub(super) fn spawn_admin(spec: &WorkerSpec) -> Result<WorkerLink, OpeningError> {
    let (link, process) = spawn_as(spec, &format!("{}.admin", spec.slot_name()), Stdio::null())?;
    Ok(WorkerLink::new(link, process))
}

/// Starts a worker for one job on the token of a user, whose slot it holds as long as it lives.
pub(super) fn spawn_job(spec: &WorkerSpec, job: &str, lock: SlotLock) -> Result<WorkerLink, OpeningError> {
    let (link, process) = spawn_as(spec, &format!("{}.{job}", spec.slot_name()), Stdio::from(lock.0))?;
    Ok(WorkerLink::new(link, process))
}

/// Starts a worker for one login. It holds no slot.
pub(super) fn spawn_trial(spec: &WorkerSpec) -> Result<WorkerLink, OpeningError> {
    let (link, process) = spawn_as(spec, &format!("{}.trial", spec.slot_name()), Stdio::null())?;
    Ok(WorkerLink::new(link, process))
}

/// Starts a worker that only looks whether a token is there.
pub(super) fn spawn_lookout(spec: &WorkerSpec) -> Result<WorkerLink, OpeningError> {
    let (link, process) = spawn_as(spec, &format!("{}.lookout", spec.slot_name()), Stdio::null())?;
    Ok(WorkerLink::new(link, process))
}

fn spawn_as(spec: &WorkerSpec, name: &str, stdout: Stdio) -> Result<(UnixStream, WorkerProcess), OpeningError> {
    let (ours, theirs) = StdStream::pair().map_err(OpeningError::Spawn)?;
    ours.set_nonblocking(true).map_err(OpeningError::Spawn)?;
    // This very executable, even when the file was replaced since: both ends of a link are of one build.
    let mut child = Command::new("/proc/self/exe")
        .arg0("keyway")
        .args(["worker", name])
        .env_clear()
        .envs(inherited())
        .envs(&spec.environment)
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
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) if status.success() => tracing::debug!(pid, "worker ended"),
            Ok(status) => tracing::warn!(pid, %status, "worker ended"),
            Err(error) => tracing::warn!(pid, %error, "worker could not be waited for"),
        }
    });
    let link = UnixStream::from_std(ours).map_err(OpeningError::Spawn)?;
    Ok((link, WorkerProcess { pinned, pid }))
}
