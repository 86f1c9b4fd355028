//! A store's Connection: made of its cluster's nodes, at rest until somebody has them log in.

use std::sync::Arc;

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

/// What a user's workers need to know on a node.
pub fn worker_spec(cluster: &ClusterId, hsm: &HsmId, settings: &cluster::NodeSettings, user: &Username) -> WorkerSpec {
    WorkerSpec {
        cluster: cluster.clone(),
        hsm: hsm.clone(),
        username: user.clone(),
        location: settings.location.of(user),
        sessions: settings.pool_size.get(),
        patience: settings.patience,
        memory_limit: settings.memory_limit,
    }
}
