//! Acknowledged key versions as what their user's token on every HSM of the cluster is to hold, a page at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::model::{CkaId, CryptoUser, HsmId, HsmLabel, KeyId, KeyKind, KeyVersion, Probe};

use super::row::{json, key_id, key_kind, millis, number};
use super::{Records, Unavailable};

/// A key version with what it takes to prove or copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvableKey {
    pub key: KeyId,
    pub version: KeyVersion,
    pub kind: KeyKind,
    /// A crypto user's own key has the label that he gave it.
    pub label: Option<HsmLabel>,
    /// The `CKA_ID` under which it was found, and is only looked for.
    pub found: Option<Arc<[u8]>>,
    pub probe: Probe,
}

// The planner is told where to begin: with what the node lacks, not with all keys.
pub(super) const LACKING: &str =
    "SELECT v.key_id, v.version, v.probe, k.spec, k.usage, k.hsm_label, k.found_id FROM presences p
     CROSS JOIN keys k ON k.id = p.key_id
     CROSS JOIN key_versions v ON v.key_id = p.key_id AND v.version = p.version
     WHERE p.cluster_id = ? AND p.username = ? AND p.hsm_id = ? AND p.proof <> 'USED'
       AND (p.key_id, p.version) > (?, ?)
       AND k.cluster_id = p.cluster_id AND k.state <> 'CREATING' AND v.probe IS NOT NULL
     ORDER BY p.key_id, p.version LIMIT ?";

// The first comparison of ids is what the index serves: without it each page is read from the cluster's first key.
pub(super) const ACKNOWLEDGED: &str = "SELECT v.key_id, v.version, v.probe, k.spec, k.usage, k.hsm_label, k.found_id
     FROM keys k JOIN key_versions v ON v.key_id = k.id
     WHERE k.cluster_id = ? AND k.username = ? AND k.state <> 'CREATING' AND k.id >= ? AND (k.id > ? OR v.version > ?)
       AND v.probe IS NOT NULL
     ORDER BY k.id, v.version LIMIT ?";

pub(super) const PROVEN: &str = "SELECT p.key_id, p.version FROM keys k JOIN presences p ON p.key_id = k.id
     WHERE k.cluster_id = ? AND k.username = ? AND k.state <> 'CREATING' AND k.id >= ? AND (k.id > ? OR p.version > ?)
       AND p.cluster_id = k.cluster_id AND p.hsm_id = ? AND p.proof = 'USED' AND p.time < ? AND k.found_id IS NULL
     ORDER BY k.id, p.version LIMIT ?";

pub(super) const ONLY_ON: &str = "SELECT count(*) FROM keys k JOIN presences p ON p.key_id = k.id
     WHERE k.cluster_id = ? AND k.username = ? AND k.state <> 'CREATING' AND k.found_id IS NULL
       AND p.cluster_id = k.cluster_id AND p.hsm_id = ? AND p.proof = 'USED'
       AND NOT EXISTS (SELECT 1 FROM presences o
         WHERE o.key_id = p.key_id AND o.version = p.version AND o.cluster_id = p.cluster_id AND o.proof = 'USED'
           AND o.hsm_id IN (SELECT value FROM json_each(?) page))";

pub(super) const KNOWN: &str = "SELECT v.key_id, v.version FROM json_each(?) page
     CROSS JOIN keys k ON k.id = unhex(page.value) CROSS JOIN key_versions v ON v.key_id = k.id
     WHERE k.cluster_id = ? AND k.username = ?";

impl Records {
    /// Acknowledged versions after `after` that are not proven on this node.
    pub async fn keys_lacking(
        &self,
        user: &CryptoUser,
        hsm: &HsmId,
        after: Option<(KeyId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<ProvableKey>, Unavailable> {
        let (key, version) = cursor(after);
        let page = sqlx::query(LACKING).bind(user.cluster.as_str()).bind(user.username.as_str()).bind(hsm.as_str());
        let page = page.bind(key).bind(version).bind(limit);
        page.fetch_all(&self.0.read).await?.iter().map(provable).collect()
    }

    /// Acknowledged versions after `after`.
    pub async fn provable_keys(
        &self,
        user: &CryptoUser,
        after: Option<(KeyId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<ProvableKey>, Unavailable> {
        let (key, version) = cursor(after);
        let page = sqlx::query(ACKNOWLEDGED).bind(user.cluster.as_str()).bind(user.username.as_str());
        let page = page.bind(key.clone()).bind(key).bind(version).bind(limit);
        page.fetch_all(&self.0.read).await?.iter().map(provable).collect()
    }

    /// How many versions [`Records::provable_keys`] gives, all pages together.
    pub async fn count_provable_keys(&self, user: &CryptoUser) -> Result<u32, Unavailable> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM keys k JOIN key_versions v ON v.key_id = k.id
             WHERE k.cluster_id = ? AND k.username = ? AND k.state <> 'CREATING' AND v.probe IS NOT NULL",
        )
        .bind(user.cluster.as_str())
        .bind(user.username.as_str())
        .fetch_one(&self.0.read)
        .await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// How many acknowledged versions of a user's were proven on this node and on none of `others`. What was found somewhere
    /// stays there.
    pub async fn count_keys_only_on(
        &self,
        user: &CryptoUser,
        hsm: &HsmId,
        others: &[HsmId],
    ) -> Result<u32, Unavailable> {
        let count: i64 = sqlx::query_scalar(ONLY_ON)
            .bind(user.cluster.as_str())
            .bind(user.username.as_str())
            .bind(hsm.as_str())
            .bind(json(others))
            .fetch_one(&self.0.read)
            .await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Acknowledged versions of keyway's own making after `after` that were proven on this node, and last so before `before`.
    pub async fn keys_proven(
        &self,
        user: &CryptoUser,
        hsm: &HsmId,
        before: SystemTime,
        after: Option<(KeyId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<(KeyId, KeyVersion)>, Unavailable> {
        let (key, version) = cursor(after);
        let page = sqlx::query(PROVEN).bind(user.cluster.as_str()).bind(user.username.as_str());
        let page = page.bind(key.clone()).bind(key).bind(version);
        let page = page.bind(hsm.as_str()).bind(millis(before)).bind(limit);
        page.fetch_all(&self.0.read).await?.iter().map(name).collect()
    }

    /// Which of these in a user's tokens the records explain, CREATING ones among them.
    pub async fn known_keys(&self, user: &CryptoUser, ids: &[CkaId]) -> Result<HashSet<CkaId>, Unavailable> {
        let hex: Vec<String> =
            ids.iter().filter_map(|id| CkaId::parse(id.as_bytes())).map(|(key, _)| hex(key)).collect();
        let rows = sqlx::query(KNOWN)
            .bind(format!("[{}]", hex.join(",")))
            .bind(user.cluster.as_str())
            .bind(user.username.as_str())
            .fetch_all(&self.0.read)
            .await?;
        rows.iter().map(|row| name(row).map(|(key, version)| CkaId::of(key, version))).collect()
    }
}

/// Without one, below every id.
fn cursor(after: Option<(KeyId, KeyVersion)>) -> (Vec<u8>, u32) {
    after.map_or((Vec::new(), 0), |(key, version)| (key.as_bytes().to_vec(), version.0))
}

/// A JSON string that `unhex` reads.
fn hex(key: KeyId) -> String {
    format!("\"{}\"", key.to_string().replace('-', ""))
}

fn name(row: &SqliteRow) -> Result<(KeyId, KeyVersion), Unavailable> {
    Ok((key_id(row, "key_id")?, KeyVersion(number(row, "version")?)))
}

fn provable(row: &SqliteRow) -> Result<ProvableKey, Unavailable> {
    let (key, version) = name(row)?;
    let label: Option<String> = row.try_get("hsm_label")?;
    let label = label.map(|label| label.parse().map_err(|_| Unavailable::row("hsm_label"))).transpose()?;
    let kind = key_kind(row)?;
    let found = row.try_get::<Option<Vec<u8>>, _>("found_id")?.map(Arc::from);
    Ok(ProvableKey { key, version, kind, label, found, probe: Probe(row.try_get("probe")?) })
}
