//! Failed logins in a row, counted for each slot on the disk: tokens that we manage lock their user as an HSM would, and
//! SoftHSM2 by itself counts nothing.
//!
//! An attempt is counted before it is made, so that a crash makes none free. What the token accepts forgets all before it;
//! what it has not judged is taken back. All of it in the node's turn.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::link::v1::Fault;
use crate::link::v1::fault::{Bucket, Kind, User};

use super::{OpeningError, WorkerSpec};

/// As many failed logins in a row as CloudHSM allows.
pub(super) const LOCKED_AFTER: u32 = 5;

/// How many logins failed since the last that succeeded.
pub(super) fn failed(directory: &Path, spec: &WorkerSpec) -> Result<u32, OpeningError> {
    let path = path(directory, spec);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(OpeningError::Files { path, source }),
    };
    text.trim().parse().map_err(|source| OpeningError::Files { path, source: std::io::Error::other(source) })
}

/// Makes an attempt, and counts it. A locked user's is not made.
pub(super) async fn counted<T>(
    directory: &Path,
    spec: &WorkerSpec,
    attempt: impl Future<Output = Result<T, OpeningError>>,
) -> Result<T, OpeningError> {
    let before = unlocked(directory, spec)?;
    write(directory, spec, before.saturating_add(1))?;
    #[cfg(debug_assertions)]
    stop_point(&spec.username);
    let answer = attempt.await;
    match &answer {
        Ok(_) => write(directory, spec, 0)?,
        Err(OpeningError::Fault(fault)) if is_verdict(fault) => {}
        Err(_) => write(directory, spec, before)?,
    }
    answer
}

/// A job's login was refused, which was not an attempt by itself.
pub(super) fn count_refusal(directory: &Path, spec: &WorkerSpec, fault: &Fault) -> Result<(), OpeningError> {
    if fault.login() == User::CryptoUser && is_verdict(fault) {
        write(directory, spec, failed(directory, spec)?.saturating_add(1))?;
    }
    Ok(())
}

/// How many failed, unless these were too many.
pub(super) fn unlocked(directory: &Path, spec: &WorkerSpec) -> Result<u32, OpeningError> {
    let failed = failed(directory, spec)?;
    if is_locked(spec, failed) { Err(locked()) } else { Ok(failed) }
}

/// Only where we could unlock: another token's own count is what counts.
pub(super) fn is_locked(spec: &WorkerSpec, failed: u32) -> bool {
    spec.so_pin_file.is_some() && failed >= LOCKED_AFTER
}

/// None failed, whatever was counted: for who gave the user a password, or took him away.
pub(super) fn forget(directory: &Path, spec: &WorkerSpec) -> Result<(), OpeningError> {
    write(directory, spec, 0)
}

fn is_verdict(fault: &Fault) -> bool {
    matches!(fault.kind(), Kind::PinIncorrect | Kind::PinRefused | Kind::PinLocked)
}

fn locked() -> OpeningError {
    OpeningError::Fault(Fault {
        bucket: Bucket::Input.into(),
        kind: Kind::PinLocked.into(),
        function: "the host".to_owned(),
        detail: format!("locked after {LOCKED_AFTER} failed logins in a row"),
        login: User::CryptoUser.into(),
        ..Fault::default()
    })
}

#[cfg(debug_assertions)]
fn stop_point(user: &crate::model::Username) {
    if *user != crate::model::Username::kmsuser() {
        crate::seams::stop_point("user-login-counted");
    }
}

fn path(directory: &Path, spec: &WorkerSpec) -> PathBuf {
    directory.join(format!("{}.failed-logins", spec.slot_name()))
}

/// On the disk when this returns.
fn write(directory: &Path, spec: &WorkerSpec, failed: u32) -> Result<(), OpeningError> {
    let path = path(directory, spec);
    try_write(directory, &path, failed).map_err(|source| OpeningError::Files { path, source })
}

fn try_write(directory: &Path, path: &Path, failed: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if failed == 0 {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
    } else {
        let fresh = path.with_extension("fresh");
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{failed}")?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
    }
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v1::open::Token;

    fn spec() -> WorkerSpec {
        WorkerSpec {
            cluster: "cluster-2abcdefghij".parse().unwrap(),
            hsm: "hsm-1".parse().unwrap(),
            username: "alice".parse().unwrap(),
            module: PathBuf::new(),
            token: Token::Label("alice".to_owned()),
            environment: std::collections::BTreeMap::new(),
            sessions: 1,
            patience: crate::link::Patience { quick: std::time::Duration::ZERO, slow: std::time::Duration::ZERO },
            memory_limit: u64::MAX,
            so_pin_file: Some(PathBuf::new()),
        }
    }

    fn said(kind: Kind) -> Result<(), OpeningError> {
        Err(OpeningError::Fault(Fault { kind: kind.into(), ..Fault::default() }))
    }

    #[tokio::test]
    async fn five_refusals_in_a_row_lock_and_only_an_act_unlocks() {
        let home = tempfile::tempdir().unwrap();
        let (home, spec) = (home.path(), spec());
        for _ in 0..4 {
            let _ = counted(home, &spec, async { said(Kind::PinIncorrect) }).await;
        }
        counted(home, &spec, async { Ok(()) }).await.unwrap();
        assert_eq!(failed(home, &spec).unwrap(), 0, "what is accepted forgets those before");
        for failures in 1..=LOCKED_AFTER {
            let _ = counted(home, &spec, async { said(Kind::PinIncorrect) }).await;
            assert_eq!(failed(home, &spec).unwrap(), failures);
        }
        let made = std::cell::Cell::new(false);
        let answer = counted(home, &spec, async {
            made.set(true);
            Ok(())
        });
        assert!(matches!(answer.await, Err(OpeningError::Fault(fault)) if fault.kind() == Kind::PinLocked));
        assert!(!made.get(), "a locked user's password is not even looked at");
        forget(home, &spec).unwrap();
        counted(home, &spec, async { Ok(()) }).await.unwrap();
    }

    #[tokio::test]
    async fn an_attempt_counts_from_before_it_is_made_until_nobody_has_judged_it() {
        let home = tempfile::tempdir().unwrap();
        let (home, spec) = (home.path(), spec());
        let answer = counted(home, &spec, async {
            assert_eq!(failed(home, &spec).unwrap(), 1, "a crash here leaves it counted");
            said(Kind::TokenAbsent)
        });
        assert!(answer.await.is_err());
        assert_eq!(failed(home, &spec).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_token_that_nobody_can_unlock_here_is_not_locked_here() {
        let home = tempfile::tempdir().unwrap();
        let (home, spec) = (home.path(), WorkerSpec { so_pin_file: None, ..spec() });
        for _ in 0..=LOCKED_AFTER {
            let _ = counted(home, &spec, async { said(Kind::PinIncorrect) }).await;
        }
        assert!(counted(home, &spec, async { Ok(()) }).await.is_ok());
    }
}
