//! Changing a key store: all of a request in one transaction, or none of it.
//!
//! A store that moves to a related cluster takes with it what its tokens share: its acknowledged keys, and the names of
//! the key-encryption key and the canary. What is known of a cluster's own tokens stays with that cluster, whether they
//! hold a key, which token they are, or what they think of a password, and is found again when the store goes back. A
//! key that is still CREATING stays as well: only there is anything of it to be destroyed.

use sqlx::{Sqlite, Transaction};

use crate::model::{ClusterId, KeyStoreName, Password, PasswordVersion, Username};

use super::row::number;
use super::{KeyStoreRecord, Records, Unavailable};

/// What is to become different.
#[derive(Debug, Default)]
pub struct KeyStoreUpdate {
    pub name: Option<KeyStoreName>,
    /// The present password, which no HSM has judged yet.
    pub password: Option<Password>,
    pub cluster: Option<ClusterId>,
}

impl KeyStoreUpdate {
    pub fn is_empty(&self) -> bool {
        let Self { name, password, cluster } = self;
        name.is_none() && password.is_none() && cluster.is_none()
    }
}

#[derive(Debug)]
pub enum UpdatedKeyStore {
    Updated(Box<KeyStoreRecord>),
    NameInUse,
    ClusterInUse,
    /// It is not as it was `before`.
    Changed,
}

impl Records {
    /// Changes a store that is still as it was `before`: in name, cluster, password and state.
    pub async fn update_key_store(
        &self,
        before: &KeyStoreRecord,
        update: &KeyStoreUpdate,
    ) -> Result<UpdatedKeyStore, Unavailable> {
        let mut change = self.begin().await?;
        if !is_unchanged(&mut change, before).await? {
            return Ok(UpdatedKeyStore::Changed);
        }
        let mut after = before.clone();
        if let Some(name) = &update.name {
            let taken = sqlx::query("SELECT 1 FROM key_stores WHERE name = ? AND id <> ?");
            let taken = taken.bind(name.as_str()).bind(before.id.as_str());
            if taken.fetch_optional(&mut *change).await?.is_some() {
                return Ok(UpdatedKeyStore::NameInUse);
            }
            after.name = name.clone();
        }
        if let Some(cluster) = &update.cluster {
            let taken = sqlx::query("SELECT 1 FROM key_stores WHERE cluster_id = ? AND id <> ?");
            let taken = taken.bind(cluster.as_str()).bind(before.id.as_str());
            if taken.fetch_optional(&mut *change).await?.is_some() {
                return Ok(UpdatedKeyStore::ClusterInUse);
            }
            after.cluster = cluster.clone();
            take_along(&mut change, before, cluster).await?;
        }
        let user = Username::kmsuser();
        if let Some(password) = &update.password {
            // The others stay until an HSM has accepted this one: it may be mistyped, and one of them all there is.
            after.password_version = self.add_password(&mut change, &after.cluster, &user, password).await?;
        } else if after.cluster != before.cluster {
            after.password_version = self.password_there(&mut change, before, &after.cluster).await?;
        }
        sqlx::query("UPDATE key_stores SET name = ?, cluster_id = ?, password_version = ? WHERE id = ?")
            .bind(after.name.as_str())
            .bind(after.cluster.as_str())
            .bind(after.password_version.0)
            .bind(after.id.as_str())
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(UpdatedKeyStore::Updated(Box::new(after)))
    }

    /// The password that the store had when it last stood on this cluster; else, and when what its nodes have was refused
    /// there and accepted by none, the one it has now, since a backup holds the users of its original.
    async fn password_there(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        before: &KeyStoreRecord,
        cluster: &ClusterId,
    ) -> Result<PasswordVersion, Unavailable> {
        let user = Username::kmsuser();
        let known = sqlx::query(
            "WITH former AS (
               SELECT p.cluster_id, p.username, p.version FROM former_clusters f JOIN passwords p
                 ON p.cluster_id = f.cluster_id AND p.username = ? AND p.version = f.password_version
               WHERE f.store_id = ? AND f.cluster_id = ?),
             -- What each node said of the password that it would be offered.
             said AS (
               SELECT l.proven, l.refused FROM former JOIN logins l USING (cluster_id, username)
               LEFT JOIN node_passwords n USING (cluster_id, username, hsm_id)
               WHERE l.version = max(former.version, coalesce(n.confirmed, 0)))
             SELECT version FROM former WHERE NOT EXISTS (SELECT 1 FROM said WHERE refused)
               OR EXISTS (SELECT 1 FROM said WHERE proven AND NOT refused)",
        )
        .bind(user.as_str())
        .bind(before.id.as_str())
        .bind(cluster.as_str())
        .fetch_optional(&mut **change)
        .await?;
        if let Some(row) = known {
            return Ok(PasswordVersion(number(&row, "version")?));
        }
        // What keyway changed it to since is newer than what the operator gave.
        let newest: Option<u32> = sqlx::query_scalar(
            "SELECT max(confirmed) FROM node_passwords WHERE cluster_id = ? AND username = ? AND confirmed > ?",
        )
        .bind(before.cluster.as_str())
        .bind(user.as_str())
        .bind(before.password_version.0)
        .fetch_one(&mut **change)
        .await?;
        let version = newest.map_or(before.password_version, PasswordVersion);
        let present = self.password(&before.cluster, &user, version).await?;
        let present = present.ok_or(Unavailable::row("passwords"))?;
        self.add_password(change, cluster, &user, &present).await
    }
}

async fn is_unchanged(change: &mut Transaction<'_, Sqlite>, before: &KeyStoreRecord) -> Result<bool, Unavailable> {
    let unchanged = sqlx::query(
        "SELECT 1 FROM key_stores WHERE id = ? AND state = ? AND name = ? AND cluster_id = ? AND password_version = ?",
    )
    .bind(before.id.as_str())
    .bind(before.state.as_str())
    .bind(before.name.as_str())
    .bind(before.cluster.as_str())
    .bind(before.password_version.0);
    Ok(unchanged.fetch_optional(&mut **change).await?.is_some())
}

/// What a related cluster has in common with the one it descends from, now names its things.
async fn take_along(
    change: &mut Transaction<'_, Sqlite>,
    before: &KeyStoreRecord,
    to: &ClusterId,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO former_clusters (store_id, cluster_id, password_version) VALUES (?, ?, ?)
         ON CONFLICT (store_id, cluster_id) DO UPDATE SET password_version = excluded.password_version",
    )
    .bind(before.id.as_str())
    .bind(before.cluster.as_str())
    .bind(before.password_version.0)
    .execute(&mut **change)
    .await?;
    sqlx::query("UPDATE keys SET cluster_id = ? WHERE store_id = ? AND cluster_id = ? AND state <> 'CREATING'")
        .bind(to.as_str())
        .bind(before.id.as_str())
        .bind(before.cluster.as_str())
        .execute(&mut **change)
        .await?;
    // One that was never finished protects nothing. One of the target's own, of a store that is gone, protects no key.
    sqlx::query(
        "INSERT INTO keks (cluster_id, username, kek_id, canary_id, made_on, canary_probe)
         SELECT ?1, username, kek_id, canary_id, made_on, canary_probe FROM keks
         WHERE cluster_id = ?2 AND username = ?3 AND canary_probe IS NOT NULL
         ON CONFLICT (cluster_id, username) DO UPDATE SET kek_id = excluded.kek_id, canary_id = excluded.canary_id,
           made_on = excluded.made_on, canary_probe = excluded.canary_probe",
    )
    .bind(to.as_str())
    .bind(before.cluster.as_str())
    .bind(Username::kmsuser().as_str())
    .execute(&mut **change)
    .await?;
    Ok(())
}
