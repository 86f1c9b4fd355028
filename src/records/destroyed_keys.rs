//! Keys that were destroyed for good, and the HSMs that may still hold them.
//!
//! The key's own rows go at once. What stays is what is still to be done: a row for each HSM on which nobody has yet seen
//! to it that nothing of the key is left.

use std::time::SystemTime;

use sqlx::{Sqlite, Transaction};

use crate::model::{CkaId, CryptoUser, HsmId, KeyId, KeyVersion};

use super::row::{millis, number};
use super::{Records, Unavailable};

/// The key's rows go, and with them all that belongs to it. It is to go from every HSM of any cluster that was ever known to
/// hold it, or may, and from these of the cluster that it stands in now.
pub(super) async fn entomb(
    change: &mut Transaction<'_, Sqlite>,
    key: KeyId,
    hsms: &[HsmId],
    at: SystemTime,
) -> Result<(), Unavailable> {
    const WHERE_IT_WAS: &str = "INSERT INTO destroyed_keys (cluster_id, username, hsm_id, cka_id, time)
         SELECT cluster_id, username, hsm_id, ?, ? FROM presences WHERE key_id = ? AND version = ? ON CONFLICT DO NOTHING";
    const AND_THERE: &str = "INSERT INTO destroyed_keys (cluster_id, username, hsm_id, cka_id, time)
         SELECT cluster_id, username, ?, ?, ? FROM keys WHERE id = ? ON CONFLICT DO NOTHING";
    super::rotations::entomb_version(change, key, at).await?;
    let id = key.as_bytes().as_slice();
    let versions = sqlx::query("SELECT version FROM key_versions WHERE key_id = ?").bind(id);
    for row in &versions.fetch_all(&mut **change).await? {
        let version = KeyVersion(number(row, "version")?);
        let cka_id = CkaId::of(key, version);
        let was = sqlx::query(WHERE_IT_WAS).bind(cka_id.as_bytes()).bind(millis(at)).bind(id).bind(version.0);
        was.execute(&mut **change).await?;
        for hsm in hsms {
            let there = sqlx::query(AND_THERE).bind(hsm.as_str()).bind(cka_id.as_bytes()).bind(millis(at)).bind(id);
            there.execute(&mut **change).await?;
        }
    }
    sqlx::query("DELETE FROM keys WHERE id = ?").bind(id).execute(&mut **change).await?;
    Ok(())
}

impl Records {
    /// Destroys in the records a key that keyway made for a crypto user: it is to go from every HSM that was ever known to hold it, or may,
    /// and from these. `false`: there is no such key, or it was never acknowledged.
    pub async fn destroy_user_key(
        &self,
        user: &CryptoUser,
        key: KeyId,
        hsms: &[HsmId],
        at: SystemTime,
    ) -> Result<bool, Unavailable> {
        const THERE: &str = "SELECT 1 FROM keys
             WHERE id = ? AND cluster_id = ? AND username = ? AND hsm_label IS NOT NULL AND state <> 'CREATING'";
        let mut change = self.begin().await?;
        let there = sqlx::query(THERE).bind(key.as_bytes().as_slice());
        let there = there.bind(user.cluster.as_str()).bind(user.username.as_str());
        if there.fetch_optional(&mut *change).await?.is_none() {
            return Ok(false);
        }
        entomb(&mut change, key, hsms, at).await?;
        change.commit().await?;
        Ok(true)
    }

    /// What is still to go from a user's token on a node.
    pub async fn destroyed_keys(&self, user: &CryptoUser, hsm: &HsmId) -> Result<Vec<CkaId>, Unavailable> {
        let found: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT cka_id FROM destroyed_keys WHERE cluster_id = ? AND username = ? AND hsm_id = ?",
        )
        .bind(user.cluster.as_str())
        .bind(user.username.as_str())
        .bind(hsm.as_str())
        .fetch_all(&self.0.read)
        .await?;
        found.into_iter().map(|bytes| CkaId::from_bytes(&bytes).ok_or(Unavailable::row("cka_id"))).collect()
    }

    /// Nothing of it is left there, and nothing can come there any more.
    pub async fn destroyed_on(&self, user: &CryptoUser, hsm: &HsmId, key: &CkaId) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM destroyed_keys WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND cka_id = ?")
            .bind(user.cluster.as_str())
            .bind(user.username.as_str())
            .bind(hsm.as_str())
            .bind(key.as_bytes())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// Nothing is still to go from HSMs other than these, which are all that the cluster has.
    pub async fn forget_destroyed_elsewhere(&self, user: &CryptoUser, hsms: &[&HsmId]) -> Result<(), Unavailable> {
        let known = "SELECT DISTINCT hsm_id FROM destroyed_keys WHERE cluster_id = ? AND username = ?";
        let known = sqlx::query_scalar(known).bind(user.cluster.as_str()).bind(user.username.as_str());
        let known: Vec<String> = known.fetch_all(&self.0.read).await?;
        for hsm in known.iter().filter(|known| !hsms.iter().any(|hsm| hsm.as_str() == **known)) {
            sqlx::query("DELETE FROM destroyed_keys WHERE cluster_id = ? AND username = ? AND hsm_id = ?")
                .bind(user.cluster.as_str())
                .bind(user.username.as_str())
                .bind(hsm)
                .execute(&self.0.write)
                .await?;
        }
        Ok(())
    }
}
