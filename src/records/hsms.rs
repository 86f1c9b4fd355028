//! What is remembered of an HSM itself: that an operator took it out of use, and which token it is.

use std::time::SystemTime;

use sqlx::Row;

use crate::model::{ClusterId, HsmId, Username};

use super::row::{millis, parsed, time};
use super::{Records, Unavailable};

/// An HSM that an operator took out of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainRecord {
    pub cluster: ClusterId,
    pub hsm: HsmId,
    /// Why, in the operator's words.
    pub note: String,
    pub since: SystemTime,
}

impl Records {
    /// Takes the HSM out of use until [`Records::resume_hsm`]. On one that is out already only the note is new.
    pub async fn drain_hsm(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        note: &str,
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        sqlx::query(
            "INSERT INTO drained_hsms (cluster_id, hsm_id, note, since) VALUES (?, ?, ?, ?)
             ON CONFLICT (cluster_id, hsm_id) DO UPDATE SET note = excluded.note",
        )
        .bind(cluster.as_str())
        .bind(hsm.as_str())
        .bind(note)
        .bind(millis(at))
        .execute(&self.0.write)
        .await?;
        Ok(())
    }

    pub async fn resume_hsm(&self, cluster: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM drained_hsms WHERE cluster_id = ? AND hsm_id = ?")
            .bind(cluster.as_str())
            .bind(hsm.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// Every HSM that is out of use.
    pub async fn drained_hsms(&self) -> Result<Vec<DrainRecord>, Unavailable> {
        let rows =
            sqlx::query("SELECT * FROM drained_hsms ORDER BY cluster_id, hsm_id").fetch_all(&self.0.read).await?;
        rows.iter()
            .map(|row| {
                Ok(DrainRecord {
                    cluster: parsed(row, "cluster_id")?,
                    hsm: parsed(row, "hsm_id")?,
                    note: row.try_get("note")?,
                    since: time(row, "since")?,
                })
            })
            .collect()
    }

    /// The serial number of the token that the user was first logged in to here.
    pub async fn token_serial(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
    ) -> Result<Option<String>, Unavailable> {
        let serial =
            sqlx::query_scalar("SELECT serial FROM tokens WHERE cluster_id = ? AND username = ? AND hsm_id = ?")
                .bind(cluster.as_str())
                .bind(user.as_str())
                .bind(hsm.as_str())
                .fetch_optional(&self.0.read)
                .await?;
        Ok(serial)
    }

    /// This is the token from now on.
    pub async fn set_token_serial(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        serial: &str,
    ) -> Result<(), Unavailable> {
        sqlx::query(
            "INSERT INTO tokens (cluster_id, username, hsm_id, serial) VALUES (?, ?, ?, ?)
             ON CONFLICT (cluster_id, username, hsm_id) DO UPDATE SET serial = excluded.serial",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(serial)
        .execute(&self.0.write)
        .await?;
        Ok(())
    }

    /// An operator says that whatever token is found here next is the right one.
    pub async fn forget_token_serial(&self, cluster: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM tokens WHERE cluster_id = ? AND hsm_id = ?")
            .bind(cluster.as_str())
            .bind(hsm.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }
}
