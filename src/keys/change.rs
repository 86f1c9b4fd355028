//! Changing a key store's key that is there: its state, and what is said of it.
//!
//! A change is written down by compare-and-set, and then what is remembered of the key is forgotten: of two that contradict
//! each other one wins, and the other looks at the state that it left. Who asks after the answer is told the new state, and
//! so is every use that begins then.

use crate::authz::{Action, Permit, action};
use crate::keystore;
use crate::model::{KeyChange, KeyId, KeyRef, KeyStoreId};
use crate::records::Deletion;

use super::describe::{Description, Unusable};
use super::lifecycle::{self, Operation, Refusal};
use super::{Error, Keys};

/// How often a change that lost to another one is tried again.
const TRIES: usize = 5;

impl Keys {
    pub async fn enable_key(&self, permit: Permit<action::EnableKey>, key: &KeyRef) -> Result<Description, Error> {
        self.change_state(&permit, key, (Operation::EnableKey, KeyChange::Enable), None).await
    }

    pub async fn disable_key(&self, permit: Permit<action::DisableKey>, key: &KeyRef) -> Result<Description, Error> {
        self.change_state(&permit, key, (Operation::DisableKey, KeyChange::Disable), None).await
    }

    pub async fn update_description(
        &self,
        _permit: Permit<action::UpdateKeyDescription>,
        key: &KeyRef,
        description: &str,
    ) -> Result<Description, Error> {
        for _ in 0..TRIES {
            let found = self.allowed(Operation::UpdateKeyDescription, key).await?;
            let (id, state) = (found.record.id, found.record.state);
            if self.0.records.describe_key_as(id, state, description).await? {
                return self.stores_key(id).await;
            }
        }
        Err(keystore::Error::Conflict.into())
    }

    /// Does what the operation means to the state, as soon as the state lets it happen. Where nothing changes, nothing is written.
    pub(super) async fn change_state<A: Action>(
        &self,
        _permit: &Permit<A>,
        key: &KeyRef,
        (operation, change): (Operation, KeyChange),
        deletion: Option<Deletion>,
    ) -> Result<Description, Error> {
        for _ in 0..TRIES {
            let found = self.allowed(operation, key).await?;
            let (id, from) = (found.record.id, found.record.state);
            let to = from.after(change).ok_or(Error::KeyStore(keystore::Error::Conflict))?;
            if from == to {
                // Whoever is told so may go by it, whatever became of those who changed it.
                self.forget(id);
                return Ok(found);
            }
            let keys = self.clone();
            let changing = async move {
                let changed = keys.0.records.change_key_state(id, (from, to), deletion).await;
                // Also when whether it was written is not known.
                keys.forget(id);
                changed
            };
            if self.outlive(changing).await? {
                tracing::info!(key = %id, from = from.as_str(), to = to.as_str(), "a key's state has changed");
                return self.stores_key(id).await;
            }
        }
        Err(keystore::Error::Conflict.into())
    }

    /// A key store's key whose state lets the operation happen.
    pub(super) async fn allowed(&self, operation: Operation, key: &KeyRef) -> Result<Description, Error> {
        let found = self.stores_key(self.resolve(key).await?).await?;
        match lifecycle::check(operation, found.state()) {
            Ok(()) => Ok(found),
            Err(refusal) => {
                let store = found.record.home.store().cloned();
                let unavailable = store.zip(found.unavailable);
                Err(refused(refusal, found.record.id, unavailable))
            }
        }
    }

    /// Why nothing was written of a key that was allowed a moment ago.
    pub(super) async fn changed_meanwhile(&self, operation: Operation, key: &KeyRef) -> Error {
        self.allowed(operation, key).await.err().unwrap_or(Error::KeyStore(keystore::Error::Conflict))
    }

    /// A key store's key, in any state. A crypto user's is nobody's by its id or an alias.
    pub(super) async fn stores_key(&self, id: KeyId) -> Result<Description, Error> {
        let record = self.0.records.key(id).await?.filter(|record| record.home.store().is_some());
        Ok(self.describe_record(record.ok_or_else(|| Error::NotFound(id.to_string()))?))
    }
}

/// As the caller is told it.
pub(super) fn refused(refusal: Refusal, key: KeyId, unavailable: Option<(KeyStoreId, Unusable)>) -> Error {
    match (refusal, unavailable) {
        (Refusal::Disabled, _) => Error::Disabled(key),
        (Refusal::PendingDeletion, _) => Error::PendingDeletion(key),
        (Refusal::NotPendingDeletion, _) => Error::NotPendingDeletion(key),
        (Refusal::Unavailable, Some((store, Unusable::KeyStore(state)))) => Error::Unavailable { key, store, state },
        (Refusal::NotFound | Refusal::Unavailable, _) => Error::NotFound(key.to_string()),
    }
}
