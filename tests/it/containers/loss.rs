//! One HSM of three is lost with its host, in every way that a host can be, and comes back.

use std::time::Instant;

use super::{BACK_WITHIN, callers};
use crate::rig::{HostOfOne, Rig, engine, pb};

#[tokio::test]
async fn a_host_that_is_killed_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(HostOfOne::kill, HostOfOne::start).await;
}

#[tokio::test]
async fn a_host_that_is_stopped_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().stop(), HostOfOne::start).await;
}

#[tokio::test]
async fn a_host_that_is_frozen_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().freeze(), |host| host.container().thaw()).await;
}

#[tokio::test]
async fn a_host_whose_cable_is_pulled_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().disconnect(), |host| host.container().connect()).await;
}

async fn lost_and_found(lose: fn(&mut HostOfOne), find: fn(&mut HostOfOne)) {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    lose(rig.host("hsm-2"));
    clients.until_health(&store, "hsm-2", pb::HsmHealth::Unreachable).await;
    // Made while it is away: it has yet to get this one.
    let newer = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&newer, b"newer").await;
    load.more(20).await;
    find(rig.host("hsm-2"));
    let returned = Instant::now();
    clients.all_healthy(&store).await;
    assert!(returned.elapsed() < BACK_WITHIN, "it served after {:?}", returned.elapsed());
    assert!(load.unharmed().await > 0);
    // By itself it has everything that was ever acknowledged.
    rig.host("hsm-1").kill();
    rig.host("hsm-3").kill();
    for hsm in ["hsm-1", "hsm-3"] {
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"newer");
    clients.encrypt(&key, b"older").await;
}
