//! Tags of keys.

use std::collections::BTreeMap;

use sqlx::Row;

use crate::model::KeyId;

use super::{Records, Unavailable};

/// What became of tagging a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagged {
    Done,
    /// It would have more than it may.
    TooMany,
    /// Or it is neither enabled nor disabled.
    NoSuchKey,
}

impl Records {
    /// Adds tags to a key that is enabled or disabled, and replaces those it has of the same names: all or none.
    pub async fn tag_key(
        &self,
        key: KeyId,
        tags: &BTreeMap<String, String>,
        per_key: u32,
    ) -> Result<Tagged, Unavailable> {
        let mut change = self.begin().await?;
        let id = key.as_bytes().as_slice();
        let there = sqlx::query("SELECT 1 FROM keys WHERE id = ? AND state IN ('ENABLED', 'DISABLED')").bind(id);
        if there.fetch_optional(&mut *change).await?.is_none() {
            return Ok(Tagged::NoSuchKey);
        }
        for (name, value) in tags {
            sqlx::query(
                "INSERT INTO tags (key_id, name, value) VALUES (?, ?, ?)
                 ON CONFLICT (key_id, name) DO UPDATE SET value = excluded.value",
            )
            .bind(id)
            .bind(name)
            .bind(value)
            .execute(&mut *change)
            .await?;
        }
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tags WHERE key_id = ?").bind(id).fetch_one(&mut *change).await?;
        if count > i64::from(per_key) {
            return Ok(Tagged::TooMany);
        }
        change.commit().await?;
        Ok(Tagged::Done)
    }

    /// Those it has of these names.
    pub async fn untag_key(&self, key: KeyId, names: &[String]) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        for name in names {
            sqlx::query("DELETE FROM tags WHERE key_id = ? AND name = ?")
                .bind(key.as_bytes().as_slice())
                .bind(name)
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(())
    }

    pub async fn tags(&self, key: KeyId) -> Result<BTreeMap<String, String>, Unavailable> {
        let rows = sqlx::query("SELECT name, value FROM tags WHERE key_id = ?");
        let rows = rows.bind(key.as_bytes().as_slice()).fetch_all(&self.0.read).await?;
        rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("value")?))).collect()
    }
}
