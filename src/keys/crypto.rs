//! Using keys: encrypt, decrypt, data keys, random bytes.

use std::sync::Arc;

use tokio::time::Instant;

use crate::authz::{Action, Permit, action};
use crate::cluster::{Connection, Failure, Repeat};
use crate::keystore::Store;
use crate::keystore::lifecycle::Event;
use crate::model::{EncryptionAlgorithm, EncryptionContext, KeyRef, KeyStoreId, KeyVersion, Plaintext};
use crate::records::Proof;

use super::envelope::{self, Envelope};
use super::holdback::Suspect;
use super::owner::{Home, Reached};
use super::rsa::Encryption;
use super::terms::{Ready, Terms};
use super::{Error, Key, Keys, NoUse, Version};

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
        terms: Terms<'_>,
        key: &KeyRef,
        (plaintext, algorithm): (Plaintext, Option<EncryptionAlgorithm>),
        context: &EncryptionContext,
    ) -> Result<Encrypted, Error> {
        let reached = self.reach(&permit, terms.logins, key, terms.deadline).await?;
        if let Encryption::Oaep { algorithm, hash, bits } = reached.key.encryption(algorithm, "Encrypt")? {
            let ready = self.made_ready(&permit, reached)?;
            return self.encrypt_oaep(&permit, terms, &ready, (algorithm, hash, bits), (&plaintext, context)).await;
        }
        let ready = self.ready_to_seal(&permit, &terms, reached).await?;
        terms.in_earnest()?;
        self.seal(&permit, &ready, plaintext, context, terms.deadline).await
    }

    /// The key is the one the ciphertext names; when the caller names one too, they must agree.
    pub async fn decrypt(
        &self,
        permit: Permit<action::Decrypt>,
        terms: Terms<'_>,
        key: Option<&KeyRef>,
        (ciphertext, algorithm): (&[u8], Option<EncryptionAlgorithm>),
        context: &EncryptionContext,
    ) -> Result<Decrypted, Error> {
        let named = match key {
            Some(key) => Some(self.reach(&permit, terms.logins, key, terms.deadline).await?),
            None if algorithm.is_some_and(|algorithm| algorithm.oaep_hash().is_some()) => {
                return Err(Error::KeyNotNamed);
            }
            None => None,
        };
        let encryption = named.as_ref().map(|reached| reached.key.encryption(algorithm, "Decrypt")).transpose()?;
        let named = match (named, encryption) {
            (Some(reached), Some(Encryption::Oaep { algorithm, bits, .. })) => {
                let ready = self.made_ready(&permit, reached)?;
                return self.decrypt_oaep(&permit, terms, &ready, (algorithm, bits), (ciphertext, context)).await;
            }
            (named, _) => named,
        };
        let (ready, envelope) = self.ready_to_open(&permit, &terms, named, ciphertext).await?;
        terms.in_earnest()?;
        self.open(&permit, &ready, envelope, context, terms.deadline).await
    }

    pub async fn generate_data_key(
        &self,
        permit: Permit<action::GenerateDataKey>,
        terms: Terms<'_>,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
    ) -> Result<NewDataKey, Error> {
        self.data_key(&permit, terms, key, number_of_bytes, PlaintextPart::Wanted, context).await
    }

    pub async fn generate_data_key_without_plaintext(
        &self,
        permit: Permit<action::GenerateDataKeyWithoutPlaintext>,
        terms: Terms<'_>,
        key: &KeyRef,
        number_of_bytes: u32,
        context: &EncryptionContext,
    ) -> Result<Encrypted, Error> {
        let made = self.data_key(&permit, terms, key, number_of_bytes, PlaintextPart::Withheld, context).await?;
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
            None => self.any_connected().ok_or(Error::NoConnectedStore)?,
        };
        let drawn = self.connection_of_store(&store, Event::Use)?.generate_random(number_of_bytes, deadline).await;
        if drawn.as_ref().is_err_and(|failure| *failure == Failure::NoNode) {
            // It may have been disconnected meanwhile, which is then the reason.
            self.connection_of_store(&store, Event::Use)?;
        }
        Ok(drawn?)
    }

    /// One whose HSMs serve, if there is one.
    fn any_connected(&self) -> Option<Arc<Store>> {
        let stores = self.0.stores.list().into_iter();
        let connected = stores.filter_map(|store| Some((self.connection_of_store(&store, Event::Use).ok()?, store)));
        connected.min_by_key(|(connection, _)| !connection.any_proved()).map(|(_, store)| store)
    }

    async fn data_key<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: Terms<'_>,
        key: &KeyRef,
        number_of_bytes: u32,
        plaintext: PlaintextPart,
        context: &EncryptionContext,
    ) -> Result<NewDataKey, Error> {
        let Ready { reached, connection } = self.ready_to_encrypt(permit, &terms, key).await?;
        terms.in_earnest()?;
        let key = &reached.key;
        let uses = CountedUses::of(self, key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let wanted = plaintext == PlaintextPart::Wanted;
        let generated =
            connection.generate_data_key(&version.in_hsms, aad, number_of_bytes, wanted, terms.deadline, &uses).await;
        let generated = self.told(permit, &reached, version.version, &connection, generated).await?;
        let encrypted = self.encrypted(key, version.version, &generated.sealed);
        Ok(NewDataKey { encrypted, plaintext: generated.plaintext })
    }

    /// The symmetric key to encrypt with, when it may be used.
    pub(super) async fn ready_to_encrypt<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: &Terms<'_>,
        key: &KeyRef,
    ) -> Result<Ready, Error> {
        let reached = self.reach(permit, terms.logins, key, terms.deadline).await?;
        self.ready_to_seal(permit, terms, reached).await
    }

    /// The same of a key that was found already. Whether it has a use left is looked at for a dry run alone: work in earnest
    /// takes one.
    async fn ready_to_seal<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: &Terms<'_>,
        reached: Reached,
    ) -> Result<Ready, Error> {
        reached.key.must_be_symmetric(A::NAME)?;
        let ready = self.made_ready(permit, reached)?;
        if terms.dry_run {
            CountedUses::of(self, &ready.reached.key)?.look().await?;
        }
        Ok(ready)
    }

    /// The symmetric key that encrypted this, when it may be used, and the ciphertext taken apart. Nothing is proved about
    /// that yet.
    pub(super) async fn ready_to_decrypt<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: &Terms<'_>,
        key: Option<&KeyRef>,
        ciphertext: &[u8],
    ) -> Result<(Ready, Envelope), Error> {
        let named = match key {
            Some(key) => {
                let reached = self.reach(permit, terms.logins, key, terms.deadline).await?;
                reached.key.must_be_symmetric(A::NAME)?;
                Some(reached)
            }
            None => None,
        };
        self.ready_to_open(permit, terms, named, ciphertext).await
    }

    /// The same, with the key that the caller named found already.
    async fn ready_to_open<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: &Terms<'_>,
        named: Option<Reached>,
        ciphertext: &[u8],
    ) -> Result<(Ready, Envelope), Error> {
        let envelope = envelope::open(ciphertext).map_err(|_| Error::InvalidCiphertext)?;
        let reached = match named {
            Some(reached) if reached.key.id != envelope.key => return Err(Error::IncorrectKey),
            Some(reached) => reached,
            None => {
                let reached = self.reach_by_id(permit, terms.logins, envelope.key, terms.deadline).await;
                reached.map_err(|error| match error {
                    Error::NotFound(_) => Error::InvalidCiphertext,
                    other => other,
                })?
            }
        };
        // No other key makes such a ciphertext.
        reached.key.must_be_symmetric(A::NAME).map_err(|_| Error::InvalidCiphertext)?;
        let ready = self.made_ready(permit, reached)?;
        ready.reached.key.version(envelope.version).ok_or(Error::InvalidCiphertext)?;
        Ok((ready, envelope))
    }

    pub(super) async fn seal<A: Action>(
        &self,
        permit: &Permit<A>,
        Ready { reached, connection }: &Ready,
        plaintext: Plaintext,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Encrypted, Error> {
        let key = &reached.key;
        let uses = CountedUses::of(self, key)?;
        uses.take().await?;
        let version = uses.version;
        let aad = envelope::aad(key.id, version.version, context);
        let sealed = connection.encrypt(&version.in_hsms, aad, plaintext, deadline, &uses).await;
        let sealed = self.told(permit, reached, version.version, connection, sealed).await?;
        Ok(self.encrypted(key, version.version, &sealed))
    }

    pub(super) async fn open<A: Action>(
        &self,
        permit: &Permit<A>,
        Ready { reached, connection }: &Ready,
        envelope: Envelope,
        context: &EncryptionContext,
        deadline: Instant,
    ) -> Result<Decrypted, Error> {
        let key = &reached.key;
        let version = key.version(envelope.version).ok_or(Error::InvalidCiphertext)?;
        let aad = envelope::aad(key.id, version.version, context);
        let plaintext = connection.decrypt(&version.in_hsms, aad, envelope.sealed, deadline).await;
        let plaintext = plaintext.map_err(Error::Hsm);
        let plaintext = self.told(permit, reached, version.version, connection, plaintext).await?;
        Ok(Decrypted { plaintext, key: self.used(key, version.version) })
    }

    pub(super) fn check_holdback<A: Action>(&self, permit: &Permit<A>, key: &Key) -> Result<(), Error> {
        let held = self.0.holdback.check(|| suspect(permit, key), Instant::now());
        held.map_err(|remaining| Error::HeldBack { key: key.name(), remaining })
    }

    /// What the HSMs did with a version of a key, as the caller is told it. A failure that was the request's own doing is
    /// remembered.
    pub(super) async fn told<A: Action, T>(
        &self,
        permit: &Permit<A>,
        reached: &Reached,
        version: KeyVersion,
        connection: &Connection,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let outcome = self.told_of(permit, reached, version, connection, outcome).await;
        if outcome.is_ok() {
            reached.key.usage.mark();
        }
        outcome
    }

    /// The same, when the key has not done its work yet, or not for its caller.
    pub(super) async fn told_of<A: Action, T>(
        &self,
        permit: &Permit<A>,
        reached: &Reached,
        version: KeyVersion,
        connection: &Connection,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        let failure = match outcome {
            Err(Error::Hsm(failure)) => failure,
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

    pub(super) fn used(&self, key: &Key, version: KeyVersion) -> Used {
        match &key.home {
            Home::KeyStore(store) => {
                Used { name: self.arn(&store.id(), &format!("key/{}", key.id)), version: Some(version) }
            }
            Home::User { .. } => Used { name: key.name(), version: None },
        }
    }
}

/// The uses of the version of a symmetric key that encrypts: other keys make no ciphertexts whose IVs could meet. Each attempt
/// of an HSM takes one, also one that fails.
struct CountedUses<'a> {
    keys: &'a Keys,
    key: &'a Key,
    version: &'a Version,
}

impl<'a> CountedUses<'a> {
    fn of(keys: &'a Keys, key: &'a Key) -> Result<Self, Error> {
        Ok(Self { keys, key, version: key.current()? })
    }

    async fn take(&self) -> Result<(), Error> {
        let taken = self.version.uses.take(&self.keys.0.records, self.key.id, self.version.version).await;
        taken.map_err(|none| self.refused(none))
    }

    /// Whether one could be taken now.
    async fn look(&self) -> Result<(), Error> {
        let left = self.version.uses.look(&self.keys.0.records, self.key.id, self.version.version).await;
        left.map_err(|none| self.refused(none))
    }

    fn refused(&self, none: NoUse) -> Error {
        match none {
            NoUse::Exhausted => Error::UseLimit(self.key.name()),
            NoUse::Records(error) => Error::Records(error),
        }
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
