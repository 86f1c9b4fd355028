//! What the operator decides about custom key stores.

use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many key stores there may be, in whatever state.
    pub quota: u32,
    /// How long connecting may take before it fails.
    pub connect_timeout: Duration,
}
