//! Trying a password on one HSM for somebody who only wants to know: one attempt, by a worker that leaves afterwards.
//!
//! It is written down before the call, as every login is. What an operator checks has a budget of its own: an HSM that did
//! not accept it is not asked again until an operator allows it or a key store's login succeeds there. What a crypto user
//! gives, the host counts.

use std::time::Duration;

use crate::host::{Host, OpeningError, Trial, Turn, WorkerSpec, pin_text};
use crate::model::{Password, with_causes};
use crate::records::{Records, Unavailable};

use super::LoginRefusal;
use super::login::Said;

/// What an HSM said that cannot be written down is written again after this long.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug)]
pub enum Tried {
    Accepted,
    /// The token's verdict, and its words.
    Refused(LoginRefusal, String),
    /// It was asked, and nobody knows what it said.
    Unanswered(String),
    /// It was not asked, and may be later. Why.
    NotAsked(String),
    /// Its token is not the one that was there before: no password is sent to it.
    AnotherToken(String),
    /// The attempt must not be made any more, as `still` has said.
    Withdrawn(String),
    /// It was asked before, and is not asked again.
    Spent,
    /// As many have failed in a row as may: short of what would lock the user.
    Throttled,
}

/// Makes the attempt, unless the budget forbids it, `allowed` have failed in a row, or `still` says, in the node's
/// turn, that it must not be made any more.
/// Runs in a task of its caller's that nobody cuts short: an attempt that was begun is heard out.
pub async fn try_password(
    host: &Host,
    records: &Records,
    spec: &WorkerSpec,
    password: &Password,
    allowed: u32,
    still: impl Fn() -> Result<(), String>,
) -> Result<Tried, Unavailable> {
    let turn = host.turn(spec).await;
    if let Err(why) = still() {
        return Ok(Tried::Withdrawn(why));
    }
    match host.failed_logins(spec).await {
        Ok(failed) if failed >= allowed => return Ok(Tried::Throttled),
        Ok(_) => {}
        Err(error) => return Ok(Tried::NotAsked(with_causes(&error))),
    }
    let opened = host.open_trial(&turn, spec).await;
    let trial = match as_before(records, spec, opened).await? {
        Ok(trial) => trial,
        Err(tried) => return Ok(tried),
    };
    if !records.begin_password_check(&spec.cluster, &spec.hsm).await? {
        trial.leave().await;
        return Ok(Tried::Spent);
    }
    #[cfg(debug_assertions)]
    crate::seams::stop_point("check-begun");
    Ok(answered(host, records, &turn, spec, trial, password).await)
}

/// Who else may be at work on the user's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Nobody whom this daemon knows of: whoever is there is a former daemon's, and is waited for.
    Free,
    /// This daemon's own workers. They change nothing in the token but by their own logins, in the node's turn.
    Ours,
}

/// Makes an attempt for a crypto user who wants to log in, unless `allowed` have failed in a row: his host counts them, and
/// writes each down before it is made. The PIN is the text that the token wants.
pub async fn try_user(
    host: &Host,
    records: &Records,
    spec: &WorkerSpec,
    slot: Slot,
    pin: &Password,
    allowed: u32,
) -> Result<Tried, Unavailable> {
    let turn = host.turn(spec).await;
    match host.user_standing(spec).await {
        Ok(standing) if standing.failed_logins >= allowed => return Ok(Tried::Throttled),
        Ok(_) => {}
        Err(error) => return Ok(Tried::NotAsked(with_causes(&error))),
    }
    let trial = match slot {
        Slot::Free => as_before(records, spec, host.open_user_trial(&turn, spec).await).await?,
        Slot::Ours => as_before(records, spec, host.open_trial(&turn, spec).await).await?,
    };
    let trial = match trial {
        Ok(trial) => trial,
        Err(tried) => return Ok(tried),
    };
    let answer = trial.log_in(&turn, pin).await;
    host.tallies().of(spec).login(&answer);
    Ok(match answer {
        Ok(()) => Tried::Accepted,
        Err(error) => verdict(&error),
    })
}

/// The worker, if it has the very token open that the user was logged in to before.
async fn as_before(
    records: &Records,
    spec: &WorkerSpec,
    opened: Result<Trial, OpeningError>,
) -> Result<Result<Trial, Tried>, Unavailable> {
    let trial = match opened {
        Ok(trial) => trial,
        Err(error) => return Ok(Err(Tried::NotAsked(with_causes(&error)))),
    };
    let known = records.token_serial(&spec.cluster, &spec.hsm, &spec.username).await?;
    if let Some(known) = known.filter(|known| known != trial.serial()) {
        let why = format!("its token is {}, not {known} as before; no password is sent there", trial.serial());
        trial.leave().await;
        return Ok(Err(Tried::AnotherToken(why)));
    }
    Ok(Ok(trial))
}

async fn answered(
    host: &Host,
    records: &Records,
    turn: &Turn,
    spec: &WorkerSpec,
    trial: Trial,
    password: &Password,
) -> Tried {
    let answer = trial.log_in(turn, &pin_text(&spec.username, password)).await;
    host.tallies().of(spec).login(&answer);
    let tried = match answer {
        Ok(()) => Tried::Accepted,
        Err(error) => verdict(&error),
    };
    match tried {
        Tried::Accepted
        | Tried::NotAsked(_)
        | Tried::Refused(LoginRefusal::NoUser | LoginRefusal::LoggedInElsewhere, _) => {
            may_be_asked_again(records, spec).await;
        }
        Tried::Refused(..)
        | Tried::Unanswered(_)
        | Tried::AnotherToken(_)
        | Tried::Withdrawn(_)
        | Tried::Spent
        | Tried::Throttled => {}
    }
    tried
}

fn verdict(error: &OpeningError) -> Tried {
    let words = with_causes(error);
    match Said::by(error) {
        Said::Refusal(refusal) | Said::Unheeded(refusal) => Tried::Refused(refusal, words),
        Said::NotAsked => Tried::NotAsked(words),
        Said::Nothing => Tried::Unanswered(words),
    }
}

/// Left unwritten, an HSM would not be asked again although nothing was counted there.
async fn may_be_asked_again(records: &Records, spec: &WorkerSpec) {
    while let Err(error) = records.allow_password_check(&spec.cluster, &spec.hsm).await {
        tracing::error!(hsm = %spec.hsm, %error, "a checked password's answer cannot be written down; trying again");
        tokio::time::sleep(WRITE_AGAIN).await;
    }
}
