//! Other names for keys of key stores.

use crate::authz::{Permit, action};
use crate::clock;
use crate::model::{AliasName, KeyId, KeyRef, KeyStoreId};
use crate::records::{AliasRecord, CreatedAlias, MovedAlias};

use super::lifecycle::Operation;
use super::{Error, Keys};

/// AWS's bound: so many aliases point at one key.
const PER_KEY: u32 = 50;
/// Aliases remembered; beyond that, all are forgotten and looked up anew.
const REMEMBERED: usize = 100_000;

impl Keys {
    pub async fn create_alias(
        &self,
        _permit: Permit<action::CreateAlias>,
        name: AliasName,
        key: &KeyRef,
    ) -> Result<AliasRecord, Error> {
        let named = key;
        let key = self.allowed(Operation::CreateAlias, named).await?.record.id;
        let now = clock::now();
        match self.0.records.create_alias(&name, key, now, PER_KEY).await? {
            CreatedAlias::Created => Ok(AliasRecord { name, key, created: now, updated: now }),
            CreatedAlias::InUse => Err(Error::AliasInUse(name)),
            CreatedAlias::TooMany => Err(Error::TooManyAliases(PER_KEY)),
            CreatedAlias::NoSuchKey => Err(self.changed_meanwhile(Operation::CreateAlias, named).await),
        }
    }

    /// Points an alias at another key of the same kind. The state of the one that it stood for does not matter.
    pub async fn update_alias(
        &self,
        _permit: Permit<action::UpdateAlias>,
        name: AliasName,
        key: &KeyRef,
    ) -> Result<AliasRecord, Error> {
        let before = self.resolve(&KeyRef::Alias(name.clone())).await?;
        let before = self.0.records.key(before).await?.ok_or_else(|| Error::NotFound(name.to_string()))?;
        let target = self.allowed(Operation::UpdateAlias, key).await?.record;
        if before.kind != target.kind {
            return Err(Error::AliasOfAnotherKind { name, kind: before.kind });
        }
        let (keys, alias) = (self.clone(), name.clone());
        let moving = async move {
            let moved = keys.0.records.move_alias(&alias, target.id, clock::now(), PER_KEY).await;
            // Also when whether it was written is not known.
            keys.0.aliases.forget(&alias);
            moved
        };
        match self.outlive(moving).await? {
            MovedAlias::Moved(alias) => Ok(alias),
            MovedAlias::NoSuchAlias => Err(Error::NotFound(name.to_string())),
            MovedAlias::TooMany => Err(Error::TooManyAliases(PER_KEY)),
            MovedAlias::NoSuchKey => Err(self.changed_meanwhile(Operation::UpdateAlias, key).await),
        }
    }

    /// Its key stays, whatever its state.
    pub async fn delete_alias(&self, _permit: Permit<action::DeleteAlias>, name: AliasName) -> Result<(), Error> {
        let (keys, alias) = (self.clone(), name.clone());
        let deleting = async move {
            let deleted = keys.0.records.delete_alias(&alias).await;
            // The same.
            keys.0.aliases.forget(&alias);
            deleted
        };
        if self.outlive(deleting).await? { Ok(()) } else { Err(Error::NotFound(name.to_string())) }
    }

    /// Aliases, of one key or all, ordered by name.
    pub async fn list_aliases(
        &self,
        _permit: Permit<action::ListAliases>,
        key: Option<&KeyRef>,
        after: Option<&AliasName>,
        limit: u32,
    ) -> Result<Vec<AliasRecord>, Error> {
        let key = match key {
            Some(key) => Some(self.allowed(Operation::ListAliases, key).await?.record.id),
            None => None,
        };
        Ok(self.0.records.list_aliases(key, after, limit).await?)
    }

    /// The ARN under which SDKs know an alias of a key.
    pub async fn alias_arn(&self, alias: &AliasRecord) -> Result<String, Error> {
        let store = self.store_of(alias.key).await?;
        Ok(self.arn(&store, &alias.name.to_string()))
    }

    async fn store_of(&self, key: KeyId) -> Result<KeyStoreId, Error> {
        let record = self.0.records.key(key).await?;
        let store = record.and_then(|record| record.home.store().cloned());
        store.ok_or_else(|| Error::NotFound(key.to_string()))
    }

    /// The id that a name stands for. Whether there is a key of that id is not asked.
    pub(super) async fn resolve(&self, key: &KeyRef) -> Result<KeyId, Error> {
        let name = match key {
            KeyRef::Id(id) => return Ok(*id),
            KeyRef::Alias(name) => name,
            // Only a login says whose it is.
            KeyRef::Hsm(name) => return Err(Error::NotFound(name.to_string())),
        };
        let since = match self.0.aliases.get(name) {
            Ok(id) => return Ok(id),
            Err(since) => since,
        };
        let id = self.0.records.key_id_of_alias(name).await?.ok_or_else(|| Error::NotFound(name.to_string()))?;
        Ok(self.0.aliases.remember(since, name.clone(), id, REMEMBERED))
    }

    /// What the key was called by goes with it.
    pub(super) fn forget_aliases(&self, of: KeyId) {
        self.0.aliases.forget_all(&of);
    }
}
