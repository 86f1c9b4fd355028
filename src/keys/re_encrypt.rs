//! From one key to another: decrypted on an HSM of the one, encrypted on an HSM of the other, which may be in different
//! clusters. In between the plaintext is here, in the type that is wiped, and goes nowhere else.

use crate::authz::{Permit, action};
use crate::model::{EncryptionContext, KeyRef};

use super::crypto::{Decrypted, Encrypted, Used};
use super::terms::Terms;
use super::{Error, Keys};

/// What is there, and how it was encrypted.
#[derive(Debug)]
pub struct Source<'a> {
    pub ciphertext: &'a [u8],
    /// When it is named, it must be the key that the ciphertext names.
    pub key: Option<&'a KeyRef>,
    pub context: &'a EncryptionContext,
}

/// How it is to be encrypted.
#[derive(Debug)]
pub struct Destination<'a> {
    pub key: &'a KeyRef,
    pub context: &'a EncryptionContext,
}

/// The new ciphertext, and what the old one was made with.
#[derive(Debug)]
pub struct ReEncrypted {
    pub source: Used,
    pub encrypted: Encrypted,
}

impl Keys {
    /// What refuses either key is told before one of them is used, the source's first. What only its HSM can tell of the
    /// ciphertext comes after both.
    pub async fn re_encrypt(
        &self,
        (from, to): (Permit<action::ReEncryptFrom>, Permit<action::ReEncryptTo>),
        terms: Terms<'_>,
        source: Source<'_>,
        destination: Destination<'_>,
    ) -> Result<ReEncrypted, Error> {
        let (opener, envelope) = self.ready_to_decrypt(&from, &terms, source.key, source.ciphertext).await?;
        let sealer = self.ready_to_encrypt(&to, &terms, destination.key).await?;
        terms.in_earnest()?;
        let opened = self.open(&from, &opener, envelope, source.context, terms.deadline).await?;
        let Decrypted { plaintext, key: source } = opened;
        let encrypted = self.seal(&to, &sealer, plaintext, destination.context, terms.deadline).await?;
        Ok(ReEncrypted { source, encrypted })
    }
}
