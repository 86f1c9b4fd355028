//! What the operator declares of a cluster: where its HSMs are, and how to reach them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::SystemTime;

use crate::host::Location;
use crate::link::Patience;
use crate::model::{
    AccountId, Certificate, CertificateRequest, ClusterId, ClusterState, HsmId, HsmState, Invalid, Realm, Region,
    SubnetId, TrustAnchor, Zone,
};

use super::Rotation;
use super::names::{Lineage, Lineages, SecurityGroupId};

/// One cluster, checked: every node's subnet is one of its own. A configured one has a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub region: Region,
    pub account: AccountId,
    pub state: ClusterState,
    /// More about the state, often empty.
    pub state_message: String,
    /// The cluster's own certificate.
    pub certificate: Option<Certificate>,
    /// The cluster's `customerCA.crt`; there where the profile requires one, once the cluster is initialized.
    pub trust_anchor: Option<TrustAnchor>,
    /// What the operator says of its ancestry; [`Settings::lineages`] says what holds.
    pub backup_lineage: Option<Lineage>,
    pub sync: SyncMode,
    pub profile: Profile,
    pub rotation: Rotation,
    /// None at all for HSMs that are in no subnet.
    pub subnets: BTreeMap<SubnetId, SubnetSettings>,
    pub security_group: Option<SecurityGroup>,
    /// How many HSMs must hold a new key.
    pub min_hsms_to_create: NonZeroU32,
    pub nodes: BTreeMap<HsmId, NodeSettings>,
    pub origin: Origin,
}

/// Who says that there is this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The operator, in the configuration.
    Configured,
    /// The records: it was made through keyway.
    Made(MadeCluster),
}

/// What only a cluster that keyway made has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeCluster {
    /// What its owner's authority is to sign, while it is UNINITIALIZED and has an HSM.
    pub request: Option<CertificateRequest>,
    /// HSMs on other hosts, in their subnets: whether it is they can be asked once the authority is known.
    pub awaited: BTreeMap<HsmId, (SubnetId, Zone)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetSettings {
    pub zone: Zone,
    /// `None` when it is not declared.
    pub free_addresses: Option<u32>,
    /// False for one that is gone although the cluster still names it.
    pub present: bool,
}

/// What may pass between a cluster's HSMs and whoever talks to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    pub id: SecurityGroupId,
    pub rules: Vec<SecurityGroupRule>,
}

/// A rule that allows traffic over IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupRule {
    pub direction: Direction,
    pub protocol: Protocol,
    pub from_port: u16,
    pub to_port: u16,
    /// The security group at the other end.
    pub peer: SecurityGroupId,
}

/// What a rule lets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// Every one, whatever ports stand beside it.
    All,
    Tcp,
    /// Another one, as it was written: no prerequisite is about it.
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// One HSM node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// `None` when it is in no subnet.
    pub subnet: Option<SubnetId>,
    /// Its subnet's, or its own where it is in none.
    pub zone: Zone,
    pub state: HsmState,
    /// A whole cluster behind one slot: that a key is on several of its HSMs is the vendor's word.
    pub vendor_cluster: bool,
    /// Where its workers are.
    pub location: Location,
    /// Sessions, and so threads, of the node's worker.
    pub pool_size: NonZeroU32,
    /// Requests that may wait for a session.
    pub queue_limit: NonZeroU32,
    pub patience: Patience,
    /// Resident memory beyond which the worker is replaced, in bytes.
    pub memory_limit: u64,
}

/// So many HSMs, in so many availability zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    pub hsms: usize,
    pub zones: usize,
}

impl Quorum {
    /// As AWS has it.
    pub const USUAL: Self = Self { hsms: 2, zones: 2 };

    pub const fn is_met_by(self, hsms: usize, zones: usize) -> bool {
        hsms >= self.hsms && zones >= self.zones
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
        write!(f, "{} in {}", of(self.hsms, "HSM", "HSMs"), of(self.zones, "availability zone", "availability zones"))
    }
}

impl Settings {
    /// What only a cluster that keyway made has; `None` for a configured one.
    pub fn made(&self) -> Option<&MadeCluster> {
        match &self.origin {
            Origin::Configured => None,
            Origin::Made(made) => Some(made),
        }
    }

    /// In whose name its key stores are made.
    pub fn realm(&self) -> Realm {
        Realm { region: self.region.clone(), account: self.account.clone() }
    }

    /// Clusters that have a lineage in common descend from the same backups. Equal cluster certificates always mean that, as
    /// in AWS, and equal `backup_lineage`s do. Without either, a cluster is related to itself alone: two of them must not be
    /// taken for relatives by accident.
    pub fn lineages(&self, id: &ClusterId) -> Lineages {
        let told = self.backup_lineage.iter().cloned();
        let certified = self.certificate.iter().map(|it| Lineage::of_certificate(&it.fingerprint()));
        let known: Vec<_> = told.chain(certified).collect();
        if known.is_empty() { [Lineage::of_nobody_but(id)].into_iter().collect() } else { known.into_iter().collect() }
    }

    /// The lineage by which the cluster is shown: the operator's word for it, if there is one.
    pub fn lineage(&self, id: &ClusterId) -> Lineage {
        match (&self.backup_lineage, &self.certificate) {
            (Some(lineage), _) => lineage.clone(),
            (None, Some(certificate)) => Lineage::of_certificate(&certificate.fingerprint()),
            (None, None) => Lineage::of_nobody_but(id),
        }
    }

    /// The HSMs that count: the others take no part in anything new.
    pub fn active_nodes(&self) -> impl Iterator<Item = (&HsmId, &NodeSettings)> {
        self.nodes.iter().filter(|(_, node)| node.state == HsmState::Active)
    }

    /// What must hold a new key before it is told to be there.
    pub fn quorum(&self) -> Quorum {
        let hsms = usize::try_from(self.min_hsms_to_create.get()).unwrap_or(usize::MAX);
        Quorum { hsms, zones: hsms.min(Quorum::USUAL.zones) }
    }

    /// Whether crypto users are made, changed and deleted through us.
    pub fn manages_users(&self) -> bool {
        self.nodes.values().all(|node| node.location.manages_users())
    }

    /// What an operator should look at although it stops nothing.
    pub fn doubts(&self, now: SystemTime) -> Vec<String> {
        let anchor = self.trust_anchor.as_deref().map(|it| ("trust_anchor", it));
        let own = self.certificate.as_ref().map(|it| ("certificate", it));
        let dated = anchor.into_iter().chain(own);
        let mut doubts: Vec<_> =
            dated.filter_map(|(key, it)| it.is_valid_at(now).err().map(|why| format!("{key}: {why}"))).collect();
        if let (Some(anchor), Some(own)) = (&self.trust_anchor, &self.certificate)
            && !anchor.has_issued(own)
        {
            doubts.push("certificate: it was not issued by trust_anchor; is one of them another cluster's?".to_owned());
        }
        doubts
    }
}

/// How a new key comes to the cluster's other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// We carry it, wrapped under a key that every token has.
    Wrap,
}

/// What is peculiar to a kind of HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    SoftHsm2,
}

impl FromStr for SyncMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "wrap" => Ok(Self::Wrap),
            _ => Err(Invalid::new("must be `wrap` in this release (`native` comes in a later one)")),
        }
    }
}

impl FromStr for Protocol {
    type Err = Invalid;

    /// As AWS writes them: a name, a number, or `-1`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "-1" => Ok(Self::All),
            "tcp" | "6" => Ok(Self::Tcp),
            "udp" | "icmp" | "icmpv6" => Ok(Self::Other(text.to_owned())),
            number if number.parse::<u8>().is_ok() => Ok(Self::Other(text.to_owned())),
            _ => Err(Invalid::new("must be `tcp`, `udp`, `icmp`, `icmpv6`, a protocol's number, or `-1` for all")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "-1",
            Self::Tcp => "tcp",
            Self::Other(written) => written,
        })
    }
}

impl FromStr for Direction {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "ingress" => Ok(Self::Ingress),
            "egress" => Ok(Self::Egress),
            _ => Err(Invalid::new("must be `ingress` or `egress`")),
        }
    }
}

impl Profile {
    /// Where we stop trying passwords: so many may have failed in a row for a user on an HSM, short of its own limit.
    pub const fn failed_logins_allowed(self) -> u32 {
        match self {
            // CloudHSM's own, whose place it takes, is five.
            Self::SoftHsm2 => 3,
        }
    }

    /// Whether its clusters have a `customerCA.crt` that callers must show.
    pub const fn requires_trust_anchor(self) -> bool {
        match self {
            Self::SoftHsm2 => true,
        }
    }

    /// As configuration files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SoftHsm2 => "softhsm2",
        }
    }
}

impl FromStr for Profile {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "softhsm2" => Ok(Self::SoftHsm2),
            _ => Err(Invalid::new("must be `softhsm2`, the only profile supported yet")),
        }
    }
}
