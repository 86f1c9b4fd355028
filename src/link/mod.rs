//! The session link: the frames that a daemon and a worker exchange, and their codec.
//!
//! Shared by both ends, so it knows neither: no sockets, no threads, no async. The daemon's end is
//! [`crate::node`], the worker's is [`crate::worker`].

mod codec;
mod kinds;
mod pace;
mod wipe;

#[allow(missing_docs, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/keyway.link.v1.rs"));
}

/// A number made of this release's version and of the contracts' very texts, the link's and the nodes': ends that differ in
/// it do not understand each other.
pub const CONTRACT: u64 = {
    let version = fingerprint(OFFSET_BASIS, env!("CARGO_PKG_VERSION").as_bytes());
    let link = fingerprint(version, include_bytes!("../../proto/keyway/link/v1/link.proto"));
    fingerprint(link, include_bytes!("../../proto/keyway/node/v1/node.proto"))
};

/// FNV-1a's, of no text at all.
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, going on from the fingerprint of what stands before.
const fn fingerprint(before: u64, text: &[u8]) -> u64 {
    let (mut hash, mut at) = (before, 0);
    while at < text.len() {
        hash = (hash ^ text[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

pub use codec::{BadFrame, Frames, MAX_FRAME, push};
pub use pace::{Pace, Patience};
