//! What the operator decides about keys.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many keys one key store may hold.
    pub per_key_store: u32,
}
