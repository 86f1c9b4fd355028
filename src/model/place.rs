//! Where an HSM is: in which subnet, and on this machine or behind which address.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::Invalid;

/// `subnet-` and 1 to 17 lower-case letters and digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetId(Arc<str>);

/// A DNS name or an IP address, as it stands in a node's certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

/// Where a node listens, as CloudHSM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Session links.
    pub sessions: u16,
    /// Who is there.
    pub identity: u16,
    /// What is done to tokens beside any link.
    pub administration: u16,
}

/// Where an HSM is that was added to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HsmPlace {
    /// On the daemon's own machine, in a directory that keyway keeps.
    Here,
    /// A `keyway node` on another host.
    There { address: HostName, ports: Ports },
}

impl Ports {
    pub const USUAL: Self = Self { sessions: 2223, identity: 2224, administration: 2225 };
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

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(Invalid::new("must be a DNS name or an IP address without a port")),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_keep_to_their_alphabet_and_length() {
        assert!("subnet-1a2b3c".parse::<SubnetId>().is_ok());
        for text in ["", "subnet-", "subnet-A", "1a2b3c", "subnet-123456789012345678"] {
            assert!(text.parse::<SubnetId>().is_err(), "{text:?} was accepted");
        }
    }
}
