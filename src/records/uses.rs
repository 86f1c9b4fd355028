//! Uses of a key version, reserved ahead in blocks.

use crate::model::{KeyId, KeyVersion};

use super::{Records, Unavailable};

/// What a reservation brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The uses numbered `from` up to, not including, `to`.
    Block { from: u64, to: u64 },
    /// The version has been used as often as is allowed, or is not there.
    Exhausted,
}

impl Records {
    /// Reserves up to `block` further uses below `ceiling`.
    pub async fn reserve_uses(
        &self,
        key: KeyId,
        version: KeyVersion,
        block: u64,
        ceiling: u64,
    ) -> Result<Reserved, Unavailable> {
        let [block, ceiling] = [block, ceiling].map(|uses| i64::try_from(uses).unwrap_or(i64::MAX));
        let mut change = self.begin().await?;
        let used: Option<i64> =
            sqlx::query_scalar("SELECT uses_reserved FROM key_versions WHERE key_id = ? AND version = ?")
                .bind(key.as_bytes().as_slice())
                .bind(version.0)
                .fetch_optional(&mut *change)
                .await?;
        let Some(from) = used.filter(|used| *used < ceiling) else {
            return Ok(Reserved::Exhausted);
        };
        let to = from.saturating_add(block).min(ceiling);
        sqlx::query("UPDATE key_versions SET uses_reserved = ? WHERE key_id = ? AND version = ?")
            .bind(to)
            .bind(key.as_bytes().as_slice())
            .bind(version.0)
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(Reserved::Block { from: from.unsigned_abs(), to: to.unsigned_abs() })
    }
}
