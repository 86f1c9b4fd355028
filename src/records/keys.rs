//! Keys and their versions, read; and whose they are.

use std::sync::Arc;
use std::time::SystemTime;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::model::{
    ClusterId, CryptoUser, HsmLabel, KeyId, KeySpec, KeyState, KeyStoreId, KeyVersion, Probe, Username,
};

use super::row::{key_id, named, number, parsed, time, time_if_any};
use super::{PresenceRecord, Proof, Records, Unavailable};

/// Whose a key is: in whose tokens it is, and so through which Connection it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHome {
    /// In kmsuser's.
    KeyStore(KeyStoreId),
    /// In this crypto user's, who is not kmsuser, under this label.
    User { username: Username, label: HsmLabel },
    /// In this crypto user's, where it was found under this `CKA_ID`: on some of his HSMs, and it goes to no other.
    Found { username: Username, cka_id: Arc<[u8]> },
}

impl KeyHome {
    pub fn store(&self) -> Option<&KeyStoreId> {
        match self {
            Self::KeyStore(store) => Some(store),
            Self::User { .. } | Self::Found { .. } => None,
        }
    }

    /// Under which keyway made it for a crypto user.
    pub fn label(&self) -> Option<&HsmLabel> {
        match self {
            Self::User { label, .. } => Some(label),
            Self::KeyStore(_) | Self::Found { .. } => None,
        }
    }

    /// Under which it was found.
    pub fn found(&self) -> Option<&Arc<[u8]>> {
        match self {
            Self::Found { cka_id, .. } => Some(cka_id),
            Self::KeyStore(_) | Self::User { .. } => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct KeyRecord {
    pub id: KeyId,
    pub home: KeyHome,
    pub cluster: ClusterId,
    pub spec: KeySpec,
    pub state: KeyState,
    pub description: String,
    pub created: SystemTime,
    pub current_version: KeyVersion,
    pub versions: Vec<VersionRecord>,
    /// When it is to be destroyed: only while it is PENDING_DELETION.
    pub deletion: Option<SystemTime>,
    /// As far as it is written down.
    pub last_used: Option<SystemTime>,
    /// When it rotates by itself, if it does.
    pub rotation: Option<RotationPlan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationPlan {
    /// How many days lie between two rotations.
    pub days: u32,
    pub next: SystemTime,
}

#[derive(Debug, Clone)]
pub struct VersionRecord {
    pub version: KeyVersion,
    /// Set once the key exists.
    pub probe: Option<Probe>,
    /// Uses that were reserved, and so count as made.
    pub uses_reserved: u64,
    pub created: SystemTime,
    pub on: Vec<PresenceRecord>,
}

/// Keys as `$keys` selects them, with their versions and where each is: one statement, so that nothing changes
/// between its parts.
macro_rules! keys_with_versions {
    ($keys:literal) => {
        concat!(
            "SELECT page.*, v.version, v.probe, v.uses_reserved, v.created AS version_created, p.hsm_id, p.proof, p.time
             FROM (",
            $keys,
            ") page JOIN key_versions v ON v.key_id = page.id
             LEFT JOIN presences p
               ON p.key_id = v.key_id AND p.version = v.version AND p.cluster_id = page.cluster_id
             ORDER BY page.id, v.version, p.hsm_id"
        )
    };
}
pub(super) use keys_with_versions;

pub(super) const ONE: &str = keys_with_versions!("SELECT * FROM keys WHERE id = ?");
pub(super) const PAGE: &str = keys_with_versions!(
    "SELECT * FROM keys WHERE id > ? AND store_id IS NOT NULL AND state <> 'CREATING' ORDER BY id LIMIT ?"
);
pub(super) const PAGE_OF_STORE: &str =
    keys_with_versions!("SELECT * FROM keys WHERE store_id = ? AND id > ? AND state <> 'CREATING' ORDER BY id LIMIT ?");
pub(super) const PAGE_OF_USER: &str = keys_with_versions!(
    "SELECT * FROM keys WHERE cluster_id = ? AND username = ? AND store_id IS NULL AND hsm_label > ?
     AND hsm_label IS NOT NULL AND state <> 'CREATING' ORDER BY hsm_label LIMIT ?"
);
const BY_LABEL: &str =
    "SELECT id FROM keys WHERE cluster_id = ? AND username = ? AND hsm_label = ? AND hsm_label IS NOT NULL";

impl Records {
    pub async fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, Unavailable> {
        let rows = sqlx::query(ONE).bind(id.as_bytes().as_slice()).fetch_all(&self.0.read).await?;
        Ok(folded(&rows)?.pop())
    }

    /// Acknowledged keys of key stores after `after`, by id.
    pub async fn list_keys(
        &self,
        store: Option<&KeyStoreId>,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<KeyRecord>, Unavailable> {
        let after = after.map_or_else(Vec::new, |after| after.as_bytes().to_vec());
        let page = match store {
            Some(store) => sqlx::query(PAGE_OF_STORE).bind(store.as_str()),
            None => sqlx::query(PAGE),
        };
        let rows = page.bind(after).bind(limit).fetch_all(&self.0.read).await?;
        folded(&rows)
    }

    /// A crypto user's acknowledged keys after `after`, by label.
    pub async fn list_user_keys(
        &self,
        user: &CryptoUser,
        after: Option<&HsmLabel>,
        limit: u32,
    ) -> Result<Vec<KeyRecord>, Unavailable> {
        let page = sqlx::query(PAGE_OF_USER).bind(user.cluster.as_str()).bind(user.username.as_str());
        let rows = page.bind(after.map_or("", HsmLabel::as_str)).bind(limit).fetch_all(&self.0.read).await?;
        let mut keys = folded(&rows)?;
        keys.sort_by(|one, next| one.home.label().cmp(&next.home.label()));
        Ok(keys)
    }

    /// A crypto user's key with this label, in any state.
    pub async fn user_key(&self, user: &CryptoUser, label: &HsmLabel) -> Result<Option<KeyId>, Unavailable> {
        let found = sqlx::query(BY_LABEL).bind(user.cluster.as_str()).bind(user.username.as_str()).bind(label.as_str());
        found.fetch_optional(&self.0.read).await?.map(|row| key_id(&row, "id")).transpose()
    }

    /// Keys of a store in any state.
    pub async fn count_keys(&self, store: &KeyStoreId) -> Result<u64, Unavailable> {
        let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE store_id = ?")
            .bind(store.as_str())
            .fetch_one(&self.0.read)
            .await?;
        Ok(keys.unsigned_abs())
    }
}

/// Folds the rows of [`keys_with_versions`], which come a row for each node of each version, into keys.
pub(super) fn folded(rows: &[SqliteRow]) -> Result<Vec<KeyRecord>, Unavailable> {
    let mut keys: Vec<KeyRecord> = Vec::new();
    for row in rows {
        let id = key_id(row, "id")?;
        if keys.last().is_none_or(|key| key.id != id) {
            keys.push(bare_key(row)?);
        }
        let versions = &mut keys.last_mut().expect("pushed above").versions;
        let number = KeyVersion(number(row, "version")?);
        if versions.last().is_none_or(|version| version.version != number) {
            versions.push(bare_version(row, number)?);
        }
        versions.last_mut().expect("pushed above").on.extend(presence(row)?);
    }
    Ok(keys)
}

fn bare_key(row: &SqliteRow) -> Result<KeyRecord, Unavailable> {
    Ok(KeyRecord {
        id: key_id(row, "id")?,
        home: home(row)?,
        cluster: parsed(row, "cluster_id")?,
        spec: named(row, "spec", KeySpec::parse)?,
        state: named(row, "state", KeyState::parse)?,
        description: row.try_get("description")?,
        created: time(row, "created")?,
        current_version: KeyVersion(number(row, "current_version")?),
        versions: Vec::new(),
        deletion: time_if_any(row, "deletion")?,
        last_used: time_if_any(row, "last_used")?,
        rotation: match time_if_any(row, "rotation_due")? {
            Some(next) => Some(RotationPlan { days: number(row, "rotation_days")?, next }),
            None => None,
        },
    })
}

fn home(row: &SqliteRow) -> Result<KeyHome, Unavailable> {
    if let Some(cka_id) = row.try_get::<Option<Vec<u8>>, _>("found_id")? {
        return Ok(KeyHome::Found { username: parsed(row, "username")?, cka_id: cka_id.into() });
    }
    match row.try_get::<Option<String>, _>("hsm_label")? {
        Some(_) => Ok(KeyHome::User { username: parsed(row, "username")?, label: parsed(row, "hsm_label")? }),
        None => Ok(KeyHome::KeyStore(parsed(row, "store_id")?)),
    }
}

fn bare_version(row: &SqliteRow, version: KeyVersion) -> Result<VersionRecord, Unavailable> {
    Ok(VersionRecord {
        version,
        probe: row.try_get::<Option<Vec<u8>>, _>("probe")?.map(Probe),
        uses_reserved: row.try_get::<i64, _>("uses_reserved")?.unsigned_abs(),
        created: time(row, "version_created")?,
        on: Vec::new(),
    })
}

/// `None`: the version has no node at all.
fn presence(row: &SqliteRow) -> Result<Option<PresenceRecord>, Unavailable> {
    let hsm: Option<String> = row.try_get("hsm_id")?;
    hsm.map(|_| {
        Ok(PresenceRecord {
            hsm: parsed(row, "hsm_id")?,
            proof: named(row, "proof", Proof::parse)?,
            time: time(row, "time")?,
        })
    })
    .transpose()
}
