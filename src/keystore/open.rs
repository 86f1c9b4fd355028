//! Connections: made of a cluster's nodes, at rest until somebody has them log in. A store's, and those of people.

use std::sync::{Arc, PoisonError, Weak};

use crate::cluster::{self, Connection};
use crate::host::{Location, WorkerSpec};
use crate::model::{ClusterId, ConnectionState, HsmId, Username};
use crate::node::{Common, Node, Passwords, Sharing};
use crate::records::{KeyStoreRecord, PasswordOwner, Unavailable};

use super::{KeyStores, Store, rotate};

/// Why a store got no Connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOpened {
    #[error("cluster {0} is not declared")]
    Undeclared(ClusterId),
    #[error("the key store's password is not in the records; tell it kmsuser's present password")]
    NoPassword,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl KeyStores {
    /// Logs in, without rotating, where a store is CONNECTED and has no Connection: a new daemon has none, and one whose
    /// cluster was not declared could make none.
    pub(super) async fn log_in_again(&self, store: &Arc<Store>) -> Result<(), Unavailable> {
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

    /// A Connection for the store's cluster, its nodes at rest.
    pub(super) async fn open(&self, store: &Arc<Store>) -> Result<Arc<Connection>, NotOpened> {
        let record = store.record();
        let user = Username::kmsuser();
        let Some(cluster) = self.0.clusters.get(&record.cluster) else {
            return Err(NotOpened::Undeclared(record.cluster));
        };
        if self.0.records.password(&record.cluster, &user, record.password_version).await?.is_none() {
            return Err(NotOpened::NoPassword);
        }
        let passwords = self.passwords(&record).await?;
        let nodes = cluster.active_nodes().map(|(hsm, settings)| {
            let mut spec = worker_spec(&record.cluster, hsm, settings, &user);
            // What the store was made with, whatever is declared by now.
            if let Location::There(node) = &mut spec.location {
                node.trust_anchor = record.trust_anchor.clone();
            }
            (spec, settings)
        });
        let connection = self.open_for(&record.cluster, nodes, passwords).await?;
        store.connection.send_replace(Some(connection.clone()));
        self.0.runtime.spawn(rotate::follow(self.clone(), store.clone(), connection.clone()));
        Ok(connection)
    }

    /// A Connection of these nodes for whose passwords these are, all of them at rest. Operators' words about its HSMs, and
    /// the daemon's end, reach it from now on.
    pub async fn open_for(
        &self,
        cluster: &ClusterId,
        nodes: impl Iterator<Item = (WorkerSpec, &cluster::NodeSettings)> + Send,
        passwords: Passwords,
    ) -> Result<Arc<Connection>, Unavailable> {
        let _maintenance = self.0.maintenance.lock().await;
        let mut members = Vec::new();
        for (spec, settings) in nodes {
            let drained = self.drained(cluster, &spec.hsm);
            let password = passwords.on(&spec.hsm).await?;
            let node = Node::new(spec, settings.zone.clone(), settings.queue_limit, drained);
            node.has_password(password.candidate.is_none().then_some(password.confirmed));
            members.push(node);
        }
        let common = Common::new(self.0.host.clone(), self.0.records.clone(), passwords);
        let connection = Connection::new(cluster.clone(), members, common, self.0.settings.zone.clone());
        self.note_open(&connection);
        if self.0.opened.send(connection.clone()).await.is_err() {
            tracing::error!("nobody keeps keys level with the records");
        }
        Ok(connection)
    }

    fn note_open(&self, connection: &Arc<Connection>) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|former| former.upgrade().is_some_and(|former| !former.is_closed()));
        open.push(Arc::downgrade(connection));
    }

    /// Every Connection that is open, key stores' and people's.
    pub(super) fn open_connections(&self) -> Vec<Arc<Connection>> {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter_map(Weak::upgrade).filter(|connection| !connection.is_closed()).collect()
    }

    /// The passwords of the store's crypto user on its cluster's nodes.
    pub(super) async fn passwords(&self, record: &KeyStoreRecord) -> Result<Passwords, Unavailable> {
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
