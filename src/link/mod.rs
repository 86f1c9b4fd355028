//! The session link: the frames that a daemon and a worker exchange, and their codec.
//!
//! Shared by both ends, so it knows neither: no sockets, no threads, no async. The daemon's end is
//! [`crate::node`], the worker's is [`crate::worker`].

mod codec;
mod pace;

#[allow(missing_docs, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/keyway.link.v1.rs"));
}

/// A number made of the contract's very text: ends that differ in it are of different builds.
pub const CONTRACT: u64 = fingerprint(include_bytes!("../../proto/keyway/link/v1/link.proto"));

/// FNV-1a.
const fn fingerprint(text: &[u8]) -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

pub use codec::{BadFrame, Frames, MAX_FRAME, push};
pub use pace::{Pace, Patience};
