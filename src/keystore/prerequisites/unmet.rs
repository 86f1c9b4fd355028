//! What is wrong when a prerequisite is not met, in words an operator can act on, and the reason it has in an answer.

use crate::cluster::{Direction, Quorum, SubnetId};
use crate::model::{ClusterId, ClusterState, ConnectionErrorCode, ConnectionState, HsmId, KeyStoreId, KeyStoreName};

use super::Phase;

/// A prerequisite that is not met. `Display` says what is wrong; [`Unmet::remedy`] what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error("another key store is named {0}")]
    NameInUse(KeyStoreName),
    #[error("there are {0} key stores already, as many as the quota allows")]
    QuotaReached(u32),
    #[error("it is not declared")]
    NotFound,
    #[error("it is tied to key store {0}")]
    Tied(KeyStoreId),
    #[error("it descends from the same backups as cluster {cluster}, which is tied to key store {store}")]
    RelativeTied { cluster: ClusterId, store: KeyStoreId },
    #[error("it does not descend from the same backups as cluster {0}, which the key store stands on")]
    NotRelated(ClusterId),
    #[error("it is {state}, not ACTIVE{}", said(.message))]
    NotActive { state: ClusterState, message: String },
    #[error("its subnets are in {}, and two are needed", in_zones(.zones))]
    SubnetsInTooFewZones { zones: usize },
    #[error("its security group {group} lets no TCP {ports} {}", passing(.direction))]
    Closed { group: String, direction: Direction, ports: String },
    #[error("a key store needs {needed} that are ACTIVE; it has {hsms} in {}", in_zones(.zones))]
    TooFewHsms { hsms: usize, zones: usize, needed: Quorum },
    #[error("none of its HSMs is ACTIVE")]
    NoActiveHsm,
    #[error("each of its ACTIVE HSMs is out of use")]
    AllOutOfUse,
    #[error("the certificate is not the one that the cluster was initialised under")]
    IncorrectTrustAnchor,
    #[error("what answers at {hsm}'s address is not under the cluster's trust anchor: {why}")]
    NotUnderTrustAnchor { hsm: HsmId, why: String },
    #[error("trust_anchor_certificate: {0}")]
    UnreadableTrustAnchor(String),
    #[error("key_store_password: {0}")]
    UnreadablePassword(String),
    #[error("{0} is gone although the cluster names it")]
    SubnetGone(SubnetId),
    #[error("{0} has no free address")]
    NoFreeAddress(SubnetId),
    #[error("{0} has a single free address, and two are better")]
    OneFreeAddress(SubnetId),
    #[error("{hsm} cannot be reached: {why}")]
    Unreachable { hsm: HsmId, why: String },
    #[error("{message}")]
    LoginFailed { code: ConnectionErrorCode, message: String },
    #[error("{needed} must be logged in and proved; {hsms} in {} are", in_zones(.zones))]
    TooFewAnswer { hsms: usize, zones: usize, needed: Quorum },
    #[error("key store {store} is {state}, not CONNECTED")]
    NotConnected { store: KeyStoreId, state: ConnectionState },
    #[error("no HSM is logged in and proved")]
    NobodyAnswers,
}

impl Unmet {
    pub fn remedy(&self) -> String {
        match self {
            Self::NameInUse(_) => "Take another name.".to_owned(),
            Self::QuotaReached(_) => "Delete a key store that is no longer used, or raise key_stores.quota.".to_owned(),
            Self::NotFound => "Declare it in the daemon's configuration and send the daemon SIGHUP.".to_owned(),
            Self::Tied(_) => "Use that key store, or another cluster.".to_owned(),
            Self::RelativeTied { .. } => {
                "Use that key store, or a cluster of another backup history; to replace the one by the other, move the key store.".to_owned()
            }
            Self::NotRelated(_) => {
                "Name a cluster made from a backup of the present one: the same cluster certificate, or the same backup_lineage.".to_owned()
            }
            Self::NotActive { .. } => "Wait until it is ACTIVE, and declare it so.".to_owned(),
            Self::SubnetsInTooFewZones { .. } => "Declare a subnet in another availability zone.".to_owned(),
            Self::Closed { direction, .. } => {
                let (way, end) = match direction {
                    Direction::Ingress => ("inbound", "source"),
                    Direction::Egress => ("outbound", "destination"),
                };
                format!("Add the {way} rule: TCP, ports 2223-2225, IPv4, the group itself as its {end}.")
            }
            Self::TooFewHsms { .. } => "Add ACTIVE HSMs in other availability zones.".to_owned(),
            Self::NoActiveHsm => "Bring at least one HSM into service and declare it ACTIVE.".to_owned(),
            Self::AllOutOfUse => "Resume one with `keyway cluster resume`.".to_owned(),
            Self::IncorrectTrustAnchor => "Give the cluster's customerCA.crt.".to_owned(),
            Self::NotUnderTrustAnchor { .. } => {
                "Give the node a certificate under the cluster's customerCA.crt, for the address that is configured.".to_owned()
            }
            Self::UnreadableTrustAnchor(_) => "Give the cluster's customerCA.crt, one CA certificate in PEM.".to_owned(),
            Self::UnreadablePassword(_) => "Give kmsuser's password: 7 to 32 letters and digits.".to_owned(),
            Self::SubnetGone(_) => ConnectionErrorCode::SubnetNotFound.remedy().to_owned(),
            Self::NoFreeAddress(_) | Self::OneFreeAddress(_) => {
                ConnectionErrorCode::InsufficientFreeAddressesInSubnet.remedy().to_owned()
            }
            Self::Unreachable { .. } => "Check its library's path, its environment, and that its token is there.".to_owned(),
            Self::LoginFailed { code, .. } => code.remedy().to_owned(),
            Self::TooFewAnswer { .. } | Self::NobodyAnswers => {
                "Look at the HSMs' health: `keyway cluster list` says what each waits for.".to_owned()
            }
            Self::NotConnected { .. } => "Connect the key store.".to_owned(),
        }
    }

    /// As `google.rpc.ErrorInfo` has it, or the connection error code where it shows only while connecting.
    pub fn reason(&self, phase: Phase) -> &'static str {
        match self {
            Self::NameInUse(_) => "CUSTOM_KEY_STORE_NAME_IN_USE",
            Self::QuotaReached(_) => "LIMIT_EXCEEDED",
            Self::NotFound if phase != Phase::Connecting => "CLOUD_HSM_CLUSTER_NOT_FOUND",
            Self::Tied(_) | Self::RelativeTied { .. } => "CLOUD_HSM_CLUSTER_IN_USE",
            Self::NotRelated(_) => "CLOUD_HSM_CLUSTER_NOT_RELATED",
            Self::NotActive { .. } => "CLOUD_HSM_CLUSTER_NOT_ACTIVE",
            Self::SubnetsInTooFewZones { .. } | Self::Closed { .. } | Self::TooFewHsms { .. } => {
                "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION"
            }
            Self::NoActiveHsm if phase != Phase::Connecting => "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION",
            Self::IncorrectTrustAnchor | Self::NotUnderTrustAnchor { .. } => "INCORRECT_TRUST_ANCHOR",
            Self::UnreadableTrustAnchor(_) | Self::UnreadablePassword(_) => "VALIDATION",
            Self::NotConnected { .. } if phase == Phase::CreateKey => "CUSTOM_KEY_STORE_INVALID_STATE",
            Self::NotConnected { .. } => "KMS_INVALID_STATE",
            Self::TooFewAnswer { .. } | Self::NobodyAnswers => "NO_NODE",
            Self::NotFound
            | Self::NoActiveHsm
            | Self::AllOutOfUse
            | Self::SubnetGone(_)
            | Self::NoFreeAddress(_)
            | Self::OneFreeAddress(_)
            | Self::Unreachable { .. }
            | Self::LoginFailed { .. } => self.code().as_str(),
        }
    }

    /// How a connection fails for want of it.
    pub fn code(&self) -> ConnectionErrorCode {
        use ConnectionErrorCode as C;
        match self {
            Self::NotFound => C::ClusterNotFound,
            Self::SubnetGone(_) => C::SubnetNotFound,
            Self::NoFreeAddress(_) | Self::OneFreeAddress(_) => C::InsufficientFreeAddressesInSubnet,
            Self::NoActiveHsm | Self::AllOutOfUse => C::InsufficientCloudhsmHsms,
            Self::Unreachable { .. } => C::NetworkErrors,
            Self::LoginFailed { code, .. } => *code,
            Self::NameInUse(_)
            | Self::QuotaReached(_)
            | Self::Tied(_)
            | Self::RelativeTied { .. }
            | Self::NotRelated(_)
            | Self::NotActive { .. }
            | Self::SubnetsInTooFewZones { .. }
            | Self::Closed { .. }
            | Self::TooFewHsms { .. }
            | Self::IncorrectTrustAnchor
            | Self::NotUnderTrustAnchor { .. }
            | Self::UnreadableTrustAnchor(_)
            | Self::UnreadablePassword(_)
            | Self::TooFewAnswer { .. }
            | Self::NotConnected { .. }
            | Self::NobodyAnswers => C::InternalError,
        }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn in_zones(zones: &usize) -> String {
    match zones {
        0 => "no availability zone".to_owned(),
        1 => "one availability zone".to_owned(),
        more => format!("{more} availability zones"),
    }
}

fn passing(direction: &Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in from itself",
        Direction::Egress => "out to itself",
    }
}
