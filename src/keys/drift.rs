//! Where records and HSMs disagree, told from the records as it was last seen.

use crate::authz::{Permit, action};
use crate::keystore;
use crate::model::{ClusterId, HsmId};
use crate::records::{Difference, DriftCursor, DriftRecord};

use super::{Error, Keys};

/// A page of differences, and where the next one begins if there is one.
#[derive(Debug)]
pub struct Drifts {
    pub drifts: Vec<DriftRecord>,
    pub next: Option<DriftCursor>,
}

impl Keys {
    /// The differences of a cluster, oldest first.
    pub async fn list_drift(
        &self,
        _permit: Permit<action::ListDrift>,
        cluster: &ClusterId,
        after: Option<&DriftCursor>,
        limit: u32,
    ) -> Result<Drifts, Error> {
        let hsms = self.nodes_of(cluster)?;
        // One more than asked for tells whether there is a next page.
        let mut found = self.0.records.list_drifts(cluster, &hsms, after, limit + 1).await?;
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let next = found.last().filter(|_| more).map(|(cursor, _)| cursor.clone());
        // A key on its way to its last node is nobody's difference yet.
        let being_made = self.lock_creating().clone();
        let is_made = |drift: &DriftRecord| match &drift.difference {
            Difference::Unproven { key, .. } => !being_made.contains(key),
            Difference::Odd(_) | Difference::Destroyed { .. } => true,
        };
        let drifts = found.into_iter().map(|(_, drift)| drift).filter(is_made).collect();
        Ok(Drifts { drifts, next })
    }

    /// The nodes that the operator declares of a cluster.
    fn nodes_of(&self, cluster: &ClusterId) -> Result<Vec<HsmId>, Error> {
        match self.0.clusters.get(cluster) {
            Some(settings) => Ok(settings.nodes.keys().cloned().collect()),
            None => Err(keystore::Error::ClusterNotFound(cluster.clone()).into()),
        }
    }
}
