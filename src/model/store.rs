//! The states a custom key store reports, and why a connection failed.

use std::fmt;

use super::id::{AccountId, Region};

/// In whose name, and where, a key store and its keys are known. ARNs are made of it, so that it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    pub region: Region,
    pub account: AccountId,
}

impl Realm {
    /// The name under which SDKs know something here: `key/…` or `alias/…`.
    pub fn arn(&self, resource: &str) -> String {
        format!("arn:aws:kms:{}:{}:{resource}", self.region, self.account)
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {} in {}", self.account, self.region)
    }
}

/// AWS's five connection states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    Disconnected,
    Connecting,
    Connected,
    Disconnecting,
    Failed,
}

impl ConnectionState {
    pub const ALL: [Self; 5] =
        [Self::Disconnected, Self::Connecting, Self::Connected, Self::Disconnecting, Self::Failed];

    /// The name as AWS writes it, and as it stands in the records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "DISCONNECTED",
            Self::Connecting => "CONNECTING",
            Self::Connected => "CONNECTED",
            Self::Disconnecting => "DISCONNECTING",
            Self::Failed => "FAILED",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// AWS's ten reasons why connecting a CloudHSM key store failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionErrorCode {
    InvalidCredentials,
    ClusterNotFound,
    NetworkErrors,
    InternalError,
    InsufficientCloudhsmHsms,
    UserLockedOut,
    UserNotFound,
    UserLoggedIn,
    SubnetNotFound,
    InsufficientFreeAddressesInSubnet,
}

impl ConnectionErrorCode {
    pub const ALL: [Self; 10] = [
        Self::InvalidCredentials,
        Self::ClusterNotFound,
        Self::NetworkErrors,
        Self::InternalError,
        Self::InsufficientCloudhsmHsms,
        Self::UserLockedOut,
        Self::UserNotFound,
        Self::UserLoggedIn,
        Self::SubnetNotFound,
        Self::InsufficientFreeAddressesInSubnet,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidCredentials => "INVALID_CREDENTIALS",
            Self::ClusterNotFound => "CLUSTER_NOT_FOUND",
            Self::NetworkErrors => "NETWORK_ERRORS",
            Self::InternalError => "INTERNAL_ERROR",
            Self::InsufficientCloudhsmHsms => "INSUFFICIENT_CLOUDHSM_HSMS",
            Self::UserLockedOut => "USER_LOCKED_OUT",
            Self::UserNotFound => "USER_NOT_FOUND",
            Self::UserLoggedIn => "USER_LOGGED_IN",
            Self::SubnetNotFound => "SUBNET_NOT_FOUND",
            Self::InsufficientFreeAddressesInSubnet => "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// Whether the cluster lacks something, so that no HSM was asked at all.
    pub const fn is_unmet_prerequisite(self) -> bool {
        match self {
            Self::ClusterNotFound
            | Self::InsufficientCloudhsmHsms
            | Self::SubnetNotFound
            | Self::InsufficientFreeAddressesInSubnet => true,
            Self::InvalidCredentials
            | Self::NetworkErrors
            | Self::InternalError
            | Self::UserLockedOut
            | Self::UserNotFound
            | Self::UserLoggedIn => false,
        }
    }

    /// What the operator does about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::InvalidCredentials => {
                "Disconnect the key store, give it kmsuser's present password, and connect again."
            }
            Self::ClusterNotFound => {
                "Disconnect the key store; declare the cluster in the daemon's configuration, or move the key store to a related cluster; and connect again."
            }
            Self::NetworkErrors => "Check that the HSMs' hosts answer from here, then disconnect and connect again.",
            Self::InternalError => {
                "Read the message, and the daemon's log, for the cause; fix it, then disconnect and connect again."
            }
            Self::InsufficientCloudhsmHsms => {
                "Bring at least one HSM of the cluster into service, then disconnect and connect again."
            }
            Self::UserLockedOut => {
                "Disconnect the key store, have an HSM administrator reset kmsuser's password, give the key store the new one, and connect again."
            }
            Self::UserNotFound => "Create the crypto user kmsuser on every HSM, then disconnect and connect again.",
            Self::UserLoggedIn => "Log kmsuser out everywhere else, then disconnect and connect again.",
            Self::SubnetNotFound => {
                "Disconnect the key store, move it to a related cluster whose subnets exist, and connect again."
            }
            Self::InsufficientFreeAddressesInSubnet => {
                "Free at least one address in each subnet, then disconnect and connect again."
            }
        }
    }
}

impl fmt::Display for ConnectionErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_remedy_of_its_own_that_leads_from_failed_to_connected() {
        let remedies: std::collections::BTreeSet<_> = ConnectionErrorCode::ALL.map(ConnectionErrorCode::remedy).into();
        assert_eq!(remedies.len(), ConnectionErrorCode::ALL.len());
        for remedy in remedies {
            let disconnect = remedy.to_lowercase().find("disconnect").expect(remedy);
            assert!(remedy[disconnect + 10..].contains("connect again."), "{remedy}");
        }
    }

    #[test]
    fn a_code_and_a_state_are_read_as_they_are_written() {
        for code in ConnectionErrorCode::ALL {
            assert_eq!(ConnectionErrorCode::parse(code.as_str()), Some(code));
        }
        for state in ConnectionState::ALL {
            assert_eq!(ConnectionState::parse(state.as_str()), Some(state));
        }
    }
}
