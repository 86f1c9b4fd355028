//! kmsuser between key stores and people: never both at once.
//!
//! Who logs in as kmsuser, or changes his password, does so while no key store is at work as him; a key store does not
//! connect while somebody is logged in as him through keyway. What is done as him elsewhere only the HSMs could tell.

use crate::clock;
use crate::model::{ClusterId, ConnectionErrorCode, ConnectionState, KeyStoreId, Username};
use crate::records::{ConnectionFault, CryptoUserRecord};

use super::KeyStores;
use super::connect::fault;

/// A key store is at work as kmsuser.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key store {store} is {state}: kmsuser is in use there")]
pub struct KmsuserInUse {
    pub store: KeyStoreId,
    pub state: ConnectionState,
}

impl KeyStores {
    /// Does `work` while no key store is at work as kmsuser on the cluster: none begins to connect, or comes there, meanwhile.
    pub async fn while_kmsuser_rests<T>(
        &self,
        cluster: &ClusterId,
        work: impl Future<Output = T>,
    ) -> Result<T, KmsuserInUse> {
        loop {
            let Some(store) = self.on_cluster(cluster) else {
                let _tying = self.0.tying.lock().await;
                if self.on_cluster(cluster).is_none() {
                    return Ok(work.await);
                }
                continue;
            };
            let _turn = store.turn.lock().await;
            if self.on_cluster(cluster).is_none_or(|now| now.id() != store.id()) {
                continue;
            }
            return match store.state() {
                ConnectionState::Disconnected | ConnectionState::Failed => Ok(work.await),
                state @ (ConnectionState::Connected | ConnectionState::Connecting | ConnectionState::Disconnecting) => {
                    Err(KmsuserInUse { store: store.id(), state })
                }
            };
        }
    }

    /// What keeps a CONNECTING key store from logging in, whatever its password. From now on nobody else logs in as kmsuser.
    pub(super) async fn kmsuser_may_log_in(&self, cluster: &ClusterId) -> Result<(), ConnectionFault> {
        let (user, records) = (Username::kmsuser(), &self.0.records);
        let unavailable =
            |error: crate::records::Unavailable| fault(ConnectionErrorCode::InternalError, error.to_string(), None);
        let record = records.crypto_user(cluster, &user).await.map_err(unavailable)?;
        if record.as_ref().is_some_and(CryptoUserRecord::is_being_removed) {
            let message = "kmsuser is being deleted, and an HSM that was away is still to remove him; delete this key store, \
                           wait until kmsuser is gone, create him again, and make the key store anew";
            return Err(fault(ConnectionErrorCode::UserNotFound, message.to_owned(), None));
        }
        if record.is_some_and(|record| record.second_factor) {
            let message =
                "kmsuser has a second factor, which no key store can give; delete kmsuser and create it without one";
            return Err(fault(ConnectionErrorCode::InvalidCredentials, message.to_owned(), None));
        }
        match records.logged_in_until(cluster, &user, clock::now()).await.map_err(unavailable)? {
            None => Ok(()),
            Some(_) => {
                let message = "somebody is logged in as kmsuser through keyway";
                Err(fault(ConnectionErrorCode::UserLoggedIn, message.to_owned(), None))
            }
        }
    }
}
