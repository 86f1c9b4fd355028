//! Which of a crypto user's passwords is meant, without the password.

/// Counts a user's passwords within a cluster: 1 is the one the operator gave first. A new
/// password is a new version, so that a refused one is never tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PasswordVersion(pub u32);

impl PasswordVersion {
    /// The security officer's PIN, whose file alone knows when it changes.
    pub const SO_PIN: Self = Self(0);
}
