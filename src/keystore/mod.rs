//! Custom key stores: made, connected, disconnected, deleted; who they are is in the records, that they are connected is a [`Connection`].
//!
//! The state machine ([`lifecycle`]) and the checks ([`prerequisites`]) are pure; this module
//! stores their results by compare-and-set and runs what they ask for in tasks of their own, so that nothing is
//! lost when a caller leaves. It never looks at keys: whether a store still has some is the records' answer.

mod advance;
mod check;
mod connect;
mod create;
mod error;
mod facts;
mod follow;
mod kmsuser;
pub mod lifecycle;
mod lookout;
mod maintenance;
mod open;
pub mod prerequisites;
mod redeclare;
mod rotate;
mod settings;
mod store;
mod tell;
mod update;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::authz::{Permit, action};
use crate::cluster::{self, Closing, Connection, Declared, Learnt, Lineages};
use crate::host::Host;
use crate::model::{ClusterId, ConnectionState, HsmId, KeyStoreId, KeyStoreName, Username};
use crate::node::{Reach, heard_out};
use crate::records::{DeletedKeyStore, Records, Unavailable};

use lifecycle::{Event, Step};
use prerequisites::Unmet;

pub use check::CheckInput;
pub use connect::{ConnectPhase, Progress};
pub use create::NewKeyStore;
pub use error::Error;
pub use follow::{NotMade, Owner};
pub use kmsuser::KmsuserInUse;
pub use maintenance::Logins;
pub use open::worker_spec;
pub use settings::Settings;
pub use store::{Place, Store};
pub use update::Changes;

/// How long running requests get when a store is disconnected, unless told otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Which key store is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Id(KeyStoreId),
    Name(KeyStoreName),
}

/// Every key store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyStores(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clusters: Declared,
    /// The lineages of clusters as they were last declared.
    lineages: RwLock<BTreeMap<ClusterId, Lineages>>,
    /// Held while a key store is tied to a cluster, from the look at the prerequisites until it stands in the list.
    tying: tokio::sync::Mutex<()>,
    records: Records,
    host: Host,
    stores: RwLock<BTreeMap<KeyStoreId, Arc<Store>>>,
    /// New Connections, for whoever keeps their keys level with the records.
    opened: mpsc::Sender<Arc<Connection>>,
    /// Those that are open or being closed, whoever has them.
    connections: watch::Sender<Vec<Arc<Connection>>>,
    /// Counts stores made, deleted, and moved to another cluster.
    listed: watch::Sender<u64>,
    /// What the HSMs can do, for every Connection.
    learnt: Learnt,
    /// HSMs that an operator drained, with the notes.
    drained: RwLock<BTreeMap<(ClusterId, HsmId), String>>,
    /// Held while an HSM is drained or resumed, and while a Connection is made or a node joins one: neither misses the other.
    maintenance: tokio::sync::Mutex<()>,
    /// HSMs that nobody is logged in to, and whether they can be reached.
    reach: watch::Sender<BTreeMap<(ClusterId, HsmId), Reach>>,
    /// Where Connections live and work goes on: a caller's lane may end before they do.
    runtime: tokio::runtime::Handle,
}

impl KeyStores {
    /// Reads the stores from the records. New Connections are told to `opened`, and live on the runtime this is called on.
    pub async fn load(
        settings: Settings,
        clusters: Declared,
        records: Records,
        host: Host,
        opened: mpsc::Sender<Arc<Connection>>,
    ) -> Result<Self, Unavailable> {
        let found = records.key_stores().await?;
        let stores = found.into_iter().map(|record| (record.id.clone(), Store::new(record))).collect();
        let listed = watch::Sender::new(0);
        facts::remember_lineages(&records, facts::lineages(&clusters)).await?;
        let lineages = RwLock::new(facts::remembered_lineages(&records).await?);
        let drained = records.drained_hsms().await?;
        let drained = drained.into_iter().map(|it| ((it.cluster, it.hsm), it.note)).collect();
        let this = Self(Arc::new(Inner {
            settings,
            clusters,
            lineages,
            tying: tokio::sync::Mutex::default(),
            records,
            host,
            stores: RwLock::new(stores),
            opened,
            connections: watch::Sender::default(),
            listed,
            learnt: Learnt::default(),
            drained: RwLock::new(drained),
            maintenance: tokio::sync::Mutex::default(),
            reach: watch::Sender::default(),
            runtime: tokio::runtime::Handle::current(),
        }));
        for store in this.list() {
            this.remember_realm(&store).await?;
        }
        Ok(this)
    }

    /// Takes up what a former daemon left: CONNECTED stores log in again, without rotating;
    /// CONNECTING ones start over; DISCONNECTING ones finish.
    pub async fn take_up(&self) -> Result<(), Unavailable> {
        for store in self.list() {
            self.take_up_one(store).await?;
        }
        Ok(())
    }

    /// Every store, oldest first.
    pub fn list(&self) -> Vec<Arc<Store>> {
        let mut stores: Vec<_> = self.read().values().cloned().collect();
        stores.sort_by_cached_key(|store| store.place());
        stores
    }

    /// Changes whenever a store is made or deleted, or moves to another cluster.
    pub fn listed(&self) -> watch::Receiver<u64> {
        self.0.listed.subscribe()
    }

    pub fn find(&self, selector: &Selector) -> Result<Arc<Store>, Error> {
        match selector {
            Selector::Id(id) => self.get(id),
            Selector::Name(name) => {
                let stores = self.read();
                let found = stores.values().find(|store| store.record.borrow().name == *name);
                found.cloned().ok_or_else(|| Error::NotFound(name.to_string()))
            }
        }
    }

    pub fn get(&self, id: &KeyStoreId) -> Result<Arc<Store>, Error> {
        self.read().get(id).cloned().ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// The store that uses a cluster, if one does.
    pub fn on_cluster(&self, cluster: &ClusterId) -> Option<Arc<Store>> {
        self.read().values().find(|store| store.record.borrow().cluster == *cluster).cloned()
    }

    /// What keeps another key store off the cluster, if one uses it.
    fn tied(&self, cluster: &ClusterId) -> Option<Unmet> {
        self.on_cluster(cluster).map(|store| Unmet::Tied(store.id()))
    }

    /// Begins to connect: answers when CONNECTING is written down.
    pub async fn connect(
        &self,
        _permit: Permit<action::ConnectKeyStore>,
        id: &KeyStoreId,
    ) -> Result<Arc<Store>, Error> {
        let store = self.get(id)?;
        let (this, connecting) = (self.clone(), store.clone());
        self.outlive(async move { this.connect_now(connecting).await }).await?;
        Ok(store)
    }

    async fn connect_now(&self, store: Arc<Store>) -> Result<(), Error> {
        let _turn = store.turn.lock().await;
        let record = store.record();
        if lifecycle::next(record.state, Event::Connect)? == Step::Stay {
            return Ok(());
        }
        // One that is not declared any more is found missing by the attempt.
        let facts = self.facts(&record.cluster);
        prerequisites::to_connect(&facts)?;
        // The operator's act: an attempt that a crash left open may be made once more.
        let user = Username::kmsuser();
        self.0.records.forgive_unsettled(&record.cluster, &user).await?;
        self.advance_in_turn(&store, Event::Connect, |record| record.connect_attempt += 1).await?;
        self.begin_attempt(&store);
        Ok(())
    }

    fn begin_attempt(&self, store: &Arc<Store>) {
        store.attempts(self.0.runtime.spawn(connect::run(self.clone(), store.clone())));
    }

    /// Begins to disconnect: answers when DISCONNECTING is written down, and no request is taken any more.
    pub async fn disconnect(
        &self,
        _permit: Permit<action::DisconnectKeyStore>,
        id: &KeyStoreId,
        closing: Closing,
    ) -> Result<Arc<Store>, Error> {
        let store = self.get(id)?;
        let (this, closed) = (self.clone(), store.clone());
        self.outlive(async move {
            this.advance(&closed, Event::Disconnect, |_| ()).await?;
            let draining = this.clone();
            this.0.runtime.spawn(async move { draining.drain(closed, closing).await });
            Ok(())
        })
        .await?;
        Ok(store)
    }

    pub async fn delete(&self, _permit: Permit<action::DeleteKeyStore>, id: &KeyStoreId) -> Result<(), Error> {
        let store = self.get(id)?;
        let this = self.clone();
        self.outlive(async move {
            let _turn = store.turn.lock().await;
            let state = store.state();
            lifecycle::next(state, Event::Delete)?;
            match this.0.records.delete_key_store(&store.id(), state).await? {
                DeletedKeyStore::Deleted => {}
                DeletedKeyStore::HasKeys(keys) => return Err(Error::HasKeys(keys)),
                DeletedKeyStore::Changed => return Err(Error::Conflict),
                DeletedKeyStore::Gone => return Err(Error::NotFound(store.id().to_string())),
            }
            this.0.stores.write().unwrap_or_else(PoisonError::into_inner).remove(&store.id());
            this.0.listed.send_modify(|count| *count += 1);
            Ok(())
        })
        .await
    }

    /// For the daemon's end: every Connection is handed back to its workers. No state changes, so that the next daemon takes up where this one was.
    pub async fn close_all(&self, closing: Closing) {
        for store in self.list() {
            store.connection.send_replace(None);
        }
        let open = self.0.connections.borrow().clone();
        futures_util::future::join_all(open.iter().map(|connection| connection.close(closing))).await;
    }

    /// Runs work to its end even when the caller leaves.
    async fn outlive<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        heard_out(self.0.runtime.spawn(work)).await
    }

    async fn take_up_one(&self, store: Arc<Store>) -> Result<(), Unavailable> {
        match store.record().state {
            ConnectionState::Connected => self.log_in_again(&store).await?,
            ConnectionState::Connecting => {
                self.begin_attempt(&store);
            }
            ConnectionState::Disconnecting => self.drain(store, Closing::Now).await,
            ConnectionState::Disconnected | ConnectionState::Failed => {}
        }
        Ok(())
    }

    /// A store from before its realm was written down was made where its cluster is.
    async fn remember_realm(&self, store: &Store) -> Result<(), Unavailable> {
        let _turn = store.turn.lock().await;
        let record = store.record();
        let declared = self.0.clusters.get(&record.cluster).map(|cluster| cluster.realm());
        let Some(realm) = declared.filter(|_| record.realm.is_none()) else { return Ok(()) };
        self.0.records.set_realm(&record.id, &realm).await?;
        store.record.send_modify(|record| record.realm = Some(realm));
        Ok(())
    }

    async fn drain(&self, store: Arc<Store>, closing: Closing) {
        store.attempt_ended().await;
        if let Some(connection) = store.connection.send_replace(None) {
            connection.close(closing).await;
            rotate::ended(self, &connection).await;
        }
        if let Err(error) = self.advance_in_the_end(&store, Event::Drained, |_| ()).await {
            tracing::error!(key_store = %store.id(), %error, "the end of a disconnect could not be written down");
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<KeyStoreId, Arc<Store>>> {
        self.0.stores.read().unwrap_or_else(PoisonError::into_inner)
    }
}
