//! What the operator declares of a cluster: where its HSMs are, and how to reach them.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::link::Patience;
use crate::link::v1::open::Token;
use crate::model::{HsmId, Invalid, Region, Zone};

use super::Rotation;

/// One cluster, checked: it has a node, and every node's subnet is one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub region: Region,
    pub account: AccountId,
    /// The cluster's `customerCA.crt`, one certificate in PEM.
    pub trust_anchor: String,
    pub sync: SyncMode,
    pub profile: Profile,
    pub rotation: Rotation,
    pub subnets: BTreeMap<SubnetId, SubnetSettings>,
    pub nodes: BTreeMap<HsmId, NodeSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetSettings {
    pub zone: Zone,
}

/// One HSM node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    pub subnet: SubnetId,
    /// Its subnet's.
    pub zone: Zone,
    /// The vendor's PKCS#11 library.
    pub module: PathBuf,
    pub token: TokenName,
    /// What the library is to find in its process's environment.
    pub environment: BTreeMap<String, String>,
    /// Sessions, and so threads, of the node's worker.
    pub pool_size: NonZeroU32,
    /// Requests that may wait for a session.
    pub queue_limit: NonZeroU32,
    pub patience: Patience,
    /// Resident memory beyond which the worker is replaced, in bytes.
    pub memory_limit: u64,
    /// The SO PIN's file, for a token that we manage.
    pub so_pin_file: Option<PathBuf>,
}

/// How a token is found among a library's slots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenName {
    Label(String),
    Serial(String),
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

/// `subnet-` and 1 to 17 lower-case letters and digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetId(Arc<str>);

/// Twelve digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

impl From<TokenName> for Token {
    fn from(name: TokenName) -> Self {
        match name {
            TokenName::Label(label) => Self::Label(label),
            TokenName::Serial(serial) => Self::Serial(serial),
        }
    }
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

impl Profile {
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

impl SubnetId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SubnetId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let tail = text.strip_prefix("subnet-").unwrap_or_default();
        let alphabet = tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if (1..=17).contains(&tail.len()) && alphabet {
            Ok(Self(text.into()))
        } else {
            Err(Invalid::new("a subnet id is `subnet-` and 1 to 17 lower-case letters or digits"))
        }
    }
}

impl fmt::Display for SubnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SubnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl AccountId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Self(text.into()))
        } else {
            Err(Invalid::new("an account is 12 digits"))
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_accounts_keep_to_their_alphabet_and_length() {
        assert!("subnet-1a2b3c".parse::<SubnetId>().is_ok());
        for text in ["", "subnet-", "subnet-A", "1a2b3c", "subnet-123456789012345678"] {
            assert!(text.parse::<SubnetId>().is_err(), "{text:?} was accepted");
        }
        assert!("000000000000".parse::<AccountId>().is_ok());
        for text in ["", "12345678901", "1234567890123", "12345678901a", "١٢٣٤٥٦"] {
            assert!(text.parse::<AccountId>().is_err(), "{text:?} was accepted");
        }
    }
}
