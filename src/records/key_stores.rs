//! Key stores, and the passwords they log in with.

use std::time::SystemTime;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::model::{
    ClusterId, ConnectionErrorCode, ConnectionState, HsmId, KeyStoreId, KeyStoreName, Password, PasswordVersion, Realm,
    TrustAnchor, Username,
};

use super::passwords::next_version;
use super::row::{millis, named, number, parsed, time, time_if_any};
use super::{Records, Unavailable};

#[derive(Debug, Clone)]
pub struct KeyStoreRecord {
    pub id: KeyStoreId,
    pub name: KeyStoreName,
    pub cluster: ClusterId,
    /// Where it was made, whatever cluster it stands on now. Of one from before this was written down, it is not known until
    /// its cluster is declared.
    pub realm: Option<Realm>,
    /// PEM, as it was uploaded.
    pub trust_anchor: TrustAnchor,
    pub state: ConnectionState,
    pub state_changed: SystemTime,
    /// How often connecting was begun.
    pub connect_attempt: u32,
    /// Survives disconnecting; gone once connected.
    pub last_error: Option<ConnectionFault>,
    /// The password that an operator gave last. On a node, keyway may have changed it since.
    pub password_version: PasswordVersion,
    pub password_rotated: Option<SystemTime>,
    pub created: SystemTime,
}

/// Why connecting failed.
#[derive(Debug, Clone)]
pub struct ConnectionFault {
    pub code: ConnectionErrorCode,
    pub message: String,
    pub hsm: Option<HsmId>,
    pub time: SystemTime,
}

/// What a move from one state to another writes.
#[derive(Debug)]
pub struct KeyStoreChange {
    pub to: ConnectionState,
    pub at: SystemTime,
    pub connect_attempt: u32,
    pub last_error: Option<ConnectionFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedKeyStore {
    /// Its password got this version.
    Added(PasswordVersion),
    NameInUse,
    ClusterInUse,
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletedKeyStore {
    Deleted,
    HasKeys(u64),
    /// It is not in that state any more.
    Changed,
    Gone,
}

impl Records {
    pub async fn key_stores(&self) -> Result<Vec<KeyStoreRecord>, Unavailable> {
        let rows = sqlx::query("SELECT * FROM key_stores ORDER BY created, id").fetch_all(&self.0.read).await?;
        rows.iter().map(key_store).collect()
    }

    /// Adds a store with its password, sealed, unless the name or the cluster is taken or there are `quota` stores.
    pub async fn add_key_store(
        &self,
        record: &KeyStoreRecord,
        password: &Password,
        quota: u32,
    ) -> Result<AddedKeyStore, Unavailable> {
        let mut change = self.begin().await?;
        let stores: i64 = sqlx::query_scalar("SELECT count(*) FROM key_stores").fetch_one(&mut *change).await?;
        let name_taken = sqlx::query("SELECT 1 FROM key_stores WHERE name = ?").bind(record.name.as_str());
        if name_taken.fetch_optional(&mut *change).await?.is_some() {
            return Ok(AddedKeyStore::NameInUse);
        }
        let cluster_taken = sqlx::query("SELECT 1 FROM key_stores WHERE cluster_id = ?").bind(record.cluster.as_str());
        if cluster_taken.fetch_optional(&mut *change).await?.is_some() {
            return Ok(AddedKeyStore::ClusterInUse);
        }
        if stores >= i64::from(quota) {
            return Ok(AddedKeyStore::Full);
        }
        let version = self.add_password(&mut change, &record.cluster, &Username::kmsuser(), password).await?;
        sqlx::query(
            "INSERT INTO key_stores (id, name, cluster_id, trust_anchor, state, state_changed, connect_attempt, password_version, created,
               region, account)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(record.name.as_str())
        .bind(record.cluster.as_str())
        .bind(record.trust_anchor.pem())
        .bind(record.state.as_str())
        .bind(millis(record.state_changed))
        .bind(record.connect_attempt)
        .bind(version.0)
        .bind(millis(record.created))
        .bind(record.realm.as_ref().map(|realm| realm.region.as_str()))
        .bind(record.realm.as_ref().map(|realm| realm.account.as_str()))
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(AddedKeyStore::Added(version))
    }

    /// Moves a store, if it is still in the state `from`.
    pub async fn move_key_store(
        &self,
        id: &KeyStoreId,
        from: ConnectionState,
        change: &KeyStoreChange,
    ) -> Result<bool, Unavailable> {
        let error = change.last_error.as_ref();
        let moved = sqlx::query(
            "UPDATE key_stores SET state = ?, state_changed = ?, connect_attempt = ?,
                    error_code = ?, error_message = ?, error_hsm = ?, error_time = ?
             WHERE id = ? AND state = ?",
        )
        .bind(change.to.as_str())
        .bind(millis(change.at))
        .bind(change.connect_attempt)
        .bind(error.map(|error| error.code.as_str()))
        .bind(error.map(|error| error.message.as_str()))
        .bind(error.and_then(|error| error.hsm.as_ref()).map(HsmId::as_str))
        .bind(error.map(|error| millis(error.time)))
        .bind(id.as_str())
        .bind(from.as_str())
        .execute(&self.0.write)
        .await?;
        Ok(moved.rows_affected() == 1)
    }

    /// Where a store was made, if that is not known yet.
    pub async fn set_realm(&self, id: &KeyStoreId, realm: &Realm) -> Result<(), Unavailable> {
        sqlx::query("UPDATE key_stores SET region = ?, account = ? WHERE id = ? AND region IS NULL")
            .bind(realm.region.as_str())
            .bind(realm.account.as_str())
            .bind(id.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// Deletes a store without keys, if it is still in the state `from`, and its passwords. What stands in the HSMs stays, and
    /// so does what is known of it. Keys that were never acknowledged are no keys: what is left of them, which only HSMs that
    /// do not come back could settle, goes as well.
    pub async fn delete_key_store(
        &self,
        id: &KeyStoreId,
        from: ConnectionState,
    ) -> Result<DeletedKeyStore, Unavailable> {
        let mut change = self.begin().await?;
        let found = sqlx::query("SELECT state, cluster_id FROM key_stores WHERE id = ?").bind(id.as_str());
        let Some(row) = found.fetch_optional(&mut *change).await? else {
            return Ok(DeletedKeyStore::Gone);
        };
        if named(&row, "state", ConnectionState::parse)? != from {
            return Ok(DeletedKeyStore::Changed);
        }
        let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM keys WHERE store_id = ? AND state <> 'CREATING'")
            .bind(id.as_str())
            .fetch_one(&mut *change)
            .await?;
        if keys > 0 {
            return Ok(DeletedKeyStore::HasKeys(keys.unsigned_abs()));
        }
        let unfinished = sqlx::query("DELETE FROM keys WHERE store_id = ? AND state = 'CREATING'").bind(id.as_str());
        unfinished.execute(&mut *change).await?;
        let cluster: String = row.try_get("cluster_id")?;
        // Also those of clusters it stood on before, unless another store has come there since.
        const PASSWORDS: &str = "DELETE FROM passwords WHERE username = ?1
             AND (cluster_id = ?2 OR cluster_id IN (SELECT cluster_id FROM former_clusters WHERE store_id = ?3))
             AND cluster_id NOT IN (SELECT cluster_id FROM key_stores WHERE id <> ?3)";
        const ON_NODES: &str = "DELETE FROM node_passwords WHERE username = ?1
             AND (cluster_id = ?2 OR cluster_id IN (SELECT cluster_id FROM former_clusters WHERE store_id = ?3))
             AND cluster_id NOT IN (SELECT cluster_id FROM key_stores WHERE id <> ?3)";
        for unneeded in [PASSWORDS, ON_NODES] {
            sqlx::query(unneeded)
                .bind(Username::kmsuser().as_str())
                .bind(&cluster)
                .bind(id.as_str())
                .execute(&mut *change)
                .await?;
        }
        sqlx::query("DELETE FROM key_stores WHERE id = ?").bind(id.as_str()).execute(&mut *change).await?;
        change.commit().await?;
        Ok(DeletedKeyStore::Deleted)
    }

    pub async fn password(
        &self,
        cluster: &ClusterId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<Option<Password>, Unavailable> {
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM passwords WHERE cluster_id = ? AND username = ? AND version = ?")
                .bind(cluster.as_str())
                .bind(user.as_str())
                .bind(version.0)
                .fetch_optional(&self.0.read)
                .await?;
        let Some(sealed) = sealed else { return Ok(None) };
        let secret =
            self.0.sealer.open(&place(cluster, user, &version.0.to_string()), &sealed).ok_or(Unavailable::sealed())?;
        let text = std::str::from_utf8(&secret).map_err(|_| Unavailable::sealed())?;
        Ok(Some(Password::trusted(text.to_owned())))
    }

    pub(super) async fn add_password(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        cluster: &ClusterId,
        user: &Username,
        password: &Password,
    ) -> Result<PasswordVersion, Unavailable> {
        let version = next_version(change, cluster, user).await?;
        let text = version.0.to_string();
        let sealed = self
            .0
            .sealer
            .seal(&place(cluster, user, &text), password.expose().as_bytes())
            .ok_or(Unavailable::sealed())?;
        sqlx::query("INSERT INTO passwords (cluster_id, username, version, sealed) VALUES (?, ?, ?, ?)")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(version.0)
            .bind(sealed)
            .execute(&mut **change)
            .await?;
        Ok(version)
    }

    /// A transaction that has the right to write from its start, so that it never fails halfway for want of it.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, Unavailable> {
        Ok(self.0.write.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Where a password stands, and nowhere else opens.
fn place<'a>(cluster: &'a ClusterId, user: &'a Username, version: &'a str) -> [&'a str; 4] {
    ["password", cluster.as_str(), user.as_str(), version]
}

fn key_store(row: &SqliteRow) -> Result<KeyStoreRecord, Unavailable> {
    let code: Option<String> = row.try_get("error_code")?;
    let last_error = match code {
        None => None,
        Some(code) => Some(ConnectionFault {
            code: ConnectionErrorCode::parse(&code).ok_or(Unavailable::row("error_code"))?,
            message: row.try_get("error_message")?,
            hsm: match row.try_get::<Option<String>, _>("error_hsm")? {
                Some(hsm) => Some(hsm.parse().map_err(|_| Unavailable::row("error_hsm"))?),
                None => None,
            },
            time: time(row, "error_time")?,
        }),
    };
    Ok(KeyStoreRecord {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        cluster: parsed(row, "cluster_id")?,
        realm: match row.try_get::<Option<String>, _>("region")? {
            Some(_) => Some(Realm { region: parsed(row, "region")?, account: parsed(row, "account")? }),
            None => None,
        },
        trust_anchor: TrustAnchor::parse(row.try_get("trust_anchor")?).map_err(|_| Unavailable::row("trust_anchor"))?,
        state: named(row, "state", ConnectionState::parse)?,
        state_changed: time(row, "state_changed")?,
        connect_attempt: number(row, "connect_attempt")?,
        last_error,
        password_version: PasswordVersion(number(row, "password_version")?),
        password_rotated: time_if_any(row, "password_rotated")?,
        created: time(row, "created")?,
    })
}
