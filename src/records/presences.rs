//! Where key versions are, as far as anybody proved it.

use std::time::SystemTime;

use sqlx::SqliteExecutor;

use crate::model::{ClusterId, CryptoUser, HsmId, KeyId, KeyVersion};

use super::row::{millis, named, time};
use super::{Records, Unavailable};

/// A node of the key's cluster that holds a key version, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceRecord {
    pub hsm: HsmId,
    pub proof: Proof,
    pub time: SystemTime,
}

/// What was learnt of a key version on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProof {
    pub key: KeyId,
    pub version: KeyVersion,
    pub hsm: HsmId,
    pub proof: Proof,
}

/// What is known of a key version's presence on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It answered its probe there.
    Used,
    /// The node did not find it.
    Missing,
    /// Another key stands there under its name, or more than one.
    Different,
    /// It may be there.
    Unknown,
}

impl Proof {
    pub(super) const ALL: [Self; 4] = [Self::Used, Self::Missing, Self::Different, Self::Unknown];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Used => "USED",
            Self::Missing => "MISSING",
            Self::Different => "DIFFERENT",
            Self::Unknown => "UNKNOWN",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|proof| proof.as_str() == text)
    }
}

pub(super) const DOUBT: &str = "UPDATE presences SET proof = 'UNKNOWN', time = ?1
     WHERE cluster_id = ?3 AND hsm_id = ?2 AND proof = 'USED'
       AND key_id IN (SELECT id FROM keys WHERE cluster_id = ?3 AND username = ?4)";

// With a row for every node, what a node lacks is found without looking at what it has.
const EXPECT: &str = "INSERT INTO presences (key_id, version, cluster_id, username, hsm_id, proof, time)
     SELECT v.key_id, v.version, ?3, ?4, ?1, 'UNKNOWN', ?2 FROM keys k JOIN key_versions v ON v.key_id = k.id
     WHERE k.cluster_id = ?3 AND k.username = ?4 AND k.state <> 'CREATING'
       AND NOT EXISTS (SELECT 1 FROM presences p
         WHERE p.key_id = v.key_id AND p.version = v.version AND p.cluster_id = ?3 AND p.hsm_id = ?1)";

impl Records {
    /// Nothing, when the key was dropped in the meantime.
    pub async fn set_presence(
        &self,
        key: KeyId,
        version: KeyVersion,
        (cluster, hsm): (&ClusterId, &HsmId),
        proof: Proof,
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        put_presence(&self.0.write, key, version, (cluster, hsm), proof, at).await
    }

    /// The user's token on the node is not the one that was proved before: nothing is known of any key there. No row is
    /// removed.
    pub async fn doubt_presence(&self, user: &CryptoUser, hsm: &HsmId, at: SystemTime) -> Result<(), Unavailable> {
        let doubt = sqlx::query(DOUBT).bind(millis(at)).bind(hsm.as_str());
        doubt.bind(user.cluster.as_str()).bind(user.username.as_str()).execute(&self.0.write).await?;
        Ok(())
    }

    /// Several at once: one write costs less than one each.
    pub async fn set_presences(
        &self,
        cluster: &ClusterId,
        proofs: &[NewProof],
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        if proofs.is_empty() {
            return Ok(());
        }
        let mut change = self.begin().await?;
        for NewProof { key, version, hsm, proof } in proofs {
            put_presence(&mut *change, *key, *version, (cluster, hsm), *proof, at).await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// The user's token on the node is to hold every acknowledged version of his: those of which nothing is known there may
    /// be missing.
    pub async fn expect_keys(&self, user: &CryptoUser, hsm: &HsmId, at: SystemTime) -> Result<(), Unavailable> {
        let expect = sqlx::query(EXPECT).bind(hsm.as_str()).bind(millis(at));
        expect.bind(user.cluster.as_str()).bind(user.username.as_str()).execute(&self.0.write).await?;
        Ok(())
    }

    /// Whether the version may be on some node of the cluster, also on one that takes no part any more.
    pub async fn may_be_somewhere(
        &self,
        key: KeyId,
        version: KeyVersion,
        cluster: &ClusterId,
    ) -> Result<bool, Unavailable> {
        let found = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM presences
               WHERE key_id = ? AND version = ? AND cluster_id = ? AND proof IN ('USED', 'UNKNOWN'))",
        );
        let found = found.bind(key.as_bytes().as_slice()).bind(version.0).bind(cluster.as_str());
        Ok(found.fetch_one(&self.0.read).await?)
    }

    /// What is known of one version on one node.
    pub async fn presence(
        &self,
        key: KeyId,
        version: KeyVersion,
        (cluster, hsm): (&ClusterId, &HsmId),
    ) -> Result<Option<PresenceRecord>, Unavailable> {
        let found = sqlx::query(
            "SELECT proof, time FROM presences WHERE key_id = ? AND version = ? AND cluster_id = ? AND hsm_id = ?",
        )
        .bind(key.as_bytes().as_slice())
        .bind(version.0)
        .bind(cluster.as_str())
        .bind(hsm.as_str())
        .fetch_optional(&self.0.read)
        .await?;
        let presence = |row: &_| {
            let proof = named(row, "proof", Proof::parse)?;
            Ok(PresenceRecord { hsm: hsm.clone(), proof, time: time(row, "time")? })
        };
        found.as_ref().map(presence).transpose()
    }
}

pub(super) async fn put_presence(
    database: impl SqliteExecutor<'_>,
    key: KeyId,
    version: KeyVersion,
    (cluster, hsm): (&ClusterId, &HsmId),
    proof: Proof,
    at: SystemTime,
) -> Result<(), Unavailable> {
    // That it is not proven there was first seen when it was, however often it is seen again. Of an HSM that was removed
    // nothing is known: one may be added under its name.
    sqlx::query(
        "INSERT INTO presences (key_id, version, cluster_id, username, hsm_id, proof, time)
         SELECT v.key_id, v.version, ?1, k.username, ?2, ?3, ?4 FROM key_versions v JOIN keys k ON k.id = v.key_id
         WHERE v.key_id = ?5 AND v.version = ?6
           AND (NOT EXISTS (SELECT 1 FROM made_clusters WHERE cluster_id = ?1)
             OR EXISTS (SELECT 1 FROM made_hsms WHERE cluster_id = ?1 AND hsm_id = ?2))
         ON CONFLICT (key_id, version, cluster_id, hsm_id) DO UPDATE SET proof = excluded.proof,
           time = iif(proof <> 'USED' AND excluded.proof <> 'USED', time, excluded.time)",
    )
    .bind(cluster.as_str())
    .bind(hsm.as_str())
    .bind(proof.as_str())
    .bind(millis(at))
    .bind(key.as_bytes().as_slice())
    .bind(version.0)
    .execute(database)
    .await?;
    Ok(())
}
