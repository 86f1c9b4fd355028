//! What is written down: key stores, passwords (sealed), login attempts, keys and where they are, aliases; crypto
//! users and who is logged in as one; clusters that were made here, with their HSMs.
//!
//! SQL stands here and nowhere else. Every change is one transaction; what a caller was told is on
//! the disk. This room decides nothing about keys or stores beyond what must hold between rows: business answers are
//! return values, and the one error is that the records cannot be reached. It reads no clock: times are given.

mod aliases;
mod creating;
mod crypto_users;
mod destroyed_keys;
mod drifts;
mod error;
mod found_keys;
mod hsms;
mod keks;
mod key_life;
mod key_stores;
mod keys;
mod lineages;
mod logins;
mod made_clusters;
mod made_hsms;
mod open;
mod password_checks;
mod passwords;
mod presences;
mod replicas;
mod rotations;
mod row;
mod tags;
mod tell;
mod updates;
mod user_logins;
mod uses;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use sqlx::SqlitePool;

use crate::model::Sealer;

pub use aliases::{AliasRecord, CreatedAlias, MovedAlias};
pub use creating::{BegunKey, KeyLimits, NewKey, NewKeyHome, RequestClaim};
pub use crypto_users::{AddedCryptoUser, CryptoUserRecord, Lock, NewCryptoUser, UserOnHsm, UserTask};
pub use drifts::{Difference, DriftCursor, DriftRecord, ObjectName, Oddity};
pub use error::{OpenError, Unavailable};
pub use found_keys::{AdoptedKey, FoundKey};
pub use keks::KekRecord;
pub use key_life::{Deletion, Due, DueCursor};
pub use key_stores::{AddedKeyStore, ConnectionFault, DeletedKeyStore, KeyStoreChange, KeyStoreRecord};
pub use keys::{KeyHome, KeyRecord, VersionRecord};
pub use logins::{LoginAnswer, LoginLeave, Standing};
pub use made_clusters::{AddedCluster, MadeClusterRecord, NewCluster};
pub use made_hsms::{AddedHsm, BegunRemoval, MadeHsm};
pub use open::Settings;
pub use passwords::{CandidateFate, NodePassword, PasswordOwner, Rotation};
pub use presences::{NewProof, PresenceRecord, Proof};
pub use replicas::ProvableKey;
pub use rotations::{BegunVersion, NewVersion, RotationCause, RotationCursor, RotationDue, RotationLimits};
pub use tags::Tagged;
pub use updates::{KeyStoreUpdate, UpdatedKeyStore};
pub use user_logins::{AddedLogin, UserLoginRecord};
pub use uses::Reserved;

use tell::Writing;

/// The records of one daemon. Cheap to clone; its directory stays locked while one is alive.
#[derive(Debug, Clone)]
pub struct Records(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// One connection: SQLite has one writer, and waiting for it here keeps the order.
    write: SqlitePool,
    read: SqlitePool,
    sealer: Sealer,
    /// What changes took, from when each had the writer until it gave it back.
    writing: Arc<Writing>,
    _lock: std::fs::File,
}
