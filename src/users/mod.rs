//! Crypto users: made, deleted, given passwords on every HSM of a cluster, and logged in.
//!
//! Each HSM keeps its users for itself. What is to be on them is written down first, then done on each that can be reached,
//! and closed there; what is left over is caught up with (`catch_up`) when the HSM is back. A password is proved on one HSM
//! before anything goes by it, and nowhere more often than is safe (`prove`). Who is logged in has a Connection
//! (`connections`), and whoever shows a login's token acts through it. Keys are never looked at here.
//!
//! ```text
//!  create, delete, reset ───────▶ records ─▶ jobs, on each HSM ─▶ records
//!  change ─▶ prove, on one HSM ──────┘          ▲
//!  log in ─▶ prove ─▶ logins ─▶ Connection   catch_up
//! ```

mod catch_up;
mod change;
mod connections;
mod error;
mod jobs;
mod list;
mod logins;
mod place;
mod prove;
mod settings;
mod strangers;
mod token;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore};

use crate::cluster;
use crate::host::Host;
use crate::keystore::{KeyStores, KmsuserInUse};
use crate::model::{ClusterId, ClusterState, Username};
use crate::node::heard_out;
use crate::records::Records;

pub use change::NewUser;
pub use connections::{Acting, ShownLogins};
pub use error::Error;
pub use jobs::Undone;
pub use list::UserView;
pub use logins::NewLogin;
pub use prove::{Subject, Unproved};
pub use settings::Settings;
pub use token::LoginToken;

use connections::{Known, Seats};
use strangers::Strangers;

/// So many administrators' changes are on their way at once, and as many passwords are being proved: each waits for its
/// turn on an HSM, and is not given up with its caller.
const MOST_AT_ONCE: usize = 32;

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
    seats: Seats,
    known: Known,
    /// Of administrators' changes.
    changes: Arc<Semaphore>,
    /// Of passwords to be proved: whoever tries many is not in the way of the administrator who resets one.
    proofs: Arc<Semaphore>,
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
            seats: Seats::default(),
            known: Known::default(),
            changes: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            proofs: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            runtime: tokio::runtime::Handle::current(),
        }));
        users.0.runtime.spawn(catch_up::run(users.clone()));
        users
    }

    /// A cluster whose users are ours.
    fn declared(&self, id: &ClusterId) -> Result<Arc<cluster::Settings>, Error> {
        let cluster = self.0.key_stores.declared().get(id).ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        if cluster.manages_users() { Ok(cluster) } else { Err(Error::NotManaged(id.clone())) }
    }

    /// One that is in service as well, so that they can be changed.
    fn managed(&self, id: &ClusterId) -> Result<Arc<cluster::Settings>, Error> {
        let cluster = self.declared(id)?;
        match cluster.state {
            ClusterState::Active => Ok(cluster),
            state => Err(Error::ClusterNotActive { cluster: id.clone(), state }),
        }
    }

    /// The same; or one that keyway made, for its first user: with him it is in service.
    fn managed_or_initialized(&self, id: &ClusterId) -> Result<Arc<cluster::Settings>, Error> {
        match self.0.key_stores.declared().get(id) {
            Some(cluster) if cluster.made().is_some() && cluster.state == ClusterState::Initialized => Ok(cluster),
            Some(_) | None => self.managed(id),
        }
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

    /// Nobody changes this cluster's users until what is returned is dropped.
    pub async fn turn(&self, cluster: &ClusterId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(cluster.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Runs work to its end even when the caller leaves, if there is a place for it.
    async fn outlive<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let place = places.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let in_its_place = async move {
            let _place = place;
            work.await
        };
        heard_out(self.0.runtime.spawn(in_its_place)).await
    }
}
