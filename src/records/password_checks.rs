//! Passwords that were checked on an HSM: a budget of their own, beside that of the key stores' passwords in `logins`.
//!
//! Each HSM is asked at most once, written down before the call, until it accepts one or an operator lets it be asked
//! again. Which password it was is not remembered: any that is wrong counts towards the user's lock-out.

use std::collections::BTreeSet;

use sqlx::{Sqlite, Transaction};

use crate::model::{ClusterId, HsmId};

use super::row::parsed;
use super::{Records, Unavailable};

impl Records {
    /// Writes down that the HSM is about to be asked. False when it was before, and may not be again.
    pub async fn begin_password_check(&self, cluster: &ClusterId, hsm: &HsmId) -> Result<bool, Unavailable> {
        let begun =
            sqlx::query("INSERT INTO password_checks (cluster_id, hsm_id) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(cluster.as_str())
                .bind(hsm.as_str())
                .execute(&self.0.write)
                .await?;
        Ok(begun.rows_affected() == 1)
    }

    /// The HSM may be asked again: it accepted the password, or was certainly not asked, or an operator says so.
    pub async fn allow_password_check(&self, cluster: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        allow(&mut change, cluster, hsm).await?;
        change.commit().await?;
        Ok(())
    }

    /// The HSMs of a cluster that are not to be asked.
    pub async fn spent_password_checks(&self, cluster: &ClusterId) -> Result<BTreeSet<HsmId>, Unavailable> {
        let rows = sqlx::query("SELECT hsm_id FROM password_checks WHERE cluster_id = ?")
            .bind(cluster.as_str())
            .fetch_all(&self.0.read)
            .await?;
        rows.iter().map(|row| parsed(row, "hsm_id")).collect()
    }
}

pub(super) async fn allow(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    hsm: &HsmId,
) -> Result<(), Unavailable> {
    sqlx::query("DELETE FROM password_checks WHERE cluster_id = ? AND hsm_id = ?")
        .bind(cluster.as_str())
        .bind(hsm.as_str())
        .execute(&mut **change)
        .await?;
    Ok(())
}
