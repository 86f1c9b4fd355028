//! Users made and deleted, and given passwords: written down first, then done on each HSM.

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster;
use crate::model::{ClusterId, ClusterState, HsmId, Password, Username, with_causes};
use crate::records::{AddedCryptoUser, CryptoUserRecord, Lock, NewCryptoUser, Unavailable};

use super::jobs::Undone;
use super::{Error, Subject, UserView, Users};

/// As many crypto users as a CloudHSM cluster has.
const MOST_USERS: u32 = 1_024;
/// Who is to be made.
#[derive(Debug)]
pub struct NewUser {
    pub username: Username,
    pub password: Password,
    pub second_factor: bool,
}

impl Users {
    /// Makes a user on every HSM that can be reached; the others get him later.
    pub async fn create(
        &self,
        _permit: Permit<action::CreateCryptoUser>,
        cluster: &ClusterId,
        new: NewUser,
    ) -> Result<UserView, Error> {
        let (this, cluster) = (self.clone(), cluster.clone());
        self.outlive(&self.0.changes, async move { this.create_now(&cluster, new).await }).await
    }

    async fn create_now(&self, id: &ClusterId, new: NewUser) -> Result<UserView, Error> {
        let cluster = self.managed_or_initialized(id)?;
        let _changing = self.turn(id).await;
        let user = new.username.clone();
        self.is_free(id, &cluster, &user).await?;
        let hsms: Vec<_> = cluster.nodes.keys().cloned().collect();
        let record = NewCryptoUser {
            cluster: id.clone(),
            username: user.clone(),
            second_factor: new.second_factor,
            password: new.password,
            created: clock::now(),
        };
        self.allow_security_officers(id, &hsms, &user).await?;
        match self.0.records.add_crypto_user(&record, &hsms, MOST_USERS).await? {
            AddedCryptoUser::Added => {}
            AddedCryptoUser::Exists(twin) => return Err(exists(id, &twin)),
            AddedCryptoUser::Full => return Err(Error::TooManyUsers(MOST_USERS)),
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-written-down");
        let undone = self.settle(id, &cluster, &user).await?;
        if cluster.state == ClusterState::Initialized {
            // ACTIVE, now that his tokens can be looked for.
            self.0.key_stores.redeclare_made().await?;
        }
        if undone.len() == hsms.len() {
            return Err(Error::OutcomeUnknown(reasons(&undone)));
        }
        let record = self.0.records.crypto_user(id, &user).await?;
        Ok(self.view(id, &cluster, &user, record.as_ref()).await)
    }

    /// Nobody has this name: neither in the records, nor on any HSM. One of these can be reached.
    async fn is_free(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Result<(), Error> {
        let taken = |hsms| Error::Exists { cluster: id.clone(), user: user.clone(), hsms };
        if let Some(record) = self.0.records.crypto_user(id, user).await? {
            return Err(exists(id, &record));
        }
        if user.as_str().eq_ignore_ascii_case(Username::kmsuser().as_str()) && *user != Username::kmsuser() {
            return Err(taken(Vec::new()));
        }
        let mut on = Vec::new();
        let mut unreached = Vec::new();
        for (hsm, standing) in self.standings(id, cluster, user).await {
            match standing {
                Ok(standing) if standing.is_present => on.push(hsm),
                Ok(_) => {}
                Err(undone) => unreached.push((hsm, undone)),
            }
        }
        match (on.is_empty(), unreached.len() == cluster.nodes.len()) {
            (false, _) => Err(taken(on)),
            (true, true) => Err(Error::NoNode { cluster: id.clone(), why: reasons(&unreached) }),
            (true, false) => Ok(()),
        }
    }

    /// Removes a user, and all that is his, from every HSM that can be reached; from the others later.
    pub async fn delete(
        &self,
        _permit: Permit<action::DeleteCryptoUser>,
        cluster: &ClusterId,
        user: &Username,
    ) -> Result<(), Error> {
        let (this, cluster, user) = (self.clone(), cluster.clone(), user.clone());
        self.outlive(&self.0.changes, async move { this.delete_now(&cluster, &user).await }).await
    }

    async fn delete_now(&self, id: &ClusterId, user: &Username) -> Result<(), Error> {
        let cluster = self.managed(id)?;
        let _changing = self.turn(id).await;
        self.known(id, &cluster, user).await?;
        self.anybody_there(id, &cluster, user).await?;
        if self.0.records.logged_in_until(id, user, clock::now()).await?.is_some() {
            return Err(Error::LoggedIn(user.clone()));
        }
        let hsms: Vec<_> = cluster.nodes.keys().cloned().collect();
        let begun = self.resting(id, user, async {
            match self.0.key_stores.on_cluster(id) {
                // With kmsuser's token would go every key of the store.
                Some(store) if *user == Username::kmsuser() => {
                    Err(Error::KmsuserHasKeyStore { store: store.id(), state: store.state() })
                }
                Some(_) | None => Ok(self.0.records.begin_removing_crypto_user(id, user, &hsms).await?),
            }
        });
        if !begun.await?? {
            return Err(not_found(id, user));
        }
        self.end(id, user).await;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-removal-written-down");
        let undone = self.settle(id, &cluster, user).await?;
        if undone.len() == cluster.nodes.len() {
            return Err(Error::OutcomeUnknown(reasons(&undone)));
        }
        Ok(())
    }

    /// Gives a user another password and unlocks him, on every HSM that can be reached; on the others later: those.
    pub async fn reset_password(
        &self,
        _permit: Permit<action::ResetPassword>,
        cluster: &ClusterId,
        user: &Username,
        password: Password,
    ) -> Result<Vec<HsmId>, Error> {
        let (this, cluster, user) = (self.clone(), cluster.clone(), user.clone());
        self.outlive(&self.0.changes, async move { this.reset_now(&cluster, &user, &password).await }).await
    }

    async fn reset_now(&self, id: &ClusterId, user: &Username, password: &Password) -> Result<Vec<HsmId>, Error> {
        let cluster = self.managed(id)?;
        let _changing = self.turn(id).await;
        self.known(id, &cluster, user).await?;
        self.anybody_there(id, &cluster, user).await?;
        // Also where he is not, though he should be.
        let hsms: Vec<_> = cluster.nodes.keys().cloned().collect();
        // Where he never was whole, the job itself knows whether the token there is his.
        let record = self.0.records.crypto_user(id, user).await?;
        let given = record.iter().flat_map(|record| &record.hsms).filter(|(_, on)| on.given);
        let given: Vec<_> = given.map(|(hsm, _)| hsm.clone()).collect();
        self.allow_security_officers(id, &given, user).await?;
        self.give(id, &cluster, user, &hsms, password, Lock::Opened).await
    }

    /// Gives a user another password, for who knows the present one; as [`Users::reset_password`], and unlocks nothing.
    pub async fn change_password(
        &self,
        _permit: Permit<action::ChangePassword>,
        cluster: &ClusterId,
        subject: Subject,
        present: Password,
        new: Password,
    ) -> Result<Vec<HsmId>, Error> {
        let (this, cluster) = (self.clone(), cluster.clone());
        self.outlive(&self.0.proofs, async move { this.change_now(&cluster, subject.username(), &present, &new).await })
            .await
    }

    async fn change_now(
        &self,
        id: &ClusterId,
        user: &Username,
        present: &Password,
        new: &Password,
    ) -> Result<Vec<HsmId>, Error> {
        let cluster = self.managed(id)?;
        // Outside the turn: it may wait long for an HSM, and others' changes need not wait with it.
        let proved = self.resting(id, user, self.prove(id, &cluster, user, present)).await??;
        let _changing = self.turn(id).await;
        self.known(id, &cluster, user).await?;
        let record = self.0.records.crypto_user(id, user).await?.ok_or_else(|| not_found(id, user))?;
        if record.version != proved.version.0 {
            return Err(Error::Conflict);
        }
        if record.second_factor {
            return Err(Error::SecondFactor(user.clone()));
        }
        let hsms: Vec<_> = record.hsms.keys().cloned().collect();
        self.give(id, &cluster, user, &hsms, new, Lock::Kept).await
    }

    /// Writes a password down and gives it to the user on these HSMs: those that have not got it yet.
    async fn give(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
        hsms: &[HsmId],
        password: &Password,
        lock: Lock,
    ) -> Result<Vec<HsmId>, Error> {
        let written = self.0.records.set_crypto_user_password(id, user, hsms, password, lock);
        if !self.resting(id, user, written).await?? {
            return Err(Error::Conflict);
        }
        self.end(id, user).await;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-password-written-down");
        let undone = self.settle(id, cluster, user).await?;
        let undone_here = undone.iter().filter(|(hsm, _)| hsms.contains(hsm)).count();
        if undone_here == hsms.len() {
            return Err(Error::OutcomeUnknown(reasons(&undone)));
        }
        Ok(undone.into_iter().map(|(hsm, _)| hsm).collect())
    }

    /// The user is in the records, from now on if he is kmsuser and was made elsewhere.
    async fn known(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Result<(), Error> {
        if let Some(record) = self.0.records.crypto_user(id, user).await? {
            return if record.is_being_removed() { Err(exists(id, &record)) } else { Ok(()) };
        }
        if *user != Username::kmsuser() {
            return Err(not_found(id, user));
        }
        let (mut hsms, mut is_there) = (Vec::new(), false);
        for (hsm, standing) in self.standings(id, cluster, user).await {
            match standing {
                Ok(standing) if !standing.is_present => continue,
                Ok(_) => is_there = true,
                // He may be there, too: what is done with him is done there when it is back.
                Err(_) => {}
            }
            hsms.push(hsm);
        }
        if !is_there {
            return Err(not_found(id, user));
        }
        Ok(self.0.records.adopt_crypto_user(id, user, &hsms, clock::now()).await?)
    }

    /// One HSM of the cluster can be reached.
    async fn anybody_there(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Result<(), Error> {
        let mut unreached = Vec::new();
        for (hsm, standing) in self.standings(id, cluster, user).await {
            match standing {
                Ok(_) => return Ok(()),
                Err(undone) => unreached.push((hsm, undone)),
            }
        }
        Err(Error::NoNode { cluster: id.clone(), why: reasons(&unreached) })
    }

    /// An administrator's act: the SO of each of the user's tokens may be logged in once more, whatever was said of the PIN.
    /// The SO of kmsuser's is the HSM's own, and has an act of its own.
    async fn allow_security_officers(
        &self,
        id: &ClusterId,
        hsms: &[HsmId],
        user: &Username,
    ) -> Result<(), Unavailable> {
        if *user == Username::kmsuser() {
            return Ok(());
        }
        for hsm in hsms {
            self.0.records.allow_one_security_officer_login(id, hsm, user).await?;
        }
        Ok(())
    }
}

fn exists(cluster: &ClusterId, record: &CryptoUserRecord) -> Error {
    if record.is_being_removed() {
        let hsms = record.pending().map(|(hsm, _)| hsm.clone()).collect();
        Error::BeingDeleted { cluster: cluster.clone(), user: record.username.clone(), hsms }
    } else {
        Error::Exists { cluster: cluster.clone(), user: record.username.clone(), hsms: Vec::new() }
    }
}

fn not_found(cluster: &ClusterId, user: &Username) -> Error {
    Error::NotFound { cluster: cluster.clone(), user: user.clone() }
}

fn reasons(undone: &[(HsmId, Undone)]) -> String {
    let each = undone.iter().map(|(hsm, why)| format!("{hsm}: {}", with_causes(why)));
    each.collect::<Vec<_>>().join("; ")
}
