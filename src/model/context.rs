//! The encryption context: what a caller binds to a ciphertext without storing it there.

use std::collections::BTreeMap;

use super::Invalid;

/// At most this many pairs.
pub const MAX_PAIRS: usize = 64;
/// At most this many bytes of keys and values together.
pub const MAX_BYTES: usize = 8 * 1024;

/// Key-value pairs, sorted by the bytes of their keys, within [`MAX_PAIRS`] and [`MAX_BYTES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, Invalid> {
        let pairs: BTreeMap<String, String> = pairs.into_iter().collect();
        if pairs.len() > MAX_PAIRS {
            return Err(Invalid::new(format!("an encryption context has at most {MAX_PAIRS} pairs")));
        }
        if pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_BYTES {
            return Err(Invalid::new(format!("an encryption context has at most {MAX_BYTES} bytes")));
        }
        if pairs.keys().any(String::is_empty) {
            return Err(Invalid::new("an encryption context has no empty key"));
        }
        Ok(Self(pairs))
    }

    /// Whether nothing is bound to the ciphertext.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The canonical bytes that a ciphertext is bound to: the number of pairs, then each key and
    /// value in order, every number and length a big-endian `u32`. Two contexts give the same
    /// bytes only when they are the same. Final: see `docs/formats.md`.
    pub fn canonical(&self) -> Vec<u8> {
        let length = |n: usize| u32::try_from(n).expect("bounded by MAX_PAIRS and MAX_BYTES").to_be_bytes();
        let mut bytes = length(self.0.len()).to_vec();
        for part in self.0.iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend_from_slice(&length(part.len()));
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

impl EncryptionContext {
    /// How long the canonical bytes may be.
    pub const LONGEST_CANONICAL: usize = 4 + MAX_PAIRS * 8 + MAX_BYTES;

    /// Reads what [`EncryptionContext::canonical`] writes, and nothing else.
    pub fn from_canonical(bytes: &[u8]) -> Option<Self> {
        let (count, mut rest) = bytes.split_first_chunk::<4>()?;
        let mut pairs = BTreeMap::new();
        for _ in 0..u32::from_be_bytes(*count) {
            let [name, value] = [take_text(&mut rest)?, take_text(&mut rest)?];
            pairs.insert(name, value);
        }
        let context = Self::new(pairs).ok()?;
        (context.canonical() == bytes).then_some(context)
    }

    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap()
    }

    #[test]
    fn the_order_of_pairs_does_not_matter_but_their_borders_do() {
        assert_eq!(context(&[("a", "1"), ("b", "2")]).canonical(), context(&[("b", "2"), ("a", "1")]).canonical());
        assert_ne!(context(&[("ab", "c")]).canonical(), context(&[("a", "bc")]).canonical());
    }

    #[test]
    fn a_context_has_bounds() {
        let many = (0..=MAX_PAIRS).map(|n| (n.to_string(), String::new()));
        assert!(EncryptionContext::new(many).is_err());
        assert!(EncryptionContext::new([("k".to_owned(), "v".repeat(MAX_BYTES))]).is_err());
        assert!(EncryptionContext::new([(String::new(), "v".to_owned())]).is_err());
    }

    proptest! {
        #[test]
        fn canonical_bytes_are_read_again_and_no_others_are(
            pairs in prop::collection::btree_map("[a-c]{1,3}", "[a-c]{0,3}", 0..4),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let context = EncryptionContext::new(pairs).unwrap();
            let mut bytes = context.canonical();
            prop_assert_eq!(EncryptionContext::from_canonical(&bytes), Some(context.clone()));
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            let other = EncryptionContext::from_canonical(&bytes);
            prop_assert!(other.is_none_or(|other| other != context && other.canonical() == bytes));
        }

        #[test]
        fn different_contexts_never_share_their_bytes(
            a in prop::collection::btree_map("[a-c]{1,3}", "[a-c]{0,3}", 0..4),
            b in prop::collection::btree_map("[a-c]{1,3}", "[a-c]{0,3}", 0..4),
        ) {
            let (x, y) = (EncryptionContext::new(a).unwrap(), EncryptionContext::new(b).unwrap());
            prop_assert_eq!(x == y, x.canonical() == y.canonical());
        }
    }
}
