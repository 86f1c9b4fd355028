//! The records cannot be opened, or cannot be reached.

use std::path::PathBuf;

/// The database, or what stands in it, did not do its part. Nothing was changed, unless the commit itself was lost.
#[derive(Debug, thiserror::Error)]
#[error("the records cannot be reached")]
pub struct Unavailable(#[source] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    #[error("a row cannot be understood: {0}")]
    Row(&'static str),
    #[error("a sealed secret does not open with this sealing key")]
    Sealed,
}

impl Unavailable {
    /// A row holds what this release would never have written.
    pub(super) fn row(what: &'static str) -> Self {
        Self(Cause::Row(what))
    }

    pub(super) fn sealed() -> Self {
        Self(Cause::Sealed)
    }
}

impl From<sqlx::Error> for Unavailable {
    fn from(error: sqlx::Error) -> Self {
        Self(Cause::Database(error))
    }
}

/// Why the records cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} cannot be made or used")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another daemon uses {0}")]
    InUse(PathBuf),
    #[error("{0} is missing, and passwords in the records are sealed with it; put it back")]
    NoSealingKey(PathBuf),
    #[error("{0} does not hold a sealing key, which is 32 bytes")]
    BadSealingKey(PathBuf),
    #[error("{0} can be read by others than its owner; chmod 600 it")]
    OpenSealingKey(PathBuf),
    #[error("{0} was written by a newer release, which this one cannot read")]
    Newer(PathBuf),
    #[error("the database's schema cannot be brought up to date")]
    Migration(#[source] sqlx::migrate::MigrateError),
    #[error("the database cannot be opened")]
    Database(#[from] sqlx::Error),
}
