//! What the operator declares of a cluster's passwords: how keyway changes them, how often, and who else may have them.

use std::str::FromStr;
use std::time::Duration;

use crate::model::{EscrowKey, Invalid};

pub use crate::host::Program;

/// How the crypto user's password is changed when a key store is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    pub strategy: Strategy,
    /// Connecting rotates only when the last rotation is so long ago. Zero: each time.
    pub interval: Duration,
    /// Each new password is also encrypted to this key, before it is used.
    pub escrow: Option<EscrowKey>,
}

/// What makes the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Nothing: the password stays as it is.
    None,
    /// `C_SetPIN`, on one HSM after the other.
    SetPin,
    /// A program of the operator's, once for the whole cluster.
    Command(Program),
}

/// A strategy's name, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrategyName {
    None,
    SetPin,
    Command,
}

impl Rotation {
    pub const NEVER: Self = Self { strategy: Strategy::None, interval: Duration::ZERO, escrow: None };
}

impl FromStr for StrategyName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "none" => Ok(Self::None),
            "set-pin" => Ok(Self::SetPin),
            "command" => Ok(Self::Command),
            _ => Err(Invalid::new("must be `set-pin`, `command` or `none`")),
        }
    }
}
