//! Aliases. An alias of a key that is still being made is reserved, but names nothing yet.

use std::time::SystemTime;

use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

use crate::model::{AliasName, KeyId};

use super::row::{key_id, millis, parsed, time};
use super::{Records, Unavailable};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRecord {
    pub name: AliasName,
    pub key: KeyId,
    pub created: SystemTime,
    pub updated: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatedAlias {
    Created,
    InUse,
    TooMany,
    /// Or it is neither enabled nor disabled.
    NoSuchKey,
}

/// What became of pointing an alias at another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MovedAlias {
    Moved(AliasRecord),
    NoSuchAlias,
    TooMany,
    /// Or it is neither enabled nor disabled.
    NoSuchKey,
}

pub(super) const PAGE: &str = "SELECT a.* FROM aliases a JOIN keys k ON k.id = a.key_id
     WHERE a.name > ? AND k.state <> 'CREATING' ORDER BY a.name LIMIT ?";
pub(super) const PAGE_OF_KEY: &str = "SELECT a.* FROM aliases a JOIN keys k ON k.id = a.key_id
     WHERE a.key_id = ? AND a.name > ? AND k.state <> 'CREATING' ORDER BY a.name LIMIT ?";
pub(super) const DELETE: &str = "DELETE FROM aliases WHERE name = ?
     AND EXISTS (SELECT 1 FROM keys k WHERE k.id = aliases.key_id AND k.state <> 'CREATING')";

impl Records {
    pub async fn key_id_of_alias(&self, name: &AliasName) -> Result<Option<KeyId>, Unavailable> {
        let found = sqlx::query(
            "SELECT a.key_id FROM aliases a JOIN keys k ON k.id = a.key_id WHERE a.name = ? AND k.state <> 'CREATING'",
        )
        .bind(name.as_str())
        .fetch_optional(&self.0.read)
        .await?;
        found.map(|row| key_id(&row, "key_id")).transpose()
    }

    pub async fn create_alias(
        &self,
        name: &AliasName,
        key: KeyId,
        at: SystemTime,
        per_key: u32,
    ) -> Result<CreatedAlias, Unavailable> {
        let mut change = self.begin().await?;
        if !may_be_named(&mut change, key).await? {
            return Ok(CreatedAlias::NoSuchKey);
        }
        let taken = sqlx::query("SELECT 1 FROM aliases WHERE name = ?").bind(name.as_str());
        if taken.fetch_optional(&mut *change).await?.is_some() {
            return Ok(CreatedAlias::InUse);
        }
        if count_of_key(&mut change, key).await? >= i64::from(per_key) {
            return Ok(CreatedAlias::TooMany);
        }
        sqlx::query("INSERT INTO aliases (name, key_id, created, updated) VALUES (?, ?, ?, ?)")
            .bind(name.as_str())
            .bind(key.as_bytes().as_slice())
            .bind(millis(at))
            .bind(millis(at))
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(CreatedAlias::Created)
    }

    /// Points an alias of an acknowledged key at another one. At the key that it stands for already, it only gets the time.
    pub async fn move_alias(
        &self,
        name: &AliasName,
        key: KeyId,
        at: SystemTime,
        per_key: u32,
    ) -> Result<MovedAlias, Unavailable> {
        let mut change = self.begin().await?;
        let found = sqlx::query(
            "SELECT a.* FROM aliases a JOIN keys k ON k.id = a.key_id WHERE a.name = ? AND k.state <> 'CREATING'",
        )
        .bind(name.as_str())
        .fetch_optional(&mut *change)
        .await?;
        let Some(before) = found.as_ref().map(alias).transpose()? else { return Ok(MovedAlias::NoSuchAlias) };
        if !may_be_named(&mut change, key).await? {
            return Ok(MovedAlias::NoSuchKey);
        }
        if before.key != key && count_of_key(&mut change, key).await? >= i64::from(per_key) {
            return Ok(MovedAlias::TooMany);
        }
        sqlx::query("UPDATE aliases SET key_id = ?, updated = ? WHERE name = ?")
            .bind(key.as_bytes().as_slice())
            .bind(millis(at))
            .bind(name.as_str())
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(MovedAlias::Moved(AliasRecord { key, updated: at, ..before }))
    }

    /// `false`: there is none of an acknowledged key's.
    pub async fn delete_alias(&self, name: &AliasName) -> Result<bool, Unavailable> {
        let deleted = sqlx::query(DELETE).bind(name.as_str()).execute(&self.0.write).await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Aliases after `after`, by name; those of one key when one is named.
    pub async fn list_aliases(
        &self,
        key: Option<KeyId>,
        after: Option<&AliasName>,
        limit: u32,
    ) -> Result<Vec<AliasRecord>, Unavailable> {
        let after = after.map_or("", AliasName::as_str);
        let page = match key {
            Some(key) => sqlx::query(PAGE_OF_KEY).bind(key.as_bytes().to_vec()),
            None => sqlx::query(PAGE),
        };
        let rows = page.bind(after).bind(limit).fetch_all(&self.0.read).await?;
        rows.iter().map(alias).collect()
    }
}

fn alias(row: &SqliteRow) -> Result<AliasRecord, Unavailable> {
    Ok(AliasRecord {
        name: parsed(row, "name")?,
        key: key_id(row, "key_id")?,
        created: time(row, "created")?,
        updated: time(row, "updated")?,
    })
}

/// Whoever looked at its state before that may have seen another one.
async fn may_be_named(change: &mut Transaction<'_, Sqlite>, key: KeyId) -> Result<bool, Unavailable> {
    let there = sqlx::query("SELECT 1 FROM keys WHERE id = ? AND state IN ('ENABLED', 'DISABLED')");
    Ok(there.bind(key.as_bytes().as_slice()).fetch_optional(&mut **change).await?.is_some())
}

async fn count_of_key(change: &mut Transaction<'_, Sqlite>, key: KeyId) -> Result<i64, Unavailable> {
    let count = sqlx::query_scalar("SELECT count(*) FROM aliases WHERE key_id = ?");
    Ok(count.bind(key.as_bytes().as_slice()).fetch_one(&mut **change).await?)
}
