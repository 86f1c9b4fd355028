//! Where a node's HSM is reached from, and what must be known of it there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::link::v1::open::Token;
use crate::model::{HostName, Ports, TrustAnchor};

/// Whose workers a node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// This machine's.
    Here(LocalToken),
    /// Those of a `keyway node` on another host, which knows the token.
    There(RemoteNode),
}

/// A `keyway node`, and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    pub address: HostName,
    pub ports: Ports,
    /// Its certificate is under this one.
    pub trust_anchor: TrustAnchor,
}

/// What workers need to know of a token that is reached from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalToken {
    /// The vendor's PKCS#11 library.
    pub module: PathBuf,
    pub name: TokenName,
    /// What the library is to find in its process's environment.
    pub environment: BTreeMap<String, String>,
    /// The SO PIN's file, for a token that we manage.
    pub so_pin_file: Option<PathBuf>,
    /// Whether failed logins lock the user here: only where there is a way to unlock him again.
    pub locks_user: bool,
}

/// How a token is found among a library's slots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenName {
    Label(String),
    Serial(String),
}

impl From<TokenName> for Token {
    fn from(name: TokenName) -> Self {
        match name {
            TokenName::Label(label) => Self::Label(label),
            TokenName::Serial(serial) => Self::Serial(serial),
        }
    }
}
