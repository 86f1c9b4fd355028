//! What the operator decides about keys.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many keys one key store may hold.
    pub per_key_store: u32,
    /// How long a day of a deletion window is: a day, and less only in `keyway dev`.
    pub deletion_day: Duration,
}

/// What a day is, but where somebody wants to see windows pass.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
