//! The only room that speaks PKCS#11: a library, its token, a session on it, and the keys inside.
//!
//! ```text
//! Module ──find──▶ Token ──open_session──▶ Session ──▶ encrypt, decrypt, generate, unwrap, …
//!   (one library,      (one slot, by label     (one thread's; callers name keys by CKA_ID,
//!    never unloaded)    or serial number)       object handles stay in here)
//! ```
//!
//! Every answer of the library is read once, in [`fault`]. Nothing here knows the link's verbs,
//! reads a clock or starts a thread. Only [`raw`] has unsafe code.

mod abilities;
mod ceremony;
mod ckr;
mod fault;
mod handles;
mod health;
mod inventory;
mod key;
mod lookup;
mod mechanism;
mod module;
mod pin;
mod probe;
mod raw;
mod session;
mod sign;
mod stopwatch;
mod token;
mod unfinished;

pub use abilities::Ability;
pub use ceremony::{Kek, Offer};
pub use fault::{Bucket, Fault, Kind};
pub use health::Canary;
pub use inventory::{Listed, Page};
pub use key::{NewKey, Presence};
pub use module::Module;
pub use pin::Pin;
pub use raw::{ignore_stop_signals, leave};
pub use session::Session;
pub use stopwatch::Stopwatch;
pub use token::{Token, TokenName};
