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

pub use codec::{BadFrame, Frames, MAX_FRAME, push};
pub use pace::{Pace, Patience};
