//! Spending login attempts: written down before the call, cleared by success, never spent twice.
//!
//! One node proves a password before any other is asked: a wrong one then costs one attempt, on one
//! HSM. Nodes whose token has accepted it before need no proof, and one that an operator grants a login
//! makes it, whatever another has said.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::host::{Host, OpeningError, WorkerLink, WorkerSpec, pin_text};
use crate::link::v1::fault::{Bucket, Kind};
use crate::model::{ClusterId, HsmId};
use crate::records::{self, LoginLeave, Records, Standing, Unavailable};

use super::Credential;

/// An answer that cannot be written down is written again after this long.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Why nobody is logged in to a node whose token can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginRefusal {
    /// The token refused this password, now or earlier.
    Incorrect,
    /// The token has locked the user.
    Locked,
    /// The token has no such user, or one without a password.
    NoUser,
    /// The token says that this or another user is logged in already.
    LoggedInElsewhere,
    /// An earlier attempt was never answered; another needs an operator.
    Unsettled,
    /// Another node refused this password first, so that it was not tried here.
    NotTried,
}

/// What the nodes of a Connection have said of its password, and whose turn it is to find out.
#[derive(Debug)]
pub struct Gate {
    verdict: watch::Sender<Verdict>,
    /// Held by the node that is finding out.
    turn: Mutex<()>,
    /// HSMs on which an operator has granted a login that was not made yet when the Connection began.
    granted: BTreeSet<HsmId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Untried,
    Good,
    Refused,
}

/// A node's way through the gate: open, or its turn to prove the password while the others wait.
enum Passage<'a> {
    Open,
    Turn { gate: &'a Gate, _held: MutexGuard<'a, ()> },
}

impl Gate {
    /// As the records have it: a password that any node has accepted is good, and one that was only refused is not offered
    /// again, here or elsewhere.
    pub async fn of(records: &Records, cluster: &ClusterId, credential: &Credential) -> Result<Self, Unavailable> {
        let standings = records.login_standing(cluster, &credential.username).await?;
        let of_this_version: Vec<_> =
            standings.into_iter().filter(|(_, version, _)| *version == credential.version).collect();
        let verdict =
            of_this_version.iter().fold(Verdict::Untried, |verdict, (_, _, standing)| match (verdict, standing) {
                (Verdict::Good, _) | (_, Standing::Proven) => Verdict::Good,
                (Verdict::Untried | Verdict::Refused, Standing::Refused) => Verdict::Refused,
                (verdict, Standing::Untried | Standing::Granted | Standing::Unsettled) => verdict,
            });
        let granted = of_this_version.into_iter().filter(|(_, _, standing)| *standing == Standing::Granted);
        Ok(Self {
            verdict: watch::Sender::new(verdict),
            turn: Mutex::default(),
            granted: granted.map(|(hsm, _, _)| hsm).collect(),
        })
    }

    /// Whether a node has refused the password and none was found to accept it.
    pub fn is_shut(&self) -> bool {
        // A turn that is being taken is no verdict yet.
        self.turn.try_lock().is_ok() && *self.verdict.borrow() == Verdict::Refused
    }

    /// Whether the HSM came into the Connection with a login granted: until it is out of the way, there is more to hear.
    pub fn has_granted(&self, hsm: &HsmId) -> bool {
        self.granted.contains(hsm)
    }

    /// Resolves when a node has accepted the password, as it may have already.
    pub(super) async fn opened(&self) {
        let _ = self.verdict.subscribe().wait_for(|verdict| *verdict == Verdict::Good).await;
    }

    /// For a node that was not asked yet: `granted`, by an operator's word, or not.
    async fn enter(&self, granted: bool) -> Result<Passage<'_>, LoginRefusal> {
        let held = self.turn.lock().await;
        let verdict = *self.verdict.borrow();
        match verdict {
            Verdict::Good => Ok(Passage::Open),
            Verdict::Refused if !granted => Err(LoginRefusal::NotTried),
            Verdict::Untried | Verdict::Refused => Ok(Passage::Turn { gate: self, _held: held }),
        }
    }
}

impl Passage<'_> {
    fn tell(self, verdict: Verdict) {
        if let Self::Turn { gate, .. } = self {
            gate.verdict.send_replace(verdict);
        }
    }
}

/// How an attempt to log in ended.
pub(super) enum LoginError {
    /// No further attempt with this password without an operator.
    Refused(LoginRefusal),
    /// The worker failed; the password was good here before, or was not tried.
    Worker(OpeningError),
    Records(records::Unavailable),
}

/// Makes the one attempt that the budget allows; the worker, logged in.
pub(super) async fn log_in(
    host: &Host,
    records: &Records,
    gate: &Gate,
    spec: &WorkerSpec,
    mut link: WorkerLink,
    credential: &Arc<Credential>,
) -> Result<WorkerLink, LoginError> {
    let (cluster, hsm, user, version) = (&spec.cluster, &spec.hsm, &credential.username, credential.version);
    let standing = records.login_standing_on(cluster, hsm, user, version).await.map_err(LoginError::Records)?;
    let passage = match standing {
        Standing::Proven => Passage::Open,
        // It says so itself: no turn is needed to hear it.
        Standing::Refused => return Err(LoginError::Refused(LoginRefusal::Incorrect)),
        Standing::Unsettled => return Err(LoginError::Refused(LoginRefusal::Unsettled)),
        Standing::Untried | Standing::Granted => {
            let passage = gate.enter(standing == Standing::Granted).await.map_err(LoginError::Refused)?;
            // The turn may have taken a while: it must still be the token that was opened.
            link.check().await.map_err(LoginError::Worker)?;
            passage
        }
    };
    let attempt =
        Attempt { host: host.clone(), records: records.clone(), spec: spec.clone(), credential: credential.clone() };
    // In a task of its own: whatever becomes of this node's supervision, an attempt that was begun is heard out, and its
    // answer written down.
    let outcome = match tokio::spawn(attempt.make(link)).await {
        Ok(outcome) => outcome,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    match &outcome {
        Ok(_) => passage.tell(Verdict::Good),
        Err(LoginError::Refused(LoginRefusal::Incorrect | LoginRefusal::Locked)) => passage.tell(Verdict::Refused),
        // No verdict on the password: it is the next node's turn.
        Err(LoginError::Refused(
            LoginRefusal::NoUser | LoginRefusal::LoggedInElsewhere | LoginRefusal::Unsettled | LoginRefusal::NotTried,
        ))
        | Err(LoginError::Worker(_) | LoginError::Records(_)) => {}
    }
    outcome
}

/// One attempt on one node, with all that it needs to be heard out.
struct Attempt {
    host: Host,
    records: Records,
    spec: WorkerSpec,
    credential: Arc<Credential>,
}

impl Attempt {
    async fn make(self, mut link: WorkerLink) -> Result<WorkerLink, LoginError> {
        let (cluster, hsm) = (&self.spec.cluster, &self.spec.hsm);
        let (user, version) = (&self.credential.username, self.credential.version);
        // Until the answer is written down, so that no job of the SO's makes the same attempt meanwhile.
        let turn = self.host.turn(&self.spec).await;
        let leave = self.records.begin_login(cluster, hsm, user, version).await.map_err(LoginError::Records)?;
        match leave {
            LoginLeave::Granted | LoginLeave::GrantedAgain => {}
            LoginLeave::Refused => return Err(LoginError::Refused(LoginRefusal::Incorrect)),
            LoginLeave::Unsettled => return Err(LoginError::Refused(LoginRefusal::Unsettled)),
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("login-begun");
        let answer = self.host.log_in(&turn, &self.spec, &mut link, &pin_text(user, &self.credential.password)).await;
        let Err(error) = answer else {
            self.write_down(Answer::Accepted).await;
            return Ok(link);
        };
        match Said::by(&error) {
            Said::Refusal(refusal) => {
                self.write_down(Answer::Refused).await;
                Err(LoginError::Refused(refusal))
            }
            Said::Unheeded(refusal) => {
                self.write_down(Answer::NotMade).await;
                Err(LoginError::Refused(refusal))
            }
            Said::NotAsked => {
                self.write_down(Answer::NotMade).await;
                Err(LoginError::Worker(error))
            }
            Said::Nothing => Err(unanswered(leave, &self.spec, error)),
        }
    }

    /// What the token said is not forgotten because the records cannot be reached: it could be asked a second time.
    async fn write_down(&self, answer: Answer) {
        let (cluster, hsm) = (&self.spec.cluster, &self.spec.hsm);
        let (user, version) = (&self.credential.username, self.credential.version);
        loop {
            let written = match answer {
                Answer::Accepted => self.records.login_succeeded(cluster, hsm, user, version).await,
                Answer::Refused => self.records.login_refused(cluster, hsm, user, version).await,
                Answer::NotMade => self.records.login_not_made(cluster, hsm, user, version).await,
            };
            let Err(error) = written else { return };
            tracing::error!(%hsm, %error, "a login's answer cannot be written down; trying again");
            tokio::time::sleep(WRITE_AGAIN).await;
        }
    }
}

/// How an attempt is closed in the records.
#[derive(Clone, Copy)]
enum Answer {
    Accepted,
    Refused,
    NotMade,
}

/// What an attempt that failed says of the password.
pub(super) enum Said {
    Refusal(LoginRefusal),
    /// No verdict: it was not even looked at, and so cannot have counted.
    Unheeded(LoginRefusal),
    /// The token was certainly not asked.
    NotAsked,
    /// It may have been asked, and may have counted the attempt.
    Nothing,
}

impl Said {
    pub(super) fn by(error: &OpeningError) -> Self {
        match error {
            OpeningError::Fault(fault) => match refusal(fault.kind()) {
                Some(refusal @ (LoginRefusal::LoggedInElsewhere | LoginRefusal::NoUser)) => Self::Unheeded(refusal),
                Some(refusal) => Self::Refusal(refusal),
                None => match fault.bucket() {
                    Bucket::Session | Bucket::Node => Self::NotAsked,
                    Bucket::Input | Bucket::Unknown | Bucket::Unspecified => Self::Nothing,
                },
            },
            // Before the request was sent.
            OpeningError::Files { .. }
            | OpeningError::Spawn(_)
            | OpeningError::SlotTaken(_)
            | OpeningError::NoToken => Self::NotAsked,
            OpeningError::Ended | OpeningError::Silent(_) | OpeningError::OutOfTurn | OpeningError::Frame(_) => {
                Self::Nothing
            }
        }
    }
}

/// The attempt stays open. A password that was never good here may be the reason, so that nobody goes on with it here by
/// himself.
fn unanswered(leave: LoginLeave, spec: &WorkerSpec, error: OpeningError) -> LoginError {
    if leave == LoginLeave::GrantedAgain {
        return LoginError::Worker(error);
    }
    tracing::warn!(hsm = %spec.hsm, %error, "a first login was not answered");
    LoginError::Refused(LoginRefusal::Unsettled)
}

/// Which faults are the token's verdict on the password.
pub fn refusal(kind: Kind) -> Option<LoginRefusal> {
    match kind {
        Kind::PinIncorrect | Kind::PinRefused => Some(LoginRefusal::Incorrect),
        Kind::PinLocked => Some(LoginRefusal::Locked),
        Kind::UserLoggedIn => Some(LoginRefusal::LoggedInElsewhere),
        Kind::UserNotFound => Some(LoginRefusal::NoUser),
        Kind::Unspecified
        | Kind::BadCiphertext
        | Kind::BadInput
        | Kind::KeyMissing
        | Kind::Late
        | Kind::Unsupported
        | Kind::LoginLost
        | Kind::Capacity
        | Kind::TokenAbsent
        | Kind::Module
        | Kind::Protocol
        | Kind::Device => None,
    }
}
