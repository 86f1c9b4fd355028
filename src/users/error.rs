//! Why something of a crypto user's was not done, named by what is to be done about it.

use crate::keystore::{KmsuserInUse, NotMade};
use crate::model::{ClusterId, ClusterState, ConnectionState, HsmId, KeyStoreId, Username};
use crate::records::Unavailable;

use super::Unproved;

/// Why something of a crypto user's was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cluster {0} is declared")]
    ClusterNotFound(ClusterId),
    #[error("cluster {cluster} is {state}, not ACTIVE")]
    ClusterNotActive { cluster: ClusterId, state: ClusterState },
    #[error(
        "the crypto users of cluster {0} are not managed by keyway: its nodes have no user_tokens; use the HSMs' own tools"
    )]
    NotManaged(ClusterId),
    #[error("cluster {cluster} has no crypto user {user}")]
    NotFound { cluster: ClusterId, user: Username },
    #[error("cluster {cluster} has a crypto user {user} already{}", on(.hsms))]
    Exists { cluster: ClusterId, user: Username, hsms: Vec<HsmId> },
    #[error("crypto user {user} is being deleted{}; it is finished when they are back", on(.hsms))]
    BeingDeleted { cluster: ClusterId, user: Username, hsms: Vec<HsmId> },
    #[error("there are {0} crypto users already, as many as a cluster may have")]
    TooManyUsers(u32),
    #[error("somebody is logged in as {0}; log out first")]
    LoggedIn(Username),
    #[error(transparent)]
    KmsuserInUse(#[from] KmsuserInUse),
    #[error("key store {store}, which is {state}, stands on kmsuser and its keys; delete the key store first")]
    KmsuserHasKeyStore { store: KeyStoreId, state: ConnectionState },
    #[error("no HSM can be reached: {why}")]
    NoNode { cluster: ClusterId, why: String },
    #[error("no HSM serves the crypto user now: {why}")]
    NotServed { cluster: ClusterId, why: String },
    #[error("no HSM has done it yet: {0}; each will as soon as it can")]
    OutcomeUnknown(String),
    #[error(transparent)]
    Unproved(#[from] Unproved),
    #[error(
        "{0} has a second factor, and keyway cannot ask for it yet: the user logs in with the HSMs' own tools alone"
    )]
    SecondFactor(Username),
    #[error("{0} are logged in already, as many as crypto_users.max_logins allows")]
    TooManyLogins(u32),
    #[error("too many crypto users are being changed or logged in at this moment")]
    Busy,
    #[error("no login token was sent for this cluster")]
    LoginRequired,
    #[error("the login has ended, or was never yours")]
    LoginExpired,
    #[error("the user was changed at the same time")]
    Conflict,
    #[error("the system gives no random bytes")]
    NoRandomness,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl From<NotMade> for Error {
    fn from(not_made: NotMade) -> Self {
        match not_made {
            NotMade::Undeclared(cluster) => Self::ClusterNotFound(cluster),
            NotMade::Records(error) => Self::Records(error),
        }
    }
}

fn on(hsms: &[HsmId]) -> String {
    let names: Vec<_> = hsms.iter().map(HsmId::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" on {}", names.join(", ")) }
}
