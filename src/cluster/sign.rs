//! What keys beside AES do, on whichever node serves it.

use tokio::time::Instant;

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::{EncryptionAlgorithm, MacAlgorithm, Plaintext, SigningAlgorithm};

use super::abilities::Needed;
use super::connection::{Connection, Failure, KeyInHsms, Wanted};
use super::repeat::Freely;

impl Connection {
    /// A signature of a digest; ECDSA's is DER.
    pub async fn sign(
        &self,
        key: &KeyInHsms,
        algorithm: SigningAlgorithm,
        digest: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let wanted = Wanted::with(&key.id).that_can(Needed::Signing(algorithm));
        self.sign_as(key, wanted, (algorithm.as_str(), digest), deadline).await
    }

    /// The MAC of a message.
    pub async fn mac(
        &self,
        key: &KeyInHsms,
        algorithm: MacAlgorithm,
        message: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        self.sign_as(key, Wanted::with(&key.id), (algorithm.as_str(), message), deadline).await
    }

    /// The plaintext of an RSA-OAEP ciphertext.
    pub async fn decrypt_oaep(
        &self,
        key: &KeyInHsms,
        algorithm: EncryptionAlgorithm,
        ciphertext: Vec<u8>,
        deadline: Instant,
    ) -> Result<Plaintext, Failure> {
        let verb = Verb::DecryptOaep(v1::DecryptOaep {
            cka_id: key.cka_id(),
            algorithm: algorithm.as_str().to_owned(),
            ciphertext,
            probe: key.probe.0.clone(),
        });
        let wanted = Wanted::with(&key.id).that_can(Needed::Encryption(algorithm));
        Ok(Plaintext::new(self.run_opaque(wanted, verb, deadline).await?))
    }

    async fn sign_as(
        &self,
        key: &KeyInHsms,
        wanted: Wanted<'_>,
        (algorithm, input): (&str, Vec<u8>),
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let verb = Verb::Sign(v1::Sign {
            cka_id: key.cka_id(),
            algorithm: algorithm.to_owned(),
            input,
            probe: key.probe.0.clone(),
        });
        self.run_opaque(wanted, verb, deadline).await
    }

    async fn run_opaque(&self, wanted: Wanted<'_>, verb: Verb, deadline: Instant) -> Result<Vec<u8>, Failure> {
        match self.run(wanted, verb, deadline, &Freely).await? {
            Outcome::Opaque(opaque) => Ok(opaque.bytes),
            _ => Err(Failure::OutOfTurn),
        }
    }
}
