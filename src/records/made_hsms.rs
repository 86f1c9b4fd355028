//! The HSMs of clusters that were made through keyway: added, in use, and removed when every key is elsewhere.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteExecutor, Transaction};

use crate::model::{
    CertificateRequest, ClusterId, ClusterState, HostName, HsmId, HsmPlace, HsmState, KeyStoreId, PasswordVersion,
    Ports, SubnetId, Username,
};

use super::crypto_users::{forget_users_on_none, give_pending_users};
use super::row::{json, number, parsed};
use super::{Records, Unavailable, made_clusters};

/// An HSM of such a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeHsm {
    pub subnet: SubnetId,
    pub state: HsmState,
    pub place: HsmPlace,
}

/// What became of an HSM that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedHsm {
    Added,
    /// One of this id is there.
    Exists(MadeHsm),
    /// This one is behind that address.
    AddressTaken(ClusterId, HsmId),
    Full,
    NoCluster,
}

/// What became of an HSM that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BegunRemoval {
    /// It is DELETE_IN_PROGRESS, now or before, or DELETED already.
    Begun,
    NotFound,
    /// It is the last one that this key store has.
    LastOf(KeyStoreId),
    /// So many keys would be on fewer than so many HSMs.
    KeysLeft {
        keys: u64,
        needed: u32,
    },
}

impl Records {
    /// Adds an HSM, CREATE_IN_PROGRESS. With the first one the cluster has a request. Crypto users whose present password is
    /// still known, since another HSM is to be given it, are given to this one as well.
    pub async fn add_made_hsm(
        &self,
        id: &ClusterId,
        hsm: &HsmId,
        new: &MadeHsm,
        request: &CertificateRequest,
        most: usize,
    ) -> Result<AddedHsm, Unavailable> {
        let mut change = self.begin().await?;
        let Some(cluster) = made_clusters::read(&mut change, id).await? else { return Ok(AddedHsm::NoCluster) };
        if let Some(twin) = cluster.hsms.get(hsm) {
            return Ok(AddedHsm::Exists(twin.clone()));
        }
        if cluster.hsms.len() >= most {
            return Ok(AddedHsm::Full);
        }
        let (address, ports) = match &new.place {
            HsmPlace::Here => (None, None),
            HsmPlace::There { address, ports } => (Some(address.as_str()), Some(*ports)),
        };
        let behind_it = sqlx::query("SELECT * FROM made_hsms WHERE address = ? AND session_port = ?")
            .bind(address)
            .bind(ports.map(|ports| ports.sessions))
            .fetch_optional(&mut *change)
            .await?;
        if let Some(row) = behind_it {
            return Ok(AddedHsm::AddressTaken(parsed(&row, "cluster_id")?, parsed(&row, "hsm_id")?));
        }
        sqlx::query(
            "INSERT INTO made_hsms
             (cluster_id, hsm_id, subnet_id, state, address, session_port, identity_port, administration_port)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id.as_str())
        .bind(hsm.as_str())
        .bind(new.subnet.to_string())
        .bind(new.state.as_str())
        .bind(address)
        .bind(ports.map(|ports| ports.sessions))
        .bind(ports.map(|ports| ports.identity))
        .bind(ports.map(|ports| ports.administration))
        .execute(&mut *change)
        .await?;
        if cluster.state == ClusterState::Uninitialized && cluster.request.is_none() {
            sqlx::query("UPDATE made_clusters SET request = ? WHERE cluster_id = ?")
                .bind(request.pem())
                .bind(id.as_str())
                .execute(&mut *change)
                .await?;
        }
        give_pending_users(&mut change, id, hsm).await?;
        change.commit().await?;
        Ok(AddedHsm::Added)
    }

    /// The HSM can be used from now on, with the kmsuser of this key store, or without one. `false` when the cluster has
    /// another key store meanwhile, or that one another password, and nothing was changed.
    pub async fn made_hsm_is_ready(
        &self,
        id: &ClusterId,
        hsm: &HsmId,
        store: Option<(&KeyStoreId, PasswordVersion)>,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let now: Option<(String, u32)> =
            sqlx::query_as("SELECT id, password_version FROM key_stores WHERE cluster_id = ?")
                .bind(id.as_str())
                .fetch_optional(&mut *change)
                .await?;
        if now != store.map(|(id, version)| (id.to_string(), version.0)) {
            return Ok(false);
        }
        move_hsm(&mut *change, (id, hsm), HsmState::CreateInProgress, HsmState::Active).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The HSM is to go, unless a key that it may hold would then be on fewer of the others than `quorum`, or than there are.
    /// Of these only such count as are `in_service`: what was proved on one that is away may be lost. None at all is too few
    /// for a key store.
    pub async fn begin_removing_made_hsm(
        &self,
        id: &ClusterId,
        hsm: &HsmId,
        quorum: u32,
        in_service: &[HsmId],
    ) -> Result<BegunRemoval, Unavailable> {
        let mut change = self.begin().await?;
        let hsms = of_cluster(&mut change, id).await?;
        match hsms.get(hsm).map(|hsm| hsm.state) {
            None => return Ok(BegunRemoval::NotFound),
            Some(HsmState::DeleteInProgress | HsmState::Deleted) => return Ok(BegunRemoval::Begun),
            Some(_) => {}
        }
        let others = hsms.iter().filter(|(id, other)| *id != hsm && other.state == HsmState::Active).count();
        let needed = quorum.min(u32::try_from(others).unwrap_or(u32::MAX)).max(1);
        let store: Option<String> = sqlx::query_scalar("SELECT id FROM key_stores WHERE cluster_id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *change)
            .await?;
        if let (Some(store), 0) = (store, others) {
            return Ok(BegunRemoval::LastOf(store.parse().map_err(|_| Unavailable::row("id"))?));
        }
        let keys = keys_on_fewer(&mut change, id, hsm, needed, in_service).await?;
        if keys > 0 {
            return Ok(BegunRemoval::KeysLeft { keys, needed });
        }
        sqlx::query("UPDATE made_hsms SET state = ? WHERE cluster_id = ? AND hsm_id = ?")
            .bind(HsmState::DeleteInProgress.as_str())
            .bind(id.as_str())
            .bind(hsm.as_str())
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(BegunRemoval::Begun)
    }

    /// The HSM is DELETED, and may be destroyed, unless keys that it may hold are on no other one `in_service`: how many.
    pub async fn give_up_made_hsm(
        &self,
        id: &ClusterId,
        hsm: &HsmId,
        in_service: &[HsmId],
    ) -> Result<u64, Unavailable> {
        let mut change = self.begin().await?;
        let keys = keys_on_fewer(&mut change, id, hsm, 1, in_service).await?;
        if keys == 0 {
            move_hsm(&mut *change, (id, hsm), HsmState::DeleteInProgress, HsmState::Deleted).await?;
            change.commit().await?;
        }
        Ok(keys)
    }

    /// The HSM is not to go after all.
    pub async fn keep_made_hsm(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        move_hsm(&self.0.write, (id, hsm), HsmState::DeleteInProgress, HsmState::Active).await
    }

    /// Nothing is left of the HSM, and nothing is known of it any more. Crypto users who were on no other one are gone with it.
    pub async fn forget_made_hsm(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        for traces in [
            "DELETE FROM presences WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM drifts WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM tokens WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM logins WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM node_passwords WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM password_checks WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM drained_hsms WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM crypto_user_hsms WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM destroyed_keys WHERE cluster_id = ? AND hsm_id = ?",
            "DELETE FROM key_rotation_hsms WHERE key_id IN (SELECT key_id FROM key_rotations WHERE cluster_id = ?)
             AND hsm_id = ?",
            "DELETE FROM made_hsms WHERE cluster_id = ? AND hsm_id = ?",
        ] {
            sqlx::query(traces).bind(id.as_str()).bind(hsm.as_str()).execute(&mut *change).await?;
        }
        forget_users_on_none(&mut change, id).await?;
        for traces in [
            // Nobody was told of them, and nowhere may be anything of them.
            "DELETE FROM keys WHERE cluster_id = ?1 AND state = 'CREATING'
             AND NOT EXISTS (SELECT 1 FROM presences WHERE key_id = keys.id)",
            // A request is made anew for HSMs that come later.
            "UPDATE made_clusters SET request = NULL WHERE cluster_id = ?1 AND NOT EXISTS
             (SELECT 1 FROM made_hsms WHERE cluster_id = ?1)",
        ] {
            sqlx::query(traces).bind(id.as_str()).execute(&mut *change).await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// kmsuser is on this HSM, whole: it was made there for the key store. Said only of one that keyway knows.
    pub async fn kmsuser_is_on(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), Unavailable> {
        sqlx::query(
            "INSERT INTO crypto_user_hsms (cluster_id, username, hsm_id, given, unlock)
             SELECT cluster_id, username, ?, TRUE, FALSE FROM crypto_users WHERE cluster_id = ? AND username = ?
             ON CONFLICT (cluster_id, username, hsm_id) DO UPDATE SET given = TRUE, pending = NULL",
        )
        .bind(hsm.as_str())
        .bind(id.as_str())
        .bind(Username::kmsuser().as_str())
        .execute(&self.0.write)
        .await?;
        Ok(())
    }
}

/// Nothing, when it is in another state.
async fn move_hsm(
    database: impl SqliteExecutor<'_>,
    (cluster, hsm): (&ClusterId, &HsmId),
    from: HsmState,
    to: HsmState,
) -> Result<(), Unavailable> {
    sqlx::query("UPDATE made_hsms SET state = ? WHERE cluster_id = ? AND hsm_id = ? AND state = ?")
        .bind(to.as_str())
        .bind(cluster.as_str())
        .bind(hsm.as_str())
        .bind(from.as_str())
        .execute(database)
        .await?;
    Ok(())
}

/// How many acknowledged keys of the cluster have a version that this HSM may hold, and that is proved on fewer than `needed`
/// of the others that are in use and `in_service`.
async fn keys_on_fewer(
    change: &mut Transaction<'_, Sqlite>,
    id: &ClusterId,
    hsm: &HsmId,
    needed: u32,
    in_service: &[HsmId],
) -> Result<u64, Unavailable> {
    let keys: i64 = sqlx::query_scalar(
        "SELECT count(DISTINCT v.key_id) FROM keys k JOIN key_versions v ON v.key_id = k.id
         WHERE k.cluster_id = ?1 AND k.state <> 'CREATING'
           AND EXISTS (SELECT 1 FROM presences p
              WHERE p.key_id = v.key_id AND p.version = v.version AND p.cluster_id = ?1 AND p.hsm_id = ?2)
           AND ?3 >
             (SELECT count(*) FROM presences p JOIN made_hsms h ON h.cluster_id = p.cluster_id AND h.hsm_id = p.hsm_id
              WHERE p.key_id = v.key_id AND p.version = v.version AND p.cluster_id = ?1 AND p.hsm_id <> ?2
                AND p.proof = 'USED' AND h.state = 'ACTIVE' AND p.hsm_id IN (SELECT value FROM json_each(?4)))",
    )
    .bind(id.as_str())
    .bind(hsm.as_str())
    .bind(needed)
    .bind(json(in_service))
    .fetch_one(&mut **change)
    .await?;
    Ok(u64::try_from(keys).unwrap_or(0))
}

pub(super) async fn of_cluster(
    change: &mut Transaction<'_, Sqlite>,
    id: &ClusterId,
) -> Result<BTreeMap<HsmId, MadeHsm>, Unavailable> {
    let rows =
        sqlx::query("SELECT * FROM made_hsms WHERE cluster_id = ?").bind(id.as_str()).fetch_all(&mut **change).await?;
    rows.iter().map(|row| Ok((parsed(row, "hsm_id")?, hsm(row)?))).collect()
}

fn hsm(row: &SqliteRow) -> Result<MadeHsm, Unavailable> {
    let is_elsewhere = row.try_get::<Option<String>, _>("address")?.is_some();
    let address = || parsed::<HostName>(row, "address");
    let port = |column| u16::try_from(number(row, column)?).map_err(|_| Unavailable::row(column));
    let there = || {
        let ports = Ports {
            sessions: port("session_port")?,
            identity: port("identity_port")?,
            administration: port("administration_port")?,
        };
        Ok::<_, Unavailable>(HsmPlace::There { address: address()?, ports })
    };
    Ok(MadeHsm {
        subnet: parsed(row, "subnet_id")?,
        state: parsed(row, "state")?,
        place: if is_elsewhere { there()? } else { HsmPlace::Here },
    })
}
