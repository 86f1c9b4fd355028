//! A new key store: tied to its cluster when that meets the prerequisites, or the one that the same request made before.

use std::sync::{Arc, PoisonError};

use crate::authz::{Permit, action};
use crate::clock;
use crate::model::{
    ClusterId, ConnectionState, KeyStoreId, KeyStoreName, Password, PasswordVersion, TrustAnchor, Username,
};
use crate::records::{AddedKeyStore, KeyStoreRecord};

use super::prerequisites::{self, CheckPhase, Unmet};
use super::{Error, KeyStores, Selector, Store};

/// What an operator gives to make a key store.
#[derive(Debug)]
pub struct NewKeyStore {
    pub name: KeyStoreName,
    pub cluster: ClusterId,
    pub password: Password,
    pub trust_anchor: TrustAnchor,
}

impl KeyStores {
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
}

/// In a time that tells nothing of either.
pub(super) fn same_password(one: &Password, other: &Password) -> bool {
    let (one, other) = (one.expose().as_bytes(), other.expose().as_bytes());
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}
