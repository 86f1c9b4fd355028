//! Key pairs for callers to use outside, with their private halves encrypted under a symmetric key.
//!
//! They are made here, not in an HSM: their private halves are to leave, and no key in an HSM ever does. Making one is work for
//! a processor, for RSA up to seconds of it, so that it is done beside the lanes, a few at once.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::authz::{Action, Permit, action};
use crate::cluster::Failure;
use crate::model::{Curve, EncryptionContext, KeyRef, KeySpec, Material, Plaintext, PublicKey};

use super::crypto::Encrypted;
use super::terms::Terms;
use super::{Error, Keys};

/// Pairs that are being made at once, and that wait to be made.
const AT_ONCE: usize = 2;
const WAITING: usize = 32;

/// A key pair, its private half encrypted and in the clear.
#[derive(Debug)]
pub struct NewDataKeyPair {
    pub encrypted: Encrypted,
    /// DER-encoded PKCS#8 (RFC 5958).
    pub private_key: Plaintext,
    pub public_key: PublicKey,
}

/// Where pairs are made.
#[derive(Debug)]
pub(super) struct Workshop {
    waiting: Semaphore,
    benches: Arc<Semaphore>,
}

impl Default for Workshop {
    fn default() -> Self {
        Self { waiting: Semaphore::new(WAITING), benches: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Keys {
    pub async fn generate_data_key_pair(
        &self,
        permit: Permit<action::GenerateDataKeyPair>,
        terms: Terms<'_>,
        (key, spec): (&KeyRef, KeySpec),
        context: &EncryptionContext,
    ) -> Result<NewDataKeyPair, Error> {
        self.data_key_pair(&permit, terms, (key, spec), context).await
    }

    /// The private half in the clear is wiped here.
    pub async fn generate_data_key_pair_without_plaintext(
        &self,
        permit: Permit<action::GenerateDataKeyPairWithoutPlaintext>,
        terms: Terms<'_>,
        (key, spec): (&KeyRef, KeySpec),
        context: &EncryptionContext,
    ) -> Result<(Encrypted, PublicKey), Error> {
        let made = self.data_key_pair(&permit, terms, (key, spec), context).await?;
        Ok((made.encrypted, made.public_key))
    }

    async fn data_key_pair<A: Action>(
        &self,
        permit: &Permit<A>,
        terms: Terms<'_>,
        (key, spec): (&KeyRef, KeySpec),
        context: &EncryptionContext,
    ) -> Result<NewDataKeyPair, Error> {
        // Before the work: it would be for nothing.
        let ready = self.ready_to_encrypt(permit, &terms, key).await?;
        must_be_made(spec)?;
        terms.in_earnest()?;
        let (private_key, public_key) = self.make_pair(spec, terms.deadline).await?;
        let sealed = Plaintext::new(private_key.expose().to_vec());
        let encrypted = self.seal(permit, &ready, sealed, context, terms.deadline).await?;
        Ok(NewDataKeyPair { encrypted, private_key, public_key })
    }

    async fn make_pair(&self, spec: KeySpec, deadline: Instant) -> Result<(Plaintext, PublicKey), Error> {
        let workshop = &self.0.workshop;
        let _place = workshop.waiting.try_acquire().map_err(|_| Error::Hsm(Failure::Busy))?;
        let late = |_| Error::Hsm(Failure::Late);
        let bench = tokio::time::timeout_at(deadline, workshop.benches.clone().acquire_owned()).await.map_err(late)?;
        let making = self.0.runtime.spawn_blocking(move || {
            let made = make(spec);
            drop(bench);
            made
        });
        let made = tokio::time::timeout_at(deadline, making).await.map_err(late)?;
        made.ok().flatten().ok_or(Error::PairNotMade(spec))
    }
}

/// That pairs of this spec are made.
fn must_be_made(spec: KeySpec) -> Result<(), Error> {
    match spec.material() {
        Material::Rsa(_) | Material::Ec(_) | Material::Edwards => Ok(()),
        Material::Aes | Material::Hmac(_) | Material::MlDsa | Material::MlKem => Err(Error::Unsupported {
            what: spec.as_str(),
            hsm: None,
            missing: "support for such data key pairs in this release of keyway".to_owned(),
        }),
    }
}

/// `None`: it failed, or no pairs are made of this spec.
fn make(spec: KeySpec) -> Option<(Plaintext, PublicKey)> {
    match spec.material() {
        Material::Rsa(bits) => {
            let size = match bits {
                2_048 => KeySize::Rsa2048,
                3_072 => KeySize::Rsa3072,
                _ => KeySize::Rsa4096,
            };
            let pair = rsa::KeyPair::generate(size).ok()?;
            halves(&pair, pair.public_key())
        }
        Material::Ec(curve) => {
            let pair = EcdsaKeyPair::generate(signing(curve)).ok()?;
            let private = pair.to_pkcs8v1().ok()?;
            Some((Plaintext::new(private.as_ref().to_vec()), public(pair.public_key())?))
        }
        Material::Edwards => {
            let pair = Ed25519KeyPair::generate().ok()?;
            halves(&pair, pair.public_key())
        }
        Material::Aes | Material::Hmac(_) | Material::MlDsa | Material::MlKem => None,
    }
}

fn halves(
    pair: &impl AsDer<Pkcs8V1Der<'static>>,
    public_half: &impl AsDer<PublicKeyX509Der<'static>>,
) -> Option<(Plaintext, PublicKey)> {
    let private = pair.as_der().ok()?;
    Some((Plaintext::new(private.as_ref().to_vec()), public(public_half)?))
}

fn public(half: &impl AsDer<PublicKeyX509Der<'static>>) -> Option<PublicKey> {
    Some(PublicKey::from_der(half.as_der().ok()?.as_ref().to_vec()))
}

const fn signing(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
        Curve::P521 => &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
        Curve::P256k1 => &signature::ECDSA_P256K1_SHA256_ASN1_SIGNING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_made_of_every_spec_that_is_not_refused_and_of_no_other() {
        // Of one size of RSA's alone, since larger ones take seconds.
        let specs = KeySpec::ALL.into_iter().filter(|spec| !matches!(spec, KeySpec::Rsa3072 | KeySpec::Rsa4096));
        for spec in specs {
            assert_eq!(must_be_made(spec).is_ok(), make(spec).is_some(), "{spec}");
        }
    }
}
