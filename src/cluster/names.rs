//! The names that only a cluster's declaration uses, parsed once at the edge.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::model::{ClusterId, Invalid};

/// `sg-` and 1 to 64 lower-case letters, digits and hyphens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecurityGroupId(Arc<str>);

/// Which backups a cluster descends from: a fingerprint, or a name of the operator's. 1 to 128 printable characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(Arc<str>);

/// All that says which backups a cluster descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineages(BTreeSet<Lineage>);

/// What every text here can do once it has passed its rule.
macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text!(SecurityGroupId);
text!(Lineage);

impl FromStr for SecurityGroupId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let tail = text.strip_prefix("sg-").unwrap_or_default();
        let alphabet = tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if (1..=64).contains(&tail.len()) && alphabet {
            Ok(Self(text.into()))
        } else {
            Err(Invalid::new("a security group id is `sg-` and 1 to 64 lower-case letters, digits or hyphens"))
        }
    }
}

impl FromStr for Lineage {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let printable = !text.chars().any(char::is_control) && text.trim() == text;
        if (1..=128).contains(&text.chars().count()) && printable {
            Ok(Self(text.into()))
        } else {
            Err(Invalid::new("a backup lineage is 1 to 128 printable characters with no space at either end"))
        }
    }
}

impl Lineage {
    /// The cluster whose certificate has this fingerprint, and its relatives.
    pub(super) fn of_certificate(fingerprint: &str) -> Self {
        Self(fingerprint.into())
    }

    /// One cluster alone.
    pub fn of_nobody_but(cluster: &ClusterId) -> Self {
        Self(cluster.as_str().into())
    }
}

impl Lineages {
    /// One in common is enough.
    pub fn are_related(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Lineage> {
        self.0.iter()
    }
}

impl FromIterator<Lineage> for Lineages {
    fn from_iter<I: IntoIterator<Item = Lineage>>(lineages: I) -> Self {
        Self(lineages.into_iter().collect())
    }
}
