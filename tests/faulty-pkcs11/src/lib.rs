//! A PKCS#11 library that forwards to a real one, and fails on command.
//!
//! Built as a shared library, it is what a PKCS#11 program is given in place of its real module: the
//! [shim]. Built as a Rust library, it is what a test says the faults with: [`Faults`] is a handle on
//! one shim's control file, and [`Rule`] is a line of it. The text is described in the README.
//!
//! ```text
//! a program ── C_Encrypt ─▶ shim: looks at the control file; fails, waits, crashes ── C_Encrypt ─▶ the real module
//!                                     ▲                     └─▶ the journal
//! a test ── Faults::set ──────────────┘
//! ```

pub mod ckr;
mod faults;
mod function;
mod journal;
mod on;
mod parse;
mod rule;
pub mod shim;

pub use faults::Faults;
pub use function::Function;
pub use journal::{Entry, Outcome};
pub use on::On;
pub use parse::BadRule;
pub use rule::Rule;
