//! The trust ceremony as the daemon sees it: which job on which node, and every login of it within the budget.
//!
//! The SO's PIN can lock as the user's password can. So each job's logins are written down before it begins and closed
//! by what the worker says of them, all in the node's turn. Who was refused is not logged in again, by a ceremony or
//! otherwise, until an operator says so. What a job is, and why, stands in the worker.
//!
//! ```text
//!   first node:    make the KEK                             (user, SO, user)
//!   joining node:  offer a key ─▶ … ─▶ accept the KEK       (SO … user)
//!   its source:               seal the KEK to it            (SO, user)
//! ```

use std::sync::Arc;

use crate::host::{AdminWorker, Joining, Kek, Made, OpeningError, Turn, WorkerSpec, pin_text};
use crate::link::v1::fault::User;
use crate::model::{HsmId, PasswordVersion, Username};
use crate::node::{Common, Credential, LoginRefusal, heard_out, refusal};
use crate::records::{KekRecord, LoginLeave, Standing, Unavailable};

/// Why a job of the ceremony was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undone {
    /// Before a login, or after it: no login is to blame.
    #[error("the trust ceremony failed on {hsm}")]
    Job {
        hsm: HsmId,
        #[source]
        source: OpeningError,
    },
    /// Nothing goes on there without an operator.
    #[error(transparent)]
    Login(#[from] Spent),
    #[error("the password is being changed on {0}")]
    BeingChanged(HsmId),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl Undone {
    /// Whether trying again is of no use until somebody has mended something.
    pub(super) fn needs_operator(&self) -> bool {
        match self {
            Self::Login(_) | Self::Job { source: OpeningError::NoSoPin(_) | OpeningError::SoPin(_), .. } => true,
            Self::Job { .. } | Self::BeingChanged(_) | Self::Records(_) => false,
        }
    }
}

/// A node on which a login has no attempt left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub(super) struct Spent {
    hsm: HsmId,
    who: Who,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Refused,
    Unanswered,
}

/// Whose login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    User,
    SecurityOfficer,
}

impl Spent {
    fn text(&self) -> String {
        let Self { hsm, who, why } = self;
        match (who, why) {
            (Who::SecurityOfficer, Why::Refused) => {
                format!("the SO PIN was refused on {hsm}; mend its so_pin_file, and resume it allowing one login")
            }
            (Who::User, Why::Refused) => {
                format!("the password was refused on {hsm}; mend it there, and resume that HSM allowing one login")
            }
            (Who::SecurityOfficer, Why::Unanswered) => {
                format!("a login as SO was never answered on {hsm}; resume it allowing one login to try once more")
            }
            (Who::User, Why::Unanswered) => {
                format!("a login was never answered on {hsm}; resume it allowing one login to try once more")
            }
        }
    }
}

/// Makes the key-encryption key on the cluster's first node, unless it is there.
pub(super) async fn make_kek(common: &Common, spec: &WorkerSpec, kek: &KekRecord) -> Result<(), Undone> {
    let (id, common, spec) = (kek.kek_id, common.clone(), spec.clone());
    heard_out(tokio::spawn(async move {
        let turn = common.host.turn(&spec).await;
        let worker = worker(&common, &turn, &spec).await?;
        let attempts = Attempts::begin(&common, &spec, &[Who::User, Who::SecurityOfficer]).await?;
        let answer = worker.make_kek(&attempts.kek(id)).await;
        let made = if matches!(answer, Ok(Made::Before)) { &[Who::User][..] } else { &attempts.of };
        attempts.settle(made, answer).await?;
        Ok(())
    }))
    .await
}

/// The joining token offers a key to seal the cluster's to.
pub(super) async fn offer_join(common: &Common, spec: &WorkerSpec) -> Result<Joining, Undone> {
    let (common, spec) = (common.clone(), spec.clone());
    heard_out(tokio::spawn(async move {
        let turn = common.host.turn(&spec).await;
        let worker = worker(&common, &turn, &spec).await?;
        let attempts = Attempts::begin(&common, &spec, &[Who::SecurityOfficer]).await?;
        let answer = worker.offer_join().await;
        attempts.settle(&attempts.of, answer).await
    }))
    .await
}

/// A node that has the key-encryption key seals it to the offer.
pub(super) async fn seal_kek(
    common: &Common,
    spec: &WorkerSpec,
    kek: &KekRecord,
    joining: &Joining,
) -> Result<Vec<u8>, Undone> {
    let (id, offer, common, spec) = (kek.kek_id, joining.offer.clone(), common.clone(), spec.clone());
    heard_out(tokio::spawn(async move {
        let turn = common.host.turn(&spec).await;
        let worker = worker(&common, &turn, &spec).await?;
        let attempts = Attempts::begin(&common, &spec, &[Who::SecurityOfficer, Who::User]).await?;
        let answer = worker.seal_kek(&attempts.kek(id), &offer).await;
        attempts.settle(&attempts.of, answer).await
    }))
    .await
}

/// The joining node takes the key-encryption key in.
pub(super) async fn accept_kek(
    common: &Common,
    spec: &WorkerSpec,
    kek: &KekRecord,
    joining: Joining,
    sealed: Vec<u8>,
) -> Result<(), Undone> {
    let (id, common, spec) = (kek.kek_id, common.clone(), spec.clone());
    heard_out(tokio::spawn(async move {
        let turn = common.host.turn(&spec).await;
        let attempts = Attempts::begin(&common, &spec, &[Who::User]).await?;
        let answer = joining.accept_kek(&turn, &attempts.kek(id), sealed).await;
        attempts.settle(&attempts.of, answer).await
    }))
    .await
}

/// A worker for a job on this node. Every job of the ceremony there logs in as user and as SO, sooner or later.
///
/// None is opened before an operator's leave: what it has read by then, PIN or token, may be what he has put right.
async fn worker(common: &Common, turn: &Turn, spec: &WorkerSpec) -> Result<AdminWorker, Undone> {
    may_take_part(common, spec).await?;
    common.host.admin(turn, spec).await.map_err(|error| failed(spec, error))
}

/// Whether the ceremony may log in on this node, as user and as SO. Nothing is begun.
pub(super) async fn may_take_part(common: &Common, spec: &WorkerSpec) -> Result<(), Undone> {
    let user = credential(common, spec).await?;
    may_log_in(common, spec, Who::User, &user).await?;
    may_log_in(common, spec, Who::SecurityOfficer, &user).await
}

/// The user's password on this node, which is what it was logged in to with, unless that is being changed.
async fn credential(common: &Common, spec: &WorkerSpec) -> Result<Credential, Undone> {
    let settled = common.passwords.settled(&spec.hsm).await?;
    settled.ok_or_else(|| Undone::BeingChanged(spec.hsm.clone()))
}

async fn may_log_in(common: &Common, spec: &WorkerSpec, who: Who, user: &Credential) -> Result<(), Undone> {
    let (user, version) = who.in_the_records(user);
    match common.records.login_standing_on(&spec.cluster, &spec.hsm, &user, version).await? {
        Standing::Untried | Standing::Granted | Standing::Proven => Ok(()),
        Standing::Refused => Err(spent(spec, who, Why::Refused).into()),
        Standing::Unsettled => Err(spent(spec, who, Why::Unanswered).into()),
    }
}

/// A job's logins on one node, written down and not yet answered.
struct Attempts<'a> {
    common: &'a Common,
    spec: &'a WorkerSpec,
    user: Credential,
    of: Vec<Who>,
}

/// What became of one login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused,
    NotMade,
    /// It may have been made, and nobody knows what the token said. It stays open.
    Unanswered,
}

impl<'a> Attempts<'a> {
    /// All of them, or none.
    async fn begin(common: &'a Common, spec: &'a WorkerSpec, wanted: &[Who]) -> Result<Self, Undone> {
        let mut begun = Self { common, spec, user: credential(common, spec).await?, of: Vec::new() };
        for &who in wanted {
            let (user, version) = who.in_the_records(&begun.user);
            let why = match common.records.begin_login(&spec.cluster, &spec.hsm, &user, version).await? {
                LoginLeave::Granted | LoginLeave::GrantedAgain => {
                    begun.of.push(who);
                    continue;
                }
                LoginLeave::Refused => Why::Refused,
                LoginLeave::Unsettled => Why::Unanswered,
            };
            for &who in &begun.of {
                begun.close(who, Verdict::NotMade).await?;
            }
            return Err(spent(spec, who, why).into());
        }
        Ok(begun)
    }

    /// The key-encryption key, for the user who is to log in.
    fn kek(&self, id: [u8; 16]) -> Kek {
        Kek { id: id.to_vec(), user_pin: Arc::new(pin_text(&self.user.username, &self.user.password)) }
    }

    /// Writes down what the answer says of each. `made` are those that a job done well has made.
    async fn settle<T>(&self, made: &[Who], answer: Result<T, OpeningError>) -> Result<T, Undone> {
        let mut refused = None;
        for &who in &self.of {
            let verdict = match &answer {
                Ok(_) if made.contains(&who) => Verdict::Accepted,
                Ok(_) => Verdict::NotMade,
                Err(error) => verdict(who, error),
            };
            self.close(who, verdict).await?;
            if verdict == Verdict::Refused {
                tracing::warn!(hsm = %self.spec.hsm, ?who, "a login of the trust ceremony was refused");
                refused = Some(spent(self.spec, who, Why::Refused));
            }
        }
        match refused {
            Some(refused) => Err(refused.into()),
            None => answer.map_err(|error| failed(self.spec, error)),
        }
    }

    async fn close(&self, who: Who, verdict: Verdict) -> Result<(), Unavailable> {
        let (records, cluster, hsm) = (&self.common.records, &self.spec.cluster, &self.spec.hsm);
        let (user, version) = who.in_the_records(&self.user);
        match verdict {
            Verdict::Accepted => records.login_succeeded(cluster, hsm, &user, version).await,
            Verdict::Refused => records.login_refused(cluster, hsm, &user, version).await,
            Verdict::NotMade => records.login_not_made(cluster, hsm, &user, version).await,
            Verdict::Unanswered => Ok(()),
        }
    }
}

impl Who {
    fn in_the_records(self, user: &Credential) -> (Username, PasswordVersion) {
        match self {
            Self::User => (user.username.clone(), user.version),
            Self::SecurityOfficer => (Username::security_officer_of(&user.username), PasswordVersion::SO_PIN),
        }
    }

    fn on_the_link(self) -> User {
        match self {
            Self::User => User::CryptoUser,
            Self::SecurityOfficer => User::SecurityOfficer,
        }
    }
}

/// What a job that was not done says of one login.
fn verdict(who: Who, error: &OpeningError) -> Verdict {
    let OpeningError::Fault(fault) = error else {
        return if error.was_handed_over() { Verdict::Unanswered } else { Verdict::NotMade };
    };
    if fault.login() == who.on_the_link() {
        return match refusal(fault.kind()) {
            Some(LoginRefusal::Incorrect | LoginRefusal::Locked) => Verdict::Refused,
            // It was not even looked at.
            Some(
                LoginRefusal::NoUser
                | LoginRefusal::LoggedInElsewhere
                | LoginRefusal::Unsettled
                | LoginRefusal::NotTried
                | LoginRefusal::Throttled,
            ) => Verdict::NotMade,
            None => Verdict::Unanswered,
        };
    }
    if fault.accepted().any(|accepted| accepted == who.on_the_link()) { Verdict::Accepted } else { Verdict::NotMade }
}

fn failed(spec: &WorkerSpec, source: OpeningError) -> Undone {
    Undone::Job { hsm: spec.hsm.clone(), source }
}

fn spent(spec: &WorkerSpec, who: Who, why: Why) -> Spent {
    Spent { hsm: spec.hsm.clone(), who, why }
}
