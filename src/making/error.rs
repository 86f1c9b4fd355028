//! Why a cluster or an HSM was not made or removed, named by what is to be done about it.

use std::fmt;

use crate::model::{ClusterId, ClusterState, HsmId, HsmState, KeyStoreId, SubnetId, Zone};
use crate::records::Unavailable;

/// Why a cluster or an HSM was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "this daemon makes no clusters: write a section [made_clusters] into its configuration, and start it again"
    )]
    NotConfigured,
    #[error(
        "this daemon shows no certificate to nodes on other hosts: write a section [node_client] into its configuration, and start it again"
    )]
    NoNodeClient,
    #[error("no cluster {0} is declared")]
    ClusterNotFound(ClusterId),
    #[error("cluster {0} is declared in the configuration: change it there, and send the daemon SIGHUP")]
    NotMade(ClusterId),
    #[error(
        "there are {0} clusters already, as many as made_clusters.quota allows; none can be deleted: use one that has no HSMs, or raise the quota"
    )]
    TooManyClusters(u32),
    #[error("another cluster was made with this request id; take another one")]
    RequestReused,
    #[error("cluster {cluster} is {state}, not UNINITIALIZED: it was initialized with other certificates, for good")]
    Initialized { cluster: ClusterId, state: ClusterState },
    #[error("cluster {0} has no certificate request yet: add its first HSM, and sign the one that it has then")]
    NothingToSign(ClusterId),
    #[error("{0} {1}")]
    Certificate(Certificate, String),
    #[error(
        "trust_anchor_certificate did not issue signed_certificate; give the certificate of the authority that signed the cluster's request"
    )]
    NotIssued,
    #[error("cluster {cluster} has no subnet {subnet}; it has {}", list(.subnets))]
    SubnetNotFound { cluster: ClusterId, subnet: SubnetId, subnets: Vec<SubnetId> },
    #[error("cluster {cluster} has no subnet in {zone}; name one of its zones: {}", list(.zones))]
    ZoneNotFound { cluster: ClusterId, zone: Zone, zones: Vec<Zone> },
    #[error("cluster {cluster} has an HSM {hsm} already, in another place")]
    HsmExists { cluster: ClusterId, hsm: HsmId },
    #[error("{hsm} of cluster {cluster} is behind this address already: two HSMs on one node would be no copies")]
    AddressTaken { cluster: ClusterId, hsm: HsmId },
    #[error("there are {0} HSMs already, as many as a cluster may have")]
    TooManyHsms(usize),
    #[error("cluster {cluster} has no HSM {hsm}")]
    HsmNotFound { cluster: ClusterId, hsm: HsmId },
    #[error("{hsm} is {state}; wait until nothing is left of it")]
    IsGoing { hsm: HsmId, state: HsmState },
    #[error("{hsm} is the last HSM of key store {store}; delete the key store first, or add another HSM")]
    LastHsm { hsm: HsmId, store: KeyStoreId },
    #[error(
        "without {hsm} {keys} keys would be on fewer than {needed} HSMs in service; connect the key store, or have their user log in, and bring the others level first (`keyway cluster sync`; keys that were found in an HSM it never copies)"
    )]
    KeysLeft { hsm: HsmId, keys: u64, needed: u32 },
    #[error(
        "no HSM but {hsm} is known to hold what the keys of key store {store} are copied under; connect the key store, with another HSM in use"
    )]
    NoHeir { hsm: HsmId, store: KeyStoreId },
    #[error("it was changed at the same time")]
    Conflict,
    #[error("no certificate request can be made: {0}")]
    NoRequest(String),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// One of the two that initialize a cluster, by its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    Signed,
    TrustAnchor,
}

impl Certificate {
    pub const fn field(self) -> &'static str {
        match self {
            Self::Signed => "signed_certificate",
            Self::TrustAnchor => "trust_anchor_certificate",
        }
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

fn list(names: &[impl ToString]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
