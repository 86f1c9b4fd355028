//! Keys as callers are told them: one, a page of a key store's, or of a crypto user's own.

use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::cluster::{Connection, Failure};
use crate::keystore::lifecycle::{self, Event};
use crate::model::{
    ClusterId, ConnectionState, CryptoUser, HsmKeyMark, HsmKeyName, KeyId, KeyRef, KeyStoreId, ShownState,
};
use crate::records::{KeyHome, KeyRecord};
use crate::users::ShownLogins;

use super::found::Sighting;
use super::{Error, Keys};

/// A key as it is told to callers.
#[derive(Debug)]
pub struct Description {
    pub record: KeyRecord,
    /// Empty for a crypto user's own.
    pub arn: String,
    /// Its `CKA_LABEL`, of a crypto user's own.
    pub label: String,
    /// Why the key cannot be used, whatever its own state.
    pub unavailable: Option<Unusable>,
}

/// Why a key that is there cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Its key store is so.
    KeyStore(ConnectionState),
    /// It is another program's, and not as keyway could use it.
    Found(&'static str),
}

impl Description {
    /// As callers are told it. Of a key that keyway cannot use, nothing is kept that could be switched off.
    pub fn state(&self) -> ShownState {
        self.record.state.shown(self.unavailable.is_none())
    }

    /// What singles it out among its crypto user's.
    pub fn mark(&self) -> Option<HsmKeyMark> {
        mark_of(&self.record.home)
    }

    /// What callers know it by.
    pub fn key_id(&self) -> String {
        self.mark().map_or_else(|| self.record.id.to_string(), |mark| hsm_key(&self.record.cluster, mark))
    }
}

impl Keys {
    pub async fn describe(
        &self,
        permit: Permit<action::DescribeKey>,
        logins: &ShownLogins,
        key: &KeyRef,
        deadline: Instant,
    ) -> Result<Description, Error> {
        let id = match key {
            KeyRef::Id(_) | KeyRef::Alias(_) => self.resolve(key).await?,
            KeyRef::Hsm(name) => {
                let acting = self.acting(&permit, logins, &name.cluster, deadline).await?;
                return self.describe_users(&acting.connection, name, deadline).await;
            }
        };
        self.stores_key(id).await
    }

    /// A crypto user's key as the records know it or, of another program's, as the tokens show it. Nothing is written down.
    async fn describe_users(
        &self,
        connection: &Connection,
        name: &HsmKeyName,
        deadline: Instant,
    ) -> Result<Description, Error> {
        let user = connection.user();
        let seen = match self.recorded(&user, &name.mark).await? {
            Some(id) => {
                let record = self.0.records.key(id).await?.ok_or_else(|| Error::NotFound(name.to_string()))?;
                if record.home.found().is_none() {
                    return Ok(self.describe_record(record));
                }
                // Its label stands in the tokens alone.
                let seen = self.sight(connection, &name.mark, deadline).await.ok().flatten();
                return Ok(Description {
                    label: seen.map(|it| it.label).unwrap_or_default(),
                    ..self.describe_record(record)
                });
            }
            None => self.sight(connection, &name.mark, deadline).await?,
        };
        let seen = seen.ok_or_else(|| Error::NotFound(name.to_string()))?;
        match (seen.mark(), seen.unusable) {
            (None, Some(why)) => Err(Error::Unusable { key: name.to_string(), why }),
            _ => self.describe_sighting(&user, seen).await,
        }
    }

    /// A crypto user's own keys: those that keyway made, ordered by label, and then those that others did, by `CKA_ID`.
    pub async fn list_users(
        &self,
        permit: Permit<action::ListKeys>,
        logins: &ShownLogins,
        cluster: &ClusterId,
        (after, limit): (Option<&HsmKeyMark>, u32),
        deadline: Instant,
    ) -> Result<Vec<Description>, Error> {
        let acting = self.acting(&permit, logins, cluster, deadline).await?;
        let user = acting.connection.user();
        let (label, cka_id) = match after {
            None => (None, None),
            Some(HsmKeyMark::Label(label)) => (Some(label), None),
            Some(HsmKeyMark::Id(cka_id)) => (None, Some(&**cka_id)),
        };
        let made =
            if cka_id.is_some() { Vec::new() } else { self.0.records.list_user_keys(&user, label, limit).await? };
        let mut listed: Vec<_> = made.into_iter().map(|record| self.describe_record(record)).collect();
        let left = (limit as usize).saturating_sub(listed.len());
        if left > 0 {
            let seeing = self.sightings(&acting.connection, (cka_id, left), deadline);
            let seen = tokio::time::timeout_at(deadline, seeing).await.map_err(|_| Error::Hsm(Failure::Late))??;
            for sighting in seen {
                listed.push(self.describe_sighting(&user, sighting).await?);
            }
        }
        Ok(listed)
    }

    /// As it would be written down, or is.
    async fn describe_sighting(&self, user: &CryptoUser, seen: Sighting) -> Result<Description, Error> {
        let known = self.0.records.found_key(user, &seen.cka_id).await?;
        let known = match known {
            Some(id) => self.0.records.key(id).await?,
            None => None,
        };
        let (label, unusable) = (seen.label.clone(), seen.unusable);
        let record = known.unwrap_or_else(|| seen.into_record(user));
        let unavailable = unusable.map(Unusable::Found);
        Ok(Description { label, unavailable, ..self.describe_record(record) })
    }

    /// Keys of key stores that were acknowledged, ordered by id.
    pub async fn list(
        &self,
        _permit: Permit<action::ListKeys>,
        store: Option<&KeyStoreId>,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<Description>, Error> {
        if let Some(store) = store {
            self.0.stores.get(store)?;
        }
        let records = self.0.records.list_keys(store, after, limit).await?;
        Ok(records.into_iter().map(|record| self.describe_record(record)).collect())
    }

    pub(super) fn describe_record(&self, mut record: KeyRecord) -> Description {
        record.last_used = self.last_use(record.id, record.last_used);
        let KeyHome::KeyStore(store) = &record.home else {
            let label = record.home.label().map(|label| label.as_str().to_owned()).unwrap_or_default();
            return Description { record, arn: String::new(), label, unavailable: None };
        };
        let state = self.0.stores.get(store).map_or(ConnectionState::Disconnected, |store| store.state());
        let refused = lifecycle::next(state, Event::Use).err();
        Description {
            arn: self.arn(store, &format!("key/{}", record.id)),
            label: String::new(),
            unavailable: refused.map(|refused| Unusable::KeyStore(refused.state)),
            record,
        }
    }
}

/// What singles a crypto user's key out among his.
pub(super) fn mark_of(home: &KeyHome) -> Option<HsmKeyMark> {
    match home {
        KeyHome::KeyStore(_) => None,
        KeyHome::User { label, .. } => Some(HsmKeyMark::Label(label.clone())),
        KeyHome::Found { cka_id, .. } => HsmKeyMark::id(cka_id),
    }
}

pub(super) fn hsm_key(cluster: &ClusterId, mark: HsmKeyMark) -> String {
    HsmKeyName { cluster: cluster.clone(), mark }.to_string()
}
