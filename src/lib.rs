//! keyway: a self-hosted KMS whose keys live in HSMs its users own.
//!
//! A request's way through the rooms, in the order it meets them:
//!
//! - [`door`] takes it in and finds out who is calling and what is asked;
//! - [`authz`] says whether they may, and a [`Permit`](authz::Permit) is the proof;
//! - [`making`] makes clusters; [`users`] makes crypto users and logs them in; [`keystore`] and [`keys`] say whether it is allowed in this state, and keep records and HSMs level;
//! - [`cluster`] chooses the node, and decides what a failure means;
//! - [`node`] lets it wait, within bounds, and hands it over on
//! - [`link`], the frames between the daemon and
//! - [`worker`], the other process, the only kind with vendor code in it.
//!
//! Beside that way: [`host`] starts workers and runs admin jobs, [`records`] is what is written
//! down, [`config`] is what the operator decided, [`app`] joins the rooms, [`cli`] is the commands.
//! [`pki`] makes certificates on a desk, for the commands alone.
//! [`model`] is the words all share; [`clock`], [`proto`], [`telemetry`] and [`tls`] are used from everywhere.
//! Imports run one way, and `tests/tidy.rs` keeps it so.

#![deny(unsafe_code)]
// The map links to every room; it is read with `cargo doc --document-private-items`, since this library has no users but
// the binary and the tests.
#![allow(rustdoc::private_intra_doc_links)]

mod app;
mod authz;
pub mod cli;
mod clock;
mod cluster;
mod config;
mod door;
mod host;
mod keys;
mod keystore;
pub mod link;
mod making;
pub mod model;
mod node;
mod pki;
pub mod proto;
mod records;
#[cfg(debug_assertions)]
mod seams;
mod telemetry;
mod tls;
mod users;
mod worker;

pub use cluster::Sealed;
pub use keys::envelope;
