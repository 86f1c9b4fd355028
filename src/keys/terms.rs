//! On what terms a key is asked to work, and what all such work begins with.

use std::sync::Arc;

use tokio::time::Instant;

use crate::authz::{Action, Permit};
use crate::cluster::Connection;
use crate::users::ShownLogins;

use super::owner::Reached;
use super::{Error, Keys};

/// What comes along with a request to use a key, whatever the use.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Whom the caller shows to be logged in as.
    pub logins: &'a ShownLogins,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Only whether it would be done is asked.
    pub dry_run: bool,
}

impl Terms<'_> {
    /// Stands between the last check and the first thing that is done.
    ///
    /// # Errors
    /// [`Error::DryRun`] when nothing is to be done.
    pub(super) fn in_earnest(&self) -> Result<(), Error> {
        if self.dry_run { Err(Error::DryRun) } else { Ok(()) }
    }
}

/// A key that may be used now, and the Connection through which.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) reached: Reached,
    pub(super) connection: Arc<Connection>,
}

impl Keys {
    /// A key that was found, when the caller may use it now and its state allows it.
    pub(super) fn made_ready<A: Action>(&self, permit: &Permit<A>, reached: Reached) -> Result<Ready, Error> {
        self.check_holdback(permit, &reached.key)?;
        let connection = self.connection_behind(&reached)?;
        Ok(Ready { reached, connection })
    }
}
