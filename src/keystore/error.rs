//! Why a key store could not be made or changed.

use crate::model::{ClusterId, HsmId};
use crate::records::Unavailable;

use super::lifecycle::Refused;
use super::prerequisites::{self, CheckPhase, Unmet};

/// Why a key store could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no key store {0}")]
    NotFound(String),
    /// The cluster that a request is about.
    #[error("no cluster {0} is declared")]
    ClusterNotFound(ClusterId),
    #[error("cluster {cluster} has no HSM {hsm}")]
    HsmNotFound { cluster: ClusterId, hsm: HsmId },
    #[error(transparent)]
    Prerequisite(#[from] prerequisites::Refusal),
    #[error(transparent)]
    InvalidState(#[from] Refused),
    #[error("the key store still has {0} keys")]
    HasKeys(u64),
    #[error("another request changed the key store at the same time")]
    Conflict,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl Error {
    /// What the records found not to be met, though it was a moment ago.
    pub(super) fn unmet(cluster: &ClusterId, phase: CheckPhase, unmet: Unmet) -> Self {
        Self::Prerequisite(prerequisites::Refusal { cluster: cluster.clone(), phase, unmet })
    }
}
