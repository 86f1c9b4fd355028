//! The public half of a key: as DER, and what may be done with it outside an HSM.
//!
//! Verifying a signature, or encrypting to a key, needs no secret. Done here it costs no HSM's time, is the same whatever the
//! vendor, and a wrong signature is never mistaken for an HSM in trouble.

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

use super::{Curve, Hash, KeySpec, Material, SignatureScheme, SigningAlgorithm};

/// A public key, DER-encoded SubjectPublicKeyInfo (RFC 5280).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Of an RSA key's numbers, big-endian. `None` when they are no such key's.
    pub fn of_rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let [n, e] = [modulus, exponent].map(|number| &number[number.iter().take_while(|byte| **byte == 0).count()..]);
        let der: PublicKeyX509Der<'_> = RsaPublicKeyComponents { n, e }.as_der().ok()?;
        Some(Self(der.as_ref().to_vec()))
    }

    /// Of a point as PKCS#11 tells it: uncompressed, in an OCTET STRING, which some libraries leave out. `None` when it is
    /// not on the curve.
    pub fn of_point(curve: Curve, told: &[u8]) -> Option<Self> {
        let length = 1 + 2 * curve.coordinate_len();
        let point = &told[told.len().checked_sub(length)?..];
        let (tag, short) = (0x04, u8::try_from(length).ok()?);
        let is_octet_string = match told[..told.len() - length] {
            [] => true,
            [of, says] => of == tag && says == short && short < 0x80,
            [of, 0x81, says] => of == tag && says == short,
            _ => false,
        };
        if !is_octet_string {
            return None;
        }
        let key = ParsedPublicKey::new(ecdsa(curve), point).ok()?;
        let der: PublicKeyX509Der<'_> = key.as_der().ok()?;
        Some(Self(der.as_ref().to_vec()))
    }

    /// One that [`PublicKey::as_der`] gave.
    pub fn from_der(der: Vec<u8>) -> Self {
        Self(der)
    }

    pub fn as_der(&self) -> &[u8] {
        &self.0
    }

    /// Whether this key of that spec made the signature of the digest. A digest of another length than the algorithm's is
    /// nobody's.
    pub fn verifies(&self, spec: KeySpec, algorithm: SigningAlgorithm, digest: &[u8], signature: &[u8]) -> bool {
        let Some((scheme, hash)) = algorithm.of_digest() else { return false };
        let verification: &'static dyn VerificationAlgorithm = match (scheme, spec.material()) {
            (SignatureScheme::Ecdsa, Material::Ec(curve)) => ecdsa(curve),
            (SignatureScheme::Pss, Material::Rsa(_)) => match hash {
                Hash::Sha256 => &signature::RSA_PSS_2048_8192_SHA256,
                Hash::Sha384 => &signature::RSA_PSS_2048_8192_SHA384,
                Hash::Sha512 => &signature::RSA_PSS_2048_8192_SHA512,
                Hash::Sha1 | Hash::Sha224 => return false,
            },
            (SignatureScheme::Pkcs1, Material::Rsa(_)) => match hash {
                Hash::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                Hash::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                Hash::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                Hash::Sha1 | Hash::Sha224 => return false,
            },
            _ => return false,
        };
        let Ok(digest) = digest::Digest::import_less_safe(digest, hash.algorithm()) else { return false };
        UnparsedPublicKey::new(verification, &self.0).verify_digest(&digest, signature).is_ok()
    }

    /// RSA-OAEP with this hash, which MGF1 has too, and without a label. `None` when the text is longer than
    /// [`oaep_room`] says, or this is no such key.
    pub fn encrypt_oaep(&self, hash: Hash, plaintext: &[u8]) -> Option<Vec<u8>> {
        let algorithm: &'static OaepAlgorithm = match hash {
            Hash::Sha1 => &OAEP_SHA1_MGF1SHA1,
            Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            Hash::Sha224 | Hash::Sha384 | Hash::Sha512 => return None,
        };
        let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&self.0).ok()?).ok()?;
        let mut ciphertext = vec![0; key.ciphertext_size()];
        let length = key.encrypt(algorithm, plaintext, &mut ciphertext, None).ok()?.len();
        ciphertext.truncate(length);
        Some(ciphertext)
    }
}

/// The longest text that RSA-OAEP takes under a modulus of so many bits.
pub const fn oaep_room(bits: usize, hash: Hash) -> usize {
    bits / 8 - 2 * hash.digest_len() - 2
}

impl Hash {
    /// The digest of a message.
    pub fn of(self, message: &[u8]) -> Vec<u8> {
        digest::digest(self.algorithm(), message).as_ref().to_vec()
    }

    const fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha224 => &digest::SHA224,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

/// The curve fixes the hash.
const fn ecdsa(curve: Curve) -> &'static signature::EcdsaVerificationAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
        Curve::P521 => &signature::ECDSA_P521_SHA512_ASN1,
        Curve::P256k1 => &signature::ECDSA_P256K1_SHA256_ASN1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    #[test]
    fn a_point_may_come_with_or_without_its_octet_string_and_must_be_on_the_curve() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_ASN1_SIGNING).unwrap();
        let point = pair.public_key().as_ref();
        let bare = PublicKey::of_point(Curve::P521, point).unwrap();
        let wrapped = [&[0x04, 0x81, 133], point].concat();
        assert_eq!(PublicKey::of_point(Curve::P521, &wrapped), Some(bare.clone()));
        let mut off = point.to_vec();
        off[100] ^= 1;
        for bad in [&off[..], &point[1..], &[&[0x04, 133], point].concat(), &[&[0x30, 0x81, 133], point].concat(), b""]
        {
            assert_eq!(PublicKey::of_point(Curve::P521, bad), None);
        }
        assert_eq!(PublicKey::of_point(Curve::P256, point), None);

        let signature = pair.sign(&SystemRandom::new(), b"text").unwrap();
        let verifies =
            |algorithm, digest: &[u8]| bare.verifies(KeySpec::EccNistP521, algorithm, digest, signature.as_ref());
        let digest = Hash::Sha512.of(b"text");
        assert!(verifies(SigningAlgorithm::EcdsaSha512, &digest));
        assert!(!verifies(SigningAlgorithm::EcdsaSha512, &Hash::Sha512.of(b"test")));
        assert!(!verifies(SigningAlgorithm::EcdsaSha512, &digest[..63]));
        assert!(!verifies(SigningAlgorithm::RsassaPssSha512, &digest));
    }

    #[test]
    fn oaep_takes_what_aws_says_and_no_byte_more() {
        let rooms = [(2_048, Hash::Sha1, 214), (2_048, Hash::Sha256, 190), (3_072, Hash::Sha1, 342)];
        let more = [(3_072, Hash::Sha256, 318), (4_096, Hash::Sha1, 470), (4_096, Hash::Sha256, 446)];
        for (bits, hash, room) in rooms.into_iter().chain(more) {
            assert_eq!(oaep_room(bits, hash), room);
        }
    }
}
