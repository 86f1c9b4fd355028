//! One HSM of three is lost with its host, in every way that a host can be, and comes back.

use std::time::{Duration, Instant};

use super::{BACK_WITHIN, callers_at_half};
use crate::rig::{HostOfOne, Rig, Weather, engine, pb};

/// Until an HSM that holds nothing has what the others have, beside the making of a key pair by its library.
const REFILLED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_killed_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(HostOfOne::kill, HostOfOne::start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_stopped_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().stop(), HostOfOne::start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_frozen_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().freeze(), |host| host.container().thaw()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_cable_is_pulled_is_unnoticed_by_callers_and_serves_soon_after_its_return() {
    lost_and_found(|host| host.container().disconnect(), |host| host.container().connect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_falls_silent_is_unnoticed_by_callers_and_serves_soon_after_it_speaks_again() {
    lost_and_found(|host| host.network(Weather::Silent), |host| host.network(Weather::Fair)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_connections_are_cut_is_unnoticed_by_callers_and_serves_soon_after_it_can_be_reached() {
    lost_and_found(|host| host.network(Weather::Cut), |host| host.network(Weather::Fair)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_restored_empty_is_refilled_without_an_operator_while_the_others_serve() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let mut kept = Vec::new();
    for number in 0..5 {
        let key = clients.key(&store).await.key_id;
        let plaintext = format!("under key {number}").into_bytes();
        kept.push((clients.encrypt(&key, &plaintext).await, plaintext, key));
    }
    let load = callers_at_half(&rig, &mut clients, &store, &kept[0].2, "hsm-2").await;
    load.more(20).await;
    rig.host("hsm-2").kill();
    clients.until_health(&store, "hsm-2", pb::HsmHealth::Unreachable).await;
    rig.empty_token("hsm-2");
    assert_eq!(rig.objects("hsm-2"), []);
    load.more(20).await;
    rig.host("hsm-2").start();
    let (returned, made_before) = (Instant::now(), making_key_pairs(&rig, "hsm-2"));
    clients.all_healthy(&store).await;
    let (back, pair) = (returned.elapsed(), making_key_pairs(&rig, "hsm-2") - made_before);
    assert!(pair > Duration::ZERO, "it was given the key-encryption key");
    let limit = REFILLED_WITHIN + pair;
    assert!(back < limit, "it served after {back:?}, of which its library took {pair:?} for a key pair");
    load.more(20).await;
    assert!(load.unharmed().await > 0);
    for hsm in ["hsm-1", "hsm-3"] {
        rig.host(hsm).kill();
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    for (ciphertext, plaintext, _) in kept {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), plaintext);
    }
}

/// How long an HSM has taken so far to make the key pairs under which it was given the cluster's key-encryption key. That is
/// its library's, which looks for primes, and not ours to promise.
fn making_key_pairs(rig: &Rig, hsm: &str) -> Duration {
    let log = rig.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pairs = lines.filter(|line| line["hsm"] == hsm && line["target"] == "keyway::cluster::prove");
    pairs.filter_map(|line| line["took_ms"].as_u64()).map(Duration::from_millis).sum()
}

async fn lost_and_found(lose: fn(&mut HostOfOne), find: fn(&mut HostOfOne)) {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers_at_half(&rig, &mut clients, &store, &key, "hsm-2").await;
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
