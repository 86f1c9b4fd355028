//! Whether a password is a user's: asked of one HSM, and never so often that it locks him on the HSM.
//!
//! The first HSM that has him and says yes or no decides: a wrong password is tried once. On each HSM we stop short of its
//! own limit, whoever asks, until an administrator resets the password; others may still be asked. A key store's kmsuser has
//! one try. Somebody whom no HSM has is asked about all the same, at the token of nobody: the answer is one, and takes as long.

use aws_lc_rs::rand;
use futures_util::future::join_all;

use crate::authz::{Permit, action};
use crate::cluster;
use crate::host::{UserError, WorkerSpec, pin_text};
use crate::model::{ClusterId, HsmId, Password, PasswordVersion, Username, with_causes};
use crate::node::{self, LoginRefusal, Slot, Tried};
use crate::records::{CryptoUserRecord, Lock, Unavailable, UserOnHsm, UserTask};

use super::Users;
use super::place::Place;

/// Of the password that nobody has.
const NOBODYS_PASSWORD_BYTES: usize = 32;

/// Whose password is tried. kmsuser's is for those alone who may: tried in vain it would lock a key store out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject(Username);

impl Subject {
    /// Anybody but kmsuser.
    pub fn other(user: Username) -> Option<Self> {
        (user != Username::kmsuser()).then_some(Self(user))
    }

    pub fn kmsuser(_permit: &Permit<action::LoginAsKmsuser>) -> Self {
        Self(Username::kmsuser())
    }

    pub fn username(&self) -> &Username {
        &self.0
    }
}

/// Why a password is not taken for the user's.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    #[error("the crypto user's name or the password is wrong")]
    Refused,
    #[error(
        "too many wrong passwords were given for this crypto user; it is tried again once an administrator has reset the password"
    )]
    Throttled,
    #[error("no HSM can be asked: {why}")]
    NoNode { cluster: ClusterId, why: String },
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// A password that is the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proved {
    pub(super) version: PasswordVersion,
    pub(super) on: HsmId,
}

/// How often a password may be tried in vain.
pub(super) struct Allowed {
    /// A key store has tries of its own, and must be able to make them: one failure on one HSM is the end.
    is_a_stores: bool,
    /// In a row on each HSM.
    pub(super) failures: u32,
}

/// What came of it on one HSM.
enum On {
    Accepted,
    Refused,
    Throttled,
    /// He is not there.
    NotHere,
    NotAsked(String),
}

impl Users {
    /// Which of the user's passwords it is, and the HSM that has just accepted it. For kmsuser, while he rests.
    pub(super) async fn prove(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
        password: &Password,
    ) -> Result<Proved, Unproved> {
        let seat = self.seat(id, user);
        let _turn = seat.turn.lock().await;
        // His own workers are no strangers there.
        let slot = if seat.connection().is_some() { Slot::Ours } else { Slot::Free };
        let record = self.0.records.crypto_user(id, user).await?;
        let mut throttled = false;
        let mut not_asked = Vec::new();
        let places = self.places(id, cluster, user);
        let allowed = self.attempts_allowed(id, cluster, user);
        let is_counted = |place: &&Place| !is_to_be_unlocked(record.as_ref(), place.hsm());
        if allowed.is_a_stores {
            self.no_failure_on(id, places.iter().filter(is_counted)).await?;
        }
        for place in &places {
            let on = match asking(record.as_ref(), user, place.hsm()) {
                Asking::Yes => self.prove_on(id, cluster, place, (password, slot), allowed.failures).await?,
                Asking::NotYet => On::NotAsked("it is still to be given the present password".to_owned()),
                Asking::NotHere => On::NotHere,
            };
            match on {
                On::Accepted => {
                    let version = PasswordVersion(record.as_ref().map_or(0, |record| record.version));
                    return Ok(Proved { version, on: place.hsm().clone() });
                }
                On::Refused => return Err(Unproved::Refused),
                On::Throttled => throttled = true,
                On::NotHere => {}
                On::NotAsked(why) => not_asked.push(format!("{}: {why}", place.hsm())),
            }
        }
        if throttled {
            return Err(Unproved::Throttled);
        }
        if !not_asked.is_empty() {
            return Err(Unproved::NoNode { cluster: id.clone(), why: not_asked.join("; ") });
        }
        Err(self.refuse_as_nobody(id, cluster, user, password).await?)
    }

    async fn prove_on(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        place: &Place,
        (password, slot): (&Password, Slot),
        allowed: u32,
    ) -> Result<On, Unavailable> {
        match self.standing(place).await {
            Ok(standing) if !standing.is_present => return Ok(On::NotHere),
            Ok(_) => {}
            Err(why) => return Ok(On::NotAsked(with_causes(&why))),
        }
        // As if it were asked as well: whoever is nobody takes as long.
        self.nobody_on(id, cluster, place).await;
        let pin = pin_text(&place.spec.username, password);
        let tried = node::try_user(&self.0.host, &self.0.records, &place.spec, slot, &pin, allowed).await?;
        Ok(match tried {
            Tried::Accepted => On::Accepted,
            Tried::Refused(LoginRefusal::Incorrect, _) => On::Refused,
            Tried::Spent | Tried::Throttled | Tried::Refused(LoginRefusal::Locked | LoginRefusal::Throttled, _) => {
                On::Throttled
            }
            Tried::Refused(LoginRefusal::NoUser, _) => On::NotHere,
            Tried::Refused(LoginRefusal::LoggedInElsewhere | LoginRefusal::Unsettled | LoginRefusal::NotTried, why)
            | Tried::Unanswered(why)
            | Tried::NotAsked(why)
            | Tried::AnotherToken(why)
            | Tried::Withdrawn(why) => On::NotAsked(why),
        })
    }

    pub(super) fn attempts_allowed(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Allowed {
        let is_a_stores = *user == Username::kmsuser() && self.0.key_stores.on_cluster(id).is_some();
        Allowed { is_a_stores, failures: if is_a_stores { 1 } else { cluster.profile.failed_logins_allowed() } }
    }

    /// Also on an HSM that is out of use or out of reach: a wrong password was tried all the same. Where nobody can say, none
    /// is tried.
    async fn no_failure_on(&self, id: &ClusterId, places: impl Iterator<Item = &Place>) -> Result<(), Unproved> {
        let asked = places.map(|place| async move { (place, self.0.host.failed_logins(&place.spec).await) });
        for (place, failed) in join_all(asked).await {
            match failed {
                Ok(0) => {}
                Ok(_) => return Err(Unproved::Throttled),
                Err(why) => {
                    let why = format!("{}: {}", place.hsm(), with_causes(&why));
                    return Err(Unproved::NoNode { cluster: id.clone(), why });
                }
            }
        }
        Ok(())
    }

    /// The same work for a user whom no HSM has, and the same answer.
    async fn refuse_as_nobody(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        name: &Username,
        password: &Password,
    ) -> Result<Unproved, Unavailable> {
        let pin = pin_text(name, password);
        let mut throttled = false;
        let mut not_asked = Vec::new();
        for place in self.places(id, cluster, name) {
            if let Err(why) = self.standing(&place).await {
                not_asked.push(format!("{}: {}", place.hsm(), with_causes(&why)));
                continue;
            }
            let nobody = self.nobody_on(id, cluster, &place).await;
            let allowed = cluster.profile.failed_logins_allowed();
            if !self.0.strangers.may_try(id, place.hsm(), name, allowed) {
                throttled = true;
                continue;
            }
            let Some(spec) = nobody else { return Ok(Unproved::Refused) };
            match node::try_user(&self.0.host, &self.0.records, &spec, Slot::Free, &pin, u32::MAX).await? {
                Tried::Accepted | Tried::Refused(..) | Tried::Spent | Tried::Throttled => return Ok(Unproved::Refused),
                Tried::Unanswered(why) | Tried::NotAsked(why) | Tried::AnotherToken(why) | Tried::Withdrawn(why) => {
                    not_asked.push(format!("{}: {why}", place.hsm()))
                }
            }
        }
        Ok(if throttled {
            Unproved::Throttled
        } else {
            Unproved::NoNode { cluster: id.clone(), why: not_asked.join("; ") }
        })
    }

    /// The token of nobody on this HSM, made when it is not there yet: before anybody's attempt, so that it tells nothing. An
    /// HSM that cannot have one lets its users in all the same.
    async fn nobody_on(&self, id: &ClusterId, cluster: &cluster::Settings, beside: &Place) -> Option<WorkerSpec> {
        let node = cluster.nodes.get(beside.hsm())?;
        let spec = self.place(id, beside.hsm(), node, &Username::nobody()).spec;
        let made = self.make_nobody(&spec).await;
        made.inspect_err(
            |why| tracing::warn!(hsm = %spec.hsm, why = with_causes(why), "nobody's token cannot be made"),
        )
        .ok()?;
        Some(spec)
    }

    async fn make_nobody(&self, spec: &WorkerSpec) -> Result<(), UserError> {
        let host = &self.0.host;
        let turn = host.turn(spec).await;
        // No password of his is right, however many are tried: he is never locked.
        host.unlock_user(&turn, spec).await?;
        if host.user_standing(spec).await?.is_present {
            return Ok(());
        }
        if let Err(error) = host.give_user(&turn, spec, &nobodys_password()).await {
            // Half of it would be in the way of the next one.
            host.remove_user(&turn, spec).await?;
            return Err(error);
        }
        Ok(())
    }
}

/// Whether an HSM may be asked about a user's present password, as far as keyway brought him there.
pub(super) enum Asking {
    Yes,
    /// It may have the one before, and would count this one as wrong.
    NotYet,
    NotHere,
}

pub(super) fn asking(record: Option<&CryptoUserRecord>, user: &Username, hsm: &HsmId) -> Asking {
    match record.and_then(|record| record.hsms.get(hsm)) {
        // kmsuser may have been made elsewhere; the HSM knows.
        None if *user == Username::kmsuser() => Asking::Yes,
        Some(UserOnHsm { pending: None, given: true, .. }) => Asking::Yes,
        Some(UserOnHsm { pending: Some(UserTask::Give), .. }) => Asking::NotYet,
        Some(UserOnHsm { pending: Some(UserTask::Remove) | None, .. }) | None => Asking::NotHere,
    }
}

/// An administrator has reset the password, and the HSM is still to be told: what it counts is of no account any more.
fn is_to_be_unlocked(record: Option<&CryptoUserRecord>, hsm: &HsmId) -> bool {
    let on = record.and_then(|record| record.hsms.get(hsm));
    on.is_some_and(|on| on.pending == Some(UserTask::Give) && on.lock == Lock::Opened)
}

fn nobodys_password() -> Password {
    let mut bytes = zeroize::Zeroizing::new([0; NOBODYS_PASSWORD_BYTES]);
    rand::fill(&mut *bytes).expect("the system has random bytes");
    Password::trusted(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
