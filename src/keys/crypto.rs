//! Using keys: encrypt, decrypt, data keys, random bytes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::authz::{Action, Permit, action};
use crate::cluster::{Connection, Failure, Repeat};
use crate::keystore::Store;
use crate::keystore::lifecycle::Event;
use crate::model::{EncryptionContext, KeyRef, KeyStoreId, KeyVersion, Plaintext};
use crate::records::Proof;
use crate::users::ShownLogins;

use super::holdback::Suspect;
use super::owner::{Home, Reached};
use super::{Error, Key, Keys, NoUse, Version, envelope};

/// The key that was used, as the caller is told it.
#[derive(Debug)]
pub struct Used {
    /// Its ARN, or a crypto user's key by its label.
    pub name: String,
    /// A crypto user's key has but one.
    pub version: Option<KeyVersion>,
}

/// A ciphertext, and what made it.
#[derive(Debug)]
pub struct Encrypted {
    pub ciphertext: Vec<u8>,
    pub key: Used,
}

/// A plaintext, and what its ciphertext was made with.
#[derive(Debug)]
pub struct Decrypted {
    pub plaintext: Plaintext,
    pub key: Used,
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
        logins: &ShownLogins,
        key: &KeyRef,
        plaintext: Plaintext,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Encrypted, Error> {
        let reached = self.reach(&permit, logins, key, deadline).await?;
        let key = &reached.key;
        self.check_holdback(&permit, key)?;
        let connection = self.connection_behind(&reached)?;
        let uses = CountedUses::of(self, key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let sealed = connection.encrypt(&version.in_hsms, aad, plaintext, deadline, &uses).await;
        let sealed = self.told(&permit, &reached, version.version, &connection, sealed).await?;
        Ok(self.encrypted(key, version.version, &sealed))
    }

    /// The key is the one the ciphertext names; when the caller names one too, they must agree.
    pub async fn decrypt(
        &self,
        permit: Permit<action::Decrypt>,
        logins: &ShownLogins,
        key: Option<&KeyRef>,
        ciphertext: &[u8],
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Decrypted, Error> {
        let named = match key {
            Some(key) => Some(self.reach(&permit, logins, key, deadline).await?),
            None => None,
        };
        let envelope = envelope::open(ciphertext).map_err(|_| Error::InvalidCiphertext)?;
        let reached = match named {
            Some(reached) if reached.key.id != envelope.key => return Err(Error::IncorrectKey),
            Some(reached) => reached,
            None => self.reach_by_id(&permit, logins, envelope.key, deadline).await.map_err(|error| match error {
                Error::NotFound(_) => Error::InvalidCiphertext,
                other => other,
            })?,
        };
        let key = &reached.key;
        self.check_holdback(&permit, key)?;
        let version = key.version(envelope.version).ok_or(Error::InvalidCiphertext)?;
        let connection = self.connection_behind(&reached)?;
        let aad = envelope::aad(key.id, version.version, context);
        let plaintext = connection.decrypt(&version.in_hsms, aad, envelope.sealed, deadline).await;
        let plaintext = plaintext.map_err(Error::Hsm);
        let plaintext = self.told(&permit, &reached, version.version, &connection, plaintext).await?;
        Ok(Decrypted { plaintext, key: self.used(key, version.version) })
    }

    pub async fn generate_data_key(
        &self,
        permit: Permit<action::GenerateDataKey>,
        logins: &ShownLogins,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<NewDataKey, Error> {
        let reached = self.reach(&permit, logins, key, deadline).await?;
        self.data_key(&permit, &reached, number_of_bytes, PlaintextPart::Wanted, context, deadline).await
    }

    pub async fn generate_data_key_without_plaintext(
        &self,
        permit: Permit<action::GenerateDataKeyWithoutPlaintext>,
        logins: &ShownLogins,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Encrypted, Error> {
        let reached = self.reach(&permit, logins, key, deadline).await?;
        let made =
            self.data_key(&permit, &reached, number_of_bytes, PlaintextPart::Withheld, context, deadline).await?;
        Ok(made.encrypted)
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
                let connected = |store: &Arc<Store>| self.connection_of_store(store, Event::Use).is_ok();
                self.0.stores.list().into_iter().find(connected).ok_or(Error::NoConnectedStore)?
            }
        };
        let drawn = self.connection_of_store(&store, Event::Use)?.generate_random(number_of_bytes, deadline).await;
        if drawn.as_ref().is_err_and(|failure| *failure == Failure::NoNode) {
            // It may have been disconnected meanwhile, which is then the reason.
            self.connection_of_store(&store, Event::Use)?;
        }
        Ok(drawn?)
    }

    async fn data_key<A: Action>(
        &self,
        permit: &Permit<A>,
        reached: &Reached,
        number_of_bytes: u32,
        plaintext: PlaintextPart,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<NewDataKey, Error> {
        let key = &reached.key;
        self.check_holdback(permit, key)?;
        let connection = self.connection_behind(reached)?;
        let uses = CountedUses::of(self, key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let wanted = plaintext == PlaintextPart::Wanted;
        let generated =
            connection.generate_data_key(&version.in_hsms, aad, number_of_bytes, wanted, deadline, &uses).await;
        let generated = self.told(permit, reached, version.version, &connection, generated).await?;
        let encrypted = self.encrypted(key, version.version, &generated.sealed);
        Ok(NewDataKey { encrypted, plaintext: generated.plaintext })
    }

    fn check_holdback<A: Action>(&self, permit: &Permit<A>, key: &Key) -> Result<(), Error> {
        let held = self.0.holdback.check(|| suspect(permit, key), Instant::now());
        held.map_err(|remaining| Error::HeldBack { key: key.name(), remaining })
    }

    /// What the HSMs did with a version of a key, as the caller is told it. A failure that was the request's own doing is
    /// remembered.
    async fn told<A: Action, T>(
        &self,
        permit: &Permit<A>,
        reached: &Reached,
        version: KeyVersion,
        connection: &Connection,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let failure = match outcome {
            Err(Error::Hsm(failure)) => failure,
            Ok(done) => {
                reached.key.usage.mark();
                return Ok(done);
            }
            other => return other,
        };
        let key = &*reached.key;
        match failure {
            Failure::BadCiphertext => {
                self.0.holdback.bad_ciphertext(suspect(permit, key), Instant::now());
                return Err(Error::InvalidCiphertext);
            }
            Failure::Poisonous => self.0.holdback.deadly(suspect(permit, key), Instant::now()),
            // The store may have been disconnected, or the login have ended, under the request, which is then the reason.
            Failure::NoNode => drop(self.connection_behind(reached)?),
            Failure::KeyUnavailable if self.is_lost(key, version, connection).await? => {
                return Err(Error::Lost { key: key.name(), cluster: connection.cluster.clone() });
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
    /// was restored from a backup older than the key. An HSM that has left with it may come back.
    async fn is_lost(&self, key: &Key, version: KeyVersion, connection: &Connection) -> Result<bool, Error> {
        if self.0.records.may_be_somewhere(key.id, version, &connection.cluster).await? {
            return Ok(false);
        }
        let members = connection.members();
        for member in members.iter() {
            let place = (&connection.cluster, member.node.hsm());
            let known = self.0.records.presence(key.id, version, place).await?;
            let is_missing = known.is_some_and(|known| matches!(known.proof, Proof::Missing | Proof::Different));
            if !is_missing {
                return Ok(false);
            }
        }
        Ok(!members.is_empty())
    }

    fn encrypted(&self, key: &Key, version: KeyVersion, sealed: &crate::cluster::Sealed) -> Encrypted {
        let ciphertext = envelope::seal(key.id, version, sealed);
        Encrypted { ciphertext, key: self.used(key, version) }
    }

    fn used(&self, key: &Key, version: KeyVersion) -> Used {
        match &key.home {
            Home::KeyStore(store) => {
                Used { name: self.arn(&store.id(), &format!("key/{}", key.id)), version: Some(version) }
            }
            Home::User { .. } => Used { name: key.name(), version: None },
        }
    }
}

/// The uses of the version that encrypts. Each attempt of an HSM takes one, also one that fails.
struct CountedUses<'a> {
    keys: &'a Keys,
    key: &'a Key,
    version: &'a Version,
}

impl<'a> CountedUses<'a> {
    fn of(keys: &'a Keys, key: &'a Key) -> Result<Self, Error> {
        let version = key.version(key.current).ok_or_else(|| Error::NotFound(key.name()))?;
        Ok(Self { keys, key, version })
    }

    async fn take(&self) -> Result<(), Error> {
        let taken = self.version.uses.take(&self.keys.0.records, self.key.id, self.version.version).await;
        taken.map_err(|none| match none {
            NoUse::Exhausted => Error::UseLimit(self.key.name()),
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
