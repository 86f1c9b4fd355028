//! Where a node's HSM is reached from, and what must be known of it there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::link::v1::open::Token;
use crate::model::{HostName, Ports, TrustAnchor, Username};

/// Whose workers a node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// This machine's.
    Here(LocalToken),
    /// Those of a `keyway node` on another host, which knows the token.
    There(RemoteNode),
}

impl Location {
    /// Whether crypto users are made, changed and deleted there through us.
    pub fn manages_users(&self) -> bool {
        match self {
            Self::Here(token) => token.manages_users(),
            Self::There(node) => node.manages_users,
        }
    }

    /// Where the user's own token is. Without crypto users of ours there is one for everybody.
    pub fn of(&self, user: &Username) -> Self {
        match self {
            Self::Here(token) => Self::Here(token.of(user).unwrap_or_else(|| token.clone())),
            Self::There(node) => Self::There(node.clone()),
        }
    }
}

/// A `keyway node`, and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    pub address: HostName,
    pub ports: Ports,
    /// Its certificate is under this one.
    pub trust_anchor: TrustAnchor,
    /// Whether we count on it to manage the HSM's crypto users. Its own configuration says whether it does.
    pub manages_users: bool,
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
    /// Where crypto users' tokens are, in a directory for each; `None` where they are not managed.
    pub user_tokens: Option<PathBuf>,
}

impl LocalToken {
    pub fn manages_users(&self) -> bool {
        self.so_pin_file.is_some() && self.user_tokens.is_some()
    }

    /// Failed logins lock the user here only where there is a way to unlock him again: an administrator can reset his
    /// password.
    pub fn locks_user(&self) -> bool {
        self.user_tokens.is_some()
    }

    /// The user's: kmsuser's is the declared one, everybody else's is in `user_tokens`, if there is such a directory.
    pub fn of(&self, user: &Username) -> Option<Self> {
        if *user == Username::kmsuser() {
            return Some(self.clone());
        }
        let home = self.user_tokens.as_deref()?.join(Path::new(user.as_str()));
        let mut token = self.clone();
        token.name = TokenName::Label(user.to_string());
        token.environment.insert("SOFTHSM2_CONF".to_owned(), home.join("softhsm2.conf").display().to_string());
        Some(token)
    }
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
