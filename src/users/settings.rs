//! What the operator decides about crypto users' logins.

/// Bounds that hold for all clusters together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many may be logged in at once.
    pub max_logins: u32,
}
