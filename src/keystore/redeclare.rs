//! Other clusters are declared while the daemon runs.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::cluster::{self, Declared, differences};
use crate::model::ClusterId;
use crate::records::Unavailable;

use super::KeyStores;
use super::facts::{lineages, remember_lineages};

impl KeyStores {
    /// Exchanges the declared clusters: what changed, a line each. Connections follow by themselves, each in its own time. A store that is CONNECTED and could have none, since its cluster was not declared, gets one.
    pub async fn redeclare(
        &self,
        clusters: BTreeMap<ClusterId, cluster::Settings>,
    ) -> Result<Vec<String>, Unavailable> {
        let changes = self.exchange(clusters).await?;
        for store in self.list() {
            if let Err(error) = self.remember_realm(&store).await {
                tracing::error!(key_store = %store.id(), %error, "SIGHUP: its region and account could not be written down");
            }
            if let Err(error) = self.log_in_again(&store).await {
                tracing::error!(key_store = %store.id(), %error, "SIGHUP: its HSMs could not be logged in to");
            }
        }
        Ok(changes)
    }

    async fn exchange(&self, clusters: BTreeMap<ClusterId, cluster::Settings>) -> Result<Vec<String>, Unavailable> {
        // Nobody ties a key store to a cluster by what was declared a moment ago.
        let _tying = self.0.tying.lock().await;
        let known: Vec<_> = clusters.iter().map(|(id, cluster)| (id.clone(), cluster.lineages(id))).collect();
        remember_lineages(&self.0.records, known).await?;
        // Those that are declared no more are remembered as they were last.
        let last = lineages(&self.0.clusters);
        self.0.lineages.write().unwrap_or_else(PoisonError::into_inner).extend(last);
        let before = self.0.clusters.exchange(clusters);
        Ok(differences(&before, &self.0.clusters.all()))
    }

    /// What everybody reads the declared clusters from.
    pub fn declared(&self) -> &Declared {
        &self.0.clusters
    }
}
