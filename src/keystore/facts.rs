//! What the prerequisites are to know: the cluster as it is declared now, the key stores, the HSMs as far as anybody looked.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::cluster::{self, Connection, Declared, Lineage};
use crate::host::{DialError, Location};
use crate::model::{ClusterId, HsmId, TrustAnchor};
use crate::node::{Health, Reach};
use crate::records::{Records, Unavailable};

use super::prerequisites::{self, Facts, Login, Service, Tie, Unmet};
use super::{Error, KeyStores};

impl KeyStores {
    /// What is known of a cluster now. Whoever asks on somebody's behalf adds what that one said.
    pub fn facts(&self, id: &ClusterId) -> Facts {
        let cluster = self.0.clusters.get(id);
        let connection = self.connection_on(id);
        let hsms = cluster.iter().flat_map(|cluster| cluster.nodes.keys());
        let hsms = hsms.map(|hsm| (hsm.clone(), self.service(id, hsm, connection.as_deref()))).collect();
        Facts {
            id: id.clone(),
            lineage: self.lineage(id),
            ties: self.ties(),
            quota: self.0.settings.quota,
            hsms,
            cluster,
            name: None,
            trust_anchor: None,
            strangers: BTreeMap::new(),
            password: None,
            login: Login::not_asked(),
            moving: None,
        }
    }

    /// Whether the cluster is declared as one on which keys can be made. One that is not declared any more is judged by
    /// its HSMs alone.
    pub fn may_create_key(&self, id: &ClusterId) -> Result<(), Error> {
        prerequisites::to_create_key(&self.facts(id)).map_err(|unmet| Error::of(id, unmet))
    }

    /// What must hold a new key there.
    pub fn quorum(&self, id: &ClusterId) -> cluster::Quorum {
        self.0.clusters.get(id).map_or(cluster::Quorum::USUAL, |cluster| cluster.quorum())
    }

    /// Asks the cluster's nodes on other hosts who they are: those that answer and are not under this trust anchor, and why.
    pub(super) async fn strangers(&self, id: &ClusterId, anchor: &TrustAnchor) -> BTreeMap<HsmId, String> {
        let Some(cluster) = self.0.clusters.get(id) else { return BTreeMap::new() };
        let asked = cluster.active_nodes().filter_map(|(hsm, settings)| match &settings.location {
            Location::Here(_) => None,
            Location::There(node) => Some(async move {
                match self.0.host.believe(node, anchor).await {
                    Err(error @ DialError::Untrusted(_)) => Some((hsm.clone(), error.to_string())),
                    Ok(()) | Err(DialError::Failed(_)) => None,
                }
            }),
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    fn ties(&self) -> Vec<Tie> {
        let records = self.list().into_iter().map(|store| store.record());
        let tie = |record: crate::records::KeyStoreRecord| Tie {
            lineage: self.lineage(&record.cluster),
            store: record.id,
            name: record.name,
            state: record.state,
            cluster: record.cluster,
        };
        records.map(tie).collect()
    }

    /// As it is declared now, or was last.
    fn lineage(&self, id: &ClusterId) -> Lineage {
        let declared = self.0.clusters.get(id).map(|cluster| cluster.lineage(id));
        let remembered = || self.0.lineages.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        declared.or_else(remembered).unwrap_or_else(|| Lineage::of_nobody_but(id))
    }

    fn service(&self, id: &ClusterId, hsm: &HsmId, connection: Option<&Connection>) -> Service {
        if let Some(note) = self.drained(id, hsm) {
            return Service::OutOfUse(note);
        }
        let Some(member) = connection.and_then(|connection| connection.member(hsm)) else {
            return match self.reach(id, hsm) {
                None => Service::Unknown,
                Some(Reach::Reached(_)) => Service::Reachable,
                Some(Reach::Unreached(why)) => Service::Unreachable(why),
            };
        };
        let status = member.node.status().borrow().clone();
        match status.health {
            Health::NotProbed => Service::Unknown,
            Health::Unreachable => Service::Unreachable(status.reason),
            Health::Drained => Service::OutOfUse(status.reason),
            Health::Healthy | Health::Slow | Health::Syncing if member.is_proved() => Service::Answers,
            Health::Healthy | Health::Slow | Health::Syncing | Health::LoginRefused | Health::WrongIdentity => {
                Service::NotYet(status.reason)
            }
        }
    }

    pub(super) fn connection_on(&self, cluster: &ClusterId) -> Option<Arc<Connection>> {
        self.on_cluster(cluster).and_then(|store| store.nodes().borrow().clone())
    }
}

/// Writes down which lineage each declared cluster has, so that it is known when the cluster is not declared any more.
pub(super) async fn remember_lineages(
    records: &Records,
    declared: impl IntoIterator<Item = (ClusterId, Lineage)> + Send,
) -> Result<(), Unavailable> {
    let texts: Vec<_> = declared.into_iter().map(|(id, lineage)| (id, lineage.to_string())).collect();
    records.remember_lineages(&texts).await
}

/// The lineages of the declared clusters.
pub(super) fn lineages(declared: &Declared) -> Vec<(ClusterId, Lineage)> {
    declared.all().iter().map(|(id, cluster)| (id.clone(), cluster.lineage(id))).collect()
}

impl Error {
    /// What a caller is told when a prerequisite is not met.
    pub fn of(id: &ClusterId, unmet: Unmet) -> Self {
        let cluster = id.clone();
        match unmet {
            Unmet::NameInUse(name) => Self::NameInUse(name),
            Unmet::QuotaReached(quota) => Self::QuotaReached(quota),
            Unmet::NotFound => Self::ClusterNotFound(cluster),
            Unmet::Tied(_) => Self::ClusterInUse(cluster),
            Unmet::RelativeTied { .. } => Self::RelativeInUse { cluster, unmet },
            Unmet::NotRelated(_) => Self::ClusterNotRelated { cluster, unmet },
            Unmet::NotActive { .. } => Self::ClusterNotActive { cluster, unmet },
            Unmet::IncorrectTrustAnchor => Self::IncorrectTrustAnchor(cluster),
            Unmet::NotUnderTrustAnchor { .. } => Self::NotUnderTrustAnchor { cluster, unmet },
            Unmet::SubnetsInTooFewZones { .. }
            | Unmet::Closed { .. }
            | Unmet::TooFewHsms { .. }
            | Unmet::NoActiveHsm
            // What follows is seen only while connecting, or told by a check.
            | Unmet::AllOutOfUse
            | Unmet::UnreadableTrustAnchor(_)
            | Unmet::UnreadablePassword(_)
            | Unmet::SubnetGone(_)
            | Unmet::NoFreeAddress(_)
            | Unmet::OneFreeAddress(_)
            | Unmet::Unreachable { .. }
            | Unmet::LoginFailed { .. }
            | Unmet::TooFewAnswer { .. }
            | Unmet::NotConnected { .. }
            | Unmet::NobodyAnswers => Self::InvalidConfiguration { cluster, unmet },
        }
    }
}
