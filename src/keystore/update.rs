//! Changing a key store: its name, the password it logs in with, the cluster it stands on. All that is asked for, or nothing.
//!
//! What stays as it is needs no change, and is none. A password that is told is believed to be the present one, whatever
//! HSMs said of the one before; it is never set on an HSM.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::authz::{Permit, action};
use crate::model::{ClusterId, KeyStoreId, KeyStoreName, Password, Username};
use crate::records::{KeyStoreRecord, KeyStoreUpdate, PasswordOwner, Standing, UpdatedKeyStore};

use super::create::same_password;
use super::lifecycle::{self, Event};
use super::prerequisites::{self, CheckPhase, Facts, Unmet};
use super::{Error, KeyStores, Selector, Store};

/// What is to become different.
#[derive(Debug, Default)]
pub struct Changes {
    pub name: Option<KeyStoreName>,
    pub password: Option<Password>,
    pub cluster: Option<ClusterId>,
}

impl KeyStores {
    pub async fn update(
        &self,
        _permit: Permit<action::UpdateKeyStore>,
        id: &KeyStoreId,
        changes: Changes,
    ) -> Result<Arc<Store>, Error> {
        let store = self.get(id)?;
        let (this, changed) = (self.clone(), store.clone());
        self.outlive(async move { this.update_now(&changed, changes).await }).await?;
        Ok(store)
    }

    async fn update_now(&self, store: &Store, changes: Changes) -> Result<(), Error> {
        // The turn first, and then the tying: nobody who ties waits for a turn.
        let _turn = store.turn.lock().await;
        let before = store.record();
        changes.are_allowed(&before)?;
        let update = self.news(&before, changes).await?;
        if update.is_empty() {
            return Ok(());
        }
        if let Some(name) = &update.name
            && self.find(&Selector::Name(name.clone())).is_ok()
        {
            return Err(Error::unmet(&before.cluster, CheckPhase::Move, Unmet::NameInUse(name.clone())));
        }
        let strangers = match &update.cluster {
            Some(cluster) => self.strangers(cluster, &before.trust_anchor).await,
            None => BTreeMap::new(),
        };
        let _tying = self.0.tying.lock().await;
        if let Some(cluster) = &update.cluster {
            let facts = Facts { moving: Some(before.id.clone()), strangers, ..self.facts(cluster) };
            prerequisites::to_move_to(&facts)?;
        }
        let after = match self.0.records.update_key_store(&before, &update).await? {
            UpdatedKeyStore::Updated(after) => *after,
            UpdatedKeyStore::NameInUse => {
                let name = update.name.unwrap_or(before.name);
                return Err(Error::unmet(&before.cluster, CheckPhase::Move, Unmet::NameInUse(name)));
            }
            UpdatedKeyStore::ClusterInUse => {
                let cluster = update.cluster.unwrap_or(before.cluster);
                let tied = self.tied(&cluster);
                return Err(tied.map_or(Error::Conflict, |unmet| Error::unmet(&cluster, CheckPhase::Move, unmet)));
            }
            UpdatedKeyStore::Changed => return Err(self.lost(&before.id)),
        };
        tracing::info!(key_store = %after.id, name = %after.name, cluster = %after.cluster, "key store changed");
        let moved = after.cluster != before.cluster;
        store.record.send_replace(after);
        if moved {
            self.0.listed.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// What of it is not so already.
    async fn news(&self, before: &KeyStoreRecord, changes: Changes) -> Result<KeyStoreUpdate, Error> {
        let name = changes.name.filter(|name| *name != before.name);
        let cluster = changes.cluster.filter(|cluster| *cluster != before.cluster);
        let password = match changes.password {
            Some(password) if cluster.is_none() && self.is_known_good(before, &password).await? => None,
            told => told,
        };
        Ok(KeyStoreUpdate { name, password, cluster })
    }

    /// Whether it is the password that the store has on every HSM, and none has refused it or left it open. The same word
    /// again means more after a refusal: that the HSM was put right; and after a rotation: that it was reset.
    async fn is_known_good(&self, record: &KeyStoreRecord, told: &Password) -> Result<bool, Error> {
        let user = Username::kmsuser();
        let stored = self.0.records.password(&record.cluster, &user, record.password_version).await?;
        if !stored.is_some_and(|stored| same_password(&stored, told)) {
            return Ok(false);
        }
        let owner =
            PasswordOwner { cluster: record.cluster.clone(), username: user.clone(), given: record.password_version };
        if !self.0.records.node_passwords(&owner).await?.is_empty() {
            return Ok(false);
        }
        let standings = self.0.records.login_standing(&record.cluster, &user).await?;
        let mut of_it = standings.iter().filter(|(_, version, _)| *version == record.password_version);
        Ok(!of_it.any(|(_, _, standing)| matches!(standing, Standing::Refused | Standing::Unsettled)))
    }
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        let Self { name, password, cluster } = self;
        name.is_none() && password.is_none() && cluster.is_none()
    }

    /// By the store's state, whatever the values are.
    fn are_allowed(&self, before: &KeyStoreRecord) -> Result<(), Error> {
        if self.password.is_some() || self.cluster.is_some() {
            lifecycle::next(before.state, Event::Reconfigure)?;
        }
        if self.name.is_some() {
            lifecycle::next(before.state, Event::Rename)?;
        }
        Ok(())
    }
}
