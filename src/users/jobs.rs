//! What is pending for a user on an HSM, done there and closed in the records.
//!
//! To be repeated as often as one likes: a job that a crash cut short is done again from its beginning. An SO's login is
//! within the budget that every login has, written down before the job; one that was refused, or not answered and never
//! accepted before, needs an administrator's act.

use crate::cluster;
use crate::host::{Location, OpeningError, Turn, UserError, WorkerSpec};
use crate::keystore::KmsuserInUse;
use crate::link::v1::fault::User;
use crate::model::{ClusterId, HsmId, KeyStoreId, Password, PasswordVersion, Username, with_causes};
use crate::node::{LoginRefusal, refusal};
use crate::records::{Lock, LoginLeave, Standing, Unavailable, UserOnHsm, UserTask};

use super::Users;
use super::place::Place;

/// Why a job is still to be done.
#[derive(Debug, thiserror::Error)]
pub enum Undone {
    #[error("it is out of use: {0}")]
    OutOfUse(String),
    #[error(transparent)]
    KmsuserInUse(#[from] KmsuserInUse),
    #[error("key store {0} stands on kmsuser; delete the key store first")]
    KmsuserHasKeyStore(KeyStoreId),
    #[error("{0} has a token of {1}'s that keyway did not make; it is not taken over: remove it by hand")]
    Stranger(HsmId, Username),
    #[error("{}", spent(.0, .1))]
    Spent(HsmId, Username),
    #[error(transparent)]
    Host(#[from] UserError),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

fn spent(hsm: &HsmId, user: &Username) -> String {
    let act = if *user == Username::kmsuser() {
        format!("resume {hsm} allowing one login")
    } else {
        format!("reset {user}'s password")
    };
    format!("the SO PIN was refused, or its login not answered; mend so_pin_file, and {act} to have it tried once more")
}

impl Users {
    /// Does what is pending for the user on each HSM, on all of them at once: what is still to be done, and why.
    pub(super) async fn settle(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
    ) -> Result<Vec<(HsmId, Undone)>, Unavailable> {
        let Some(record) = self.0.records.crypto_user(id, user).await? else { return Ok(Vec::new()) };
        let pending = record.hsms.iter().filter_map(|(hsm, on)| Some((hsm, *on, on.pending?)));
        let each = pending.map(|(hsm, on, task)| async move {
            let done = match cluster.nodes.get(hsm) {
                Some(node) => self.settle_on(id, &self.place(id, hsm, node, user), on, task).await,
                // Nobody can say when it comes back, if ever: the name is free without it, and no password kept.
                None => {
                    match task {
                        UserTask::Remove => self.0.records.crypto_user_removed(id, user, hsm).await?,
                        UserTask::Give => self.0.records.crypto_user_not_to_be_given(id, user, hsm).await?,
                    }
                    Ok(())
                }
            };
            Ok::<_, Unavailable>((hsm.clone(), done))
        });
        let done = futures_util::future::try_join_all(each).await?;
        let undone: Vec<_> = done.into_iter().filter_map(|(hsm, done)| Some((hsm, done.err()?))).collect();
        for (hsm, why) in &undone {
            let why = with_causes(why);
            tracing::info!(cluster = %id, %hsm, %user, why, "a crypto user is still to be brought level here");
        }
        if !undone.is_empty() {
            self.0.left_over.notify_one();
        }
        Ok(undone)
    }

    async fn settle_on(&self, id: &ClusterId, place: &Place, on: UserOnHsm, task: UserTask) -> Result<(), Undone> {
        place.in_use()?;
        let user = &place.spec.username;
        let job = async {
            match task {
                UserTask::Give => self.give_on(&place.spec, on).await,
                UserTask::Remove => {
                    self.no_key_store_stands_on(id, user)?;
                    self.remove_on(&place.spec).await
                }
            }
        };
        self.resting(id, user, job).await??;
        match task {
            UserTask::Give => self.is_given_on(id, user, place.hsm()).await,
            UserTask::Remove => {}
        }
        Ok(())
    }

    /// One may have been made since the removal was written down: with kmsuser's token would go its keys.
    fn no_key_store_stands_on(&self, id: &ClusterId, user: &Username) -> Result<(), Undone> {
        match self.0.key_stores.on_cluster(id) {
            Some(store) if *user == Username::kmsuser() => Err(Undone::KmsuserHasKeyStore(store.id())),
            Some(_) | None => Ok(()),
        }
    }

    async fn give_on(&self, spec: &WorkerSpec, on: UserOnHsm) -> Result<(), Undone> {
        let (records, host) = (&self.0.records, &self.0.host);
        let WorkerSpec { cluster, hsm, username: user, .. } = spec;
        let turn = host.turn(spec).await;
        // Not even begun where it cannot be done: no login is written down for nothing.
        let is_present = host.user_standing(spec).await?.is_present;
        let Some((version, password)) = records.pending_password(cluster, user).await? else { return Ok(()) };
        let is_new = !on.given && (*user != Username::kmsuser() || self.is_made_here(spec));
        if is_new && is_present {
            let so = Username::security_officer_of(user);
            let begun = match records.login_standing_on(cluster, hsm, &so, PasswordVersion::SO_PIN).await? {
                Standing::Untried | Standing::Granted => false,
                Standing::Unsettled | Standing::Proven | Standing::Refused => true,
            };
            if !begun {
                return Err(Undone::Stranger(hsm.clone(), user.clone()));
            }
        }
        let serial = self.give_as_so(&turn, spec, &password, is_new).await?;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-given");
        // Whether the HSM's own token may be another one is for whoever connects to it to say.
        if *user != Username::kmsuser() {
            records.set_token_serial(cluster, hsm, user, &serial).await?;
        }
        if on.lock == Lock::Opened {
            host.unlock_user(&turn, spec).await?;
        }
        Ok(records.crypto_user_given(cluster, user, hsm, version).await?)
    }

    /// The HSM's own token is one that keyway makes, as it makes other users' tokens everywhere.
    fn is_made_here(&self, spec: &WorkerSpec) -> bool {
        let cluster = self.0.key_stores.declared().get(&spec.cluster);
        cluster.is_some_and(|cluster| cluster.made().is_some()) && matches!(spec.location, Location::Here(_))
    }

    /// Makes kmsuser on an HSM that is being added to a cluster with a key store, with the password that the store logs in
    /// with there. It is nobody's yet: no key store is at work on it.
    pub async fn give_kmsuser_to_new_hsm(
        &self,
        id: &ClusterId,
        hsm: &HsmId,
        node: &cluster::NodeSettings,
        password: &Password,
    ) -> Result<(), Undone> {
        let spec = self.place(id, hsm, node, &Username::kmsuser()).spec;
        let turn = self.0.host.turn(&spec).await;
        self.give_as_so(&turn, &spec, password, true).await?;
        Ok(self.0.records.kmsuser_is_on(id, hsm).await?)
    }

    /// One login of the SO's, within its budget: the token's serial number. Whatever token is there of a user who `is_new`
    /// was made by a job like this one, which was cut short, with the SO's present PIN.
    async fn give_as_so(
        &self,
        turn: &Turn,
        spec: &WorkerSpec,
        password: &Password,
        is_new: bool,
    ) -> Result<String, Undone> {
        let (records, host) = (&self.0.records, &self.0.host);
        let WorkerSpec { cluster, hsm, username: user, .. } = spec;
        let so = Username::security_officer_of(user);
        // One that was refused is for an administrator to allow.
        if is_new {
            match records.login_standing_on(cluster, hsm, &so, PasswordVersion::SO_PIN).await? {
                Standing::Untried | Standing::Unsettled => {
                    records.allow_one_security_officer_login(cluster, hsm, user).await?;
                }
                Standing::Granted | Standing::Proven | Standing::Refused => {}
            }
        }
        match records.begin_login(cluster, hsm, &so, PasswordVersion::SO_PIN).await? {
            LoginLeave::Granted | LoginLeave::GrantedAgain => {}
            LoginLeave::Refused | LoginLeave::Unsettled => return Err(Undone::Spent(hsm.clone(), user.clone())),
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-give-begun");
        let answer = host.give_user(turn, spec, password).await;
        match said_of_the_security_officer(&answer) {
            Said::Accepted => records.login_succeeded(cluster, hsm, &so, PasswordVersion::SO_PIN).await?,
            Said::Refused => records.login_refused(cluster, hsm, &so, PasswordVersion::SO_PIN).await?,
            // What it has left there is ours: the open attempt says so to the next job.
            Said::NotAsked if is_new && host.user_standing(spec).await?.is_present => {}
            Said::NotAsked => records.login_not_made(cluster, hsm, &so, PasswordVersion::SO_PIN).await?,
            Said::Nothing => {}
        }
        Ok(answer?)
    }

    async fn remove_on(&self, spec: &WorkerSpec) -> Result<(), Undone> {
        let turn = self.0.host.turn(spec).await;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-remove-begun");
        self.0.host.remove_user(&turn, spec).await?;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-removed");
        Ok(self.0.records.crypto_user_removed(&spec.cluster, &spec.username, &spec.hsm).await?)
    }
}

/// What a job says of the SO's login in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Accepted,
    Refused,
    NotAsked,
    Nothing,
}

fn said_of_the_security_officer(answer: &Result<String, UserError>) -> Said {
    let error = match answer {
        Ok(_) => return Said::Accepted,
        Err(UserError::Host(error)) => error,
        Err(UserError::OutOfReach(_) | UserError::NoDirectory | UserError::NotOurs(_)) => return Said::NotAsked,
    };
    match error {
        OpeningError::Fault(fault) if fault.login() == User::SecurityOfficer => {
            match refusal(fault.kind()) {
                Some(LoginRefusal::Incorrect | LoginRefusal::Locked) => Said::Refused,
                // It was not even looked at.
                Some(
                    LoginRefusal::NoUser
                    | LoginRefusal::LoggedInElsewhere
                    | LoginRefusal::Unsettled
                    | LoginRefusal::NotTried
                    | LoginRefusal::Throttled,
                ) => Said::NotAsked,
                None => Said::Nothing,
            }
        }
        OpeningError::Fault(fault) if fault.accepted().any(|user| user == User::SecurityOfficer) => Said::Accepted,
        OpeningError::Fault(_) => Said::NotAsked,
        error if error.was_handed_over() => Said::Nothing,
        _ => Said::NotAsked,
    }
}
