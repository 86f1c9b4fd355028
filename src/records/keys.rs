//! Keys, their versions, and the nodes that hold them or may.
//!
//! A key is written down as CREATING, with every node about to be asked, before any node is. So
//! whatever stands in an HSM under a key's id is explained by a row, whenever the daemon died.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqlitePool, Transaction};

use crate::model::{
    AliasName, ClusterId, ConnectionState, HsmId, KeyId, KeySpec, KeyState, KeyStoreId, KeyVersion, Probe,
};

use super::row::{key_id, millis, named, number, parsed, time};
use super::{Records, Unavailable};

#[derive(Debug, Clone)]
pub struct KeyRecord {
    pub id: KeyId,
    pub store: KeyStoreId,
    pub cluster: ClusterId,
    pub spec: KeySpec,
    pub state: KeyState,
    pub description: String,
    pub created: SystemTime,
    pub current_version: KeyVersion,
    pub versions: Vec<VersionRecord>,
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

/// A node that holds a key version, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceRecord {
    pub hsm: HsmId,
    pub proof: Proof,
    pub time: SystemTime,
}

/// What is known of a key version's presence on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It answered its probe there.
    Used,
    /// The node did not find it.
    Missing,
    /// It may be there.
    Unknown,
}

/// A key about to be made.
#[derive(Debug)]
pub struct NewKey {
    pub id: KeyId,
    pub store: KeyStoreId,
    pub cluster: ClusterId,
    pub spec: KeySpec,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    /// Reserved at once; names the key from when it is enabled.
    pub alias: Option<AliasName>,
    pub created: SystemTime,
    /// The nodes that may be asked.
    pub hsms: Vec<HsmId>,
    pub request: Option<RequestClaim>,
}

/// A caller's promise that a repeat means the same request.
#[derive(Debug, Clone)]
pub struct RequestClaim {
    pub caller: String,
    pub request_id: String,
    pub body_sha256: [u8; 32],
}

#[derive(Debug, Clone, Copy)]
pub struct KeyLimits {
    pub keys_per_store: u32,
    pub request_retention: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunKey {
    Begun,
    /// The same request came before, and this is its key.
    Replay {
        id: KeyId,
        state: KeyState,
    },
    /// The request id came before, with another request.
    RequestReused,
    AliasInUse,
    TooManyKeys,
    StoreNotConnected,
}

/// How many nodes may still hold a key that was never acknowledged; with none left, its record is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatingLeft {
    pub hsms: usize,
}

impl Proof {
    const ALL: [Self; 3] = [Self::Used, Self::Missing, Self::Unknown];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "USED",
            Self::Missing => "MISSING",
            Self::Unknown => "UNKNOWN",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|proof| proof.as_str() == text)
    }
}

impl Records {
    /// Writes a key down as CREATING, unless something is in the way.
    pub async fn begin_key(&self, new: &NewKey, limits: &KeyLimits) -> Result<BegunKey, Unavailable> {
        let mut change = self.begin().await?;
        if let Some(request) = &new.request {
            let forgotten =
                millis(new.created) - i64::try_from(limits.request_retention.as_millis()).unwrap_or(i64::MAX);
            sqlx::query("DELETE FROM requests WHERE created < ?").bind(forgotten).execute(&mut *change).await?;
            if let Some(before) = earlier(&mut change, request).await? {
                change.commit().await?;
                return Ok(before);
            }
        }
        let refused = in_the_way(&mut change, new, limits).await?;
        if let Some(refused) = refused {
            return Ok(refused);
        }
        insert(&mut change, new).await?;
        change.commit().await?;
        Ok(BegunKey::Begun)
    }

    /// CREATING becomes ENABLED: the key answered its probe on these nodes. `false` when it was not CREATING any more.
    pub async fn finish_key(
        &self,
        key: KeyId,
        version: KeyVersion,
        probe: &Probe,
        proven: &[HsmId],
        at: SystemTime,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let enabled = sqlx::query("UPDATE keys SET state = 'ENABLED' WHERE id = ? AND state = 'CREATING'")
            .bind(key.as_bytes().as_slice())
            .execute(&mut *change)
            .await?;
        if enabled.rows_affected() != 1 {
            return Ok(false);
        }
        sqlx::query("UPDATE key_versions SET probe = ? WHERE key_id = ? AND version = ?")
            .bind(probe.0.as_slice())
            .bind(key.as_bytes().as_slice())
            .bind(version.0)
            .execute(&mut *change)
            .await?;
        for hsm in proven {
            put_presence(&mut change, key, version, hsm, Proof::Used, at).await?;
        }
        change.commit().await?;
        Ok(true)
    }

    /// A node holds nothing of a key that was never acknowledged. With the last such node the key, its alias and its request go.
    pub async fn clear_creating(&self, key: KeyId, hsm: &HsmId) -> Result<CreatingLeft, Unavailable> {
        let mut change = self.begin().await?;
        let bytes = key.as_bytes().as_slice();
        sqlx::query(
            "DELETE FROM presences WHERE key_id = ?1 AND hsm_id = ?2
             AND EXISTS (SELECT 1 FROM keys WHERE id = ?1 AND state = 'CREATING')",
        )
        .bind(bytes)
        .bind(hsm.as_str())
        .execute(&mut *change)
        .await?;
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM presences WHERE key_id = ?")
            .bind(bytes)
            .fetch_one(&mut *change)
            .await?;
        if left == 0 {
            sqlx::query("DELETE FROM keys WHERE id = ? AND state = 'CREATING'")
                .bind(bytes)
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(CreatingLeft { hsms: usize::try_from(left).unwrap_or(usize::MAX) })
    }

    pub async fn creating_keys(&self, cluster: &ClusterId) -> Result<Vec<KeyRecord>, Unavailable> {
        let rows = sqlx::query("SELECT * FROM keys WHERE cluster_id = ? AND state = 'CREATING' ORDER BY id")
            .bind(cluster.as_str())
            .fetch_all(&self.0.read)
            .await?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            keys.push(with_versions(&self.0.read, row).await?);
        }
        Ok(keys)
    }

    pub async fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, Unavailable> {
        let found = sqlx::query("SELECT * FROM keys WHERE id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.0.read)
            .await?;
        match found {
            Some(row) => with_versions(&self.0.read, &row).await.map(Some),
            None => Ok(None),
        }
    }

    /// Acknowledged keys after `after`, by id, with their current version but not where it is.
    pub async fn list_keys(
        &self,
        store: Option<&KeyStoreId>,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<KeyRecord>, Unavailable> {
        let after = after.map_or_else(Vec::new, |after| after.as_bytes().to_vec());
        let rows = match store {
            Some(store) => {
                sqlx::query(
                    "SELECT k.*, v.uses_reserved, v.created AS version_created FROM keys k
                     JOIN key_versions v ON v.key_id = k.id AND v.version = k.current_version
                     WHERE k.store_id = ? AND k.id > ? AND k.state <> 'CREATING' ORDER BY k.id LIMIT ?",
                )
                .bind(store.as_str())
                .bind(after)
                .bind(limit)
                .fetch_all(&self.0.read)
                .await?
            }
            None => {
                sqlx::query(
                    "SELECT k.*, v.uses_reserved, v.created AS version_created FROM keys k
                     JOIN key_versions v ON v.key_id = k.id AND v.version = k.current_version
                     WHERE k.id > ? AND k.state <> 'CREATING' ORDER BY k.id LIMIT ?",
                )
                .bind(after)
                .bind(limit)
                .fetch_all(&self.0.read)
                .await?
            }
        };
        rows.iter().map(listed).collect()
    }

    /// Keys of a store in any state.
    pub async fn count_keys(&self, store: &KeyStoreId) -> Result<u64, Unavailable> {
        let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE store_id = ?")
            .bind(store.as_str())
            .fetch_one(&self.0.read)
            .await?;
        Ok(keys.unsigned_abs())
    }

    pub async fn set_presence(
        &self,
        key: KeyId,
        version: KeyVersion,
        hsm: &HsmId,
        proof: Proof,
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        put_presence(&mut change, key, version, hsm, proof, at).await?;
        change.commit().await?;
        Ok(())
    }

    /// The node's token is not the one that was proved before: nothing is known of any key there. No row is removed.
    pub async fn doubt_presence(&self, cluster: &ClusterId, hsm: &HsmId, at: SystemTime) -> Result<(), Unavailable> {
        sqlx::query(
            "UPDATE presences SET proof = 'UNKNOWN', time = ?
             WHERE hsm_id = ? AND proof = 'USED' AND key_id IN (SELECT id FROM keys WHERE cluster_id = ?)",
        )
        .bind(millis(at))
        .bind(hsm.as_str())
        .bind(cluster.as_str())
        .execute(&self.0.write)
        .await?;
        Ok(())
    }

    /// Enabled versions after `after` that are not proven on this node.
    pub async fn keys_lacking(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        after: Option<(KeyId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<(KeyId, KeyVersion)>, Unavailable> {
        let (after_key, after_version) = match after {
            Some((key, version)) => (key.as_bytes().to_vec(), i64::from(version.0)),
            None => (Vec::new(), -1),
        };
        let rows = sqlx::query(
            "SELECT k.id, v.version FROM keys k JOIN key_versions v ON v.key_id = k.id
             WHERE k.cluster_id = ? AND k.state <> 'CREATING' AND (k.id > ? OR (k.id = ? AND v.version > ?))
               AND NOT EXISTS (SELECT 1 FROM presences p
                               WHERE p.key_id = k.id AND p.version = v.version AND p.hsm_id = ? AND p.proof = 'USED')
             ORDER BY k.id, v.version LIMIT ?",
        )
        .bind(cluster.as_str())
        .bind(after_key.clone())
        .bind(after_key)
        .bind(after_version)
        .bind(hsm.as_str())
        .bind(limit)
        .fetch_all(&self.0.read)
        .await?;
        rows.iter().map(|row| Ok((key_id(row, "id")?, KeyVersion(number(row, "version")?)))).collect()
    }
}

async fn earlier(
    change: &mut Transaction<'_, Sqlite>,
    request: &RequestClaim,
) -> Result<Option<BegunKey>, Unavailable> {
    let found = sqlx::query(
        "SELECT r.body_sha256, k.id, k.state FROM requests r JOIN keys k ON k.id = r.key_id
         WHERE r.caller = ? AND r.request_id = ?",
    )
    .bind(&request.caller)
    .bind(&request.request_id)
    .fetch_optional(&mut **change)
    .await?;
    let Some(row) = found else { return Ok(None) };
    if row.try_get::<Vec<u8>, _>("body_sha256")? != request.body_sha256 {
        return Ok(Some(BegunKey::RequestReused));
    }
    Ok(Some(BegunKey::Replay { id: key_id(&row, "id")?, state: named(&row, "state", KeyState::parse)? }))
}

async fn in_the_way(
    change: &mut Transaction<'_, Sqlite>,
    new: &NewKey,
    limits: &KeyLimits,
) -> Result<Option<BegunKey>, Unavailable> {
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM key_stores WHERE id = ?")
        .bind(new.store.as_str())
        .fetch_optional(&mut **change)
        .await?;
    if state.as_deref().and_then(ConnectionState::parse) != Some(ConnectionState::Connected) {
        return Ok(Some(BegunKey::StoreNotConnected));
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE store_id = ?")
        .bind(new.store.as_str())
        .fetch_one(&mut **change)
        .await?;
    if keys >= i64::from(limits.keys_per_store) {
        return Ok(Some(BegunKey::TooManyKeys));
    }
    if let Some(alias) = &new.alias {
        let taken = sqlx::query("SELECT 1 FROM aliases WHERE name = ?").bind(alias.as_str());
        if taken.fetch_optional(&mut **change).await?.is_some() {
            return Ok(Some(BegunKey::AliasInUse));
        }
    }
    Ok(None)
}

async fn insert(change: &mut Transaction<'_, Sqlite>, new: &NewKey) -> Result<(), Unavailable> {
    let (id, created) = (new.id.as_bytes().as_slice(), millis(new.created));
    sqlx::query(
        "INSERT INTO keys (id, store_id, cluster_id, spec, state, description, created, current_version)
         VALUES (?, ?, ?, ?, 'CREATING', ?, ?, ?)",
    )
    .bind(id)
    .bind(new.store.as_str())
    .bind(new.cluster.as_str())
    .bind(new.spec.as_str())
    .bind(&new.description)
    .bind(created)
    .bind(KeyVersion::FIRST.0)
    .execute(&mut **change)
    .await?;
    sqlx::query("INSERT INTO key_versions (key_id, version, uses_reserved, created) VALUES (?, ?, 1, ?)")
        .bind(id)
        .bind(KeyVersion::FIRST.0)
        .bind(created)
        .execute(&mut **change)
        .await?;
    for hsm in &new.hsms {
        put_presence(change, new.id, KeyVersion::FIRST, hsm, Proof::Unknown, new.created).await?;
    }
    for (name, value) in &new.tags {
        sqlx::query("INSERT INTO tags (key_id, name, value) VALUES (?, ?, ?)")
            .bind(id)
            .bind(name)
            .bind(value)
            .execute(&mut **change)
            .await?;
    }
    if let Some(alias) = &new.alias {
        sqlx::query("INSERT INTO aliases (name, key_id, created, updated) VALUES (?, ?, ?, ?)")
            .bind(alias.as_str())
            .bind(id)
            .bind(created)
            .bind(created)
            .execute(&mut **change)
            .await?;
    }
    if let Some(request) = &new.request {
        sqlx::query("INSERT INTO requests (caller, request_id, body_sha256, key_id, created) VALUES (?, ?, ?, ?, ?)")
            .bind(&request.caller)
            .bind(&request.request_id)
            .bind(request.body_sha256.as_slice())
            .bind(id)
            .bind(created)
            .execute(&mut **change)
            .await?;
    }
    Ok(())
}

async fn put_presence(
    change: &mut Transaction<'_, Sqlite>,
    key: KeyId,
    version: KeyVersion,
    hsm: &HsmId,
    proof: Proof,
    at: SystemTime,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO presences (key_id, version, hsm_id, proof, time) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (key_id, version, hsm_id) DO UPDATE SET proof = excluded.proof, time = excluded.time",
    )
    .bind(key.as_bytes().as_slice())
    .bind(version.0)
    .bind(hsm.as_str())
    .bind(proof.as_str())
    .bind(millis(at))
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn with_versions(read: &SqlitePool, row: &SqliteRow) -> Result<KeyRecord, Unavailable> {
    let mut record = bare(row)?;
    let id = record.id.as_bytes().as_slice();
    let versions = sqlx::query("SELECT * FROM key_versions WHERE key_id = ? ORDER BY version").bind(id);
    for row in &versions.fetch_all(read).await? {
        record.versions.push(VersionRecord {
            version: KeyVersion(number(row, "version")?),
            probe: row.try_get::<Option<Vec<u8>>, _>("probe")?.map(Probe),
            uses_reserved: row.try_get::<i64, _>("uses_reserved")?.unsigned_abs(),
            created: time(row, "created")?,
            on: Vec::new(),
        });
    }
    let presences = sqlx::query("SELECT * FROM presences WHERE key_id = ? ORDER BY hsm_id").bind(id);
    for row in &presences.fetch_all(read).await? {
        let version = KeyVersion(number(row, "version")?);
        let presence = PresenceRecord {
            hsm: parsed(row, "hsm_id")?,
            proof: named(row, "proof", Proof::parse)?,
            time: time(row, "time")?,
        };
        if let Some(of) = record.versions.iter_mut().find(|candidate| candidate.version == version) {
            of.on.push(presence);
        }
    }
    Ok(record)
}

fn listed(row: &SqliteRow) -> Result<KeyRecord, Unavailable> {
    let mut record = bare(row)?;
    record.versions.push(VersionRecord {
        version: record.current_version,
        probe: None,
        uses_reserved: row.try_get::<i64, _>("uses_reserved")?.unsigned_abs(),
        created: time(row, "version_created")?,
        on: Vec::new(),
    });
    Ok(record)
}

fn bare(row: &SqliteRow) -> Result<KeyRecord, Unavailable> {
    Ok(KeyRecord {
        id: key_id(row, "id")?,
        store: parsed(row, "store_id")?,
        cluster: parsed(row, "cluster_id")?,
        spec: named(row, "spec", KeySpec::parse)?,
        state: named(row, "state", KeyState::parse)?,
        description: row.try_get("description")?,
        created: time(row, "created")?,
        current_version: KeyVersion(number(row, "current_version")?),
        versions: Vec::new(),
    })
}
