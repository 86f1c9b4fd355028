//! Other clusters are declared while the daemon runs: the configuration's by a reload, those that keyway makes by each
//! change of one.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::cluster::{self, Declared, Undeclarable, differences};
use crate::model::ClusterId;
use crate::records::Unavailable;

use super::KeyStores;
use super::facts::{lineages, remember_lineages};

/// Why the clusters stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum NotExchanged {
    #[error(transparent)]
    Undeclarable(#[from] Undeclarable),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl KeyStores {
    /// Exchanges the configured clusters: what changed, a line each. Connections follow by themselves, each in its own time.
    /// A store that is CONNECTED and could have none, since its cluster was not declared, gets one.
    pub async fn redeclare(
        &self,
        clusters: BTreeMap<ClusterId, cluster::Settings>,
    ) -> Result<Vec<String>, NotExchanged> {
        let changes = {
            // Nobody ties a key store to a cluster by what was declared a moment ago.
            let _tying = self.0.tying.lock().await;
            self.0.clusters.allows(&clusters)?;
            let known = clusters.iter().map(|(id, cluster)| (id.clone(), cluster.lineages(id)));
            remember_lineages(&self.0.records, known.collect::<Vec<_>>()).await?;
            self.remember_last_lineages();
            let before = self.0.clusters.exchange_configured(clusters)?;
            differences(&before, &self.0.clusters.all())
        };
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

    /// Reads the clusters that keyway made again: one of them was changed in the records.
    pub async fn redeclare_made(&self) -> Result<(), Unavailable> {
        let _tying = self.0.tying.lock().await;
        let made = self.0.records.made_clusters().await?;
        self.0.clusters.exchange_made(made);
        remember_lineages(&self.0.records, lineages(&self.0.clusters)).await?;
        self.0.listed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Those that are declared no more are remembered as they were last.
    fn remember_last_lineages(&self) {
        let last = lineages(&self.0.clusters);
        self.0.lineages.write().unwrap_or_else(PoisonError::into_inner).extend(last);
    }

    /// What everybody reads the declared clusters from.
    pub fn declared(&self) -> &Declared {
        &self.0.clusters
    }
}
