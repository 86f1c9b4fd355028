//! Encryption to the public half of an RSA key, and decryption with the private one.
//!
//! Encrypting needs no secret, and is done here with the public key that the record holds, but only when an HSM has said that
//! it can undo it: what is encrypted otherwise may be lost. There is no envelope: the ciphertext is RSA's own, so that others
//! can make it. Whatever is wrong with one, callers are told the same.

use crate::authz::{Permit, action};
use crate::cluster::Needed;
use crate::model::{EncryptionAlgorithm, EncryptionContext, Hash, KeyUsage, Material, Plaintext, oaep_room};

use super::crypto::{Decrypted, Encrypted};
use super::terms::{Ready, Terms};
use super::{Error, Key, Keys, kinds};

/// How a key encrypts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Encryption {
    /// In keyway's own format.
    Symmetric,
    /// RSA's, under a modulus of so many bits.
    Oaep { algorithm: EncryptionAlgorithm, hash: Hash, bits: usize },
}

impl Key {
    /// How it encrypts, with the algorithm that was asked for.
    pub(super) fn encryption(
        &self,
        asked: Option<EncryptionAlgorithm>,
        operation: &'static str,
    ) -> Result<Encryption, Error> {
        self.must_be_for(KeyUsage::EncryptDecrypt, operation)?;
        let Material::Rsa(bits) = self.kind.spec().material() else {
            return match asked {
                None | Some(EncryptionAlgorithm::SymmetricDefault) => Ok(Encryption::Symmetric),
                Some(other) => Err(self.wrong_algorithm(other.as_str())),
            };
        };
        let algorithm = asked.ok_or_else(|| Error::AlgorithmNeeded(self.name()))?;
        let hash = algorithm.oaep_hash().ok_or_else(|| self.wrong_algorithm(algorithm.as_str()))?;
        Ok(Encryption::Oaep { algorithm, hash, bits })
    }
}

impl Keys {
    pub(super) async fn encrypt_oaep(
        &self,
        permit: &Permit<action::Encrypt>,
        terms: Terms<'_>,
        Ready { reached, connection }: &Ready,
        (algorithm, hash, bits): (EncryptionAlgorithm, Hash, usize),
        (plaintext, context): (&Plaintext, &EncryptionContext),
    ) -> Result<Encrypted, Error> {
        let key = &reached.key;
        no_context(context)?;
        let room = oaep_room(bits, hash);
        if plaintext.len() > room {
            return Err(Error::TooLong { algorithm: algorithm.as_str(), spec: key.kind.spec(), room });
        }
        let version = key.current()?;
        let undoable = kinds::must_be_undoable(connection, Needed::Encryption(algorithm), terms.deadline).await;
        self.told_of(permit, reached, version.version, connection, undoable).await?;
        let public_key = version.public_key.as_ref().ok_or_else(|| Error::NoPublicKey(key.name()))?;
        terms.in_earnest()?;
        let ciphertext = public_key.encrypt_oaep(hash, plaintext.expose());
        let ciphertext = ciphertext.ok_or_else(|| Error::NoPublicKey(key.name()))?;
        key.usage.mark();
        Ok(Encrypted { ciphertext, key: self.used(key, version.version) })
    }

    pub(super) async fn decrypt_oaep(
        &self,
        permit: &Permit<action::Decrypt>,
        terms: Terms<'_>,
        Ready { reached, connection }: &Ready,
        (algorithm, bits): (EncryptionAlgorithm, usize),
        (ciphertext, context): (&[u8], &EncryptionContext),
    ) -> Result<Decrypted, Error> {
        let key = &reached.key;
        no_context(context)?;
        if ciphertext.len() != bits / 8 {
            return Err(Error::InvalidCiphertext);
        }
        let version = key.current()?;
        kinds::one_must_have(connection, &version.in_hsms.id, Needed::Encryption(algorithm))?;
        terms.in_earnest()?;
        let opened = connection.decrypt_oaep(&version.in_hsms, algorithm, ciphertext.to_vec(), terms.deadline).await;
        let plaintext = self.told(permit, reached, version.version, connection, opened.map_err(Error::Hsm)).await?;
        Ok(Decrypted { plaintext, key: self.used(key, version.version) })
    }
}

/// RSA binds nothing to a ciphertext.
fn no_context(context: &EncryptionContext) -> Result<(), Error> {
    if context.is_empty() { Ok(()) } else { Err(Error::ContextNotTaken) }
}
