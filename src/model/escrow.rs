//! The operator's own way to passwords that keyway makes: each is also encrypted to a public key of his.

use std::fmt;

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use x509_parser::pem::Pem;

use super::{Invalid, Password};

const SHORTEST_BITS: usize = 2048;

/// An RSA public key. Two are equal when their DER is.
#[derive(Clone, PartialEq, Eq)]
pub struct EscrowKey {
    der: Vec<u8>,
}

impl EscrowKey {
    /// One PEM block of the form `BEGIN PUBLIC KEY`.
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
        let (Some(Ok(block)), None) = (blocks.next(), blocks.next()) else {
            return Err(Invalid::new("an escrow key is exactly one PEM block of the form -----BEGIN PUBLIC KEY-----"));
        };
        if block.label != "PUBLIC KEY" {
            return Err(Invalid::new(
                "an escrow key is a PUBLIC KEY in PEM (openssl pkey -pubout), and nothing private",
            ));
        }
        match PublicEncryptingKey::from_der(&block.contents) {
            Ok(key) if key.key_size_bits() >= SHORTEST_BITS => Ok(Self { der: block.contents }),
            Ok(_) | Err(_) => Err(Invalid::new("an escrow key is an RSA key of 2048 to 8192 bits")),
        }
    }

    /// The beginning of the SHA-256 of its DER, in hexadecimal digits: tells which private key opens what it seals.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.der);
        digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// RSA-OAEP with SHA-256 and without a label, as `openssl pkeyutl` opens it. `None` when there is no randomness.
    pub fn seal(&self, password: &Password) -> Option<Vec<u8>> {
        let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&self.der).ok()?).ok()?;
        let mut sealed = vec![0; key.ciphertext_size()];
        let length = key.encrypt(&OAEP_SHA256_MGF1SHA256, password.expose().as_bytes(), &mut sealed, None).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl fmt::Debug for EscrowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EscrowKey({} bytes)", self.der.len())
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use base64::Engine;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn what_is_sealed_opens_with_the_private_key_alone() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let public: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let key = EscrowKey::parse(&pem("PUBLIC KEY", public.as_ref())).unwrap();
        let sealed = key.seal(&Password::trusted("hunter2hunter2".to_owned())).unwrap();
        assert_ne!(sealed, key.seal(&Password::trusted("hunter2hunter2".to_owned())).unwrap());
        let opener = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut plain = vec![0; opener.min_output_size()];
        let plain = opener.decrypt(&OAEP_SHA256_MGF1SHA256, &sealed, &mut plain, None).unwrap();
        assert_eq!(plain, b"hunter2hunter2");
    }

    #[test]
    fn nothing_but_one_rsa_public_key_is_taken() {
        let other = rcgen::KeyPair::generate().unwrap();
        let texts = ["".to_owned(), "nonsense".to_owned(), other.serialize_pem(), pem("PUBLIC KEY", &[0x30, 0])];
        for text in texts {
            assert!(EscrowKey::parse(&text).is_err(), "{text}");
        }
        let elliptic = other.public_key_pem();
        assert!(EscrowKey::parse(&elliptic).is_err());
    }
}
