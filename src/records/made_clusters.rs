//! Clusters that were made through keyway: what they are, and where they are in their lives.

use std::collections::BTreeMap;
use std::time::SystemTime;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::model::{
    Certificate, CertificateRequest, ClusterId, ClusterState, HsmId, Realm, SubnetId, TrustAnchor, Zone,
};

use super::made_hsms::{self, MadeHsm};
use super::row::{millis, parsed};
use super::{Records, Unavailable};

/// A cluster that was made through keyway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeClusterRecord {
    pub id: ClusterId,
    pub realm: Realm,
    pub state: ClusterState,
    /// There from the first HSM until the cluster is initialized.
    pub request: Option<CertificateRequest>,
    /// What the cluster was initialized with: its own certificate, and its owner's authority.
    pub initialized: Option<(Certificate, TrustAnchor)>,
    pub subnets: BTreeMap<SubnetId, Zone>,
    pub hsms: BTreeMap<HsmId, MadeHsm>,
}

/// A cluster that is to be made.
#[derive(Debug)]
pub struct NewCluster {
    pub id: ClusterId,
    pub realm: Realm,
    pub subnets: BTreeMap<SubnetId, Zone>,
    pub created: SystemTime,
    /// Who asks.
    pub caller: String,
    pub request_id: Option<String>,
}

/// What became of one that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedCluster {
    Added,
    /// The caller's request of this id made one before.
    Repeated(Box<MadeClusterRecord>),
    /// There are as many as there may be.
    Full,
}

impl Records {
    /// Adds a cluster without HSMs.
    pub async fn add_made_cluster(&self, new: &NewCluster, quota: u32) -> Result<AddedCluster, Unavailable> {
        let mut change = self.begin().await?;
        let former = sqlx::query("SELECT * FROM made_clusters WHERE caller = ? AND request_id = ?")
            .bind(&new.caller)
            .bind(&new.request_id)
            .fetch_optional(&mut *change)
            .await?;
        if let Some(row) = former {
            return Ok(AddedCluster::Repeated(Box::new(whole(&mut change, &row).await?)));
        }
        let clusters: i64 = sqlx::query_scalar("SELECT count(*) FROM made_clusters").fetch_one(&mut *change).await?;
        if clusters >= i64::from(quota) {
            return Ok(AddedCluster::Full);
        }
        sqlx::query(
            "INSERT INTO made_clusters (cluster_id, region, account, state, created, caller, request_id)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(new.id.as_str())
        .bind(new.realm.region.as_str())
        .bind(new.realm.account.as_str())
        .bind(ClusterState::Uninitialized.as_str())
        .bind(millis(new.created))
        .bind(&new.caller)
        .bind(&new.request_id)
        .execute(&mut *change)
        .await?;
        for (subnet, zone) in &new.subnets {
            sqlx::query("INSERT INTO made_subnets (cluster_id, subnet_id, zone) VALUES (?, ?, ?)")
                .bind(new.id.as_str())
                .bind(subnet.to_string())
                .bind(zone.as_str())
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(AddedCluster::Added)
    }

    /// Every cluster that was made through keyway, by its id.
    pub async fn made_clusters(&self) -> Result<Vec<MadeClusterRecord>, Unavailable> {
        let mut read_only = self.0.read.begin().await?;
        let rows = sqlx::query("SELECT * FROM made_clusters ORDER BY cluster_id").fetch_all(&mut *read_only).await?;
        let mut clusters = Vec::with_capacity(rows.len());
        for row in &rows {
            clusters.push(whole(&mut read_only, row).await?);
        }
        Ok(clusters)
    }

    pub async fn made_cluster(&self, id: &ClusterId) -> Result<Option<MadeClusterRecord>, Unavailable> {
        let mut read_only = self.0.read.begin().await?;
        read(&mut read_only, id).await
    }

    /// INITIALIZED from now on, with what came of its request. `false` when it is not UNINITIALIZED with this very request.
    pub async fn initialize_made_cluster(
        &self,
        id: &ClusterId,
        request: &CertificateRequest,
        certificate: &Certificate,
        trust_anchor: &TrustAnchor,
    ) -> Result<bool, Unavailable> {
        let changed = sqlx::query(
            "UPDATE made_clusters SET state = ?, request = NULL, certificate = ?, trust_anchor = ?
             WHERE cluster_id = ? AND state = ? AND request = ?",
        )
        .bind(ClusterState::Initialized.as_str())
        .bind(certificate.pem())
        .bind(trust_anchor.pem())
        .bind(id.as_str())
        .bind(ClusterState::Uninitialized.as_str())
        .bind(request.pem())
        .execute(&self.0.write)
        .await?;
        Ok(changed.rows_affected() > 0)
    }
}

/// Its first crypto user is being made, which activates it.
pub(super) async fn activate(change: &mut Transaction<'_, Sqlite>, id: &ClusterId) -> Result<(), Unavailable> {
    sqlx::query("UPDATE made_clusters SET state = ? WHERE cluster_id = ? AND state = ?")
        .bind(ClusterState::Active.as_str())
        .bind(id.as_str())
        .bind(ClusterState::Initialized.as_str())
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(super) async fn read(
    change: &mut Transaction<'_, Sqlite>,
    id: &ClusterId,
) -> Result<Option<MadeClusterRecord>, Unavailable> {
    let row = sqlx::query("SELECT * FROM made_clusters WHERE cluster_id = ?")
        .bind(id.as_str())
        .fetch_optional(&mut **change)
        .await?;
    match row {
        Some(row) => Ok(Some(whole(change, &row).await?)),
        None => Ok(None),
    }
}

async fn whole(change: &mut Transaction<'_, Sqlite>, row: &SqliteRow) -> Result<MadeClusterRecord, Unavailable> {
    let id: ClusterId = parsed(row, "cluster_id")?;
    let subnets = sqlx::query("SELECT * FROM made_subnets WHERE cluster_id = ?")
        .bind(id.as_str())
        .fetch_all(&mut **change)
        .await?;
    let subnets = subnets.iter().map(|row| Ok((parsed(row, "subnet_id")?, parsed(row, "zone")?)));
    Ok(MadeClusterRecord {
        realm: Realm { region: parsed(row, "region")?, account: parsed(row, "account")? },
        state: parsed(row, "state")?,
        request: pem(row, "request", CertificateRequest::parse)?,
        initialized: pem(row, "certificate", Certificate::parse)?.zip(pem(row, "trust_anchor", TrustAnchor::parse)?),
        subnets: subnets.collect::<Result<_, Unavailable>>()?,
        hsms: made_hsms::of_cluster(change, &id).await?,
        id,
    })
}

fn pem<T, E>(
    row: &SqliteRow,
    column: &'static str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Unavailable> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| parse(&text).map_err(|_| Unavailable::row(column))).transpose()
}
