//! How callers come in: listeners, who is at the other end, and the faces of the core.
//!
//! A face answers who is calling, what is asked, whether they may, and hands the rest to the
//! rooms below. No rule stands here twice, and none that another face would need too.

mod greet;
pub mod grpc;
pub mod http;
mod lanes;
mod listen;
mod ready;
mod settings;

pub use lanes::{LaneThreads, Lanes};
pub use listen::{Bound, ListenError, listen};
pub use ready::{Readiness, keep_ready};
pub use settings::*;
