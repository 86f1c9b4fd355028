//! What the benches have in common: a daemon to measure, the way to it, the machine beneath it.

#![allow(dead_code, reason = "each bench uses a part of it")]

pub mod child;
pub mod connect;
pub mod daemon;
pub mod echo;
pub mod machine;
pub mod spread;

/// Why a measurement could not be made. Nobody catches it: it is told, and the run ends.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
