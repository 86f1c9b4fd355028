//! What the operator decides about custom key stores.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::Zone;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How many key stores there may be, in whatever state.
    pub quota: u32,
    /// How long connecting may take before it fails.
    pub connect_timeout: Duration,
    /// The availability zone that the daemon is in: HSMs there are asked first.
    pub zone: Option<Zone>,
    /// Where new passwords are kept for the operator, encrypted to his key.
    pub escrow: PathBuf,
}
