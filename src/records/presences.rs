//! Where key versions are, as far as anybody proved it.

use std::time::SystemTime;

use sqlx::SqliteExecutor;

use crate::model::{ClusterId, HsmId, KeyId, KeyVersion};

use super::row::{key_id, millis, number};
use super::{Records, Unavailable};

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

impl Proof {
    pub(super) const ALL: [Self; 3] = [Self::Used, Self::Missing, Self::Unknown];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "USED",
            Self::Missing => "MISSING",
            Self::Unknown => "UNKNOWN",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|proof| proof.as_str() == text)
    }
}

// The first comparison is what the index serves: without it each page is read from the cluster's first key.
pub(super) const LACKING: &str = "SELECT k.id, v.version FROM keys k JOIN key_versions v ON v.key_id = k.id
     WHERE k.cluster_id = ? AND k.state <> 'CREATING' AND k.id >= ? AND (k.id > ? OR v.version > ?)
       AND NOT EXISTS (SELECT 1 FROM presences p
                       WHERE p.key_id = k.id AND p.version = v.version AND p.hsm_id = ? AND p.proof = 'USED')
     ORDER BY k.id, v.version LIMIT ?";

pub(super) const DOUBT: &str = "UPDATE presences SET proof = 'UNKNOWN', time = ?
     WHERE hsm_id = ? AND proof = 'USED' AND key_id IN (SELECT id FROM keys WHERE cluster_id = ?)";

impl Records {
    /// Nothing, when the key was dropped in the meantime.
    pub async fn set_presence(
        &self,
        key: KeyId,
        version: KeyVersion,
        hsm: &HsmId,
        proof: Proof,
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        put_presence(&self.0.write, key, version, hsm, proof, at).await
    }

    /// The node's token is not the one that was proved before: nothing is known of any key there. No row is removed.
    pub async fn doubt_presence(&self, cluster: &ClusterId, hsm: &HsmId, at: SystemTime) -> Result<(), Unavailable> {
        sqlx::query(DOUBT).bind(millis(at)).bind(hsm.as_str()).bind(cluster.as_str()).execute(&self.0.write).await?;
        Ok(())
    }

    /// Acknowledged versions after `after` that are not proven on this node.
    pub async fn keys_lacking(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        after: Option<(KeyId, KeyVersion)>,
        limit: u32,
    ) -> Result<Vec<(KeyId, KeyVersion)>, Unavailable> {
        let (after_key, after_version) = match after {
            Some((key, version)) => (key.as_bytes().to_vec(), version.0),
            // Below every id.
            None => (Vec::new(), 0),
        };
        let rows = sqlx::query(LACKING)
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

pub(super) async fn put_presence(
    database: impl SqliteExecutor<'_>,
    key: KeyId,
    version: KeyVersion,
    hsm: &HsmId,
    proof: Proof,
    at: SystemTime,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO presences (key_id, version, hsm_id, proof, time)
         SELECT key_id, version, ?, ?, ? FROM key_versions WHERE key_id = ? AND version = ?
         ON CONFLICT (key_id, version, hsm_id) DO UPDATE SET proof = excluded.proof, time = excluded.time",
    )
    .bind(hsm.as_str())
    .bind(proof.as_str())
    .bind(millis(at))
    .bind(key.as_bytes().as_slice())
    .bind(version.0)
    .execute(database)
    .await?;
    Ok(())
}
