//! What keys do beside AES: signatures, MACs, and the decryption of what was encrypted to a public key.

use zeroize::Zeroizing;

use cryptoki::object::ObjectHandle;

use crate::model::{EncryptionAlgorithm, MacAlgorithm, SigningAlgorithm};

use super::fault::{Bucket, Kind};
use super::{Fault, Session, mechanism};

/// The longest message that a MAC is made of: what callers may send.
const MAX_MESSAGE: usize = 4 * 1024;
/// The longest signature: RSA's, under a modulus of 4,096 bits. With room for a library that wants more.
const MAX_SIGNATURE: usize = 1_024;
/// The longest RSA ciphertext.
const MAX_CIPHERTEXT: usize = 512;

impl Session {
    /// A signature of a digest; ECDSA's is DER. The probe proves the key if it has not been used yet.
    pub fn sign(
        &mut self,
        cka_id: &[u8],
        algorithm: SigningAlgorithm,
        digest: &[u8],
        probe: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        self.with_key(cka_id, probe, |session, key| session.sign_with(key, algorithm, digest))
    }

    /// The MAC of a message.
    pub fn mac(
        &mut self,
        cka_id: &[u8],
        algorithm: MacAlgorithm,
        message: &[u8],
        probe: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        if !(1..=MAX_MESSAGE).contains(&message.len()) {
            return Err(Fault::bad_input("a message has 1 to 4,096 bytes"));
        }
        self.with_key(cka_id, probe, |session, key| session.mac_with(key, algorithm, message))
    }

    /// What was encrypted to the key. After an answer that could mean either, its probe tells whether the ciphertext is bad
    /// or the node is.
    pub fn decrypt_oaep(
        &mut self,
        cka_id: &[u8],
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
        probe: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        if !(1..=MAX_CIPHERTEXT).contains(&ciphertext.len()) {
            return Err(Fault::refused(Bucket::Input, Kind::BadCiphertext, "no ciphertext has this length"));
        }
        self.with_key(cka_id, probe, |session, key| match session.decrypt_oaep_with(key, algorithm, ciphertext) {
            Err(fault) if fault.is_ambiguous => Err(session.tell_apart(cka_id, key, probe, fault)),
            other => other,
        })
    }

    pub(super) fn sign_with(
        &mut self,
        key: ObjectHandle,
        algorithm: SigningAlgorithm,
        digest: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let (scheme, hash) =
            algorithm.of_digest().ok_or_else(|| Fault::bad_input("keyway does not sign with this algorithm"))?;
        let input = mechanism::signed_form(scheme, hash, digest)?;
        let how = mechanism::signing(scheme, hash)?;
        let signature = self.token.module().calls.sign(&self.raw, key, &how, &input, MAX_SIGNATURE)?;
        mechanism::given_form(scheme, hash, signature)
    }

    pub(super) fn mac_with(
        &mut self,
        key: ObjectHandle,
        algorithm: MacAlgorithm,
        message: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        self.token.module().calls.sign(&self.raw, key, &mechanism::mac(algorithm), message, MAX_SIGNATURE)
    }

    pub(super) fn decrypt_oaep_with(
        &mut self,
        key: ObjectHandle,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.token.module().calls.decrypt(&self.raw, key, &mechanism::oaep(algorithm)?, ciphertext, MAX_CIPHERTEXT)
    }
}
