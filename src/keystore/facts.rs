//! What the prerequisites are to know: the cluster as it is declared now, the key stores, the HSMs as far as anybody looked.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::cluster::{self, Connection, Declared, Lineage, Lineages};
use crate::host::{DialError, Location};
use crate::model::{ClusterId, HsmId, TrustAnchor};
use crate::node::{Health, Reach};
use crate::records::{Records, Unavailable};

use super::prerequisites::{self, Facts, HsmStanding, Login, TiedKeyStore};
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
            lineages: self.lineages(id),
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
        Ok(prerequisites::to_create_key(&self.facts(id))?)
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

    fn ties(&self) -> Vec<TiedKeyStore> {
        let records = self.list().into_iter().map(|store| store.record());
        let tie = |record: crate::records::KeyStoreRecord| TiedKeyStore {
            lineages: self.lineages(&record.cluster),
            realm: record.realm,
            store: record.id,
            name: record.name,
            state: record.state,
            cluster: record.cluster,
        };
        records.map(tie).collect()
    }

    /// As they are declared now, or were last.
    fn lineages(&self, id: &ClusterId) -> Lineages {
        let declared = self.0.clusters.get(id).map(|cluster| cluster.lineages(id));
        let remembered = || self.0.lineages.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        declared.or_else(remembered).unwrap_or_else(|| [Lineage::of_nobody_but(id)].into_iter().collect())
    }

    fn service(&self, id: &ClusterId, hsm: &HsmId, connection: Option<&Connection>) -> HsmStanding {
        if let Some(note) = self.drained(id, hsm) {
            return HsmStanding::Drained(note);
        }
        let Some(member) = connection.and_then(|connection| connection.member(hsm)) else {
            return match self.reach(id, hsm) {
                None => HsmStanding::Unknown,
                Some(Reach::Reached(_)) => HsmStanding::Reachable,
                Some(Reach::Unreached(why)) => HsmStanding::Unreachable(why),
            };
        };
        let status = member.node.status().borrow().clone();
        match status.health {
            Health::NotProbed => HsmStanding::Unknown,
            Health::Unreachable => HsmStanding::Unreachable(status.reason),
            Health::Drained => HsmStanding::Drained(status.reason),
            Health::Healthy | Health::Slow | Health::Syncing if member.is_proved() => HsmStanding::Answers,
            Health::Healthy | Health::Slow | Health::Syncing | Health::LoginRefused | Health::WrongIdentity => {
                HsmStanding::NotYet(status.reason)
            }
        }
    }

    pub(super) fn connection_on(&self, cluster: &ClusterId) -> Option<Arc<Connection>> {
        self.on_cluster(cluster).and_then(|store| store.nodes().borrow().clone())
    }
}

/// Writes down which lineages each declared cluster has, so that they are known when the cluster is not declared any more.
pub(super) async fn remember_lineages(
    records: &Records,
    declared: impl IntoIterator<Item = (ClusterId, Lineages)> + Send,
) -> Result<(), Unavailable> {
    let texts = |lineages: Lineages| lineages.iter().map(Lineage::to_string).collect();
    let texts: Vec<_> = declared.into_iter().map(|(id, lineages)| (id, texts(lineages))).collect();
    records.remember_lineages(&texts).await
}

/// Those that were written down, of this daemon's clusters and of former ones.
pub(super) async fn remembered_lineages(records: &Records) -> Result<BTreeMap<ClusterId, Lineages>, Unavailable> {
    let mut by_cluster: BTreeMap<ClusterId, Vec<Lineage>> = BTreeMap::new();
    for (cluster, lineage) in records.lineages().await? {
        by_cluster.entry(cluster).or_default().push(lineage);
    }
    Ok(by_cluster.into_iter().map(|(cluster, lineages)| (cluster, lineages.into_iter().collect())).collect())
}

/// The lineages of the declared clusters.
pub(super) fn lineages(declared: &Declared) -> Vec<(ClusterId, Lineages)> {
    declared.all().iter().map(|(id, cluster)| (id.clone(), cluster.lineages(id))).collect()
}
