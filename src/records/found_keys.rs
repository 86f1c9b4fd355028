//! Keys that crypto users' tokens held before keyway knew of them: written down at their first use, so that uses are counted
//! and each is known again by its probe. They stay where they were found.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::{CryptoUser, HsmId, KeyId, KeyKind, KeyVersion, Probe};

use super::presences::put_presence;
use super::row::{key_id, millis};
use super::{Proof, Records, Unavailable};

/// A key as it was found.
#[derive(Debug)]
pub struct FoundKey {
    pub id: KeyId,
    pub user: CryptoUser,
    pub cka_id: Arc<[u8]>,
    pub kind: KeyKind,
    pub probe: Probe,
    pub found: SystemTime,
    /// The nodes on which it answers the probe.
    pub on: Vec<HsmId>,
    /// The user's other nodes, which may hold it as well.
    pub others: Vec<HsmId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptedKey {
    Adopted,
    /// Somebody was quicker, and what he has written stands.
    Known,
    TooManyKeys,
    /// The crypto user is on his way out.
    UserLeaves,
}

impl Records {
    /// Writes a found key down, unless something is in the way.
    pub async fn adopt_key(&self, found: &FoundKey, quota: u32) -> Result<AdoptedKey, Unavailable> {
        let mut change = self.begin().await?;
        let (id, cluster, user) =
            (found.id.as_bytes().as_slice(), found.user.cluster.as_str(), found.user.username.as_str());
        let known = sqlx::query("SELECT 1 FROM keys WHERE id = ?").bind(id);
        if known.fetch_optional(&mut *change).await?.is_some() {
            return Ok(AdoptedKey::Known);
        }
        if super::creating::is_leaving(&mut change, (cluster, user)).await? {
            return Ok(AdoptedKey::UserLeaves);
        }
        if super::creating::count_of_user(&mut change, (cluster, user)).await? >= i64::from(quota) {
            return Ok(AdoptedKey::TooManyKeys);
        }
        sqlx::query(
            "INSERT INTO keys (id, cluster_id, username, found_id, spec, usage, state, description, created, current_version)
             VALUES (?, ?, ?, ?, ?, ?, 'ENABLED', '', ?, ?)",
        )
        .bind(id)
        .bind(cluster)
        .bind(user)
        .bind(&*found.cka_id)
        .bind(found.kind.spec().as_str())
        .bind(found.kind.usage().as_str())
        .bind(millis(found.found))
        .bind(KeyVersion::FIRST.0)
        .execute(&mut *change)
        .await?;
        // The probe that was made with it is a use.
        sqlx::query("INSERT INTO key_versions (key_id, version, probe, uses_reserved, created) VALUES (?, ?, ?, 1, ?)")
            .bind(id)
            .bind(KeyVersion::FIRST.0)
            .bind(found.probe.0.as_slice())
            .bind(millis(found.found))
            .execute(&mut *change)
            .await?;
        let places = found.on.iter().map(|hsm| (hsm, Proof::Used));
        for (hsm, proof) in places.chain(found.others.iter().map(|hsm| (hsm, Proof::Unknown))) {
            let place = (&found.user.cluster, hsm);
            put_presence(&mut *change, found.id, KeyVersion::FIRST, place, proof, found.found).await?;
        }
        change.commit().await?;
        Ok(AdoptedKey::Adopted)
    }

    /// The key that was found under this `CKA_ID` before.
    pub async fn found_key(&self, user: &CryptoUser, cka_id: &[u8]) -> Result<Option<KeyId>, Unavailable> {
        let found = sqlx::query(
            "SELECT id FROM keys WHERE cluster_id = ? AND username = ? AND found_id = ? AND found_id IS NOT NULL",
        );
        let found = found.bind(user.cluster.as_str()).bind(user.username.as_str()).bind(cka_id);
        found.fetch_optional(&self.0.read).await?.map(|row| key_id(&row, "id")).transpose()
    }

    /// A found key is destroyed wherever it was.
    pub async fn forget_found_key(&self, user: &CryptoUser, key: KeyId) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM keys WHERE id = ? AND cluster_id = ? AND username = ? AND found_id IS NOT NULL")
            .bind(key.as_bytes().as_slice())
            .bind(user.cluster.as_str())
            .bind(user.username.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }
}
