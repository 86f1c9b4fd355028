//! Which backups each cluster descends from, as it was last declared.

use std::str::FromStr;

use crate::model::ClusterId;

use super::row::parsed;
use super::{Records, Unavailable};

impl Records {
    /// Each cluster that was ever declared, once with each of its lineages.
    pub async fn lineages<L: FromStr>(&self) -> Result<Vec<(ClusterId, L)>, Unavailable> {
        let rows = sqlx::query("SELECT * FROM lineages ORDER BY cluster_id, lineage").fetch_all(&self.0.read).await?;
        rows.iter().map(|row| Ok((parsed(row, "cluster_id")?, parsed(row, "lineage")?))).collect()
    }

    /// All or none: so they are declared now, each with all its lineages.
    pub async fn remember_lineages(&self, declared: &[(ClusterId, Vec<String>)]) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        for (cluster, lineages) in declared {
            let former = sqlx::query("DELETE FROM lineages WHERE cluster_id = ?").bind(cluster.as_str());
            former.execute(&mut *change).await?;
            for lineage in lineages {
                sqlx::query("INSERT INTO lineages (cluster_id, lineage) VALUES (?, ?)")
                    .bind(cluster.as_str())
                    .bind(lineage)
                    .execute(&mut *change)
                    .await?;
            }
        }
        change.commit().await?;
        Ok(())
    }
}
