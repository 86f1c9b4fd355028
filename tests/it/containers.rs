//! HSMs in containers, each in its zone's own network: hosts that are killed, frozen and cut off as hosts are.
//!
//! Without an engine that runs containers these tests are passed over, and say so. Each has threads for its callers: what is
//! done to a host keeps the test's own waiting, sometimes longer than callers have.

mod compose;
mod daemon;
mod disk;
mod joining;
mod loss;
mod network;
mod rigs;
mod zones;

use std::time::Duration;

use crate::rig::{Clients, Load, Rig};

/// What docs/reliability.md promises callers while an HSM of three is lost.
const DEADLINE: Duration = Duration::from_secs(2);
/// From one round trip's beginning to the next one's of the same caller.
const PACE: Duration = Duration::from_millis(50);
/// So many, who find out what two HSMs do in so long.
const CALLERS: u8 = 8;
const MOMENT: Duration = Duration::from_secs(1);
/// And operators, once its host is back.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Callers who ask for half of what the others do without this HSM, as was just measured, and wait for no answer longer than
/// is promised. What they miss they make up for.
async fn callers_at_half(rig: &Rig, clients: &mut Clients, store: &str, key: &str, without: &str) -> Load {
    clients.drain_hsm(&rig.cluster_id(), store, without).await;
    let unpaced = Load::start(clients, key, CALLERS);
    unpaced.more(20).await;
    let all_they_do = unpaced.rate(MOMENT).await;
    unpaced.unharmed().await;
    clients.resume_hsm(&rig.cluster_id(), without, false).await;
    clients.all_healthy(store).await;
    let pace = Duration::from_secs_f64(2.0 * f64::from(CALLERS) / all_they_do);
    Load::in_a_hurry(clients, key, CALLERS, pace, DEADLINE)
}

/// Callers who ask for much less than two HSMs can do, and wait for no answer longer than is promised.
fn callers(clients: &Clients, key: &str) -> Load {
    Load::in_a_hurry(clients, key, 4, PACE, DEADLINE)
}
