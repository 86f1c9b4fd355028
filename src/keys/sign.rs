//! Signatures and MACs.
//!
//! Signing is the HSM's work, and of a message only the digest goes there. Verifying is done here with the public key that
//! the record holds: it needs no secret, so that it costs no HSM's time, and a wrong signature is not mistaken for an HSM in
//! trouble. A MAC to verify is made again in an HSM and compared here; it goes no further.

use aws_lc_rs::constant_time;
use zeroize::Zeroizing;

use crate::authz::{Action, Permit, action};
use crate::cluster::Needed;
use crate::model::{KeyKind, KeyRef, KeyUsage, KeyVersion, MacAlgorithm, PublicKey, SigningAlgorithm};

use super::crypto::Used;
use super::owner::Reached;
use super::terms::{Ready, Terms};
use super::{Error, Key, Keys, kinds};

/// What is signed.
#[derive(Debug)]
pub enum Message {
    Raw(Vec<u8>),
    /// Made by the caller with the algorithm's hash.
    Digest(Vec<u8>),
}

/// A signature or a MAC, and what made it.
#[derive(Debug)]
pub struct Signed {
    pub bytes: Vec<u8>,
    pub key: Used,
}

/// The public half of a key.
#[derive(Debug)]
pub struct Published {
    pub public_key: PublicKey,
    pub kind: KeyKind,
    pub key: Used,
}

/// A MAC before anybody has it: with it, a wrong one could be mended.
struct Computed {
    mac: Zeroizing<Vec<u8>>,
    reached: Reached,
    version: KeyVersion,
}

impl Keys {
    pub async fn sign(
        &self,
        permit: Permit<action::Sign>,
        terms: Terms<'_>,
        key: &KeyRef,
        (message, algorithm): (Message, SigningAlgorithm),
    ) -> Result<Signed, Error> {
        let reached = self.reach(&permit, terms.logins, key, terms.deadline).await?;
        let digest = digest_to_sign(&reached.key, message, algorithm, "Sign")?;
        let Ready { reached, connection } = self.made_ready(&permit, reached)?;
        let version = reached.key.current()?;
        kinds::one_must_have(&connection, &version.in_hsms.id, Needed::Signing(algorithm))?;
        terms.in_earnest()?;
        let signature = connection.sign(&version.in_hsms, algorithm, digest, terms.deadline).await.map_err(Error::Hsm);
        let bytes = self.told(&permit, &reached, version.version, &connection, signature).await?;
        Ok(Signed { bytes, key: self.used(&reached.key, version.version) })
    }

    pub async fn verify(
        &self,
        permit: Permit<action::Verify>,
        terms: Terms<'_>,
        key: &KeyRef,
        (message, algorithm): (Message, SigningAlgorithm),
        signature: &[u8],
    ) -> Result<Used, Error> {
        let reached = self.reach(&permit, terms.logins, key, terms.deadline).await?;
        let key = &reached.key;
        let digest = digest_to_sign(key, message, algorithm, "Verify")?;
        // A key whose store is not connected is as unavailable for this as for the rest.
        self.connection_behind(&reached)?;
        let version = key.current()?;
        let public_key = version.public_key.as_ref().ok_or_else(|| Error::NoPublicKey(key.name()))?;
        terms.in_earnest()?;
        if !public_key.verifies(key.kind.spec(), algorithm, &digest, signature) {
            return Err(Error::WrongSignature);
        }
        key.usage.mark();
        Ok(self.used(key, version.version))
    }

    pub async fn generate_mac(
        &self,
        permit: Permit<action::GenerateMac>,
        terms: Terms<'_>,
        key: &KeyRef,
        (message, algorithm): (Vec<u8>, MacAlgorithm),
    ) -> Result<Signed, Error> {
        let Computed { mac, reached, version } = self.mac(&permit, terms, key, (message, algorithm)).await?;
        reached.key.usage.mark();
        Ok(Signed { bytes: mac.to_vec(), key: self.used(&reached.key, version) })
    }

    pub async fn verify_mac(
        &self,
        permit: Permit<action::VerifyMac>,
        terms: Terms<'_>,
        key: &KeyRef,
        (message, algorithm): (Vec<u8>, MacAlgorithm),
        mac: &[u8],
    ) -> Result<Used, Error> {
        let made = self.mac(&permit, terms, key, (message, algorithm)).await?;
        constant_time::verify_slices_are_equal(&made.mac, mac).map_err(|_| Error::WrongMac)?;
        made.reached.key.usage.mark();
        Ok(self.used(&made.reached.key, made.version))
    }

    /// The public half, also while no HSM answers: the record has it.
    pub async fn public_key(
        &self,
        permit: Permit<action::GetPublicKey>,
        terms: Terms<'_>,
        key: &KeyRef,
    ) -> Result<Published, Error> {
        let reached = self.reach(&permit, terms.logins, key, terms.deadline).await?;
        self.connection_behind(&reached)?;
        let (key, version) = (&reached.key, reached.key.current()?);
        let public_key = version.public_key.clone().ok_or_else(|| Error::NoPublicKey(key.name()))?;
        Ok(Published { public_key, kind: key.kind, key: self.used(key, version.version) })
    }

    async fn mac<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: Terms<'_>,
        key: &KeyRef,
        (message, algorithm): (Vec<u8>, MacAlgorithm),
    ) -> Result<Computed, Error> {
        let reached = self.reach(permit, terms.logins, key, terms.deadline).await?;
        let key = &reached.key;
        key.must_be_for(KeyUsage::GenerateVerifyMac, A::NAME)?;
        if !key.kind.mac_algorithms().contains(&algorithm) {
            return Err(key.wrong_algorithm(algorithm.as_str()));
        }
        let Ready { reached, connection } = self.made_ready(permit, reached)?;
        let version = reached.key.current()?;
        terms.in_earnest()?;
        let mac = connection.mac(&version.in_hsms, algorithm, message, terms.deadline).await.map_err(Error::Hsm);
        let version = version.version;
        let mac = Zeroizing::new(self.told_of(permit, &reached, version, &connection, mac).await?);
        Ok(Computed { mac, reached, version })
    }
}

/// The digest that the key is to sign with this algorithm, or was to.
fn digest_to_sign(
    key: &Key,
    message: Message,
    algorithm: SigningAlgorithm,
    operation: &'static str,
) -> Result<Vec<u8>, Error> {
    key.must_be_for(KeyUsage::SignVerify, operation)?;
    if !key.kind.signing_algorithms().contains(&algorithm) {
        return Err(key.wrong_algorithm(algorithm.as_str()));
    }
    // No key exists that signs otherwise.
    let (_, hash) = algorithm.of_digest().ok_or_else(|| key.wrong_algorithm(algorithm.as_str()))?;
    match message {
        Message::Raw(message) => Ok(hash.of(&message)),
        Message::Digest(digest) if digest.len() == hash.digest_len() => Ok(digest),
        Message::Digest(digest) => {
            Err(Error::DigestLength { algorithm: algorithm.as_str(), needed: hash.digest_len(), given: digest.len() })
        }
    }
}
