//! What is wrong when a prerequisite is not met, in words an operator can act on, and the reason it has in an answer.

use crate::cluster::{Direction, Quorum};
use crate::model::{
    ClusterId, ClusterState, ConnectionErrorCode, ConnectionState, HsmId, KeyStoreId, KeyStoreName, Realm, SubnetId,
};

use super::CheckPhase;

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
    #[error("it does not descend from the same backups as cluster {0}, which the key store uses")]
    NotRelated(ClusterId),
    #[error("it is declared for {here}, and the key store was made for {store}")]
    Elsewhere { here: Realm, store: Realm },
    #[error("it is {state}, not ACTIVE{}", said(.message))]
    NotActive { state: ClusterState, message: String },
    #[error("its subnets are in {}, and two are needed", in_zones(.zones))]
    SubnetsInTooFewZones { zones: usize },
    #[error("its security group {group} does not allow {} itself", traffic(.direction, .ports))]
    Closed { group: String, direction: Direction, ports: String },
    #[error("a key store needs {needed} that are ACTIVE; it has {hsms} in {}", in_zones(.zones))]
    TooFewHsms { hsms: usize, zones: usize, needed: Quorum },
    #[error("none of its HSMs is ACTIVE")]
    NoActiveHsm,
    #[error("each of its ACTIVE HSMs is drained")]
    AllDrained,
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
    #[error("key store {store} is {state}, and can be moved only while it is DISCONNECTED")]
    NotDisconnected { store: KeyStoreId, state: ConnectionState },
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
                "Use that key store, or a cluster of another backup history; to replace that cluster with this one, move its key store (`key-store update --cluster`).".to_owned()
            }
            Self::NotRelated(_) => {
                "Name a cluster made from a backup of the present one: the same cluster certificate, or the same backup_lineage.".to_owned()
            }
            Self::Elsewhere { store, .. } => {
                format!("Name a cluster of {store}: the ARNs of the key store's keys say so, and do not change.")
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
            Self::AllDrained => "Resume one with `keyway cluster resume`.".to_owned(),
            Self::IncorrectTrustAnchor => "Give the cluster's customerCA.crt.".to_owned(),
            Self::NotUnderTrustAnchor { .. } => {
                "Give the node a certificate under the cluster's customerCA.crt, for the address that is configured.".to_owned()
            }
            Self::UnreadableTrustAnchor(_) => "Give the cluster's customerCA.crt, one CA certificate in PEM.".to_owned(),
            Self::UnreadablePassword(_) => "Give kmsuser's password: 7 to 32 letters and digits.".to_owned(),
            Self::SubnetGone(_) => {
                "A cluster's subnets cannot be exchanged: restore its backup to a cluster whose subnets exist, and use that.".to_owned()
            }
            Self::NoFreeAddress(_) => "Free an address in it, better two, declare it, and send the daemon SIGHUP.".to_owned(),
            Self::OneFreeAddress(_) => "Free another address in it.".to_owned(),
            Self::Unreachable { .. } => "Check its library's path, its environment, and that its token is there.".to_owned(),
            Self::LoginFailed { code, .. } => login_remedy(*code).to_owned(),
            Self::TooFewAnswer { .. } | Self::NobodyAnswers => {
                "Look at the HSMs' health: `keyway cluster list` says what each waits for.".to_owned()
            }
            Self::NotConnected { .. } => "Connect the key store.".to_owned(),
            Self::NotDisconnected { .. } => "Disconnect the key store.".to_owned(),
        }
    }

    /// Whether the cluster lacks it; the rest is about what was asked for.
    pub(super) const fn is_about_cluster(&self) -> bool {
        !matches!(
            self,
            Self::NameInUse(_) | Self::QuotaReached(_) | Self::UnreadableTrustAnchor(_) | Self::UnreadablePassword(_)
        )
    }

    /// As `google.rpc.ErrorInfo` has it, or the connection error code where it shows only while connecting.
    pub fn reason(&self, phase: CheckPhase) -> &'static str {
        match self {
            Self::NameInUse(_) => "CUSTOM_KEY_STORE_NAME_IN_USE",
            Self::QuotaReached(_) => "LIMIT_EXCEEDED",
            Self::NotFound | Self::NotActive { .. } if phase == CheckPhase::Use => "KMS_INVALID_STATE",
            Self::NotFound if phase != CheckPhase::Connecting => "CLOUD_HSM_CLUSTER_NOT_FOUND",
            Self::Elsewhere { .. } => "CLOUD_HSM_CLUSTER_NOT_FOUND",
            Self::Tied(_) | Self::RelativeTied { .. } => "CLOUD_HSM_CLUSTER_IN_USE",
            Self::NotRelated(_) => "CLOUD_HSM_CLUSTER_NOT_RELATED",
            Self::NotActive { .. } => "CLOUD_HSM_CLUSTER_NOT_ACTIVE",
            Self::SubnetsInTooFewZones { .. } | Self::Closed { .. } | Self::TooFewHsms { .. } => {
                "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION"
            }
            Self::NoActiveHsm if phase != CheckPhase::Connecting => "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION",
            Self::IncorrectTrustAnchor | Self::NotUnderTrustAnchor { .. } => "INCORRECT_TRUST_ANCHOR",
            Self::UnreadableTrustAnchor(_) | Self::UnreadablePassword(_) => "VALIDATION",
            Self::NotDisconnected { .. } => "CUSTOM_KEY_STORE_INVALID_STATE",
            Self::NotConnected { .. } if phase == CheckPhase::CreateKey => "CUSTOM_KEY_STORE_INVALID_STATE",
            Self::NotConnected { .. } => "KMS_INVALID_STATE",
            Self::TooFewAnswer { .. } | Self::NobodyAnswers => "NO_NODE",
            Self::NotFound
            | Self::NoActiveHsm
            | Self::AllDrained
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
            Self::NoActiveHsm | Self::AllDrained => C::InsufficientCloudhsmHsms,
            Self::Unreachable { .. } => C::NetworkErrors,
            Self::LoginFailed { code, .. } => *code,
            Self::NameInUse(_)
            | Self::QuotaReached(_)
            | Self::Tied(_)
            | Self::RelativeTied { .. }
            | Self::NotRelated(_)
            | Self::Elsewhere { .. }
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
            | Self::NotDisconnected { .. }
            | Self::NobodyAnswers => C::InternalError,
        }
    }
}

/// What to do about a login that was only a trial: there need be no key store that is to be disconnected.
const fn login_remedy(code: ConnectionErrorCode) -> &'static str {
    use ConnectionErrorCode as C;
    match code {
        C::InvalidCredentials => "Give the password that kmsuser has now.",
        C::UserLockedOut => "Have an HSM administrator reset kmsuser's password.",
        C::UserNotFound => "Create the crypto user kmsuser on every HSM.",
        C::UserLoggedIn => "Log kmsuser out everywhere else.",
        C::NetworkErrors => "Check the library's path, its environment, and that the HSMs' hosts answer from here.",
        C::InternalError
        | C::ClusterNotFound
        | C::InsufficientCloudhsmHsms
        | C::SubnetNotFound
        | C::InsufficientFreeAddressesInSubnet => "Read the message, and the daemon's log, for the cause.",
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

fn traffic(direction: &Direction, ports: &str) -> String {
    match direction {
        Direction::Ingress => format!("inbound TCP {ports} from"),
        Direction::Egress => format!("outbound TCP {ports} to"),
    }
}

#[cfg(test)]
impl Unmet {
    /// One of each kind. The chain is a match, so that a new kind must join it.
    pub(crate) fn one_of_each() -> Vec<Self> {
        let first = Self::NameInUse("main".parse().unwrap());
        std::iter::successors(Some(first), Self::next_kind).collect()
    }

    fn next_kind(&self) -> Option<Self> {
        let cluster: ClusterId = "cluster-2klmnopqrst".parse().unwrap();
        let store = KeyStoreId::random();
        let subnet: SubnetId = "subnet-a".parse().unwrap();
        let needed = Quorum::USUAL;
        let realm = |region: &str| Realm { region: region.parse().unwrap(), account: "123456789012".parse().unwrap() };
        Some(match self {
            Self::NameInUse(_) => Self::QuotaReached(10),
            Self::QuotaReached(_) => Self::NotFound,
            Self::NotFound => Self::Tied(store),
            Self::Tied(_) => Self::RelativeTied { cluster, store },
            Self::RelativeTied { .. } => Self::NotRelated(cluster),
            Self::NotRelated(_) => Self::Elsewhere { here: realm("us-east-1"), store: realm("eu-west-1") },
            Self::Elsewhere { .. } => Self::NotActive { state: ClusterState::Degraded, message: String::new() },
            Self::NotActive { .. } => Self::SubnetsInTooFewZones { zones: 1 },
            Self::SubnetsInTooFewZones { .. } => {
                Self::Closed { group: "sg-1".to_owned(), direction: Direction::Ingress, ports: "2223".to_owned() }
            }
            Self::Closed { .. } => Self::TooFewHsms { hsms: 1, zones: 1, needed },
            Self::TooFewHsms { .. } => Self::NoActiveHsm,
            Self::NoActiveHsm => Self::AllDrained,
            Self::AllDrained => Self::IncorrectTrustAnchor,
            Self::IncorrectTrustAnchor => {
                Self::NotUnderTrustAnchor { hsm: "hsm-1".parse().unwrap(), why: "it is expired".to_owned() }
            }
            Self::NotUnderTrustAnchor { .. } => Self::UnreadableTrustAnchor("is not PEM".to_owned()),
            Self::UnreadableTrustAnchor(_) => Self::UnreadablePassword("is too short".to_owned()),
            Self::UnreadablePassword(_) => Self::SubnetGone(subnet),
            Self::SubnetGone(_) => Self::NoFreeAddress(subnet),
            Self::NoFreeAddress(_) => Self::OneFreeAddress(subnet),
            Self::OneFreeAddress(_) => {
                Self::Unreachable { hsm: "hsm-1".parse().unwrap(), why: "no slot has this token".to_owned() }
            }
            Self::Unreachable { .. } => {
                Self::LoginFailed { code: ConnectionErrorCode::UserLockedOut, message: "so it said".to_owned() }
            }
            Self::LoginFailed { .. } => Self::TooFewAnswer { hsms: 1, zones: 1, needed },
            Self::TooFewAnswer { .. } => Self::NotConnected { store, state: ConnectionState::Disconnected },
            Self::NotConnected { .. } => Self::NotDisconnected { store, state: ConnectionState::Connected },
            Self::NotDisconnected { .. } => Self::NobodyAnswers,
            Self::NobodyAnswers => return None,
        })
    }
}
