//! What a key is: its spec and usage, and what names and proves it inside an HSM.

use std::fmt;

use super::KeyId;

/// The kinds of key that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// A 256-bit AES key for authenticated encryption (AES-GCM).
    SymmetricDefault,
}

impl KeySpec {
    pub const ALL: [Self; 1] = [Self::SymmetricDefault];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SymmetricDefault => "SYMMETRIC_DEFAULT",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|spec| spec.as_str() == text)
    }
}

/// Counts a key's versions from 1; a ciphertext names the one it was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion(pub u32);

impl KeyVersion {
    pub const FIRST: Self = Self(1);
}

/// The `CKA_ID` of a key version in every HSM: the key id's 16 bytes, then the version as a
/// big-endian `u32`. Chosen before the key is made, so that a lost answer can be settled by looking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CkaId([u8; 20]);

impl CkaId {
    pub fn of(key: KeyId, version: KeyVersion) -> Self {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(key.as_bytes());
        bytes[16..].copy_from_slice(&version.0.to_be_bytes());
        Self(bytes)
    }

    /// One that a token or the records show, when it has the form of [`CkaId::of`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The key and version, when these bytes were made by [`CkaId::of`].
    pub fn parse(bytes: &[u8]) -> Option<(KeyId, KeyVersion)> {
        let bytes: [u8; 20] = bytes.try_into().ok()?;
        let (key, version) = bytes.split_at(16);
        Some((
            KeyId::from_bytes(key.try_into().expect("split at 16")),
            KeyVersion(u32::from_be_bytes(version.try_into().expect("the other 4"))),
        ))
    }

    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The `CKA_LABEL` that goes with it, for operators who look into the token by hand.
    pub fn label(&self) -> String {
        let (key, version) = Self::parse(&self.0).expect("made by `of`");
        format!("keyway:{key}:{}", version.0)
    }
}

impl fmt::Debug for CkaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

/// What any holder of a key must answer: for AES, a ciphertext made when the key was, which
/// only the same key decrypts. Opaque to everyone but the worker. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe(pub Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cka_id_tells_its_key_and_version() {
        let key = KeyId::random();
        let id = CkaId::of(key, KeyVersion(7));
        assert_eq!(CkaId::parse(id.as_bytes()), Some((key, KeyVersion(7))));
        assert_eq!(CkaId::parse(b"short"), None);
        assert_eq!(id.label(), format!("keyway:{key}:7"));
    }
}
