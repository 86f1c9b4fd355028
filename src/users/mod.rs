//! Crypto users: made, deleted, given passwords on every HSM of a cluster, and logged in.
//!
//! Each HSM keeps its users for itself. What is to be on them is written down first, then done on each that can be reached,
//! and closed there; what is left over is [caught up with](catch_up) when the HSM is back. A password is proved on one HSM
//! before anything goes by it, and nowhere more often than is [safe](prove). Keys are never looked at here.
//!
//! ```text
//!  create, delete, reset ───────▶ records ─▶ jobs, on each HSM ─▶ records
//!  change ─▶ prove, on one HSM ──────┘          ▲
//!  log in ─▶ prove ─▶ logins                 catch_up
//! ```

mod catch_up;
mod jobs;
mod logins;
mod place;
mod prove;
mod settings;
mod strangers;
mod token;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster;
use crate::host::Host;
use crate::keystore::{KeyStores, KmsuserInUse};
use crate::model::{ClusterId, ClusterState, ConnectionState, HsmId, KeyStoreId, Password, Username};
use crate::records::{AddedCryptoUser, CryptoUserRecord, Lock, NewCryptoUser, Records, Unavailable};

pub use logins::{Login, NewLogin};
pub use prove::{Subject, Unproved};
pub use settings::Settings;
pub use token::LoginToken;

use jobs::Undone;
use place::Place;
use strangers::Strangers;

/// As many crypto users as a CloudHSM cluster has.
const MOST_USERS: u32 = 1_024;

/// Why something of a crypto user's was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cluster {0} is declared")]
    ClusterNotFound(ClusterId),
    #[error("cluster {cluster} is {state}, not ACTIVE")]
    ClusterNotActive { cluster: ClusterId, state: ClusterState },
    #[error(
        "the crypto users of cluster {0} are not managed by keyway: its nodes have no user_tokens; use the HSMs' own tools"
    )]
    NotManaged(ClusterId),
    #[error("cluster {cluster} has no crypto user {user}")]
    NotFound { cluster: ClusterId, user: Username },
    #[error("cluster {cluster} has a crypto user {user} already{}", on(.hsms))]
    Exists { cluster: ClusterId, user: Username, hsms: Vec<HsmId> },
    #[error("crypto user {user} is being deleted{}; it is finished when they are back", on(.hsms))]
    BeingDeleted { user: Username, hsms: Vec<HsmId> },
    #[error("there are {0} crypto users already, as many as a cluster may have")]
    TooManyUsers(u32),
    #[error("somebody is logged in as {0}; log out first")]
    LoggedIn(Username),
    #[error(transparent)]
    KmsuserInUse(#[from] KmsuserInUse),
    #[error("key store {store}, which is {state}, stands on kmsuser and its keys; delete the key store first")]
    KmsuserHasKeyStore { store: KeyStoreId, state: ConnectionState },
    #[error("no HSM can be reached: {0}")]
    NoNode(String),
    #[error("no HSM has done it yet: {0}; each will as soon as it can")]
    OutcomeUnknown(String),
    #[error(transparent)]
    Unproved(#[from] Unproved),
    #[error(
        "{0} has a second factor, and keyway cannot ask for it yet: the user logs in with the HSMs' own tools alone"
    )]
    SecondFactor(Username),
    #[error("{0} are logged in already, as many as crypto_users.max_logins allows")]
    TooManyLogins(u32),
    #[error("no login token was sent")]
    LoginRequired,
    #[error("the login has ended, or was never yours")]
    LoginExpired,
    #[error("the user was changed at the same time")]
    Conflict,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

fn on(hsms: &[HsmId]) -> String {
    let names: Vec<_> = hsms.iter().map(HsmId::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" on {}", names.join(", ")) }
}

/// Who is to be made.
#[derive(Debug)]
pub struct NewUser {
    pub username: Username,
    pub password: Password,
    pub second_factor: bool,
}

/// A crypto user as the HSMs and the records show him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserView {
    pub username: Username,
    pub second_factor: bool,
    pub hsms: Vec<(HsmId, OnHsm)>,
    /// The key store that uses kmsuser.
    pub key_store: Option<KeyStoreId>,
}

/// A crypto user on one HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnHsm {
    pub is_present: bool,
    pub is_locked: bool,
    pub failed_logins: u32,
}

/// Every cluster's crypto users. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Users(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    key_stores: KeyStores,
    records: Records,
    host: Host,
    /// Changes of a cluster's users come one after the other.
    changing: Mutex<BTreeMap<ClusterId, Arc<tokio::sync::Mutex<()>>>>,
    /// Something was left to be caught up with.
    left_over: Notify,
    strangers: Strangers,
    runtime: tokio::runtime::Handle,
}

impl Users {
    /// Work goes on, and is caught up with, on the runtime this is called on.
    pub fn new(settings: Settings, key_stores: KeyStores, records: Records, host: Host) -> Self {
        let users = Self(Arc::new(Inner {
            settings,
            key_stores,
            records,
            host,
            changing: Mutex::default(),
            left_over: Notify::new(),
            strangers: Strangers::default(),
            runtime: tokio::runtime::Handle::current(),
        }));
        users.0.runtime.spawn(catch_up::run(users.clone()));
        users
    }

    /// Makes a user on every HSM that can be reached; the others get him later.
    pub async fn create(
        &self,
        _permit: Permit<action::CreateCryptoUser>,
        cluster: &ClusterId,
        new: NewUser,
    ) -> Result<UserView, Error> {
        let (this, cluster) = (self.clone(), cluster.clone());
        self.outlive(async move { this.create_now(&cluster, new).await }).await
    }

    async fn create_now(&self, id: &ClusterId, new: NewUser) -> Result<UserView, Error> {
        let cluster = self.managed(id)?;
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
        if undone.len() == hsms.len() {
            return Err(Error::OutcomeUnknown(reasons(&undone)));
        }
        let record = self.0.records.crypto_user(id, &user).await?;
        Ok(self.view(id, &cluster, &user, record.as_ref()))
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
        for place in self.places(id, cluster, user) {
            match self.standing(&place) {
                Ok(standing) if standing.is_present => on.push(place.hsm().clone()),
                Ok(_) => {}
                Err(undone) => unreached.push((place.hsm().clone(), undone)),
            }
        }
        match (on.is_empty(), unreached.len() == cluster.nodes.len()) {
            (false, _) => Err(taken(on)),
            (true, true) => Err(Error::NoNode(reasons(&unreached))),
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
        self.outlive(async move { this.delete_now(&cluster, &user).await }).await
    }

    async fn delete_now(&self, id: &ClusterId, user: &Username) -> Result<(), Error> {
        let cluster = self.managed(id)?;
        let _changing = self.turn(id).await;
        self.known(id, &cluster, user).await?;
        self.anybody_there(id, &cluster, user)?;
        if self.0.records.logged_in_until(id, user, clock::now()).await?.is_some() {
            return Err(Error::LoggedIn(user.clone()));
        }
        let begun = self.resting(id, user, async {
            match self.0.key_stores.on_cluster(id) {
                // With kmsuser's token would go every key of the store.
                Some(store) if *user == Username::kmsuser() => {
                    Err(Error::KmsuserHasKeyStore { store: store.id(), state: store.state() })
                }
                Some(_) | None => Ok(self.0.records.begin_removing_crypto_user(id, user).await?),
            }
        });
        if !begun.await?? {
            return Err(not_found(id, user));
        }
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
        self.outlive(async move { this.reset_now(&cluster, &user, &password).await }).await
    }

    async fn reset_now(&self, id: &ClusterId, user: &Username, password: &Password) -> Result<Vec<HsmId>, Error> {
        let cluster = self.managed(id)?;
        let _changing = self.turn(id).await;
        self.known(id, &cluster, user).await?;
        self.anybody_there(id, &cluster, user)?;
        // Also where he is not, though he should be.
        let hsms: Vec<_> = cluster.nodes.keys().cloned().collect();
        self.allow_security_officers(id, &hsms, user).await?;
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
        self.outlive(async move { this.change_now(&cluster, subject.username(), &present, &new).await }).await
    }

    async fn change_now(
        &self,
        id: &ClusterId,
        user: &Username,
        present: &Password,
        new: &Password,
    ) -> Result<Vec<HsmId>, Error> {
        let cluster = self.managed(id)?;
        let _changing = self.turn(id).await;
        self.resting(id, user, self.prove(id, &cluster, user, present)).await??;
        self.known(id, &cluster, user).await?;
        let record = self.0.records.crypto_user(id, user).await?.ok_or_else(|| not_found(id, user))?;
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
        #[cfg(debug_assertions)]
        crate::seams::stop_point("user-password-written-down");
        let undone = self.settle(id, cluster, user).await?;
        let undone_here = undone.iter().filter(|(hsm, _)| hsms.contains(hsm)).count();
        if undone_here == hsms.len() {
            return Err(Error::OutcomeUnknown(reasons(&undone)));
        }
        Ok(undone.into_iter().map(|(hsm, _)| hsm).collect())
    }

    /// The users of a cluster, by name; kmsuser also when keyway did not make him.
    pub async fn list(&self, _permit: Permit<action::ListCryptoUsers>, id: &ClusterId) -> Result<Vec<UserView>, Error> {
        let cluster = self.0.key_stores.declared().get(id).ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        if !cluster.manages_users() {
            return Err(Error::NotManaged(id.clone()));
        }
        let records = self.0.records.crypto_users(id).await?;
        let mut views: Vec<_> =
            records.iter().map(|record| self.view(id, &cluster, &record.username, Some(record))).collect();
        let kmsuser = Username::kmsuser();
        if !views.iter().any(|view| view.username == kmsuser) {
            let view = self.view(id, &cluster, &kmsuser, None);
            if view.key_store.is_some() || view.hsms.iter().any(|(_, on)| on.is_present) {
                views.push(view);
            }
        }
        views.sort_by(|one, other| one.username.cmp(&other.username));
        Ok(views)
    }

    fn view(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
        record: Option<&CryptoUserRecord>,
    ) -> UserView {
        let hsms = self.places(id, cluster, user).into_iter().map(|place| {
            let was_given = record.is_none_or(|record| record.hsms.get(place.hsm()).is_some_and(|on| on.given));
            let on = match self.standing(&place) {
                // What is there and was never given whole is half made.
                Ok(standing) => OnHsm {
                    is_present: standing.is_present && was_given,
                    is_locked: standing.is_locked,
                    failed_logins: standing.failed_logins,
                },
                Err(_) => OnHsm { is_present: record.is_some() && was_given, is_locked: false, failed_logins: 0 },
            };
            (place.hsm().clone(), on)
        });
        let is_kmsuser = *user == Username::kmsuser();
        UserView {
            username: user.clone(),
            second_factor: record.is_some_and(|record| record.second_factor),
            hsms: hsms.collect(),
            key_store: self.0.key_stores.on_cluster(id).filter(|_| is_kmsuser).map(|store| store.id()),
        }
    }

    /// The user is in the records, from now on if he is kmsuser and was made elsewhere.
    async fn known(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Result<(), Error> {
        if let Some(record) = self.0.records.crypto_user(id, user).await? {
            return if record.is_being_removed() { Err(exists(id, &record)) } else { Ok(()) };
        }
        if *user != Username::kmsuser() {
            return Err(not_found(id, user));
        }
        let is_there = |place: &Place| self.standing(place).is_ok_and(|standing| standing.is_present);
        let places = self.places(id, cluster, user);
        let hsms: Vec<_> = places.iter().filter(|place| is_there(place)).map(|place| place.hsm().clone()).collect();
        if hsms.is_empty() {
            return Err(not_found(id, user));
        }
        Ok(self.0.records.adopt_crypto_user(id, user, &hsms, clock::now()).await?)
    }

    /// One HSM of the cluster can be reached.
    fn anybody_there(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Result<(), Error> {
        let mut unreached = Vec::new();
        for place in self.places(id, cluster, user) {
            match self.standing(&place) {
                Ok(_) => return Ok(()),
                Err(undone) => unreached.push((place.hsm().clone(), undone)),
            }
        }
        Err(Error::NoNode(reasons(&unreached)))
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

    /// A cluster that is in service and whose users are ours to change.
    fn managed(&self, id: &ClusterId) -> Result<Arc<cluster::Settings>, Error> {
        let cluster = self.0.key_stores.declared().get(id).ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        if !cluster.manages_users() {
            return Err(Error::NotManaged(id.clone()));
        }
        if cluster.state != ClusterState::Active {
            return Err(Error::ClusterNotActive { cluster: id.clone(), state: cluster.state });
        }
        Ok(cluster)
    }

    /// Does `work`, for kmsuser while no key store is at work as him.
    async fn resting<T>(
        &self,
        cluster: &ClusterId,
        user: &Username,
        work: impl Future<Output = T>,
    ) -> Result<T, KmsuserInUse> {
        if *user == Username::kmsuser() {
            self.0.key_stores.while_kmsuser_rests(cluster, work).await
        } else {
            Ok(work.await)
        }
    }

    async fn turn(&self, cluster: &ClusterId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(cluster.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Runs work to its end even when the caller leaves.
    async fn outlive<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.0.runtime.spawn(work).await {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn exists(cluster: &ClusterId, record: &CryptoUserRecord) -> Error {
    if record.is_being_removed() {
        let hsms = record.pending().map(|(hsm, _)| hsm.clone()).collect();
        Error::BeingDeleted { user: record.username.clone(), hsms }
    } else {
        Error::Exists { cluster: cluster.clone(), user: record.username.clone(), hsms: Vec::new() }
    }
}

fn not_found(cluster: &ClusterId, user: &Username) -> Error {
    Error::NotFound { cluster: cluster.clone(), user: user.clone() }
}

fn reasons(undone: &[(HsmId, Undone)]) -> String {
    let each = undone.iter().map(|(hsm, why)| format!("{hsm}: {}", crate::node::chain(why)));
    each.collect::<Vec<_>>().join("; ")
}
