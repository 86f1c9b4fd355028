//! One HSM of three is far away, or behind a network that loses packets. Callers do not notice.

use std::time::{Duration, Instant};

use super::callers;
use crate::rig::{Loss, Rig, Weather, engine};

/// Of each chunk, in each direction.
const FAR: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_200_ms_away_costs_hurried_callers_no_error_and_most_of_them_no_time() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    rig.host("hsm-2").network(Weather::Late(FAR));
    load.more(100).await;
    let calls = 40;
    let mut from_afar = 0;
    for _ in 0..calls {
        let begun = Instant::now();
        clients.encrypt(&key, b"x").await;
        from_afar += usize::from(begun.elapsed() >= FAR * 2);
    }
    // It would be a third of them if HSMs simply took turns.
    assert!(from_afar * 5 < calls, "{from_afar} of {calls} calls went there");
    rig.host("hsm-2").network(Weather::Fair);
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_loses_one_packet_in_twenty_costs_callers_no_error() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    for (hsm, seed) in [("hsm-1", 1), ("hsm-2", 2), ("hsm-3", 3)] {
        rig.host(hsm).network(Weather::Lossy(Loss { percent: 5, seed }));
    }
    load.more(200).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.host(hsm).network(Weather::Fair);
    }
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
}
