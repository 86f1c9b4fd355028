//! Failed logins in a row, counted for each slot on the disk: users whom we manage are locked as an HSM would, and
//! SoftHSM2 by itself counts nothing.
//!
//! An attempt is counted before it is made, so that a crash makes none free. What the token accepts forgets all before it;
//! what it has certainly not judged is taken back. All of it in the node's turn.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::link::v1::fault::{Bucket, Kind, User};
use crate::link::v1::{Fault, response::Outcome};
use crate::model::Username;

use super::{LocalToken, OpeningError, WorkerSpec};

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

/// Logins that an answer will say something of, and how many had failed before.
#[derive(Debug)]
#[must_use]
pub(super) struct Logins {
    before: u32,
    are: Are,
}

#[derive(Debug)]
enum Are {
    /// An attempt, counted already.
    Attempted,
    /// A job's, which are no attempts by themselves.
    OnTheWay,
}

/// Counts an attempt that is about to be made. A locked user's is not made.
pub(super) fn count(directory: &Path, spec: &WorkerSpec, token: &LocalToken) -> Result<Logins, OpeningError> {
    let Logins { before, .. } = unlocked(directory, spec, token)?;
    write(directory, spec, before.saturating_add(1))?;
    #[cfg(debug_assertions)]
    stop_point(&spec.username);
    Ok(Logins { before, are: Are::Attempted })
}

/// How many failed, unless these were too many.
pub(super) fn unlocked(directory: &Path, spec: &WorkerSpec, token: &LocalToken) -> Result<Logins, OpeningError> {
    let before = failed(directory, spec)?;
    if is_locked(token, before) { Err(locked()) } else { Ok(Logins { before, are: Are::OnTheWay }) }
}

/// Writes down what the answer says of them.
pub(super) fn answered(
    directory: &Path,
    spec: &WorkerSpec,
    Logins { before, are }: Logins,
    answer: &Result<Outcome, OpeningError>,
) -> Result<(), OpeningError> {
    match (are, answer) {
        (Are::Attempted, Ok(Outcome::Done(_))) => write(directory, spec, 0),
        (Are::Attempted, Ok(Outcome::Fault(fault))) if is_verdict(fault) => Ok(()),
        // The token may have judged it: a guess whose worker ends is no free one. A key store's own logins are never so
        // many that they lock it: what becomes of them is in its login budget.
        (Are::Attempted, Err(error)) if error.was_handed_over() && spec.username != Username::kmsuser() => Ok(()),
        (Are::Attempted, _) => write(directory, spec, before),
        (Are::OnTheWay, Ok(Outcome::Fault(fault))) if fault.login() == User::CryptoUser && is_verdict(fault) => {
            write(directory, spec, before.saturating_add(1))
        }
        (Are::OnTheWay, _) => Ok(()),
    }
}

/// Only where we could unlock: another token's own count is what counts.
pub(super) fn is_locked(token: &LocalToken, failed: u32) -> bool {
    token.locks_user() && failed >= LOCKED_AFTER
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
fn stop_point(user: &Username) {
    if *user != Username::kmsuser() {
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
    use crate::host::example;

    use crate::link::v1::Done;

    fn slot(locks_user: bool) -> (WorkerSpec, LocalToken) {
        let user_tokens = locks_user.then(PathBuf::new);
        let token = LocalToken { so_pin_file: Some(PathBuf::new()), user_tokens, ..example::token() };
        (WorkerSpec { username: "alice".parse().unwrap(), ..example::slot(&token) }, token)
    }

    fn attempt(
        home: &Path,
        (spec, token): &(WorkerSpec, LocalToken),
        answer: &Result<Outcome, OpeningError>,
    ) -> Result<(), OpeningError> {
        answered(home, spec, count(home, spec, token)?, answer)
    }

    fn said(kind: Kind) -> Result<Outcome, OpeningError> {
        Ok(Outcome::Fault(Fault { kind: kind.into(), login: User::CryptoUser.into(), ..Fault::default() }))
    }

    fn accepted() -> Result<Outcome, OpeningError> {
        Ok(Outcome::Done(Done::default()))
    }

    #[test]
    fn five_refusals_in_a_row_lock_and_only_an_act_unlocks() {
        let home = tempfile::tempdir().unwrap();
        let (home, slot) = (home.path(), slot(true));
        for _ in 0..4 {
            attempt(home, &slot, &said(Kind::PinIncorrect)).unwrap();
        }
        attempt(home, &slot, &accepted()).unwrap();
        assert_eq!(failed(home, &slot.0).unwrap(), 0, "what is accepted forgets those before");
        for failures in 1..=LOCKED_AFTER {
            attempt(home, &slot, &said(Kind::PinIncorrect)).unwrap();
            assert_eq!(failed(home, &slot.0).unwrap(), failures);
        }
        for refused in [count(home, &slot.0, &slot.1), unlocked(home, &slot.0, &slot.1)] {
            assert!(
                matches!(refused, Err(OpeningError::Fault(fault)) if fault.kind() == Kind::PinLocked),
                "a locked user's password is not even looked at"
            );
        }
        forget(home, &slot.0).unwrap();
        attempt(home, &slot, &accepted()).unwrap();
    }

    #[test]
    fn an_attempt_counts_from_before_it_is_made_unless_the_token_has_certainly_not_judged_it() {
        let home = tempfile::tempdir().unwrap();
        let (home, (alice, token)) = (home.path(), slot(true));
        let kmsuser = WorkerSpec { username: Username::kmsuser(), ..alice.clone() };
        let unanswered = || Err(OpeningError::Ended);
        for (spec, answer, counted) in [
            (&alice, said(Kind::TokenAbsent), 0),
            (&kmsuser, said(Kind::TokenAbsent), 0),
            (&alice, unanswered(), 1),
            // Five logins of a store's that hung would lock it, whose password is right.
            (&kmsuser, unanswered(), 0),
        ] {
            let logins = count(home, spec, &token).unwrap();
            assert_eq!(failed(home, spec).unwrap(), 1, "a crash here leaves it counted");
            answered(home, spec, logins, &answer).unwrap();
            assert_eq!(failed(home, spec).unwrap(), counted, "of {}", spec.username);
        }
    }

    #[test]
    fn a_login_on_a_jobs_way_counts_when_it_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (home, slot) = (home.path(), slot(true));
        for (answer, failures) in [(accepted(), 0), (said(Kind::PinIncorrect), 1), (accepted(), 1)] {
            let logins = unlocked(home, &slot.0, &slot.1).unwrap();
            answered(home, &slot.0, logins, &answer).unwrap();
            assert_eq!(failed(home, &slot.0).unwrap(), failures);
        }
    }

    #[test]
    fn a_token_that_nobody_can_unlock_here_is_not_locked_here() {
        let home = tempfile::tempdir().unwrap();
        let (home, slot) = (home.path(), slot(false));
        for _ in 0..=LOCKED_AFTER {
            attempt(home, &slot, &said(Kind::PinIncorrect)).unwrap();
        }
        attempt(home, &slot, &accepted()).unwrap();
    }
}
