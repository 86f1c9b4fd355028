//! A program of the operator's that changes a crypto user's password on every HSM of a cluster, where the vendor's
//! PKCS#11 library cannot.
//!
//! It runs while no worker of that user does, and never beside another run of it: it holds the run's lock as its standard
//! input, as a worker holds its slot's. A daemon that finds the lock taken by a former one's program waits for it, and past
//! its time kills it, before anybody logs in. Passwords reach it by its environment alone, and its output goes nowhere.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::time::Instant;

use crate::model::{ClusterId, Password, Username};

use super::slot::SlotLock;
use super::{Host, Location, OpeningError, Turn, WorkerLink, WorkerSpec, process};

/// How often a taken lock is tried again, as for slots.
const TRY_EVERY: Duration = Duration::from_millis(10);
/// A killed program gets this long to be gone.
const GRACE: Duration = Duration::from_secs(2);

/// The program, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// `{cluster}` and `{user}` stand for the ids.
    pub arguments: Vec<String>,
    pub timeout: Duration,
}

/// What is to be changed.
#[derive(Debug)]
pub struct PasswordChange<'a> {
    pub cluster: &'a ClusterId,
    pub username: &'a Username,
    pub old: &'a Password,
    pub new: &'a Password,
}

/// Why the program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Nothing was changed.
    #[error("{path} could not be started")]
    NotStarted {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Nothing was changed by this run, which was not begun.
    #[error("a former run of it does not end: something has {0} open")]
    FormerRuns(PathBuf),
    /// It was begun, and what it started may go on changing things.
    #[error("it does not end: something has {0} open")]
    StillRuns(PathBuf),
    /// Whether it changed something nobody knows.
    #[error("it failed: {0}")]
    Failed(ExitStatus),
    /// Whether it changed something nobody knows.
    #[error("it did not end within {0:?} and was killed")]
    TimedOut(Duration),
    /// Whether it changed something nobody knows.
    #[error("it could not be waited for")]
    Unknown(#[source] std::io::Error),
}

impl ProgramError {
    /// Whether it is certain that nothing was changed.
    pub const fn is_before_it_began(&self) -> bool {
        match self {
            Self::NotStarted { .. } | Self::FormerRuns(_) => true,
            Self::StillRuns(_) | Self::Failed(_) | Self::TimedOut(_) | Self::Unknown(_) => false,
        }
    }

    /// Whether a program may be changing passwords yet: nobody is to log in before it has ended.
    pub const fn is_under_way(&self) -> bool {
        match self {
            Self::FormerRuns(_) | Self::StillRuns(_) => true,
            Self::NotStarted { .. } | Self::Failed(_) | Self::TimedOut(_) | Self::Unknown(_) => false,
        }
    }
}

/// Nodes without a worker of the user, and without a way to start one, until this is dropped.
#[derive(Debug)]
pub struct Vacant {
    _held: Vec<(Held, Turn)>,
}

/// A slot that is kept free.
#[derive(Debug)]
enum Held {
    Here {
        _lock: SlotLock,
    },
    /// As long as the link lasts.
    There {
        _link: Box<WorkerLink>,
    },
}

impl Host {
    /// Waits until the workers of these slots are gone, and keeps others from being started.
    pub async fn vacate(&self, slots: &[WorkerSpec]) -> Result<Vacant, OpeningError> {
        let mut held = Vec::new();
        for spec in slots {
            let slot = match &spec.location {
                Location::Here(_) => Held::Here { _lock: self.local.slot(spec).await? },
                Location::There(node) => Held::There { _link: Box::new(self.remote.vacate(spec, node).await?) },
            };
            held.push((slot, self.turn(spec).await));
        }
        Ok(Vacant { _held: held })
    }

    /// Runs the program to its end, or to that of its time.
    pub async fn run_program(
        &self,
        _vacant: &Vacant,
        program: &Program,
        change: &PasswordChange<'_>,
    ) -> Result<(), ProgramError> {
        let path = || program.path.clone();
        let lock = self.program_lock(change.cluster, change.username, program.timeout).await?;
        let named = |argument: &String| {
            argument.replace("{cluster}", change.cluster.as_str()).replace("{user}", change.username.as_str())
        };
        let mut child = Command::new(&program.path)
            .args(program.arguments.iter().map(named))
            .env_clear()
            .envs(process::inherited())
            .env("KEYWAY_CLUSTER", change.cluster.as_str())
            .env("KEYWAY_USER", change.username.as_str())
            .env("KEYWAY_OLD_PASSWORD", change.old.expose())
            .env("KEYWAY_NEW_PASSWORD", change.new.expose())
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| ProgramError::NotStarted { path: path(), source })?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let ended = tokio::time::timeout(program.timeout, child.wait()).await;
        if ended.is_err() {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = tokio::time::timeout(GRACE, child.wait()).await;
        }
        // Also what it left running, which could change the password yet. It was begun: whatever is wrong with the lock now,
        // its passwords may be in force.
        let gone = self.program_gone(change.cluster, change.username, Duration::ZERO).await;
        gone.map_err(|_| ProgramError::StillRuns(self.program_lock_file(change.cluster, change.username)))?;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(ProgramError::Failed(status)),
            Ok(Err(error)) => Err(ProgramError::Unknown(error)),
            Err(_) => Err(ProgramError::TimedOut(program.timeout)),
        }
    }

    /// Waits until no program of a former daemon or connect is under way: `patience`, and then it is killed.
    pub async fn program_gone(
        &self,
        cluster: &ClusterId,
        user: &Username,
        patience: Duration,
    ) -> Result<(), ProgramError> {
        if !self.program_lock_file(cluster, user).exists() {
            return Ok(());
        }
        self.program_lock(cluster, user, patience).await.map(drop)
    }

    fn program_lock_file(&self, cluster: &ClusterId, user: &Username) -> PathBuf {
        self.local.directory().join(format!("{cluster}.{user}.program"))
    }

    async fn program_lock(
        &self,
        cluster: &ClusterId,
        user: &Username,
        patience: Duration,
    ) -> Result<File, ProgramError> {
        let path = self.program_lock_file(cluster, user);
        let file = open(&path).map_err(|source| ProgramError::NotStarted { path: path.clone(), source })?;
        let give_up = Instant::now() + patience;
        let mut killed = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => return Err(ProgramError::NotStarted { path, source }),
                Err(TryLockError::WouldBlock) => {}
            }
            let now = Instant::now();
            if now >= give_up && !killed {
                tracing::warn!(file = %path.display(), "killing a program that changes passwords and does not end");
                kill_holders(&path);
                killed = true;
            }
            if now >= give_up + GRACE {
                return Err(ProgramError::FormerRuns(path));
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }
}

/// For reading only: nothing can be printed there.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    File::open(path)
}

/// Kills whoever has the lock as its standard input, with its group. Each is pinned first, then recognised.
fn kill_holders(lock: &Path) {
    let Ok(lock) = std::fs::metadata(lock) else { return };
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        let Ok(pinned) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let holds = std::fs::metadata(process.path().join("fd/0"))
            .is_ok_and(|input| (input.dev(), input.ino()) == (lock.dev(), lock.ino()));
        if holds {
            if getpgid(Some(pid)).is_ok_and(|group| group == pid) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = pidfd_send_signal(&pinned, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Host) {
        let home = tempfile::tempdir().unwrap();
        let host = Host::new(home.path().join("host"), None).unwrap();
        (home, host)
    }

    async fn run(host: &Host, script: &str, timeout: Duration) -> Result<(), ProgramError> {
        let vacant = host.vacate(&[]).await.unwrap();
        let program = Program {
            path: "/bin/sh".into(),
            arguments: ["-c", script, "{user}", "{cluster}"].map(str::to_owned).into(),
            timeout,
        };
        let (cluster, username) = ("cluster-2abcdefghij".parse().unwrap(), Username::kmsuser());
        let (old, new) = (Password::trusted("old".to_owned()), Password::trusted("new".to_owned()));
        let change = PasswordChange { cluster: &cluster, username: &username, old: &old, new: &new };
        host.run_program(&vacant, &program, &change).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_program_finds_the_passwords_in_its_environment_and_the_names_in_its_arguments() {
        let (_home, host) = host();
        let script = r#"
            test "$KEYWAY_OLD_PASSWORD/$KEYWAY_NEW_PASSWORD" = old/new || exit 1
            test "$0/$KEYWAY_USER" = kmsuser/kmsuser || exit 2
            test "$1/$KEYWAY_CLUSTER" = cluster-2abcdefghij/cluster-2abcdefghij || exit 3
            ! tr '\0' '\n' < /proc/self/cmdline | grep -q -e '^old$' -e '^new$' || exit 4
            echo to nobody; echo to nobody >&2; ! read nothing
        "#;
        run(&host, script, LONG).await.unwrap();
    }

    #[tokio::test]
    async fn how_a_program_failed_is_told_and_whether_it_had_begun() {
        let (_home, host) = host();
        let failed = run(&host, "exit 3", LONG).await.unwrap_err();
        assert_eq!(failed.to_string(), "it failed: exit status: 3");
        assert!(!failed.is_before_it_began());
        let vacant = host.vacate(&[]).await.unwrap();
        let program = Program { path: "/nowhere".into(), arguments: Vec::new(), timeout: LONG };
        let (cluster, username) = ("cluster-2abcdefghij".parse().unwrap(), Username::kmsuser());
        let password = Password::trusted("x".to_owned());
        let change = PasswordChange { cluster: &cluster, username: &username, old: &password, new: &password };
        assert!(host.run_program(&vacant, &program, &change).await.unwrap_err().is_before_it_began());
    }

    #[tokio::test]
    async fn a_program_that_leaves_something_running_had_begun_and_keeps_the_next_one_from_it() {
        let (home, host) = host();
        let pid = home.path().join("pid");
        // Its standard input is not the lock any more when the script ends, so that it is not recognised and killed.
        let script = format!(
            "exec 3<&0; sh -c 'echo $$ >{pid}; exec sleep 600' </dev/null & until test -s {pid}; do sleep 0.01; done",
            pid = pid.display()
        );
        let left = run(&host, &script, LONG).await.unwrap_err();
        assert!(matches!(left, ProgramError::StillRuns(_)), "{left}");
        assert!(!left.is_before_it_began() && left.is_under_way());
        assert!(left.to_string().contains("cluster-2abcdefghij.kmsuser.program"), "{left}");

        let next = run(&host, "exit 0", Duration::ZERO).await.unwrap_err();
        assert!(matches!(next, ProgramError::FormerRuns(_)), "{next}");
        assert!(next.is_before_it_began() && next.is_under_way());

        let pid = Pid::from_raw(std::fs::read_to_string(pid).unwrap().trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        run(&host, "exit 0", LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let (home, host) = host();
        let pids = home.path().join("pids");
        let script = format!("sleep 600 <&0 & echo $! $$ > {}; setsid sleep 600 <&0 & wait", pids.display());
        let hung = run(&host, &script, Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(hung, ProgramError::TimedOut(_)), "{hung}");
        for pid in std::fs::read_to_string(pids).unwrap().split_whitespace() {
            let stat = format!("/proc/{pid}/stat");
            let lives = || std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z "));
            let gone = async {
                while lives() {
                    tokio::time::sleep(TRY_EVERY).await;
                }
            };
            tokio::time::timeout(LONG, gone).await.expect("it was killed");
        }
        // And the next run does not wait for it.
        run(&host, "exit 0", LONG).await.unwrap();
    }
}
