//! A store's Connection: made of its cluster's nodes, at rest until somebody has them log in.

use std::sync::Arc;

use crate::cluster::{self, Connection};
use crate::host::{Location, WorkerSpec};
use crate::model::{ClusterId, ConnectionState, HsmId, Password, Username};
use crate::node::{Passwords, Sharing};
use crate::records::{KeyStoreRecord, PasswordOwner, Unavailable};

use super::{KeyStores, NotMade, Owner, Store, rotate};

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

impl From<NotMade> for NotOpened {
    fn from(not_made: NotMade) -> Self {
        match not_made {
            NotMade::Undeclared(cluster) => Self::Undeclared(cluster),
            NotMade::Records(error) => Self::Records(error),
        }
    }
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
        for member in connection.members().iter() {
            connection.bring_up(member);
        }
        Ok(())
    }

    /// A Connection for the store's cluster, its nodes at rest.
    pub(super) async fn open(&self, store: &Arc<Store>) -> Result<Arc<Connection>, NotOpened> {
        let record = store.record();
        let user = Username::kmsuser();
        if self.0.clusters.get(&record.cluster).is_none() {
            return Err(NotOpened::Undeclared(record.cluster));
        }
        if self.0.records.password(&record.cluster, &user, record.password_version).await?.is_none() {
            return Err(NotOpened::NoPassword);
        }
        let passwords = self.passwords(&record).await?;
        let connection = self.make_connection(&record.cluster, passwords, KeyStoreNodes(store.clone())).await?;
        store.connection.send_replace(Some(connection.clone()));
        self.0.runtime.spawn(rotate::follow(self.clone(), store.clone(), connection.clone()));
        Ok(connection)
    }

    /// The store's password on an HSM, once there is no doubt about it. One that was never logged in to is offered this one.
    pub async fn settled_password(&self, store: &Store, hsm: &HsmId) -> Result<Option<Arc<Password>>, Unavailable> {
        let settled = self.passwords(&store.record()).await?.settled(hsm).await?;
        Ok(settled.map(|credential| credential.password))
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

/// The nodes of a key store's Connection.
struct KeyStoreNodes(Arc<Store>);

impl Owner for KeyStoreNodes {
    fn worker_spec(&self, cluster: &ClusterId, hsm: &HsmId, settings: &cluster::NodeSettings) -> Option<WorkerSpec> {
        let mut spec = worker_spec(cluster, hsm, settings, &Username::kmsuser());
        // What the store was made with, whatever is declared by now.
        if let Location::There(node) = &mut spec.location {
            node.trust_anchor = self.0.record.borrow().trust_anchor.clone();
        }
        Some(spec)
    }

    /// kmsuser is on every HSM.
    async fn others(&mut self) {
        std::future::pending().await
    }

    /// An attempt to connect counts on its nodes, and may be changing their passwords.
    async fn may_exchange(&self) {
        let mut changes = self.0.record_changes();
        let _ = changes.wait_for(|record| record.state == ConnectionState::Connected).await;
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
