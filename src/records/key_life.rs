//! What changes of a key after it was made: its state, its description, when it was last used; and its deletion, from the day
//! it is asked for until it is due.

use std::time::{Duration, SystemTime};

use crate::model::{ClusterId, HsmId, KeyId, KeyState};

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite};

use super::destroyed_keys::entomb;
use super::row::{key_id, millis};
use super::{Records, Unavailable};

/// When a key is to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    pub due: SystemTime,
    /// So much time is to be run through by daemons until then.
    pub window: Duration,
}

/// Which deletions are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub now: SystemTime,
    /// So much of a window need not have been run through by any daemon.
    pub unseen: Duration,
}

/// Where a page of keys that are due has ended: by their dates, and among those of one date by their rows.
#[derive(Debug, Clone, Copy)]
pub struct DueCursor {
    date: i64,
    row: i64,
}

pub(super) const DUE: &str = "SELECT id, deletion AS due, rowid AS row FROM keys
     WHERE state = 'PENDING_DELETION' AND deletion <= ? AND (deletion, rowid) > (?, ?)
       AND deletion_at_run <= (SELECT millis FROM run_time WHERE id = 1) + ? ORDER BY deletion, rowid LIMIT ?";

impl Records {
    /// Changes the state of a key store's key, which was `from`. `false`: it is not any more.
    pub async fn change_key_state(
        &self,
        key: KeyId,
        (from, to): (KeyState, KeyState),
        deletion: Option<Deletion>,
    ) -> Result<bool, Unavailable> {
        let changed = sqlx::query(
            "UPDATE keys SET state = ?, deletion = ?, deletion_at_run = ? + (SELECT millis FROM run_time WHERE id = 1)
             WHERE id = ? AND state = ? AND store_id IS NOT NULL",
        )
        .bind(to.as_str())
        .bind(deletion.map(|deletion| millis(deletion.due)))
        .bind(deletion.map(|deletion| whole_millis(deletion.window)))
        .bind(key.as_bytes().as_slice())
        .bind(from.as_str())
        .execute(&self.0.write)
        .await?;
        Ok(changed.rows_affected() > 0)
    }

    /// `false`: there is no such key of a key store's, or it is in another state.
    pub async fn describe_key_as(&self, key: KeyId, state: KeyState, description: &str) -> Result<bool, Unavailable> {
        let changed =
            sqlx::query("UPDATE keys SET description = ? WHERE id = ? AND state = ? AND store_id IS NOT NULL")
                .bind(description)
                .bind(key.as_bytes().as_slice())
                .bind(state.as_str())
                .execute(&self.0.write)
                .await?;
        Ok(changed.rows_affected() > 0)
    }

    /// A daemon has run for so long, and every window that is open with it. One row, however many keys are pending.
    pub async fn pass_deletion_time(&self, passed: Duration) -> Result<(), Unavailable> {
        sqlx::query("UPDATE run_time SET millis = millis + ? WHERE id = 1")
            .bind(whole_millis(passed))
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// A page of keys whose window has ended, the longest overdue first; and where the next one begins, unless it was the last.
    pub async fn due_deletions(
        &self,
        due: Due,
        after: DueCursor,
        limit: u32,
    ) -> Result<(Vec<KeyId>, Option<DueCursor>), Unavailable> {
        let page = after.bind(sqlx::query(DUE).bind(millis(due.now))).bind(whole_millis(due.unseen)).bind(limit);
        let page = page.fetch_all(&self.0.read).await?;
        let last = page.last().filter(|_| page.len() >= limit as usize);
        let next = last.map(DueCursor::at).transpose()?;
        Ok((page.iter().map(|row| key_id(row, "id")).collect::<Result<_, _>>()?, next))
    }

    /// Destroys in the records a key of this cluster whose window has ended: it is to go from every HSM that was ever known to
    /// hold it, or may, and from these of the cluster. Its aliases, tags and requests go with it. `false`: it is not due, or not
    /// there, any more.
    pub async fn destroy_due_key(
        &self,
        key: KeyId,
        due: Due,
        (cluster, hsms): (&ClusterId, &[HsmId]),
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let is_due = sqlx::query(
            "SELECT 1 FROM keys WHERE id = ? AND cluster_id = ? AND state = 'PENDING_DELETION' AND deletion <= ?
               AND deletion_at_run <= (SELECT millis FROM run_time WHERE id = 1) + ?",
        )
        .bind(key.as_bytes().as_slice())
        .bind(cluster.as_str())
        .bind(millis(due.now))
        .bind(whole_millis(due.unseen));
        if is_due.fetch_optional(&mut *change).await?.is_none() {
            return Ok(false);
        }
        entomb(&mut change, key, hsms, due.now).await?;
        change.commit().await?;
        Ok(true)
    }

    /// When these were last used, as far as nothing later is known.
    pub async fn note_last_uses(&self, uses: &[(KeyId, SystemTime)]) -> Result<(), Unavailable> {
        if uses.is_empty() {
            return Ok(());
        }
        let mut change = self.begin().await?;
        for (key, at) in uses {
            sqlx::query("UPDATE keys SET last_used = max(coalesce(last_used, 0), ?) WHERE id = ?")
                .bind(millis(*at))
                .bind(key.as_bytes().as_slice())
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(())
    }
}

impl DueCursor {
    /// Before the first.
    pub const START: Self = Self { date: i64::MIN, row: 0 };

    /// At a row that tells its `due` and its `row`.
    pub(super) fn at(row: &SqliteRow) -> Result<Self, Unavailable> {
        Ok(Self { date: row.try_get("due")?, row: row.try_get("row")? })
    }

    pub(super) fn bind(self, query: Query<'_>) -> Query<'_> {
        query.bind(self.date).bind(self.row)
    }
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

fn whole_millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}
