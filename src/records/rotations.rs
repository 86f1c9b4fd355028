//! New versions of keys that are there: made beside the old ones, which are not touched by it; and when that is to be.
//!
//! A version that is being made is a row of its own, with every node about to be asked, and becomes a version of the key only
//! when it is whole. One that comes to nothing is written down as destroyed wherever it may be.

use std::time::{Duration, SystemTime};

use sqlx::{Row, Sqlite, Transaction};

use crate::model::{CkaId, ClusterId, ConnectionState, CryptoUser, HsmId, KeyId, KeyState, KeyVersion, Probe};

use super::creating::RequestClaim;
use super::key_life::DueCursor;
use super::presences::put_presence;
use super::row::{json, key_id, millis, number, parsed};
use super::{KeyRecord, Proof, Records, Unavailable};

/// A version about to be made.
#[derive(Debug)]
pub struct NewVersion {
    /// The key as it was found.
    pub key: KeyRecord,
    /// The state of its key store, which lets it be made.
    pub store_state: ConnectionState,
    pub asked_by: RotationCause,
    pub created: SystemTime,
    /// The nodes that may be asked.
    pub hsms: Vec<HsmId>,
    pub request: Option<RequestClaim>,
}

/// Why a key is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationCause {
    /// Somebody asked for it.
    Demand,
    /// Its period is over, or its version is worn.
    Itself,
}

#[derive(Debug, Clone, Copy)]
pub struct RotationLimits {
    /// Of one key, those that were asked for.
    pub on_demand: u32,
    pub request_retention: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunVersion {
    Begun(KeyVersion),
    /// The same request came before, and its version is there.
    Replay,
    RequestReused,
    /// One is being made, or what came to nothing is not settled yet.
    Running,
    TooMany,
    /// The key, or its store, is not as it was found.
    Changed,
}

/// What has to be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationDue {
    pub now: SystemTime,
}

/// Where a page of keys that are due has ended.
#[derive(Debug, Clone, Copy)]
pub enum RotationCursor {
    /// Among those whose period is over.
    Period(DueCursor),
    /// Among the worn, which come after them.
    Worn(Option<KeyId>),
}

impl RotationCursor {
    /// Before the first.
    pub const START: Self = Self::Period(DueCursor::START);
}

pub(super) const DUE: &str = "SELECT k.id, k.rotation_due AS due, k.rowid AS row FROM keys k
     WHERE k.rotation_due <= ? AND (k.rotation_due, k.rowid) > (?, ?) AND k.state = 'ENABLED'
       AND EXISTS (SELECT 1 FROM key_stores s WHERE s.id = k.store_id AND s.state = 'CONNECTED')
     ORDER BY k.rotation_due, k.rowid LIMIT ?";
/// The current ones alone: an old version encrypts no more.
pub(super) const WORN: &str = "SELECT v.key_id AS id FROM key_versions v JOIN keys k ON k.id = v.key_id
     WHERE v.uses_reserved >= 2147483648 AND v.key_id > ? AND v.version = k.current_version AND k.store_id IS NOT NULL
       AND k.state = 'ENABLED' ORDER BY v.key_id LIMIT ?";

impl Records {
    /// Writes down that a version is being made, unless something is in the way.
    pub async fn begin_version(&self, new: &NewVersion, limits: &RotationLimits) -> Result<BegunVersion, Unavailable> {
        let mut change = self.begin().await?;
        if let Some(request) = &new.request
            && let Some(before) = earlier(&mut change, new, request, limits.request_retention).await?
        {
            change.commit().await?;
            return Ok(before);
        }
        let id = new.key.id.as_bytes().as_slice();
        if let Some(refused) = in_the_way(&mut change, new, limits).await? {
            return Ok(refused);
        }
        let version: u32 = sqlx::query_scalar(
            "UPDATE keys SET last_version = max(coalesce(last_version, 0), current_version) + 1 WHERE id = ?
             RETURNING last_version",
        )
        .bind(id)
        .fetch_one(&mut *change)
        .await?;
        sqlx::query(
            "INSERT INTO key_rotations (key_id, version, cluster_id, on_demand, started) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(version)
        .bind(new.key.cluster.as_str())
        .bind(new.asked_by == RotationCause::Demand)
        .bind(millis(new.created))
        .execute(&mut *change)
        .await?;
        for hsm in &new.hsms {
            sqlx::query("INSERT INTO key_rotation_hsms (key_id, hsm_id) VALUES (?, ?)")
                .bind(id)
                .bind(hsm.as_str())
                .execute(&mut *change)
                .await?;
        }
        if let Some(request) = &new.request {
            sqlx::query(
                "INSERT INTO requests (caller, request_id, body_sha256, key_id, version, created) VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(&request.caller)
            .bind(&request.request_id)
            .bind(request.body_sha256.as_slice())
            .bind(id)
            .bind(version)
            .bind(millis(new.created))
            .execute(&mut *change)
            .await?;
        }
        change.commit().await?;
        Ok(BegunVersion::Begun(KeyVersion(version)))
    }

    /// The version that is being made is the key's current one from now on: it answered its probe on the `proven` nodes and is
    /// to be looked for on the `others`. `false` when it is not being made any more, the key stands on another cluster
    /// meanwhile, or of the proven nodes fewer than `are_enough` stay.
    pub async fn finish_version(
        &self,
        (key, version): (KeyId, KeyVersion),
        probe: &Probe,
        (proven, others): (&[HsmId], &[HsmId]),
        are_enough: impl Fn(&[HsmId]) -> bool + Send,
        at: SystemTime,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let id = key.as_bytes().as_slice();
        let rotation = sqlx::query(
            "SELECT r.cluster_id, r.on_demand, r.started FROM key_rotations r JOIN keys k ON k.id = r.key_id
             WHERE r.key_id = ? AND r.version = ? AND k.cluster_id = r.cluster_id",
        );
        let rotation = rotation.bind(id).bind(version.0).fetch_optional(&mut *change).await?;
        let Some(rotation) = rotation else { return Ok(false) };
        let cluster: ClusterId = parsed(&rotation, "cluster_id")?;
        let staying = staying(&mut change, key, &cluster).await?;
        let staying: Vec<_> = proven.iter().filter(|hsm| staying.contains(hsm)).cloned().collect();
        if staying.len() < proven.len() && !are_enough(&staying) {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO key_versions (key_id, version, probe, uses_reserved, created, on_demand) VALUES (?, ?, ?, 1, ?, ?)",
        )
        .bind(id)
        .bind(version.0)
        .bind(probe.0.as_slice())
        .bind(rotation.try_get::<i64, _>("started")?)
        .bind(rotation.try_get::<bool, _>("on_demand")?)
        .execute(&mut *change)
        .await?;
        for hsm in &staying {
            put_presence(&mut *change, key, version, (&cluster, hsm), Proof::Used, at).await?;
        }
        for hsm in others {
            put_presence(&mut *change, key, version, (&cluster, hsm), Proof::Unknown, at).await?;
        }
        // Whoever rotates it by itself counts anew after one of his own alone: AWS's rule.
        sqlx::query(
            "UPDATE keys SET current_version = ?,
               rotation_due = CASE WHEN ? THEN rotation_due ELSE ? + rotation_days * 86400000 END
             WHERE id = ?",
        )
        .bind(version.0)
        .bind(rotation.try_get::<bool, _>("on_demand")?)
        .bind(millis(at))
        .bind(id)
        .execute(&mut *change)
        .await?;
        sqlx::query("DELETE FROM key_rotations WHERE key_id = ?").bind(id).execute(&mut *change).await?;
        change.commit().await?;
        Ok(true)
    }

    /// What was being made comes to nothing: whatever there may be of it is to go from every node that was to be asked. Its
    /// request goes with it.
    pub async fn abandon_version(&self, key: KeyId, at: SystemTime) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        entomb_version(&mut change, key, at).await?;
        change.commit().await?;
        Ok(())
    }

    /// Keys of which a version is being made, or was when a daemon ended.
    pub async fn rotations(&self) -> Result<Vec<KeyId>, Unavailable> {
        let rows = sqlx::query("SELECT key_id FROM key_rotations").fetch_all(&self.0.read).await?;
        rows.iter().map(|row| key_id(row, "key_id")).collect()
    }

    /// The version of the key that is being made, and since when.
    pub async fn rotation(&self, key: KeyId) -> Result<Option<(KeyVersion, SystemTime)>, Unavailable> {
        let row = sqlx::query("SELECT version, started FROM key_rotations WHERE key_id = ?");
        let row = row.bind(key.as_bytes().as_slice()).fetch_optional(&self.0.read).await?;
        row.map(|row| Ok((KeyVersion(number(&row, "version")?), super::row::time(&row, "started")?))).transpose()
    }

    /// Versions in a user's tokens that are being made.
    pub async fn versions_being_made(&self, user: &CryptoUser) -> Result<Vec<CkaId>, Unavailable> {
        let rows = sqlx::query(
            "SELECT r.key_id, r.version FROM key_rotations r JOIN keys k ON k.id = r.key_id
             WHERE r.cluster_id = ? AND k.username = ?",
        )
        .bind(user.cluster.as_str())
        .bind(user.username.as_str())
        .fetch_all(&self.0.read)
        .await?;
        rows.iter().map(|row| Ok(CkaId::of(key_id(row, "key_id")?, KeyVersion(number(row, "version")?)))).collect()
    }

    /// Lets a key rotate by itself, or not any more. `false`: there is no such key of a key store's, or it is in another state.
    pub async fn set_rotation(
        &self,
        key: KeyId,
        state: KeyState,
        every: Option<(u32, SystemTime)>,
    ) -> Result<bool, Unavailable> {
        let set = sqlx::query(
            "UPDATE keys SET rotation_days = ?, rotation_due = ? WHERE id = ? AND state = ? AND store_id IS NOT NULL",
        )
        .bind(every.map(|(days, _)| days))
        .bind(every.map(|(_, due)| millis(due)))
        .bind(key.as_bytes().as_slice())
        .bind(state.as_str())
        .execute(&self.0.write)
        .await?;
        Ok(set.rows_affected() > 0)
    }

    /// A page of keys whose period is over or, after those, whose current version is worn; and where the next one begins,
    /// unless it was the last.
    pub async fn due_rotations(
        &self,
        due: RotationDue,
        after: RotationCursor,
        limit: u32,
    ) -> Result<(Vec<KeyId>, Option<RotationCursor>), Unavailable> {
        let page = match after {
            RotationCursor::Period(after) => after.bind(sqlx::query(DUE).bind(millis(due.now))).bind(limit),
            RotationCursor::Worn(after) => {
                sqlx::query(WORN).bind(after.map_or_else(Vec::new, |key| key.as_bytes().to_vec())).bind(limit)
            }
        };
        let page = page.fetch_all(&self.0.read).await?;
        let keys = page.iter().map(|row| key_id(row, "id")).collect::<Result<Vec<_>, _>>()?;
        let last = page.last().filter(|_| page.len() >= limit as usize);
        let next = match (after, last) {
            (RotationCursor::Period(_), Some(last)) => Some(RotationCursor::Period(DueCursor::at(last)?)),
            (RotationCursor::Period(_), None) => Some(RotationCursor::Worn(None)),
            (RotationCursor::Worn(_), Some(_)) => Some(RotationCursor::Worn(keys.last().copied())),
            (RotationCursor::Worn(_), None) => None,
        };
        Ok((keys, next))
    }
}

/// The same as [`Records::abandon_version`], where the key goes as well.
pub(super) async fn entomb_version(
    change: &mut Transaction<'_, Sqlite>,
    key: KeyId,
    at: SystemTime,
) -> Result<(), Unavailable> {
    let id = key.as_bytes().as_slice();
    let found = sqlx::query("SELECT version FROM key_rotations WHERE key_id = ?").bind(id);
    let Some(row) = found.fetch_optional(&mut **change).await? else { return Ok(()) };
    let version = KeyVersion(number(&row, "version")?);
    sqlx::query(
        "INSERT INTO destroyed_keys (cluster_id, username, hsm_id, cka_id, time)
         SELECT r.cluster_id, k.username, h.hsm_id, ?, ? FROM key_rotations r
         JOIN keys k ON k.id = r.key_id JOIN key_rotation_hsms h ON h.key_id = r.key_id
         WHERE r.key_id = ? ON CONFLICT DO NOTHING",
    )
    .bind(CkaId::of(key, version).as_bytes())
    .bind(millis(at))
    .bind(id)
    .execute(&mut **change)
    .await?;
    sqlx::query("DELETE FROM requests WHERE key_id = ? AND version = ?")
        .bind(id)
        .bind(version.0)
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM key_rotations WHERE key_id = ?").bind(id).execute(&mut **change).await?;
    Ok(())
}

async fn earlier(
    change: &mut Transaction<'_, Sqlite>,
    new: &NewVersion,
    request: &RequestClaim,
    retention: Duration,
) -> Result<Option<BegunVersion>, Unavailable> {
    let forgotten = millis(new.created) - i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    sqlx::query("DELETE FROM requests WHERE created < ?").bind(forgotten).execute(&mut **change).await?;
    let found = sqlx::query("SELECT body_sha256, version FROM requests WHERE caller = ? AND request_id = ?")
        .bind(&request.caller)
        .bind(&request.request_id)
        .fetch_optional(&mut **change)
        .await?;
    let Some(row) = found else { return Ok(None) };
    if row.try_get::<Vec<u8>, _>("body_sha256")? != request.body_sha256 {
        return Ok(Some(BegunVersion::RequestReused));
    }
    let made = sqlx::query("SELECT 1 FROM key_versions WHERE key_id = ? AND version = ?")
        .bind(new.key.id.as_bytes().as_slice())
        .bind(row.try_get::<Option<u32>, _>("version")?)
        .fetch_optional(&mut **change)
        .await?;
    Ok(Some(if made.is_some() { BegunVersion::Replay } else { BegunVersion::Running }))
}

async fn in_the_way(
    change: &mut Transaction<'_, Sqlite>,
    new: &NewVersion,
    limits: &RotationLimits,
) -> Result<Option<BegunVersion>, Unavailable> {
    let id = new.key.id.as_bytes().as_slice();
    let unchanged = sqlx::query(
        "SELECT 1 FROM keys k JOIN key_stores s ON s.id = k.store_id
         WHERE k.id = ? AND k.state = 'ENABLED' AND k.current_version = ? AND k.cluster_id = ?
           AND s.cluster_id = k.cluster_id AND s.state = ?",
    )
    .bind(id)
    .bind(new.key.current_version.0)
    .bind(new.key.cluster.as_str())
    .bind(new.store_state.as_str());
    if unchanged.fetch_optional(&mut **change).await?.is_none() {
        return Ok(Some(BegunVersion::Changed));
    }
    let running = sqlx::query("SELECT 1 FROM key_rotations WHERE key_id = ?").bind(id);
    if running.fetch_optional(&mut **change).await?.is_some() {
        return Ok(Some(BegunVersion::Running));
    }
    // Or each try that fails would leave another version there that is to go.
    let unsettled = sqlx::query(
        "SELECT 1 FROM destroyed_keys d JOIN keys k ON k.id = ?1
         WHERE d.cluster_id = k.cluster_id AND d.username = k.username
           AND d.hsm_id IN (SELECT value FROM json_each(?2)) AND d.cka_id BETWEEN ?3 AND ?4",
    )
    .bind(id)
    .bind(json(&new.hsms))
    .bind(CkaId::of(new.key.id, KeyVersion(0)).as_bytes().to_vec())
    .bind(CkaId::of(new.key.id, KeyVersion(u32::MAX)).as_bytes().to_vec());
    if unsettled.fetch_optional(&mut **change).await?.is_some() {
        return Ok(Some(BegunVersion::Running));
    }
    if new.asked_by == RotationCause::Itself {
        return Ok(None);
    }
    let on_demand: i64 = sqlx::query_scalar("SELECT count(*) FROM key_versions WHERE key_id = ? AND on_demand")
        .bind(id)
        .fetch_one(&mut **change)
        .await?;
    Ok((on_demand >= i64::from(limits.on_demand)).then_some(BegunVersion::TooMany))
}

/// Who was to be asked and stays in the cluster. An HSM that left and came again under its name is another.
async fn staying(
    change: &mut Transaction<'_, Sqlite>,
    key: KeyId,
    cluster: &ClusterId,
) -> Result<Vec<HsmId>, Unavailable> {
    let rows = sqlx::query(
        "SELECT r.hsm_id FROM key_rotation_hsms r WHERE r.key_id = ?1
           AND (NOT EXISTS (SELECT 1 FROM made_clusters WHERE cluster_id = ?2)
             OR EXISTS (SELECT 1 FROM made_hsms h
               WHERE h.cluster_id = ?2 AND h.hsm_id = r.hsm_id AND h.state = 'ACTIVE'))",
    )
    .bind(key.as_bytes().as_slice())
    .bind(cluster.as_str())
    .fetch_all(&mut **change)
    .await?;
    rows.iter().map(|row| parsed(row, "hsm_id")).collect()
}
