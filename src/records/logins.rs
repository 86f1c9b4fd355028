//! The login budget: what each node has said of each password, written down before it is asked.
//!
//! At most one failed attempt for each node and password: an attempt is opened before the call and
//! closed by its answer. One that was never answered counts as failed, unless the password was good there before.

use sqlx::Row;

use crate::model::{ClusterId, HsmId, PasswordVersion, Username};

use super::{Records, Unavailable};

/// Whether a login may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginLeave {
    /// The attempt is written down: make it.
    Granted,
    /// The node refused this password before.
    Refused,
    /// An earlier attempt was never answered.
    Unsettled,
}

impl Records {
    pub async fn begin_login(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<LoginLeave, Unavailable> {
        let mut change = self.begin().await?;
        let standing = sqlx::query(
            "SELECT proven, attempt_open, refused FROM logins
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .fetch_optional(&mut *change)
        .await?;
        if let Some(row) = standing {
            if row.try_get::<bool, _>("refused")? {
                return Ok(LoginLeave::Refused);
            }
            if row.try_get::<bool, _>("attempt_open")? && !row.try_get::<bool, _>("proven")? {
                return Ok(LoginLeave::Unsettled);
            }
        }
        sqlx::query(
            "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
             VALUES (?, ?, ?, ?, FALSE, TRUE, FALSE)
             ON CONFLICT (cluster_id, username, hsm_id, version) DO UPDATE SET attempt_open = TRUE",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(LoginLeave::Granted)
    }

    /// The node accepted the password.
    pub async fn login_succeeded(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        sqlx::query(
            "UPDATE logins SET proven = TRUE, attempt_open = FALSE
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .execute(&self.0.write)
        .await?;
        Ok(())
    }

    /// The node refused the password: it is not tried there again.
    pub async fn login_refused(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        sqlx::query(
            "UPDATE logins SET refused = TRUE, attempt_open = FALSE
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .execute(&self.0.write)
        .await?;
        Ok(())
    }

    /// An operator's act: attempts that were never answered may be made once more. A refusal stays.
    pub async fn forgive_unsettled(
        &self,
        cluster: &ClusterId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        sqlx::query("UPDATE logins SET attempt_open = FALSE WHERE cluster_id = ? AND username = ? AND version = ?")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(version.0)
            .execute(&self.0.write)
            .await?;
        Ok(())
    }
}
