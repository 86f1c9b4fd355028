//! Keys that are being made.
//!
//! A key is written down as CREATING, with every node about to be asked, before any node is. So
//! whatever stands in an HSM under a key's id is explained by a row, whenever the daemon died.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sqlx::{Row, Sqlite, Transaction};

use crate::model::{
    AliasName, ClusterId, ConnectionState, CryptoUser, HsmId, HsmLabel, KeyId, KeySpec, KeyState, KeyStoreId,
    KeyVersion, Probe, Username,
};

use super::keys::{folded, keys_with_versions};
use super::presences::put_presence;
use super::row::{key_id, millis, named, parsed};
use super::{KeyRecord, Proof, Records, Unavailable};

/// A key about to be made.
#[derive(Debug)]
pub struct NewKey {
    pub id: KeyId,
    pub home: NewKeyHome,
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

/// Where a key is about to be made.
#[derive(Debug)]
pub enum NewKeyHome {
    /// In a key store, which was found in a state that allows it.
    KeyStore { store: KeyStoreId, state: ConnectionState },
    /// In a crypto user's tokens, under a label.
    User { username: Username, label: HsmLabel },
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
    /// Of one key store, or of one crypto user.
    pub keys: u32,
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
    /// The crypto user has a key with this label.
    LabelInUse,
    TooManyKeys,
    /// The key store is not in that state, or not on that cluster, any more.
    StoreChanged,
    /// The crypto user is on his way out.
    UserLeaves,
}

/// How many nodes may still hold a key that was never acknowledged; with none left, its record is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatingLeft {
    pub hsms: usize,
}

pub(super) const CREATING: &str =
    keys_with_versions!("SELECT * FROM keys WHERE cluster_id = ? AND username = ? AND state = 'CREATING'");

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

    /// CREATING becomes ENABLED: the key answered its probe on the `proven` nodes and is to be looked for on the `others`.
    /// `false` when it was not CREATING any more, its store stands on another cluster meanwhile, or of the proven ones fewer
    /// than `are_enough` stay: an HSM that is being removed takes its copy with it.
    pub async fn finish_key(
        &self,
        key: KeyId,
        version: KeyVersion,
        probe: &Probe,
        (proven, others): (&[HsmId], &[HsmId]),
        are_enough: impl Fn(&[HsmId]) -> bool + Send,
        at: SystemTime,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let enabled: Option<String> = sqlx::query_scalar(
            "UPDATE keys SET state = 'ENABLED' WHERE id = ? AND state = 'CREATING' AND (store_id IS NULL
               OR cluster_id = (SELECT cluster_id FROM key_stores WHERE id = keys.store_id)) RETURNING cluster_id",
        )
        .bind(key.as_bytes().as_slice())
        .fetch_optional(&mut *change)
        .await?;
        let Some(cluster) = enabled else { return Ok(false) };
        let cluster: ClusterId = cluster.parse().map_err(|_| Unavailable::row("cluster_id"))?;
        let staying = staying(&mut change, (key, version), &cluster).await?;
        let staying: Vec<_> = proven.iter().filter(|hsm| staying.contains(hsm)).cloned().collect();
        if staying.len() < proven.len() && !are_enough(&staying) {
            return Ok(false);
        }
        sqlx::query("UPDATE key_versions SET probe = ? WHERE key_id = ? AND version = ?")
            .bind(probe.0.as_slice())
            .bind(key.as_bytes().as_slice())
            .bind(version.0)
            .execute(&mut *change)
            .await?;
        for hsm in &staying {
            put_presence(&mut *change, key, version, (&cluster, hsm), Proof::Used, at).await?;
        }
        for hsm in others {
            put_presence(&mut *change, key, version, (&cluster, hsm), Proof::Unknown, at).await?;
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

    /// Keys that are, or were, to be made in a user's tokens.
    pub async fn creating_keys(&self, user: &CryptoUser) -> Result<Vec<KeyRecord>, Unavailable> {
        let creating = sqlx::query(CREATING).bind(user.cluster.as_str()).bind(user.username.as_str());
        folded(&creating.fetch_all(&self.0.read).await?)
    }
}

/// Who was to be asked for a key and stays in the cluster. An HSM that left and came again under its name is another.
async fn staying(
    change: &mut Transaction<'_, Sqlite>,
    (key, version): (KeyId, KeyVersion),
    cluster: &ClusterId,
) -> Result<Vec<HsmId>, Unavailable> {
    let rows = sqlx::query(
        "SELECT p.hsm_id FROM presences p WHERE p.key_id = ?1 AND p.version = ?2 AND p.cluster_id = ?3
           AND (NOT EXISTS (SELECT 1 FROM made_clusters WHERE cluster_id = ?3)
             OR EXISTS (SELECT 1 FROM made_hsms h
               WHERE h.cluster_id = ?3 AND h.hsm_id = p.hsm_id AND h.state = 'ACTIVE'))",
    )
    .bind(key.as_bytes().as_slice())
    .bind(version.0)
    .bind(cluster.as_str())
    .fetch_all(&mut **change)
    .await?;
    rows.iter().map(|row| parsed(row, "hsm_id")).collect()
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
    let (refused, keys) = match &new.home {
        NewKeyHome::KeyStore { store, state } => {
            let unchanged = sqlx::query("SELECT 1 FROM key_stores WHERE id = ? AND state = ? AND cluster_id = ?")
                .bind(store.as_str())
                .bind(state.as_str())
                .bind(new.cluster.as_str());
            let is_unchanged = unchanged.fetch_optional(&mut **change).await?.is_some();
            let keys = count_of_store(change, store, &new.cluster).await?;
            ((!is_unchanged).then_some(BegunKey::StoreChanged), keys)
        }
        NewKeyHome::User { username, label } => {
            let user = (new.cluster.as_str(), username.as_str());
            let refused = users_in_the_way(change, user, label.as_str()).await?;
            (refused, count_of_user(change, user).await?)
        }
    };
    if refused.is_some() {
        return Ok(refused);
    }
    if keys >= i64::from(limits.keys) {
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

/// How many keys the store has, in any state; or how many that were destroyed are still to go from an HSM of its cluster, if
/// those are more: what the records keep is bounded.
async fn count_of_store(
    change: &mut Transaction<'_, Sqlite>,
    store: &KeyStoreId,
    cluster: &ClusterId,
) -> Result<i64, Unavailable> {
    let keys = "SELECT max(
           (SELECT count(*) FROM keys WHERE store_id = ?1),
           (SELECT count(DISTINCT cka_id) FROM destroyed_keys WHERE cluster_id = ?2 AND username = 'kmsuser'))";
    Ok(sqlx::query_scalar(keys).bind(store.as_str()).bind(cluster.as_str()).fetch_one(&mut **change).await?)
}

async fn users_in_the_way(
    change: &mut Transaction<'_, Sqlite>,
    (cluster, user): (&str, &str),
    label: &str,
) -> Result<Option<BegunKey>, Unavailable> {
    if is_leaving(change, (cluster, user)).await? {
        return Ok(Some(BegunKey::UserLeaves));
    }
    let taken = sqlx::query("SELECT 1 FROM keys WHERE cluster_id = ? AND username = ? AND hsm_label = ?");
    let taken = taken.bind(cluster).bind(user).bind(label).fetch_optional(&mut **change).await?;
    Ok(taken.map(|_| BegunKey::LabelInUse))
}

/// Whether the crypto user is on his way out.
pub(super) async fn is_leaving(
    change: &mut Transaction<'_, Sqlite>,
    (cluster, user): (&str, &str),
) -> Result<bool, Unavailable> {
    let leaving =
        sqlx::query("SELECT 1 FROM crypto_user_hsms WHERE cluster_id = ? AND username = ? AND pending = 'REMOVE'");
    Ok(leaving.bind(cluster).bind(user).fetch_optional(&mut **change).await?.is_some())
}

/// How many keys of his own the crypto user has in the records, in any state; or how many that he destroyed are still to go
/// from an HSM, if those are more: what the records keep of him is bounded.
pub(super) async fn count_of_user(
    change: &mut Transaction<'_, Sqlite>,
    (cluster, user): (&str, &str),
) -> Result<i64, Unavailable> {
    let keys = "SELECT max(
           (SELECT count(*) FROM keys WHERE cluster_id = ?1 AND username = ?2 AND store_id IS NULL),
           (SELECT count(DISTINCT cka_id) FROM destroyed_keys WHERE cluster_id = ?1 AND username = ?2))";
    Ok(sqlx::query_scalar(keys).bind(cluster).bind(user).fetch_one(&mut **change).await?)
}

async fn insert(change: &mut Transaction<'_, Sqlite>, new: &NewKey) -> Result<(), Unavailable> {
    let (id, created) = (new.id.as_bytes().as_slice(), millis(new.created));
    let (username, store, label) = match &new.home {
        NewKeyHome::KeyStore { store, .. } => (&Username::kmsuser(), Some(store.as_str()), None),
        NewKeyHome::User { username, label } => (username, None, Some(label.as_str())),
    };
    sqlx::query(
        "INSERT INTO keys
           (id, cluster_id, username, store_id, hsm_label, spec, state, description, created, current_version)
         VALUES (?, ?, ?, ?, ?, ?, 'CREATING', ?, ?, ?)",
    )
    .bind(id)
    .bind(new.cluster.as_str())
    .bind(username.as_str())
    .bind(store)
    .bind(label)
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
        put_presence(&mut **change, new.id, KeyVersion::FIRST, (&new.cluster, hsm), Proof::Unknown, new.created)
            .await?;
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
