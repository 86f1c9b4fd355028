//! Passwords that are written down are sealed: AES-256-GCM under a key that stands elsewhere, each bound to its place.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::SealingKey;

const FORMAT: u8 = 1;
const NONCE: usize = 12;

/// Seals and opens secrets.
pub struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// `None` unless the key has 32 bytes.
    pub fn new(key: &SealingKey) -> Option<Self> {
        UnboundKey::new(&AES_256_GCM, key.expose()).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// Format byte, nonce, sealed secret. `place` says where it stands, and it opens nowhere else. `None` when the system
    /// has no random bytes.
    pub fn seal(&self, place: &[&str], secret: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        rand::fill(&mut nonce).ok()?;
        // With room for the tag: growing would leave the secret behind in the memory it moved out of.
        let mut sealed = Zeroizing::new(Vec::with_capacity(secret.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(secret);
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound(place)), &mut *sealed)
            .ok()?;
        Some([&[FORMAT], nonce.as_slice(), &sealed].concat())
    }

    /// `None` for what was sealed under another key, for another place, or not at all.
    pub fn open(&self, place: &[&str], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (&format, rest) = sealed.split_first()?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>()?;
        if format != FORMAT {
            return None;
        }
        let mut secret = Zeroizing::new(rest.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(bound(place)), &mut secret).ok()?.len();
        secret.truncate(length);
        Some(secret)
    }
}

/// Each part with its length, so that no two places give the same bytes.
fn bound(place: &[&str]) -> Vec<u8> {
    let parts = place.iter().flat_map(|part| {
        let length = u32::try_from(part.len()).expect("ids are short").to_be_bytes();
        length.into_iter().chain(part.bytes())
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_in_its_own_place_with_its_own_key_and_nowhere_else() {
        let sealer = Sealer::new(&SealingKey::new(vec![7; 32])).unwrap();
        let sealed = sealer.seal(&["password", "a"], b"hunter22").unwrap();
        assert_eq!(**sealer.open(&["password", "a"], &sealed).unwrap(), *b"hunter22");
        assert!(sealer.open(&["password", "b"], &sealed).is_none());
        assert!(sealer.open(&["passworda"], &sealed).is_none());
        let other = Sealer::new(&SealingKey::new(vec![8; 32])).unwrap();
        assert!(other.open(&["password", "a"], &sealed).is_none());
        let mut flipped = sealed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(sealer.open(&["password", "a"], &flipped).is_none());
        assert!(Sealer::new(&SealingKey::new(vec![7; 31])).is_none());
    }
}
