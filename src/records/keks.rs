//! A cluster's key-encryption key and its canary: what they are called in the HSMs, never what they are.

use sqlx::Row;

use crate::model::{ClusterId, CryptoUser, HsmId, Probe, Username};

use super::row::parsed;
use super::{Records, Unavailable};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRecord {
    pub cluster: ClusterId,
    pub username: Username,
    /// `CKA_ID` in every token.
    pub kek_id: [u8; 16],
    pub canary_id: [u8; 16],
    /// The node on which it was first to be made.
    pub made_on: HsmId,
    /// Set once both exist; until then they protect nothing.
    pub canary_probe: Option<Probe>,
}

impl Records {
    pub async fn kek(&self, cluster: &ClusterId, user: &Username) -> Result<Option<KekRecord>, Unavailable> {
        let found = sqlx::query("SELECT * FROM keks WHERE cluster_id = ? AND username = ?")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .fetch_optional(&self.0.read)
            .await?;
        let Some(row) = found else { return Ok(None) };
        let id = |column: &'static str| {
            let bytes: Vec<u8> = row.try_get(column)?;
            bytes.try_into().map_err(|_| Unavailable::row(column))
        };
        Ok(Some(KekRecord {
            cluster: parsed(&row, "cluster_id")?,
            username: parsed(&row, "username")?,
            kek_id: id("kek_id")?,
            canary_id: id("canary_id")?,
            made_on: parsed(&row, "made_on")?,
            canary_probe: row.try_get::<Option<Vec<u8>>, _>("canary_probe")?.map(Probe),
        }))
    }

    /// The `CKA_ID` of the key-encryption key and the canary in a user's tokens.
    pub async fn kek_ids(&self, user: &CryptoUser) -> Result<Vec<Vec<u8>>, Unavailable> {
        let ids = "SELECT kek_id FROM keks WHERE cluster_id = ?1 AND username = ?2
             UNION ALL SELECT canary_id FROM keks WHERE cluster_id = ?1 AND username = ?2";
        let ids = sqlx::query_scalar(ids).bind(user.cluster.as_str()).bind(user.username.as_str());
        Ok(ids.fetch_all(&self.0.read).await?)
    }

    /// Writes the names down before anything is made; gives those that stand, whoever wrote them.
    pub async fn begin_kek(&self, record: &KekRecord) -> Result<KekRecord, Unavailable> {
        sqlx::query(
            "INSERT INTO keks (cluster_id, username, kek_id, canary_id, made_on) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (cluster_id, username) DO NOTHING",
        )
        .bind(record.cluster.as_str())
        .bind(record.username.as_str())
        .bind(record.kek_id.as_slice())
        .bind(record.canary_id.as_slice())
        .bind(record.made_on.as_str())
        .execute(&self.0.write)
        .await?;
        self.kek(&record.cluster, &record.username).await?.ok_or(Unavailable::row("keks"))
    }

    /// Another node founds instead, under names of its own: what the first one may have made under the old ones
    /// must not be taken for the cluster's. Gives the names that stand.
    pub async fn take_over_kek(&self, unfinished: &KekRecord, anew: &KekRecord) -> Result<KekRecord, Unavailable> {
        sqlx::query(
            "UPDATE keks SET kek_id = ?, canary_id = ?, made_on = ?
             WHERE cluster_id = ? AND username = ? AND kek_id = ? AND canary_probe IS NULL",
        )
        .bind(anew.kek_id.as_slice())
        .bind(anew.canary_id.as_slice())
        .bind(anew.made_on.as_str())
        .bind(unfinished.cluster.as_str())
        .bind(unfinished.username.as_str())
        .bind(unfinished.kek_id.as_slice())
        .execute(&self.0.write)
        .await?;
        self.kek(&anew.cluster, &anew.username).await?.ok_or(Unavailable::row("keks"))
    }

    /// Both exist. A probe that stands is never replaced.
    pub async fn finish_kek(&self, cluster: &ClusterId, user: &Username, probe: &Probe) -> Result<(), Unavailable> {
        sqlx::query("UPDATE keks SET canary_probe = ? WHERE cluster_id = ? AND username = ? AND canary_probe IS NULL")
            .bind(probe.0.as_slice())
            .bind(cluster.as_str())
            .bind(user.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }
}
