//! Spending login attempts: written down before the call, cleared by success, never spent twice.
//!
//! Which password is offered is [`super::settle`]'s decision, and whose turn it is to offer it [`super::gate`]'s.

use std::sync::Arc;
use std::time::Duration;

use crate::host::{Host, OpeningError, WorkerLink, WorkerSpec, pin_text};
use crate::link::v1::fault::{Bucket, Kind};
use crate::model::PasswordVersion;
use crate::records::{self, LoginAnswer, LoginLeave, Records, Standing, Unavailable};

use super::Common;
use super::begun::heard_out;
use super::gate::{self, Passage};
use super::passwords::{Offer, Passwords};
use super::settle::{self, Which};

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
    /// Others gave so many wrong passwords that it was not tried here: it would be the next to count.
    Throttled,
}

/// How an attempt to log in ended.
pub(super) enum LoginError {
    /// No further attempt with this password without an operator.
    Refused(LoginRefusal),
    /// The node has another one of its passwords, and is to be asked for that in a fresh worker.
    OtherPassword,
    /// The worker failed; the password was good here before, or was not tried.
    Worker(OpeningError),
    Records(records::Unavailable),
}

impl From<Unavailable> for LoginError {
    fn from(error: Unavailable) -> Self {
        Self::Records(error)
    }
}

/// Makes the one attempt that the budget allows; the worker, logged in, and with which password.
pub(super) async fn log_in(
    common: &Common,
    spec: &WorkerSpec,
    mut link: WorkerLink,
) -> Result<(WorkerLink, PasswordVersion), LoginError> {
    let Common { host, records, passwords, .. } = common;
    let offer = passwords.offer(&spec.hsm).await?.map_err(LoginError::Refused)?;
    let gate = passwords.gate(offer.credential.version).await?;
    let passage = match (offer.which, offer.standing) {
        // Whether another node was given its candidate says nothing of this one.
        (_, Standing::Proven) | (Which::Candidate, _) => Passage::Open,
        (Which::Confirmed, _) => {
            let passage = gate.enter(offer.standing == Standing::Granted).await.map_err(LoginError::Refused)?;
            // The turn may have taken a while: it must still be the token that was opened.
            link.check().await.map_err(LoginError::Worker)?;
            passage
        }
    };
    let version = offer.credential.version;
    let attempt = Attempt {
        host: host.clone(),
        records: records.clone(),
        passwords: passwords.clone(),
        spec: spec.clone(),
        offer,
    };
    // In a task of its own: whatever becomes of this node's supervision, an attempt that was begun is heard out, and its
    // answer written down.
    let outcome = heard_out(tokio::spawn(attempt.make(link))).await;
    match &outcome {
        Ok(_) => passage.tell(gate::Verdict::Good),
        Err(LoginError::Refused(LoginRefusal::Incorrect | LoginRefusal::Locked)) => {
            passage.tell(gate::Verdict::Refused);
        }
        // No verdict on the password: it is the next node's turn.
        Err(LoginError::Refused(
            LoginRefusal::NoUser
            | LoginRefusal::LoggedInElsewhere
            | LoginRefusal::Unsettled
            | LoginRefusal::NotTried
            | LoginRefusal::Throttled,
        ))
        | Err(LoginError::OtherPassword | LoginError::Worker(_) | LoginError::Records(_)) => {}
    }
    Ok((outcome?, version))
}

/// One attempt on one node, with all that it needs to be heard out.
struct Attempt {
    host: Host,
    records: Records,
    passwords: Arc<Passwords>,
    spec: WorkerSpec,
    offer: Offer,
}

impl Attempt {
    async fn make(self, mut link: WorkerLink) -> Result<WorkerLink, LoginError> {
        let (cluster, hsm) = (&self.spec.cluster, &self.spec.hsm);
        let credential = &self.offer.credential;
        // Until the answer is written down, so that no job of the SO's makes the same attempt meanwhile, and no password
        // is changed.
        let turn = self.host.turn(&self.spec).await;
        if !self.passwords.still_holds(hsm, &self.offer).await? {
            return Err(LoginError::OtherPassword);
        }
        let failed = self.host.failed_logins(&self.spec).await.map_err(LoginError::Worker)?;
        if failed >= self.passwords.failures_allowed(&self.offer) {
            return Err(LoginError::Refused(LoginRefusal::Throttled));
        }
        match self.records.begin_login(cluster, hsm, &credential.username, credential.version).await? {
            LoginLeave::Granted | LoginLeave::GrantedAgain => {}
            LoginLeave::Refused => return Err(LoginError::Refused(LoginRefusal::Incorrect)),
            LoginLeave::Unsettled => return Err(LoginError::Refused(LoginRefusal::Unsettled)),
        }
        #[cfg(debug_assertions)]
        self.stop_point();
        let pin = pin_text(&credential.username, &credential.password);
        let answer = link.log_in(&turn, &pin).await;
        self.host.tallies().of(&self.spec).login(&answer);
        let Err(error) = answer else {
            self.write_down(Answer::Accepted).await;
            return Ok(link);
        };
        match Said::by(&error) {
            Said::Refusal(refusal) => {
                self.write_down(Answer::Refused(refusal)).await;
                Err(self.refused(refusal))
            }
            Said::Unheeded(refusal) => {
                self.write_down(Answer::NotMade).await;
                Err(LoginError::Refused(refusal))
            }
            Said::NotAsked => {
                self.write_down(Answer::NotMade).await;
                Err(LoginError::Worker(error))
            }
            Said::Nothing => Err(self.unanswered(error)),
        }
    }

    #[cfg(debug_assertions)]
    fn stop_point(&self) {
        crate::seams::stop_point(match self.offer.which {
            Which::Candidate => "candidate-login-begun",
            Which::Confirmed => "login-begun",
        });
    }

    /// A node with two passwords has the other one. One that is locked has said nothing of either.
    fn refused(&self, refusal: LoginRefusal) -> LoginError {
        match refusal {
            LoginRefusal::Incorrect if self.offer.is_one_of_two() => LoginError::OtherPassword,
            refusal => LoginError::Refused(refusal),
        }
    }

    /// The attempt stays open. A password that was never good here may be the reason, so that nobody goes on with it here
    /// by himself.
    fn unanswered(&self, error: OpeningError) -> LoginError {
        match (self.offer.standing, self.offer.which) {
            (Standing::Proven, _) => LoginError::Worker(error),
            // The node's former password is asked for what this one has not answered.
            (_, Which::Candidate) => LoginError::Worker(error),
            (_, Which::Confirmed) => {
                tracing::warn!(hsm = %self.spec.hsm, %error, "a first login was not answered");
                LoginError::Refused(LoginRefusal::Unsettled)
            }
        }
    }

    /// What the token said is not forgotten because the records cannot be reached: it could be asked a second time.
    async fn write_down(&self, answer: Answer) {
        while let Err(error) = self.try_write_down(answer).await {
            tracing::error!(hsm = %self.spec.hsm, %error, "a login's answer cannot be written down; trying again");
            tokio::time::sleep(WRITE_AGAIN).await;
        }
    }

    async fn try_write_down(&self, answer: Answer) -> Result<(), Unavailable> {
        let (answer, verdict) = match answer {
            Answer::Accepted => (LoginAnswer::Accepted, Some(settle::Verdict::Accepted)),
            Answer::Refused(LoginRefusal::Incorrect) => (LoginAnswer::Refused, Some(settle::Verdict::Refused)),
            // One that is locked has said nothing of either password.
            Answer::Refused(_) => (LoginAnswer::Refused, None),
            Answer::NotMade => (LoginAnswer::NotMade, None),
        };
        self.passwords.answered(&self.spec.hsm, &self.offer, answer, verdict).await
    }
}

/// How an attempt is closed in the records.
#[derive(Clone, Copy)]
enum Answer {
    Accepted,
    Refused(LoginRefusal),
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
            error if error.was_handed_over() => Self::Nothing,
            _ => Self::NotAsked,
        }
    }
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
        | Kind::DeviceRemoved
        | Kind::Module
        | Kind::Protocol
        | Kind::Device => None,
    }
}
