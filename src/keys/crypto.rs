//! Using keys: encrypt, decrypt, data keys, random bytes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::authz::{Action, Permit, action};
use crate::cluster::{Connection, Failure, Repeat};
use crate::keystore::Store;
use crate::keystore::lifecycle::Event;
use crate::model::{EncryptionContext, KeyId, KeyRef, KeyStoreId, KeyVersion, Plaintext};
use crate::records::Proof;

use super::holdback::Suspect;
use super::{Error, Key, Keys, NoUse, Version, envelope};

/// A ciphertext, and what made it.
#[derive(Debug)]
pub struct Encrypted {
    pub ciphertext: Vec<u8>,
    pub arn: String,
    pub version: KeyVersion,
}

/// A plaintext, and what its ciphertext was made with.
#[derive(Debug)]
pub struct Decrypted {
    pub plaintext: Plaintext,
    pub arn: String,
    pub version: KeyVersion,
}

/// A data key, encrypted, and in the clear when asked for.
#[derive(Debug)]
pub struct NewDataKey {
    pub encrypted: Encrypted,
    pub plaintext: Plaintext,
}

/// Whether a data key's plaintext leaves the HSM's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaintextPart {
    Wanted,
    Withheld,
}

impl Keys {
    pub async fn encrypt(
        &self,
        permit: Permit<action::Encrypt>,
        key: &KeyRef,
        plaintext: Plaintext,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Encrypted, Error> {
        let key = self.find(self.resolve(key).await?).await?;
        self.check_holdback(&permit, &key)?;
        let connection = self.connection_behind(&key)?;
        let uses = CountedUses::of(self, &key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let sealed = connection.encrypt(&version.in_hsms, aad, plaintext, deadline, &uses).await;
        let sealed = self.told(&permit, &key, version.version, &connection, sealed).await?;
        Ok(self.encrypted(&key, version.version, &sealed))
    }

    /// The key is the one the ciphertext names; when the caller names one too, they must agree.
    pub async fn decrypt(
        &self,
        permit: Permit<action::Decrypt>,
        key: Option<&KeyRef>,
        ciphertext: &[u8],
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Decrypted, Error> {
        let named = match key {
            Some(key) => Some(self.find(self.resolve(key).await?).await?),
            None => None,
        };
        let envelope = envelope::open(ciphertext).map_err(|_| Error::InvalidCiphertext)?;
        let key = match named {
            Some(key) if key.id != envelope.key => return Err(Error::IncorrectKey),
            Some(key) => key,
            None => self.find(envelope.key).await.map_err(|error| match error {
                Error::NotFound(_) => Error::InvalidCiphertext,
                other => other,
            })?,
        };
        self.check_holdback(&permit, &key)?;
        let version = key.version(envelope.version).ok_or(Error::InvalidCiphertext)?;
        let connection = self.connection_behind(&key)?;
        let aad = envelope::aad(key.id, version.version, context);
        let plaintext = connection.decrypt(&version.in_hsms, aad, envelope.sealed, deadline).await;
        let plaintext = plaintext.map_err(Error::Hsm);
        let plaintext = self.told(&permit, &key, version.version, &connection, plaintext).await?;
        Ok(Decrypted { plaintext, arn: self.key_arn(&key), version: version.version })
    }

    pub async fn generate_data_key(
        &self,
        permit: Permit<action::GenerateDataKey>,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<NewDataKey, Error> {
        self.data_key(&permit, key, number_of_bytes, PlaintextPart::Wanted, context, deadline).await
    }

    pub async fn generate_data_key_without_plaintext(
        &self,
        permit: Permit<action::GenerateDataKeyWithoutPlaintext>,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Encrypted, Error> {
        Ok(self.data_key(&permit, key, number_of_bytes, PlaintextPart::Withheld, context, deadline).await?.encrypted)
    }

    /// Random bytes from an HSM of the named store, or of any connected one.
    pub async fn generate_random(
        &self,
        _permit: Permit<action::GenerateRandom>,
        store: Option<&KeyStoreId>,
        number_of_bytes: u32,
        deadline: Instant,
    ) -> Result<Plaintext, Error> {
        let store = match store {
            Some(id) => self.0.stores.get(id)?,
            None => {
                let connected = |store: &Arc<Store>| self.connection_of(store, Event::Use).is_ok();
                self.0.stores.list().into_iter().find(connected).ok_or(Error::NoConnectedStore)?
            }
        };
        let drawn = self.connection_of(&store, Event::Use)?.generate_random(number_of_bytes, deadline).await;
        if drawn.as_ref().is_err_and(|failure| *failure == Failure::NoNode) {
            // It may have been disconnected meanwhile, which is then the reason.
            self.connection_of(&store, Event::Use)?;
        }
        Ok(drawn?)
    }

    async fn data_key<A: Action>(
        &self,
        permit: &Permit<A>,
        key: &KeyRef,
        number_of_bytes: u32,
        plaintext: PlaintextPart,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<NewDataKey, Error> {
        let key = self.find(self.resolve(key).await?).await?;
        self.check_holdback(permit, &key)?;
        let connection = self.connection_behind(&key)?;
        let uses = CountedUses::of(self, &key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let wanted = plaintext == PlaintextPart::Wanted;
        let generated =
            connection.generate_data_key(&version.in_hsms, aad, number_of_bytes, wanted, deadline, &uses).await;
        let generated = self.told(permit, &key, version.version, &connection, generated).await?;
        let encrypted = self.encrypted(&key, version.version, &generated.sealed);
        Ok(NewDataKey { encrypted, plaintext: generated.plaintext })
    }

    fn check_holdback<A: Action>(&self, permit: &Permit<A>, key: &Key) -> Result<(), Error> {
        let held = self.0.holdback.check(|| suspect(permit, key), Instant::now());
        held.map_err(|remaining| Error::HeldBack { key: key.id, remaining })
    }

    /// What the HSMs did with a version of a key, as the caller is told it. A failure that was the request's own doing is
    /// remembered.
    async fn told<A: Action, T>(
        &self,
        permit: &Permit<A>,
        key: &Key,
        version: KeyVersion,
        connection: &Connection,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let failure = match outcome {
            Err(Error::Hsm(failure)) => failure,
            other => return other,
        };
        match failure {
            Failure::BadCiphertext => {
                self.0.holdback.bad_ciphertext(suspect(permit, key), Instant::now());
                return Err(Error::InvalidCiphertext);
            }
            Failure::Poisonous => self.0.holdback.deadly(suspect(permit, key), Instant::now()),
            // The store may have been disconnected under the request, which is then the reason.
            Failure::NoNode => drop(self.connection_behind(key)?),
            Failure::KeyUnavailable if self.is_lost(key, version, connection).await? => {
                return Err(Error::Lost { key: key.id, cluster: connection.cluster.clone() });
            }
            Failure::KeyUnavailable
            | Failure::BadInput
            | Failure::Busy
            | Failure::Late
            | Failure::Unsupported(_)
            | Failure::OutcomeUnknown
            | Failure::OutOfTurn => {}
        }
        Err(Error::Hsm(failure))
    }

    /// Whether the version was looked for on every node of its cluster and is on none, as after a move to a cluster that
    /// was restored from a backup older than the key.
    async fn is_lost(&self, key: &Key, version: KeyVersion, connection: &Connection) -> Result<bool, Error> {
        for member in connection.members().iter() {
            let place = (&connection.cluster, member.node.hsm());
            let known = self.0.records.presence(key.id, version, place).await?;
            let is_missing = known.is_some_and(|known| matches!(known.proof, Proof::Missing | Proof::Different));
            if !is_missing {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn encrypted(&self, key: &Key, version: KeyVersion, sealed: &crate::cluster::Sealed) -> Encrypted {
        let ciphertext = envelope::seal(key.id, version, sealed);
        Encrypted { ciphertext, arn: self.key_arn(key), version }
    }

    fn key_arn(&self, key: &Key) -> String {
        self.arn(&key.store.id(), &format!("key/{}", key.id))
    }
}

/// The uses of the version that encrypts. Each attempt of an HSM takes one, also one that fails.
struct CountedUses<'a> {
    keys: &'a Keys,
    key: KeyId,
    version: &'a Version,
}

impl<'a> CountedUses<'a> {
    fn of(keys: &'a Keys, key: &'a Key) -> Result<Self, Error> {
        let version = key.version(key.current).ok_or_else(|| Error::NotFound(key.id.to_string()))?;
        Ok(Self { keys, key: key.id, version })
    }

    async fn take(&self) -> Result<(), Error> {
        let taken = self.version.uses.take(&self.keys.0.records, self.key, self.version.version).await;
        taken.map_err(|none| match none {
            NoUse::Exhausted => Error::UseLimit(self.key),
            NoUse::Records(error) => Error::Records(error),
        })
    }
}

impl Repeat for CountedUses<'_> {
    type Refused = Error;

    async fn leave(&self) -> Result<(), Error> {
        self.take().await
    }
}

fn suspect<A: Action>(permit: &Permit<A>, key: &Key) -> Suspect {
    Suspect { caller: permit.caller().name().to_owned(), key: key.id, operation: A::NAME }
}
