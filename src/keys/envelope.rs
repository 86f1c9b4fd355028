//! The ciphertext format: what stands in front of what the HSM encrypted, and what both are bound to. Pure, and final.
//!
//! ```text
//!  0        2        3           4              20             24        36            n-16      n
//!  ├─ "KW" ─┼─ 0x01 ─┼─── 0x01 ──┼─── key id ───┼─── version ──┼── IV ───┼─ ciphertext ─┼─ tag ─┤
//!   magic    format   algorithm    UUID, 16       u32, big-      12        as long as     16
//!                     AES-256-GCM  bytes          endian                   the plaintext
//! ```
//!
//! The additional authenticated data is the 24 bytes before the IV, then the SHA-256 of the
//! encryption context's canonical form: 56 bytes, always. `docs/formats.md` says the same for whoever needs a
//! way out without keyway.

use aws_lc_rs::digest;

use crate::cluster::Sealed;
use crate::model::{EncryptionContext, KeyId, KeyVersion};

const MAGIC: [u8; 2] = *b"KW";
const FORMAT: u8 = 1;
const AES_256_GCM: u8 = 1;
const HEADER: usize = 24;
const IV: usize = 12;
const TAG: usize = 16;

/// A ciphertext taken apart.
#[derive(Debug)]
pub struct Envelope {
    pub key: KeyId,
    pub version: KeyVersion,
    pub sealed: Sealed,
}

/// These bytes are no ciphertext of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext is not one of keyway's, or was cut or changed")]
pub struct NotOurs;

/// Puts a ciphertext together.
pub fn seal(key: KeyId, version: KeyVersion, sealed: &Sealed) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + sealed.iv.len() + sealed.sealed.len());
    bytes.extend_from_slice(&header(key, version));
    bytes.extend_from_slice(&sealed.iv);
    bytes.extend_from_slice(&sealed.sealed);
    bytes
}

/// Takes a ciphertext apart. Proves nothing about it: that is the HSM's work.
pub fn open(bytes: &[u8]) -> Result<Envelope, NotOurs> {
    let (head, body) = bytes.split_first_chunk::<HEADER>().ok_or(NotOurs)?;
    if head[..2] != MAGIC || head[2] != FORMAT || head[3] != AES_256_GCM || body.len() <= IV + TAG {
        return Err(NotOurs);
    }
    let (iv, sealed) = body.split_at(IV);
    Ok(Envelope {
        key: KeyId::from_bytes(head[4..20].try_into().expect("16 of 24 bytes")),
        version: KeyVersion(u32::from_be_bytes(head[20..].try_into().expect("the last 4"))),
        sealed: Sealed { iv: iv.to_vec(), sealed: sealed.to_vec() },
    })
}

/// What the HSM authenticates beside the ciphertext.
pub fn aad(key: KeyId, version: KeyVersion, context: &EncryptionContext) -> Vec<u8> {
    let mut bytes = header(key, version).to_vec();
    bytes.extend_from_slice(digest::digest(&digest::SHA256, &context.canonical()).as_ref());
    bytes
}

fn header(key: KeyId, version: KeyVersion) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..2].copy_from_slice(&MAGIC);
    bytes[2] = FORMAT;
    bytes[3] = AES_256_GCM;
    bytes[4..20].copy_from_slice(key.as_bytes());
    bytes[20..].copy_from_slice(&version.0.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What an HSM does with a key of its own.
    mod in_hsm {
        use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

        use crate::cluster::Sealed;

        fn key() -> LessSafeKey {
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[3; 32]).unwrap())
        }

        pub(super) fn encrypt(plaintext: &[u8], aad: &[u8]) -> Sealed {
            let mut sealed = plaintext.to_vec();
            key().seal_in_place_append_tag(nonce(&[9; 12]), Aad::from(aad), &mut sealed).unwrap();
            Sealed { iv: vec![9; 12], sealed }
        }

        pub(super) fn decrypt(sealed: &Sealed, aad: &[u8]) -> Option<Vec<u8>> {
            let mut bytes = sealed.sealed.clone();
            let opened = key().open_in_place(nonce(&sealed.iv), Aad::from(aad), &mut bytes);
            opened.ok().map(|plaintext| plaintext.to_vec())
        }

        fn nonce(iv: &[u8]) -> Nonce {
            Nonce::try_assume_unique_for_key(iv).unwrap()
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_the_same(key in any::<[u8; 16]>(), version in any::<u32>(), iv in any::<[u8; 12]>(), sealed in prop::collection::vec(any::<u8>(), 17..200)) {
            let (key, version) = (KeyId::from_bytes(key), KeyVersion(version));
            let bytes = seal(key, version, &Sealed { iv: iv.to_vec(), sealed: sealed.clone() });
            let opened = open(&bytes).unwrap();
            prop_assert_eq!((opened.key, opened.version), (key, version));
            prop_assert_eq!((opened.sealed.iv, opened.sealed.sealed), (iv.to_vec(), sealed));
        }

        /// The HSM's part is done here, by the same cipher: what `open` lets pass must fail there, or name another key.
        #[test]
        fn any_bit_flipped_in_a_ciphertext_or_its_context_leaves_nothing_that_opens(
            plaintext in prop::collection::vec(any::<u8>(), 1..100),
            value in "[a-z]{0,8}",
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let (key, version) = (KeyId::from_bytes([7; 16]), KeyVersion(1));
            let context = |value: &str| EncryptionContext::new([("order".to_owned(), value.to_owned())]).unwrap();
            let bytes = seal(key, version, &in_hsm::encrypt(&plaintext, &aad(key, version, &context(&value))));
            let opens = |bytes: &[u8], context: &EncryptionContext| {
                let opened = open(bytes).ok().filter(|opened| (opened.key, opened.version) == (key, version))?;
                in_hsm::decrypt(&opened.sealed, &aad(opened.key, opened.version, context))
            };
            prop_assert_eq!(opens(&bytes, &context(&value)), Some(plaintext));

            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1_u8 << bit;
            prop_assert_eq!(opens(&flipped, &context(&value)), None);
            prop_assert_eq!(opens(&bytes, &context(&format!("{value}x"))), None);
            prop_assert_eq!(opens(&bytes, &EncryptionContext::default()), None);
            prop_assert_eq!(opens(&bytes[..at.index(bytes.len())], &context(&value)), None);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(opened) = open(&bytes) {
                prop_assert_eq!(&bytes[..4], b"KW\x01\x01");
                prop_assert!(!opened.sealed.sealed.is_empty());
            }
        }
    }

    #[test]
    fn the_authenticated_data_has_a_fixed_length_and_knows_key_version_and_context() {
        let key = KeyId::random();
        let context = |value: &str| EncryptionContext::new([("k".to_owned(), value.to_owned())]).unwrap();
        let base = aad(key, KeyVersion(1), &context("a"));
        assert_eq!(base.len(), 56);
        assert_ne!(base, aad(key, KeyVersion(2), &context("a")));
        assert_ne!(base, aad(KeyId::random(), KeyVersion(1), &context("a")));
        assert_ne!(base, aad(key, KeyVersion(1), &context("b")));
    }
}
