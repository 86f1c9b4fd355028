//! One worker at a time per node and user: a lock file that the worker itself holds for life.
//!
//! The lock is taken here and travels to the worker as its standard output (opened for reading
//! only, so that nothing can be printed there): it is held from before the worker starts until the
//! kernel has closed the worker's last descriptor, whatever became of the daemon.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use super::OpeningError;

/// How often a taken lock is tried again. The kernel tells nobody asynchronously when a lock is free.
const TRY_EVERY: Duration = Duration::from_millis(10);
/// Beyond its running calls' patience a worker gets this long to leave.
const GRACE: Duration = Duration::from_secs(1);

/// A slot's lock, held.
#[derive(Debug)]
pub(super) struct SlotLock(pub(super) File);

/// How long [`take`] waits at most, when it kills what is stuck.
pub(super) fn longest_wait(patience: Duration) -> Duration {
    patience + 2 * GRACE
}

/// Waits until the slot is free. Its former worker ends by itself when its link has ended and its running calls have returned; past `patience` it is stuck, and killed.
pub(super) async fn take(directory: &Path, slot: &str, patience: Duration) -> Result<SlotLock, OpeningError> {
    let path = directory.join(format!("{slot}.lock"));
    let file = open(&path).map_err(|source| OpeningError::Files { path: path.clone(), source })?;
    let give_up = Instant::now() + patience + GRACE;
    let mut killed = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(SlotLock(file)),
            Err(TryLockError::Error(source)) => return Err(OpeningError::Files { path, source }),
            Err(TryLockError::WouldBlock) => {}
        }
        let now = Instant::now();
        if now >= give_up && !killed {
            kill_holder(directory, slot);
            killed = true;
        }
        if now >= give_up + GRACE {
            return Err(OpeningError::SlotTaken(slot.to_owned()));
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// The slots with this beginning that ever had a worker.
pub(super) fn known(directory: &Path, beginning: &str) -> std::io::Result<Vec<String>> {
    let mut slots = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let slot = name.strip_suffix(".lock").filter(|slot| slot.starts_with(beginning));
        slots.extend(slot.map(str::to_owned));
    }
    Ok(slots)
}

/// Notes which process holds the slot, for a daemon started later.
pub(super) fn note_holder(directory: &Path, slot: &str, pid: u32) -> std::io::Result<()> {
    std::fs::write(pid_file(directory, slot), pid.to_string())
}

fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    File::open(path)
}

fn pid_file(directory: &Path, slot: &str) -> PathBuf {
    directory.join(format!("{slot}.pid"))
}

/// Kills the slot's worker, and nobody else: the process is pinned first, then recognised by its command line.
fn kill_holder(directory: &Path, slot: &str) {
    let pid = std::fs::read_to_string(pid_file(directory, slot)).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let command_line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let expected = format!("worker\0{slot}\0");
    if command_line.windows(expected.len()).any(|part| part == expected.as_bytes()) {
        tracing::warn!(slot, pid = pid.as_raw_nonzero(), "killing a worker that is stuck past its patience");
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slot_has_one_holder_and_passes_on_when_that_one_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let held = take(directory.path(), "a", Duration::ZERO).await.unwrap();
        let waiting = tokio::spawn({
            let directory = directory.path().to_owned();
            async move { take(&directory, "a", Duration::from_secs(30)).await }
        });
        assert!(take(directory.path(), "b", Duration::ZERO).await.is_ok(), "another slot is free");
        drop(held);
        assert!(waiting.await.unwrap().is_ok());
    }
}
