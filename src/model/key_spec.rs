//! Key specs, what each may be used for, and how: AWS's table, as data.
//!
//! ```text
//!   KeySpec ── which usages fit it ──▶ KeyKind, a spec and one usage ── how ──▶ algorithms
//! ```
//!
//! Names are AWS's, and stand here alone: those of the messages, the records and the link are made of them. What a key is in
//! a token is for the worker to know; whether an HSM can make it, only the HSM tells.

use std::fmt;

/// What kind of key it is: algorithm and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySpec {
    /// A 256-bit AES key for authenticated encryption (AES-GCM).
    SymmetricDefault,
    Rsa2048,
    Rsa3072,
    Rsa4096,
    EccNistP256,
    EccNistP384,
    EccNistP521,
    EccSecgP256k1,
    EccNistEdwards25519,
    Hmac224,
    Hmac256,
    Hmac384,
    Hmac512,
    MlDsa44,
    MlDsa65,
    MlDsa87,
    MlKem512,
    MlKem768,
    MlKem1024,
}

/// What a key is for. Fixed when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyUsage {
    EncryptDecrypt,
    SignVerify,
    GenerateVerifyMac,
    KeyAgreement,
    EncapsulateDecapsulate,
}

/// A spec, and a usage that fits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyKind {
    spec: KeySpec,
    usage: KeyUsage,
}

/// What a key is made of, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Material {
    Aes,
    /// So many bytes.
    Hmac(usize),
    /// A modulus of so many bits.
    Rsa(usize),
    Ec(Curve),
    Edwards,
    MlDsa,
    MlKem,
}

/// A curve in Weierstrass form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    P256,
    P384,
    P521,
    P256k1,
}

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// How to encrypt. Whoever does not say means the symmetric one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum EncryptionAlgorithm {
    #[default]
    SymmetricDefault,
    RsaesOaepSha1,
    RsaesOaepSha256,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SigningAlgorithm {
    RsassaPssSha256,
    RsassaPssSha384,
    RsassaPssSha512,
    RsassaPkcs1V15Sha256,
    RsassaPkcs1V15Sha384,
    RsassaPkcs1V15Sha512,
    EcdsaSha256,
    EcdsaSha384,
    EcdsaSha512,
    MlDsaShake256,
    Ed25519Sha512,
    Ed25519PhSha512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MacAlgorithm {
    HmacSha224,
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

/// How a signature is made of a digest, for algorithms that sign one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureScheme {
    /// RSASSA-PSS with a salt as long as the digest, and MGF1 with the same hash.
    Pss,
    /// RSASSA-PKCS1-v1_5.
    Pkcs1,
    /// ECDSA; the signature is DER (X9.62).
    Ecdsa,
}

/// Gives an enum its names: each value's, and back.
macro_rules! named {
    ($type:ident: $count:literal { $($value:ident = $name:literal),* $(,)? }) => {
        impl $type {
            pub const ALL: [Self; $count] = [$(Self::$value),*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $name),*
                }
            }

            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|value| value.as_str() == text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named!(KeySpec: 19 {
    SymmetricDefault = "SYMMETRIC_DEFAULT",
    Rsa2048 = "RSA_2048",
    Rsa3072 = "RSA_3072",
    Rsa4096 = "RSA_4096",
    EccNistP256 = "ECC_NIST_P256",
    EccNistP384 = "ECC_NIST_P384",
    EccNistP521 = "ECC_NIST_P521",
    EccSecgP256k1 = "ECC_SECG_P256K1",
    EccNistEdwards25519 = "ECC_NIST_EDWARDS25519",
    Hmac224 = "HMAC_224",
    Hmac256 = "HMAC_256",
    Hmac384 = "HMAC_384",
    Hmac512 = "HMAC_512",
    MlDsa44 = "ML_DSA_44",
    MlDsa65 = "ML_DSA_65",
    MlDsa87 = "ML_DSA_87",
    MlKem512 = "ML_KEM_512",
    MlKem768 = "ML_KEM_768",
    MlKem1024 = "ML_KEM_1024",
});

named!(KeyUsage: 5 {
    EncryptDecrypt = "ENCRYPT_DECRYPT",
    SignVerify = "SIGN_VERIFY",
    GenerateVerifyMac = "GENERATE_VERIFY_MAC",
    KeyAgreement = "KEY_AGREEMENT",
    EncapsulateDecapsulate = "ENCAPSULATE_DECAPSULATE",
});

named!(EncryptionAlgorithm: 3 {
    SymmetricDefault = "SYMMETRIC_DEFAULT",
    RsaesOaepSha1 = "RSAES_OAEP_SHA_1",
    RsaesOaepSha256 = "RSAES_OAEP_SHA_256",
});

named!(SigningAlgorithm: 12 {
    RsassaPssSha256 = "RSASSA_PSS_SHA_256",
    RsassaPssSha384 = "RSASSA_PSS_SHA_384",
    RsassaPssSha512 = "RSASSA_PSS_SHA_512",
    RsassaPkcs1V15Sha256 = "RSASSA_PKCS1_V1_5_SHA_256",
    RsassaPkcs1V15Sha384 = "RSASSA_PKCS1_V1_5_SHA_384",
    RsassaPkcs1V15Sha512 = "RSASSA_PKCS1_V1_5_SHA_512",
    EcdsaSha256 = "ECDSA_SHA_256",
    EcdsaSha384 = "ECDSA_SHA_384",
    EcdsaSha512 = "ECDSA_SHA_512",
    MlDsaShake256 = "ML_DSA_SHAKE_256",
    Ed25519Sha512 = "ED25519_SHA_512",
    Ed25519PhSha512 = "ED25519_PH_SHA_512",
});

named!(MacAlgorithm: 4 {
    HmacSha224 = "HMAC_SHA_224",
    HmacSha256 = "HMAC_SHA_256",
    HmacSha384 = "HMAC_SHA_384",
    HmacSha512 = "HMAC_SHA_512",
});

impl KeySpec {
    pub const fn material(self) -> Material {
        match self {
            Self::SymmetricDefault => Material::Aes,
            Self::Rsa2048 => Material::Rsa(2_048),
            Self::Rsa3072 => Material::Rsa(3_072),
            Self::Rsa4096 => Material::Rsa(4_096),
            Self::EccNistP256 => Material::Ec(Curve::P256),
            Self::EccNistP384 => Material::Ec(Curve::P384),
            Self::EccNistP521 => Material::Ec(Curve::P521),
            Self::EccSecgP256k1 => Material::Ec(Curve::P256k1),
            Self::EccNistEdwards25519 => Material::Edwards,
            Self::Hmac224 => Material::Hmac(28),
            Self::Hmac256 => Material::Hmac(32),
            Self::Hmac384 => Material::Hmac(48),
            Self::Hmac512 => Material::Hmac(64),
            Self::MlDsa44 | Self::MlDsa65 | Self::MlDsa87 => Material::MlDsa,
            Self::MlKem512 | Self::MlKem768 | Self::MlKem1024 => Material::MlKem,
        }
    }

    /// What a key of this spec may be made for.
    pub const fn usages(self) -> &'static [KeyUsage] {
        match self.material() {
            Material::Aes => &[KeyUsage::EncryptDecrypt],
            Material::Hmac(_) => &[KeyUsage::GenerateVerifyMac],
            Material::Rsa(_) => &[KeyUsage::EncryptDecrypt, KeyUsage::SignVerify],
            Material::Ec(Curve::P256k1) | Material::Edwards | Material::MlDsa => &[KeyUsage::SignVerify],
            Material::Ec(Curve::P256 | Curve::P384 | Curve::P521) => &[KeyUsage::SignVerify, KeyUsage::KeyAgreement],
            Material::MlKem => &[KeyUsage::EncapsulateDecapsulate],
        }
    }

    /// What it is for when nobody says: of all but the symmetric one, somebody must.
    pub const fn default_usage(self) -> Option<KeyUsage> {
        match self {
            Self::SymmetricDefault => Some(KeyUsage::EncryptDecrypt),
            _ => None,
        }
    }

    /// Whether it has a public half.
    pub const fn is_asymmetric(self) -> bool {
        !matches!(self.material(), Material::Aes | Material::Hmac(_))
    }
}

impl KeyKind {
    /// An AES-256 key that encrypts: what [`KeySpec::SymmetricDefault`] is, and may only be.
    pub const AES: Self = Self { spec: KeySpec::SymmetricDefault, usage: KeyUsage::EncryptDecrypt };

    /// `None` when the usage does not fit the spec.
    pub fn new(spec: KeySpec, usage: KeyUsage) -> Option<Self> {
        spec.usages().contains(&usage).then_some(Self { spec, usage })
    }

    /// Each that there is.
    pub fn all() -> impl Iterator<Item = Self> {
        KeySpec::ALL.into_iter().flat_map(|spec| spec.usages().iter().map(move |usage| Self { spec, usage: *usage }))
    }

    pub const fn spec(self) -> KeySpec {
        self.spec
    }

    pub const fn usage(self) -> KeyUsage {
        self.usage
    }

    pub const fn encryption_algorithms(self) -> &'static [EncryptionAlgorithm] {
        use EncryptionAlgorithm as A;
        match (self.usage, self.spec.material()) {
            (KeyUsage::EncryptDecrypt, Material::Aes) => &[A::SymmetricDefault],
            (KeyUsage::EncryptDecrypt, Material::Rsa(_)) => &[A::RsaesOaepSha1, A::RsaesOaepSha256],
            _ => &[],
        }
    }

    pub const fn signing_algorithms(self) -> &'static [SigningAlgorithm] {
        use SigningAlgorithm as A;
        match (self.usage, self.spec.material()) {
            (KeyUsage::SignVerify, Material::Rsa(_)) => &[
                A::RsassaPssSha256,
                A::RsassaPssSha384,
                A::RsassaPssSha512,
                A::RsassaPkcs1V15Sha256,
                A::RsassaPkcs1V15Sha384,
                A::RsassaPkcs1V15Sha512,
            ],
            (KeyUsage::SignVerify, Material::Ec(Curve::P256 | Curve::P256k1)) => &[A::EcdsaSha256],
            (KeyUsage::SignVerify, Material::Ec(Curve::P384)) => &[A::EcdsaSha384],
            (KeyUsage::SignVerify, Material::Ec(Curve::P521)) => &[A::EcdsaSha512],
            (KeyUsage::SignVerify, Material::Edwards) => &[A::Ed25519Sha512, A::Ed25519PhSha512],
            (KeyUsage::SignVerify, Material::MlDsa) => &[A::MlDsaShake256],
            _ => &[],
        }
    }

    pub const fn mac_algorithms(self) -> &'static [MacAlgorithm] {
        use MacAlgorithm as A;
        match self.spec {
            KeySpec::Hmac224 => &[A::HmacSha224],
            KeySpec::Hmac256 => &[A::HmacSha256],
            KeySpec::Hmac384 => &[A::HmacSha384],
            KeySpec::Hmac512 => &[A::HmacSha512],
            _ => &[],
        }
    }
}

impl Curve {
    /// The bytes of a coordinate, and of each half of a signature.
    pub const fn coordinate_len(self) -> usize {
        match self {
            Self::P256 | Self::P256k1 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl Hash {
    /// The bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl SigningAlgorithm {
    /// How a digest is signed, and which hash makes it. `None` for algorithms that hash for themselves.
    pub const fn of_digest(self) -> Option<(SignatureScheme, Hash)> {
        use SignatureScheme::{Ecdsa, Pkcs1, Pss};
        match self {
            Self::RsassaPssSha256 => Some((Pss, Hash::Sha256)),
            Self::RsassaPssSha384 => Some((Pss, Hash::Sha384)),
            Self::RsassaPssSha512 => Some((Pss, Hash::Sha512)),
            Self::RsassaPkcs1V15Sha256 => Some((Pkcs1, Hash::Sha256)),
            Self::RsassaPkcs1V15Sha384 => Some((Pkcs1, Hash::Sha384)),
            Self::RsassaPkcs1V15Sha512 => Some((Pkcs1, Hash::Sha512)),
            Self::EcdsaSha256 => Some((Ecdsa, Hash::Sha256)),
            Self::EcdsaSha384 => Some((Ecdsa, Hash::Sha384)),
            Self::EcdsaSha512 => Some((Ecdsa, Hash::Sha512)),
            Self::MlDsaShake256 | Self::Ed25519Sha512 | Self::Ed25519PhSha512 => None,
        }
    }
}

impl MacAlgorithm {
    pub const fn hash(self) -> Hash {
        match self {
            Self::HmacSha224 => Hash::Sha224,
            Self::HmacSha256 => Hash::Sha256,
            Self::HmacSha384 => Hash::Sha384,
            Self::HmacSha512 => Hash::Sha512,
        }
    }
}

impl EncryptionAlgorithm {
    /// The hash of RSA-OAEP and of its MGF1. `None` for the symmetric one.
    pub const fn oaep_hash(self) -> Option<Hash> {
        match self {
            Self::SymmetricDefault => None,
            Self::RsaesOaepSha1 => Some(Hash::Sha1),
            Self::RsaesOaepSha256 => Some(Hash::Sha256),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_value() {
        assert!(KeySpec::ALL.iter().all(|it| KeySpec::parse(it.as_str()) == Some(*it)));
        assert!(SigningAlgorithm::ALL.iter().all(|it| SigningAlgorithm::parse(it.as_str()) == Some(*it)));
        assert_eq!(KeySpec::parse("SM2"), None);
    }

    #[test]
    fn a_kind_has_algorithms_of_its_usage_and_of_no_other() {
        for kind in KeyKind::all() {
            let (encrypts, signs, macs) =
                (kind.encryption_algorithms(), kind.signing_algorithms(), kind.mac_algorithms());
            assert_eq!(!encrypts.is_empty(), kind.usage() == KeyUsage::EncryptDecrypt, "{kind:?}");
            assert_eq!(!signs.is_empty(), kind.usage() == KeyUsage::SignVerify, "{kind:?}");
            assert_eq!(!macs.is_empty(), kind.usage() == KeyUsage::GenerateVerifyMac, "{kind:?}");
        }
        assert_eq!(KeyKind::all().count(), 25);
    }

    #[test]
    fn an_hmac_key_is_as_long_as_its_mac() {
        for kind in KeyKind::all() {
            for algorithm in kind.mac_algorithms() {
                assert_eq!(kind.spec().material(), Material::Hmac(algorithm.hash().digest_len()));
            }
        }
    }
}
