//! What a key is for, and what the HSMs can do: whoever uses or makes a key asks here first.

use tokio::time::Instant;

use crate::cluster::{self, Connection, Failure, Lack, Needed};
use crate::model::{CkaId, KeyKind, KeyUsage};

use super::{Error, Key, Version};

/// That the HSMs can make, copy and use such a key.
pub(super) async fn must_be_able(connection: &Connection, kind: KeyKind, deadline: Instant) -> Result<(), Error> {
    if let Some(missing) = cluster::withheld(kind) {
        return Err(Error::Unsupported { what: kind.usage().as_str(), hsm: None, missing: missing.to_owned() });
    }
    let needed = Needed::Spec(kind.spec());
    connection.told(needed, deadline).await;
    must_have(connection, needed)
}

/// That no HSM has said that it cannot do it.
pub(super) fn must_have(connection: &Connection, needed: Needed) -> Result<(), Error> {
    connection.lack(needed).map_or(Ok(()), |lack| Err(lacking(needed, lack)))
}

/// That not every HSM that has the key has said that it cannot do it.
pub(super) fn one_must_have(connection: &Connection, key: &CkaId, needed: Needed) -> Result<(), Error> {
    connection.lack_of_holders(key, needed).map_or(Ok(()), |lack| Err(lacking(needed, lack)))
}

/// That an HSM of those that serve has said that it can do it, and none that it cannot: what is done outside, an HSM must
/// be able to undo.
pub(super) async fn must_be_undoable(connection: &Connection, needed: Needed, deadline: Instant) -> Result<(), Error> {
    connection.told(needed, deadline).await;
    must_have(connection, needed)?;
    if connection.any_can(needed) { Ok(()) } else { Err(Error::Hsm(Failure::NoNode)) }
}

fn lacking(needed: Needed, lack: Lack) -> Error {
    Error::Unsupported { what: needed.name(), hsm: Some(lack.hsm), missing: lack.missing }
}

impl Key {
    /// That it is for this, as its name in the contract says.
    pub(super) fn must_be_for(&self, usage: KeyUsage, operation: &'static str) -> Result<(), Error> {
        if self.kind.usage() == usage { Ok(()) } else { Err(self.wrong_usage(operation)) }
    }

    /// That it is an AES key, the only one whose ciphertexts tell what made them.
    pub(super) fn must_be_symmetric(&self, operation: &'static str) -> Result<(), Error> {
        if self.kind == KeyKind::AES { Ok(()) } else { Err(self.wrong_usage(operation)) }
    }

    fn wrong_usage(&self, operation: &'static str) -> Error {
        Error::WrongUsage { key: self.name(), usage: self.kind.usage(), operation }
    }

    pub(super) fn wrong_algorithm(&self, algorithm: &'static str) -> Error {
        Error::WrongAlgorithm { key: self.name(), algorithm, spec: self.kind.spec(), usage: self.kind.usage() }
    }

    /// The version that new work is done with.
    pub(super) fn current(&self) -> Result<&Version, Error> {
        self.version(self.current).ok_or_else(|| Error::NotFound(self.name()))
    }
}
