//! What a cluster must be like before a key store may stand on it. Pure: a cluster's settings in, what is missing out.

use std::collections::BTreeSet;

use crate::cluster;
use crate::model::TrustAnchor;

/// A prerequisite that is not met, in words an operator can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error("the cluster's subnets are in fewer than two availability zones; declare a subnet in another zone")]
    SubnetsInOneZone,
    #[error("the cluster must contain HSMs in at least two availability zones; it has {hsms} in {zones}")]
    TooFewHsms { hsms: usize, zones: usize },
    #[error("the cluster has no HSM; add one")]
    NoHsm,
}

/// AWS wants two HSMs in two zones before a key store is made.
pub fn to_create(cluster: &cluster::Settings) -> Result<(), Unmet> {
    subnets_span_zones(cluster)?;
    let zones: BTreeSet<_> = cluster.nodes.values().map(|node| &node.zone).collect();
    if cluster.nodes.len() < 2 || zones.len() < 2 {
        return Err(Unmet::TooFewHsms { hsms: cluster.nodes.len(), zones: zones.len() });
    }
    Ok(())
}

/// One HSM suffices to connect.
pub fn to_connect(cluster: &cluster::Settings) -> Result<(), Unmet> {
    subnets_span_zones(cluster)?;
    if cluster.nodes.is_empty() { Err(Unmet::NoHsm) } else { Ok(()) }
}

/// Whether this is the certificate the cluster was initialised with.
pub fn is_trust_anchor_of(cluster: &cluster::Settings, uploaded: &TrustAnchor) -> bool {
    cluster.trust_anchor.as_ref().is_some_and(|own| own == uploaded)
}

fn subnets_span_zones(cluster: &cluster::Settings) -> Result<(), Unmet> {
    let zones: BTreeSet<_> = cluster.subnets.values().map(|subnet| &subnet.zone).collect();
    if zones.len() < 2 { Err(Unmet::SubnetsInOneZone) } else { Ok(()) }
}
