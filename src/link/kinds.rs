//! Kinds of keys as the link names them.

use crate::model::{KeyKind, KeySpec, KeyUsage};

use super::v1::KeyKind as Named;

/// Every kind that keyway has made so far, each under its name on the link.
const KINDS: [(Named, KeySpec, KeyUsage); 15] = {
    use KeyUsage::{EncryptDecrypt, GenerateVerifyMac, SignVerify};
    [
        (Named::Aes256, KeySpec::SymmetricDefault, EncryptDecrypt),
        (Named::Hmac224, KeySpec::Hmac224, GenerateVerifyMac),
        (Named::Hmac256, KeySpec::Hmac256, GenerateVerifyMac),
        (Named::Hmac384, KeySpec::Hmac384, GenerateVerifyMac),
        (Named::Hmac512, KeySpec::Hmac512, GenerateVerifyMac),
        (Named::P256Signing, KeySpec::EccNistP256, SignVerify),
        (Named::P384Signing, KeySpec::EccNistP384, SignVerify),
        (Named::P521Signing, KeySpec::EccNistP521, SignVerify),
        (Named::P256k1Signing, KeySpec::EccSecgP256k1, SignVerify),
        (Named::Rsa2048Signing, KeySpec::Rsa2048, SignVerify),
        (Named::Rsa3072Signing, KeySpec::Rsa3072, SignVerify),
        (Named::Rsa4096Signing, KeySpec::Rsa4096, SignVerify),
        (Named::Rsa2048Decrypting, KeySpec::Rsa2048, EncryptDecrypt),
        (Named::Rsa3072Decrypting, KeySpec::Rsa3072, EncryptDecrypt),
        (Named::Rsa4096Decrypting, KeySpec::Rsa4096, EncryptDecrypt),
    ]
};

impl Named {
    /// `None`: no release of keyway makes such a key.
    pub fn of(kind: KeyKind) -> Option<Self> {
        let is_it = |(_, spec, usage): &&(Self, KeySpec, KeyUsage)| (*spec, *usage) == (kind.spec(), kind.usage());
        KINDS.iter().find(is_it).map(|(named, _, _)| *named)
    }

    /// `None`: it names none.
    pub fn kind(self) -> Option<KeyKind> {
        let (_, spec, usage) = KINDS.iter().find(|(named, _, _)| *named == self)?;
        KeyKind::new(*spec, *usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_for_one_kind_and_every_kind_for_one_name() {
        for (named, _, _) in KINDS {
            let kind = named.kind().expect("its usage fits its spec");
            assert_eq!(Named::of(kind), Some(named));
        }
        assert_eq!(Named::Unspecified.kind(), None);
    }
}
