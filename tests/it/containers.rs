//! HSMs in containers, each in its zone's own network: hosts that are killed, frozen and cut off as hosts are.
//!
//! Without an engine that runs containers these tests are passed over, and say so.

mod compose;
mod daemon;
mod disk;
mod loss;
mod network;
mod rigs;
mod zones;

use std::time::Duration;

use crate::rig::{Clients, Load};

/// What docs/reliability.md promises callers while an HSM of three is lost.
const DEADLINE: Duration = Duration::from_secs(2);
/// From one round trip's beginning to the next one's of the same caller.
const PACE: Duration = Duration::from_millis(50);
/// And operators, once its host is back.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Callers who ask for much less than two HSMs can do, and wait for no answer longer than is promised.
fn callers(clients: &Clients, key: &str) -> Load {
    Load::in_a_hurry(clients, key, 4, PACE, DEADLINE)
}
