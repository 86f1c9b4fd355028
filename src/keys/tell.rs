//! Keys in metrics.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::ClusterId;
use crate::records::Difference;
use crate::telemetry::{Page, catalogue};

use super::Keys;

/// So many differences of a cluster are counted.
const MOST_COUNTED: u32 = 1_000;
/// Records that hang are waited for so long: what is told without them tells that they do.
const RECORDS_PATIENCE: Duration = Duration::from_secs(2);

impl Keys {
    /// What the records do not tell at the moment is left out: a page without it says that as well.
    pub async fn tell(&self, page: &mut Page, clusters: &[ClusterId]) {
        page.count(&catalogue::HELD_BACK, [], self.0.holdback.refused());
        page.level(&catalogue::SUSPECTS, [], self.0.holdback.held(Instant::now()) as f64);
        // What was told by then stays.
        let _late = tokio::time::timeout(RECORDS_PATIENCE, self.tell_recorded(page, clusters)).await;
    }

    async fn tell_recorded(&self, page: &mut Page, clusters: &[ClusterId]) {
        for store in self.0.stores.list() {
            if let Ok(keys) = self.count(&store.id()).await {
                page.level(&catalogue::KEY_STORE_KEYS, [store.id().as_str()], keys as f64);
            }
        }
        for cluster in clusters {
            let Ok(found) = self.drifts(cluster, None, MOST_COUNTED).await else { continue };
            let (mut unproven, mut odd, mut destroyed) = (0, 0, 0);
            for drift in &found.drifts {
                match drift.difference {
                    Difference::Unproven { .. } => unproven += 1,
                    Difference::Odd(_) => odd += 1,
                    Difference::Destroyed { .. } => destroyed += 1,
                }
            }
            page.level(&catalogue::DRIFT, [cluster.as_str(), "missing"], f64::from(unproven));
            page.level(&catalogue::DRIFT, [cluster.as_str(), "unexpected"], f64::from(odd));
            page.level(&catalogue::DRIFT, [cluster.as_str(), "awaiting_deletion"], f64::from(destroyed));
        }
    }
}
