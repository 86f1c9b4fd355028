//! Changes the crypto user's password on one node, by the node's own `C_SetPIN`, in a session of the user's.
//!
//! The new password is the node's candidate before the token hears of it. What came of it, the login of the node's next
//! worker tells; `C_SetPIN`'s own answer is believed only where it says that nothing was changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroize;

use crate::host::{Turn, pin_text};
use crate::link::v1::fault::{Bucket, Kind};
use crate::link::v1::{Fault, Request, SetPin, request::Verb, response::Outcome};
use crate::model::with_causes;
use crate::records::{CandidateFate, LoginAnswer, LoginLeave, Unavailable};

use super::begun::heard_out;
use super::{CallError, Common, Credential, Node};

/// Beyond the patience for the call, its answer gets this long to arrive.
const GRACE: Duration = Duration::from_secs(1);
/// A refusal that cannot be written down is written again after this long.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The token says that it is made. The node's next login is the proof.
    Made,
    /// The node has the password that it had.
    Kept(String),
    /// The same, and it refused that password: somebody else has changed it.
    Refused(String),
    /// Only the node's next logins can tell.
    Unknown(String),
}

/// Gives the node a new password. What was begun is heard out, though nobody waits for it any more.
pub async fn change_password(node: &Arc<Node>, common: &Common, new: Arc<Credential>) -> Change {
    let changing = Changing { node: node.clone(), common: common.clone(), new };
    let under_way = common.passwords.change_begins().await;
    let change = async move {
        let _under_way = under_way;
        changing.run().await
    };
    heard_out(tokio::spawn(change)).await
}

struct Changing {
    node: Arc<Node>,
    common: Common,
    new: Arc<Credential>,
}

/// What the token said to `C_SetPIN`.
enum Said {
    Done,
    /// It was not changed. The old password was not even looked at, or is right.
    Not(String),
    /// It was not changed, and the old password was refused, which counts as a login does.
    OldRefused(String),
    Nothing(String),
}

impl Changing {
    async fn run(self) -> Change {
        // Nobody logs in here meanwhile, with whichever password.
        let turn = self.common.host.turn(&self.node.spec).await;
        let change = match self.prepare().await {
            Ok(Ok(old)) => self.change(&turn, &old).await,
            Ok(Err(why)) => Change::Kept(why.to_owned()),
            Err(error) => Change::Kept(with_causes(&error)),
        };
        if let Change::Kept(why) | Change::Refused(why) | Change::Unknown(why) = &change {
            tracing::warn!(hsm = %self.node.hsm(), why, "the password was not changed");
            self.node.note_trouble(&format!("its password was not changed: {why}"));
        }
        change
    }

    /// The old password, once the new one stands beside it in the records.
    async fn prepare(&self) -> Result<Result<Credential, &'static str>, Unavailable> {
        let (passwords, records) = (&self.common.passwords, &self.common.records);
        let hsm = self.node.hsm();
        let Some(old) = passwords.settled(hsm).await? else {
            return Ok(Err("an earlier change is not settled there"));
        };
        if self.node.load().is_none() {
            return Ok(Err("nobody is logged in"));
        }
        if !records.set_candidate(passwords.owner(), &[(hsm.clone(), old.version)], self.new.version).await? {
            return Ok(Err("an earlier change is not settled there"));
        }
        self.node.has_password(None);
        #[cfg(debug_assertions)]
        crate::seams::stop_point("candidate-written");
        Ok(Ok(old))
    }

    async fn change(&self, turn: &Turn, old: &Credential) -> Change {
        let login = self.node.load().map_or(0, |load| load.login);
        let said = match self.set_pin(turn, old).await {
            Ok(said) => said,
            Err(error) => Said::Not(with_causes(&error)),
        };
        match said {
            Said::Done => {
                #[cfg(debug_assertions)]
                crate::seams::stop_point("set-pin-answered");
                self.note_done(turn, old).await;
                self.node.give_up(login, "its password was changed; another one logs in with the new one");
                Change::Made
            }
            Said::Not(why) => {
                self.take_back(old, false).await;
                Change::Kept(why)
            }
            Said::OldRefused(why) => {
                self.take_back(old, true).await;
                Change::Refused(why)
            }
            Said::Nothing(why) => {
                self.node.give_up(login, "its password may have been changed; another one finds out");
                Change::Unknown(why)
            }
        }
    }

    async fn set_pin(&self, turn: &Turn, old: &Credential) -> Result<Said, Unavailable> {
        let spec = &self.node.spec;
        // A wrong old password counts on the token as a refused login does.
        match self.common.records.begin_login(&spec.cluster, &spec.hsm, &old.username, old.version).await? {
            LoginLeave::Granted | LoginLeave::GrantedAgain => {}
            LoginLeave::Refused | LoginLeave::Unsettled => {
                return Ok(Said::Not("no attempt with its present password is left".to_owned()));
            }
        }
        if let Err(error) = self.common.host.keep_token(turn, spec).await {
            return Ok(Said::Not(with_causes(&error)));
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("set-pin-begun");
        let pin =
            |credential: &Credential| pin_text(&credential.username, &credential.password).expose().as_bytes().to_vec();
        let verb = Verb::SetPin(SetPin { old_pin: pin(old), new_pin: pin(&self.new) });
        let request = &mut Request { verb: Some(verb), ..Request::default() };
        let deadline = Instant::now() + spec.patience.longest() + GRACE;
        let answer = self.node.call(request, deadline).await;
        request.zeroize();
        Ok(match answer {
            Ok(Outcome::Done(_)) => Said::Done,
            Ok(_) => Said::Nothing("the worker answered out of turn".to_owned()),
            Err(error) => said_by(&error),
        })
    }

    /// The token's word counts as its acceptance. If it cannot be written down, the candidate is settled as any other.
    async fn note_done(&self, turn: &Turn, old: &Credential) {
        let spec = &self.node.spec;
        let (records, owner) = (&self.common.records, self.common.passwords.owner());
        let written = async {
            records.candidate_was_set(owner, std::slice::from_ref(&spec.hsm), self.new.version).await?;
            records.login_succeeded(&spec.cluster, &spec.hsm, &old.username, old.version).await
        };
        if let Err(error) = written.await {
            tracing::error!(hsm = %spec.hsm, %error, "that the password was changed cannot be written down");
        }
        // Nothing brings the old one back from now on.
        if let Err(error) = self.common.host.keep_token(turn, spec).await {
            tracing::error!(hsm = %spec.hsm, %error, "the token's copy could not be renewed");
        }
    }

    /// It was not changed: the candidate goes. A refusal of the old password is not forgotten because the records cannot be
    /// reached: it could be tried a second time.
    async fn take_back(&self, old: &Credential, is_refused: bool) {
        let spec = &self.node.spec;
        let (records, owner) = (&self.common.records, self.common.passwords.owner());
        let answer = if is_refused { LoginAnswer::Refused } else { LoginAnswer::NotMade };
        loop {
            let dropped = (self.new.version, CandidateFate::Dropped);
            let written = records.login_settled(owner, &spec.hsm, (old.version, answer), dropped);
            let Err(error) = written.await else { break };
            tracing::error!(hsm = %spec.hsm, %error, "what came of a change of password cannot be written down; trying again");
            tokio::time::sleep(WRITE_AGAIN).await;
        }
        self.node.has_password(Some(old.version));
    }
}

fn said_by(error: &CallError) -> Said {
    let why = with_causes(error);
    match error {
        CallError::Full | CallError::NotServing | CallError::LateBefore | CallError::TooLong => Said::Not(why),
        CallError::LateAfter | CallError::Died | CallError::Cut => Said::Nothing(why),
        CallError::Fault(fault) => said_by_fault(fault, why),
    }
}

fn said_by_fault(fault: &Fault, why: String) -> Said {
    match (fault.kind(), fault.bucket()) {
        (Kind::PinIncorrect | Kind::PinLocked, _) => Said::OldRefused(why),
        (_, Bucket::Unknown | Bucket::Unspecified) => Said::Nothing(why),
        // Among them the new password's form, which is no verdict on the old one.
        (_, Bucket::Input | Bucket::Session | Bucket::Node) => Said::Not(why),
    }
}
