//! Kinds of keys as PKCS#11 has them: the class and type of their objects, what makes them, and what they do their work with.

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass};

use crate::model::{
    Curve, EncryptionAlgorithm, Hash, KeyKind, KeyUsage, MacAlgorithm, Material, SignatureScheme, SigningAlgorithm,
};

use super::Fault;
use super::fault::{Bucket, Kind};

pub(super) const AES_256_BYTES: u64 = 32;
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// What the one object of a key is: a secret key, or the private half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) class: ObjectClass,
    pub(super) key_type: KeyType,
}

/// What makes a key.
pub(super) enum Making {
    Secret {
        mechanism: Mechanism<'static>,
        bytes: u64,
    },
    /// The public half lives only until it was read.
    Pair {
        mechanism: Mechanism<'static>,
        public: Vec<Attribute>,
    },
}

impl Sort {
    pub(super) const AES: Self = Self { class: ObjectClass::SECRET_KEY, key_type: KeyType::AES };
    pub(super) const HMAC: Self = Self { class: ObjectClass::SECRET_KEY, key_type: KeyType::GENERIC_SECRET };
    pub(super) const RSA: Self = Self { class: ObjectClass::PRIVATE_KEY, key_type: KeyType::RSA };
    pub(super) const EC: Self = Self { class: ObjectClass::PRIVATE_KEY, key_type: KeyType::EC };
    const ALL: [Self; 4] = [Self::AES, Self::HMAC, Self::RSA, Self::EC];

    /// `None`: keyway makes no such key.
    pub(super) const fn of(material: Material) -> Option<Self> {
        match material {
            Material::Aes => Some(Self::AES),
            Material::Hmac(_) => Some(Self::HMAC),
            Material::Rsa(_) => Some(Self::RSA),
            Material::Ec(_) => Some(Self::EC),
            Material::Edwards | Material::MlDsa | Material::MlKem => None,
        }
    }

    /// The sort of an object at hand.
    pub(super) fn told_by(has: &[Attribute]) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.attributes().iter().all(|attribute| has.contains(attribute)))
    }

    pub(super) const fn attributes(self) -> [Attribute; 2] {
        [Attribute::Class(self.class), Attribute::KeyType(self.key_type)]
    }
}

impl Making {
    pub(super) fn of(kind: KeyKind) -> Result<Self, Fault> {
        let secret = |mechanism, bytes| Self::Secret { mechanism, bytes };
        match kind.spec().material() {
            Material::Aes => Ok(secret(Mechanism::AesKeyGen, AES_256_BYTES)),
            Material::Hmac(bytes) => Ok(secret(Mechanism::GenericSecretKeyGen, bytes as u64)),
            Material::Rsa(bits) => {
                let signs = kind.usage() == KeyUsage::SignVerify;
                Ok(Self::rsa(bits as u64, (signs, !signs)))
            }
            Material::Ec(curve) => Ok(Self::Pair {
                mechanism: Mechanism::EccKeyPairGen,
                public: public_half(vec![Attribute::EcParams(parameters(curve).to_vec()), Attribute::Verify(true)]),
            }),
            Material::Edwards | Material::MlDsa | Material::MlKem => Err(Fault::bad_input("keyway makes no such key")),
        }
    }

    pub(super) fn rsa(bits: u64, (signs, encrypts): (bool, bool)) -> Self {
        let own = vec![
            Attribute::ModulusBits(bits.into()),
            Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
            Attribute::Verify(signs),
            Attribute::Encrypt(encrypts),
        ];
        Self::Pair { mechanism: Mechanism::RsaPkcsKeyPairGen, public: public_half(own) }
    }
}

fn public_half(own: Vec<Attribute>) -> Vec<Attribute> {
    [vec![Attribute::Token(false), Attribute::Private(false)], own].concat()
}

/// What a key of this kind may do, said in full: what is left out, a library decides.
pub(super) fn abilities(kind: KeyKind) -> Vec<Attribute> {
    let (encrypts, signs) = match kind.usage() {
        KeyUsage::EncryptDecrypt => (true, false),
        KeyUsage::SignVerify | KeyUsage::GenerateVerifyMac => (false, true),
        KeyUsage::KeyAgreement | KeyUsage::EncapsulateDecapsulate => (false, false),
    };
    let own: &[Attribute] = match kind.spec().material() {
        // Those made before there were other kinds say nothing of signing, and need not.
        Material::Aes => &[Attribute::Encrypt(encrypts), Attribute::Decrypt(encrypts), Attribute::Wrap(false)],
        Material::Hmac(_) => &[
            Attribute::Encrypt(encrypts),
            Attribute::Decrypt(encrypts),
            Attribute::Sign(signs),
            Attribute::Verify(signs),
            Attribute::Wrap(false),
        ],
        _ => &[Attribute::Decrypt(encrypts), Attribute::Sign(signs), Attribute::SignRecover(false)],
    };
    [own, &[Attribute::Unwrap(false), Attribute::Derive(false)]].concat()
}

/// Signs a digest. PKCS#1 v1.5 is given the whole `DigestInfo`, since not every library hashes for it.
pub(super) fn signing(scheme: SignatureScheme, hash: Hash) -> Result<Mechanism<'static>, Fault> {
    match scheme {
        SignatureScheme::Ecdsa => Ok(Mechanism::Ecdsa),
        SignatureScheme::Pkcs1 => Ok(Mechanism::RsaPkcs),
        SignatureScheme::Pss => {
            let (hash_alg, mgf) = hashing(hash);
            Ok(Mechanism::RsaPkcsPss(PkcsPssParams { hash_alg, mgf, s_len: (hash.digest_len() as u64).into() }))
        }
    }
}

pub(super) const fn mac(algorithm: MacAlgorithm) -> Mechanism<'static> {
    match algorithm {
        MacAlgorithm::HmacSha224 => Mechanism::Sha224Hmac,
        MacAlgorithm::HmacSha256 => Mechanism::Sha256Hmac,
        MacAlgorithm::HmacSha384 => Mechanism::Sha384Hmac,
        MacAlgorithm::HmacSha512 => Mechanism::Sha512Hmac,
    }
}

pub(super) fn oaep(algorithm: EncryptionAlgorithm) -> Result<Mechanism<'static>, Fault> {
    let hash = algorithm.oaep_hash().ok_or_else(|| Fault::bad_input("this algorithm is not RSA's"))?;
    let (hash, mgf) = hashing(hash);
    Ok(Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty())))
}

const fn hashing(hash: Hash) -> (MechanismType, PkcsMgfType) {
    match hash {
        Hash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        Hash::Sha224 => (MechanismType::SHA224, PkcsMgfType::MGF1_SHA224),
        Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    }
}

/// What a scheme signs of a digest.
pub(super) fn signed_form(scheme: SignatureScheme, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, Fault> {
    if digest.len() != hash.digest_len() {
        return Err(Fault::bad_input("the digest is not as long as its hash makes it"));
    }
    match scheme {
        SignatureScheme::Pss | SignatureScheme::Ecdsa => Ok(digest.to_vec()),
        SignatureScheme::Pkcs1 => {
            // DigestInfo up to the digest: RFC 8017, 9.2, note 1.
            let prefix: &[u8] = match hash {
                Hash::Sha256 => b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
                Hash::Sha384 => b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
                Hash::Sha512 => b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
                Hash::Sha1 | Hash::Sha224 => return Err(Fault::bad_input("nothing is signed with this hash")),
            };
            Ok([prefix, digest].concat())
        }
    }
}

/// A signature as the library gave it, in the form that callers get.
pub(super) fn given_form(scheme: SignatureScheme, hash: Hash, signature: Vec<u8>) -> Result<Vec<u8>, Fault> {
    match scheme {
        SignatureScheme::Pss | SignatureScheme::Pkcs1 => Ok(signature),
        SignatureScheme::Ecdsa if signature.len() == 2 * coordinate_len(hash) => Ok(ecdsa_der(&signature)),
        SignatureScheme::Ecdsa => {
            Err(Fault::refused(Bucket::Node, Kind::Device, "an ECDSA signature is not as long as its curve makes it"))
        }
    }
}

/// Of the curves whose keys sign with this hash, which are equally long.
const fn coordinate_len(hash: Hash) -> usize {
    match hash {
        Hash::Sha1 | Hash::Sha224 | Hash::Sha256 => Curve::P256.coordinate_len(),
        Hash::Sha384 => Curve::P384.coordinate_len(),
        Hash::Sha512 => Curve::P521.coordinate_len(),
    }
}

/// PKCS#11's `r ‖ s`, both of one length, as X9.62's `SEQUENCE { r INTEGER, s INTEGER }`.
fn ecdsa_der(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    let body = [integer(r), integer(s)].concat();
    [&[0x30][..], &length(body.len()), &body].concat()
}

fn integer(number: &[u8]) -> Vec<u8> {
    let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    // Zero has a byte of its own, and what would look negative has one before it.
    let zero: &[u8] = if number.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    [&[0x02][..], &length(zero.len() + number.len()), zero, number].concat()
}

fn length(bytes: usize) -> Vec<u8> {
    match u8::try_from(bytes) {
        Ok(short @ 0..0x80) => vec![short],
        Ok(long) => vec![0x81, long],
        Err(_) => [&[0x82][..], &bytes.to_be_bytes()[size_of::<usize>() - 2..]].concat(),
    }
}

/// A curve's OBJECT IDENTIFIER, as `CKA_EC_PARAMS` has it.
const fn parameters(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        Curve::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        Curve::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
        Curve::P256k1 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a],
    }
}

/// What a key of this kind proves itself with.
pub(super) fn probing(kind: KeyKind) -> Option<SigningAlgorithm> {
    // The oldest, which every library has.
    let preferred = SigningAlgorithm::RsassaPkcs1V15Sha256;
    let algorithms = kind.signing_algorithms();
    algorithms.iter().copied().find(|algorithm| *algorithm == preferred).or(algorithms.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ecdsa_signature_becomes_two_integers_without_needless_zeros_or_a_sign() {
        let signature = [&[0, 0, 0x7f, 0xff][..], &[0x80, 0, 0, 1]].concat();
        assert_eq!(ecdsa_der(&signature), b"\x30\x0b\x02\x02\x7f\xff\x02\x05\x00\x80\x00\x00\x01");
        assert_eq!(ecdsa_der(&[0; 8]), b"\x30\x06\x02\x01\x00\x02\x01\x00");
        let long = ecdsa_der(&[0xff; 132]);
        assert_eq!((&long[..6], long.len()), (&b"\x30\x81\x8a\x02\x43\x00"[..], 3 + 138));
    }

    #[test]
    fn an_ecdsa_signature_of_another_length_than_its_curves_is_the_devices_fault() {
        for kind in KeyKind::all() {
            let Material::Ec(curve) = kind.spec().material() else { continue };
            for algorithm in kind.signing_algorithms() {
                let (scheme, hash) = algorithm.of_digest().unwrap();
                let formed = |len| given_form(scheme, hash, vec![1; len]).map_err(|fault| fault.kind);
                let whole = 2 * curve.coordinate_len();
                assert!(formed(whole).is_ok(), "{curve:?}");
                for len in [0, whole - 1, whole + 1, whole + 2] {
                    assert_eq!(formed(len), Err(Kind::Device), "{curve:?}: {len}");
                }
            }
        }
    }

    #[test]
    fn a_digest_of_another_length_is_not_signed() {
        for scheme in [SignatureScheme::Pss, SignatureScheme::Pkcs1, SignatureScheme::Ecdsa] {
            assert!(signed_form(scheme, Hash::Sha256, &[7; 32]).is_ok());
            assert!(signed_form(scheme, Hash::Sha256, &[7; 31]).is_err());
        }
        assert_eq!(signed_form(SignatureScheme::Pkcs1, Hash::Sha512, &[7; 64]).unwrap().len(), 83);
    }

    #[test]
    fn no_key_both_encrypts_and_signs_and_none_unwraps_or_derives() {
        for kind in KeyKind::all() {
            let may = abilities(kind);
            assert!(may.contains(&Attribute::Unwrap(false)) && may.contains(&Attribute::Derive(false)));
            assert!(!(may.contains(&Attribute::Decrypt(true)) && may.contains(&Attribute::Sign(true))), "{kind:?}");
        }
    }
}
