//! Custom key stores: made, connected, disconnected, deleted; who they are is in the records, that they are connected is a [`Connection`].
//!
//! The state machine ([`lifecycle`]) and the checks ([`prerequisites`]) are pure; this module
//! stores their results by compare-and-set and runs what they ask for in tasks of their own, so that nothing is
//! lost when a caller leaves. It never looks at keys: whether a store still has some is the records' answer.

mod check;
mod connect;
mod facts;
mod kmsuser;
pub mod lifecycle;
mod lookout;
mod maintenance;
pub mod prerequisites;
mod redeclare;
mod rotate;
mod settings;
mod store;
mod update;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{self, Closing, Connection, Declared, Lineages};
use crate::host::{Host, Location, WorkerSpec};
use crate::model::{
    ClusterId, ConnectionState, HsmId, KeyStoreId, KeyStoreName, Password, PasswordVersion, TrustAnchor, Username,
};
use crate::node::{Common, Node, Passwords, Reach, Sharing};
use crate::records::{
    AddedKeyStore, DeletedKeyStore, KeyStoreChange, KeyStoreRecord, PasswordOwner, Records, Unavailable,
};

use lifecycle::{Event, Refused, Step};
use prerequisites::{CheckPhase, Unmet};

pub use check::CheckInput;
pub use connect::{ConnectPhase, Progress};
pub use kmsuser::KmsuserInUse;
pub use maintenance::Logins;
pub use settings::Settings;
pub use store::{Place, Store};
pub use update::Changes;

/// How long running requests get when a store is disconnected, unless told otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A state that cannot be written down is written again after this long.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// Why a key store could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no key store {0}")]
    NotFound(String),
    /// The cluster that a request is about.
    #[error("no cluster {0} is declared")]
    ClusterNotFound(ClusterId),
    #[error("cluster {cluster} has no HSM {hsm}")]
    HsmNotFound { cluster: ClusterId, hsm: HsmId },
    #[error(transparent)]
    Prerequisite(#[from] prerequisites::Refusal),
    #[error(transparent)]
    InvalidState(#[from] Refused),
    #[error("the key store still has {0} keys")]
    HasKeys(u64),
    #[error("another request changed the key store at the same time")]
    Conflict,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl Error {
    /// What the records found not to be met, though it was a moment ago.
    fn unmet(cluster: &ClusterId, phase: CheckPhase, unmet: Unmet) -> Self {
        Self::Prerequisite(prerequisites::Refusal { cluster: cluster.clone(), phase, unmet })
    }
}

/// Why a store got no Connection.
#[derive(Debug, thiserror::Error)]
enum NotOpened {
    #[error("cluster {0} is not declared")]
    Undeclared(ClusterId),
    #[error("the key store's password is not in the records; tell it kmsuser's present password")]
    NoPassword,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// What an operator gives to make a key store.
#[derive(Debug)]
pub struct NewKeyStore {
    pub name: KeyStoreName,
    pub cluster: ClusterId,
    pub password: Password,
    pub trust_anchor: TrustAnchor,
}

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
    /// Counts stores made, deleted, and moved to another cluster.
    listed: watch::Sender<u64>,
    /// HSMs that an operator drained, with the notes.
    drained: RwLock<BTreeMap<(ClusterId, HsmId), String>>,
    /// Held while an HSM is drained or resumed, and while a Connection is made: neither misses the other.
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
            listed,
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

    /// Makes a key store, DISCONNECTED. A request equal in everything to an existing DISCONNECTED store gives that store.
    pub async fn create(&self, _permit: Permit<action::CreateKeyStore>, new: NewKeyStore) -> Result<Arc<Store>, Error> {
        let this = self.clone();
        self.outlive(async move { this.create_now(new).await }).await
    }

    async fn create_now(&self, new: NewKeyStore) -> Result<Arc<Store>, Error> {
        let strangers = self.strangers(&new.cluster, &new.trust_anchor).await;
        let _tying = self.0.tying.lock().await;
        // A repeat is answered as the first time, whatever became of the cluster since.
        if let Some(twin) = self.twin_of(&new).await? {
            return Ok(twin);
        }
        let facts = prerequisites::Facts {
            name: Some(new.name.clone()),
            trust_anchor: Some(Ok(new.trust_anchor.clone())),
            strangers,
            password: Some(Ok(())),
            ..self.facts(&new.cluster)
        };
        prerequisites::to_create(&facts)?;
        let unmet = |unmet| Error::unmet(&new.cluster, CheckPhase::Create, unmet);
        let mut record = KeyStoreRecord {
            id: KeyStoreId::random(),
            name: new.name.clone(),
            cluster: new.cluster.clone(),
            realm: facts.cluster.as_ref().map(|cluster| cluster.realm()),
            trust_anchor: new.trust_anchor.clone(),
            state: ConnectionState::Disconnected,
            state_changed: clock::now(),
            connect_attempt: 0,
            last_error: None,
            password_version: PasswordVersion(0),
            password_rotated: None,
            created: clock::now(),
        };
        match self.0.records.add_key_store(&record, &new.password, self.0.settings.quota).await? {
            AddedKeyStore::Added(version) => record.password_version = version,
            AddedKeyStore::NameInUse => return Err(unmet(Unmet::NameInUse(new.name))),
            AddedKeyStore::ClusterInUse => return Err(self.tied(&new.cluster).map_or(Error::Conflict, unmet)),
            AddedKeyStore::Full => return Err(unmet(Unmet::QuotaReached(self.0.settings.quota))),
        }
        let store = Store::new(record);
        self.0.stores.write().unwrap_or_else(PoisonError::into_inner).insert(store.id(), store.clone());
        self.0.listed.send_modify(|count| *count += 1);
        Ok(store)
    }

    /// The DISCONNECTED store that equals this request in everything, if there is one: the request is a repeat.
    async fn twin_of(&self, new: &NewKeyStore) -> Result<Option<Arc<Store>>, Error> {
        let Ok(store) = self.find(&Selector::Name(new.name.clone())) else {
            return Ok(None);
        };
        let record = store.record();
        let same = record.cluster == new.cluster && record.trust_anchor == new.trust_anchor;
        if record.state != ConnectionState::Disconnected || !same {
            return Ok(None);
        }
        let stored = self.0.records.password(&record.cluster, &Username::kmsuser(), record.password_version).await?;
        Ok(stored.is_some_and(|stored| same_password(&stored, &new.password)).then_some(store))
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
        let open = self.list().into_iter().filter_map(|store| store.connection.send_replace(None));
        futures_util::future::join_all(open.map(|connection| async move { connection.close(closing).await })).await;
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

    /// Logs in, without rotating, where a store is CONNECTED and has no Connection: a new daemon has none, and one whose
    /// cluster was not declared could make none.
    async fn log_in_again(&self, store: &Arc<Store>) -> Result<(), Unavailable> {
        let _turn = store.turn.lock().await;
        let has_one = store.connection.borrow().is_some();
        if store.state() != ConnectionState::Connected || has_one {
            return Ok(());
        }
        let connection = match self.open(store).await {
            Ok(connection) => connection,
            Err(NotOpened::Records(error)) => return Err(error),
            Err(error @ (NotOpened::Undeclared(_) | NotOpened::NoPassword)) => {
                tracing::error!(key_store = %store.id(), %error, "the key store's HSMs cannot be logged in to");
                return Ok(());
            }
        };
        for index in 0..connection.members().len() {
            connection.bring_up(index);
        }
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

    /// A Connection for the store's cluster, its nodes at rest.
    async fn open(&self, store: &Arc<Store>) -> Result<Arc<Connection>, NotOpened> {
        let record = store.record();
        let user = Username::kmsuser();
        let Some(cluster) = self.0.clusters.get(&record.cluster) else {
            return Err(NotOpened::Undeclared(record.cluster));
        };
        if self.0.records.password(&record.cluster, &user, record.password_version).await?.is_none() {
            return Err(NotOpened::NoPassword);
        }
        let passwords = self.passwords(&record).await?;
        let _maintenance = self.0.maintenance.lock().await;
        let mut nodes = Vec::new();
        for (hsm, settings) in cluster.active_nodes() {
            let drained = self.drained(&record.cluster, hsm);
            let mut spec = worker_spec(&record.cluster, hsm, settings, &user);
            // What the store was made with, whatever is declared by now.
            if let Location::There(node) = &mut spec.location {
                node.trust_anchor = record.trust_anchor.clone();
            }
            let node = Node::new(spec, settings.zone.clone(), settings.queue_limit, drained);
            let password = passwords.on(hsm).await?;
            node.has_password(password.candidate.is_none().then_some(password.confirmed));
            nodes.push(node);
        }
        let common = Common::new(self.0.host.clone(), self.0.records.clone(), passwords);
        let connection = Connection::new(record.cluster.clone(), nodes, common, self.0.settings.zone.clone());
        store.connection.send_replace(Some(connection.clone()));
        self.0.runtime.spawn(rotate::follow(self.clone(), store.clone(), connection.clone()));
        if self.0.opened.send(connection.clone()).await.is_err() {
            tracing::error!("nobody keeps keys level with the records");
        }
        Ok(connection)
    }

    /// The passwords of the store's crypto user on its cluster's nodes.
    async fn passwords(&self, record: &KeyStoreRecord) -> Result<Passwords, Unavailable> {
        let owner = PasswordOwner {
            cluster: record.cluster.clone(),
            username: Username::kmsuser(),
            given: record.password_version,
        };
        let cluster = self.0.clusters.get(&record.cluster);
        let nodes = cluster.iter().flat_map(|cluster| cluster.nodes.keys());
        let sharing = match cluster.as_ref().map(|cluster| &cluster.rotation.strategy) {
            Some(cluster::Strategy::Command(_)) => Sharing::OneForAll,
            Some(cluster::Strategy::None | cluster::Strategy::SetPin) | None => Sharing::EachItsOwn,
        };
        Passwords::of(self.0.records.clone(), owner, nodes, sharing).await
    }

    /// As [`KeyStores::advance`], for what has happened already: tried until it can be written down, since nobody else would.
    async fn advance_in_the_end(
        &self,
        store: &Store,
        event: Event,
        also: impl Fn(&mut KeyStoreRecord),
    ) -> Result<(), Error> {
        loop {
            match self.advance(store, event, &also).await {
                Err(Error::Records(error)) => {
                    tracing::error!(key_store = %store.id(), %error, "a state cannot be written down; trying again");
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
                decided => return decided,
            }
        }
    }

    /// Moves the store as the table says.
    async fn advance(&self, store: &Store, event: Event, also: impl FnOnce(&mut KeyStoreRecord)) -> Result<(), Error> {
        let _turn = store.turn.lock().await;
        self.advance_in_turn(store, event, also).await
    }

    /// The same, for who holds the store's turn: in the records first, and here when it stands there.
    async fn advance_in_turn(
        &self,
        store: &Store,
        event: Event,
        also: impl FnOnce(&mut KeyStoreRecord),
    ) -> Result<(), Error> {
        let before = store.record();
        let Step::Move(to) = lifecycle::next(before.state, event)? else {
            return Ok(());
        };
        let mut after = before.clone();
        also(&mut after);
        (after.state, after.state_changed) = (to, clock::now());
        let change = KeyStoreChange {
            to,
            at: after.state_changed,
            connect_attempt: after.connect_attempt,
            last_error: after.last_error.clone(),
        };
        if !self.0.records.move_key_store(&before.id, before.state, &change).await? {
            return Err(self.lost(&before.id));
        }
        tracing::info!(key_store = %before.id, from = %before.state, %to, "key store moved");
        store.record.send_replace(after);
        Ok(())
    }

    /// Why a record is not as it was a moment ago: the store was deleted, or another request came first.
    fn lost(&self, id: &KeyStoreId) -> Error {
        self.get(id).err().unwrap_or(Error::Conflict)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<KeyStoreId, Arc<Store>>> {
        self.0.stores.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a time that tells nothing of either.
fn same_password(one: &Password, other: &Password) -> bool {
    let (one, other) = (one.expose().as_bytes(), other.expose().as_bytes());
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// What kmsuser's workers need to know on a node; another user's, but for where his token is.
pub fn worker_spec(cluster: &ClusterId, hsm: &HsmId, settings: &cluster::NodeSettings, user: &Username) -> WorkerSpec {
    WorkerSpec {
        cluster: cluster.clone(),
        hsm: hsm.clone(),
        username: user.clone(),
        location: settings.location.clone(),
        sessions: settings.pool_size.get(),
        patience: settings.patience,
        memory_limit: settings.memory_limit,
    }
}
