//! A network that is cut or falls silent, and hosts that come and go.

use std::time::{Duration, Instant};

use faulty_pkcs11::Function::{C_Encrypt, C_GenerateKey};
use faulty_pkcs11::{Outcome, Rule};
use rustix::process::Signal;
use tonic::Code;

use crate::failing::node;
use crate::rig::{Load, Rig, Weather, pb, reason, wait, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
/// Two and a half seconds without an answer, and what a busy machine takes to notice.
const SOON_TOLD: Duration = Duration::from_secs(5);
/// Ten seconds without a sign, and what a busy machine takes to notice.
const BOTH_ENDS_KNOW: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_host_that_falls_silent_is_given_up_at_both_ends_and_costs_no_caller_anything() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(20).await;
    let begun = Instant::now();
    rig.host("hsm-2").network(Weather::Silent);
    let told = clients.until_health(&store, "hsm-2", pb::HsmHealth::Unreachable).await;
    wait_async(|| async { rig.workers_of("hsm-2").is_empty().then_some(()) }).await;
    assert!(begun.elapsed() < BOTH_ENDS_KNOW, "{:?}: {told:?}", begun.elapsed());
    load.more(20).await;
    rig.host("hsm-2").network(Weather::Fair);
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
}

#[tokio::test]
async fn a_network_that_is_cut_costs_no_caller_anything_and_the_host_is_back_when_it_is() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    for _ in 0..2 {
        load.more(20).await;
        rig.host("hsm-3").network(Weather::Cut);
        clients.until_health(&store, "hsm-3", pb::HsmHealth::Unreachable).await;
        wait_async(|| async { rig.workers_of("hsm-3").is_empty().then_some(()) }).await;
        load.more(20).await;
        rig.host("hsm-3").network(Weather::Fair);
        clients.all_healthy(&store).await;
    }
    assert!(load.unharmed().await > 0);
}

#[tokio::test]
async fn a_daemon_that_vanishes_without_a_word_leaves_nobody_logged_in() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"before").await;
    // As when its machine loses its power: nothing says that the connections have ended.
    for hsm in HSMS {
        rig.host(hsm).network(Weather::Silent);
    }
    rig.kill_daemon();
    let begun = Instant::now();
    wait(|| rig.workers().is_empty().then_some(()));
    assert!(begun.elapsed() < BOTH_ENDS_KNOW, "{:?}", begun.elapsed());
    for hsm in HSMS {
        rig.host(hsm).network(Weather::Fair);
    }
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"before");
}

#[tokio::test]
async fn a_daemon_that_is_killed_and_comes_back_finds_its_former_workers_gone() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let former = rig.workers();
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;
    let now = rig.workers();
    assert_eq!(now.len(), 3, "one worker a slot: {now:?}");
    assert!(now.iter().all(|worker| !former.contains(worker)), "{former:?} {now:?}");
}

#[tokio::test]
async fn a_node_that_is_killed_or_stopped_takes_its_workers_along_and_serves_again_when_it_is_back() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(20).await;
    rig.host("hsm-1").kill();
    wait_async(|| async { rig.workers_of("hsm-1").is_empty().then_some(()) }).await;
    load.more(20).await;
    rig.host("hsm-1").start();
    clients.all_healthy(&store).await;
    assert_eq!(rig.host("hsm-2").stop().code(), Some(0));
    wait_async(|| async { rig.workers_of("hsm-2").is_empty().then_some(()) }).await;
    load.more(20).await;
    rig.host("hsm-2").start();
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
}

#[tokio::test]
async fn a_node_that_is_stopped_in_its_tracks_is_like_a_silent_network() {
    let (mut rig, mut clients, store) = Rig::new().remote().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(20).await;
    let stopped = Instant::now();
    rig.host("hsm-2").signal(Signal::STOP);
    // Long before its link is given up.
    clients.watch_until(&store, |store| node(store, "hsm-2").health() != pb::HsmHealth::Healthy).await;
    assert!(stopped.elapsed() < SOON_TOLD, "{:?}", stopped.elapsed());
    clients.until_health(&store, "hsm-2", pb::HsmHealth::Unreachable).await;
    rig.host("hsm-2").signal(Signal::CONT);
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
}

#[tokio::test]
async fn a_call_whose_hosts_are_killed_one_after_the_other_is_answered_by_the_third_and_nobody_is_held_back() {
    let (mut rig, mut clients, store) = Rig::new().remote().faulty().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    for hsm in HSMS {
        rig.faults(hsm).mark("held");
        rig.faults(hsm).set([Rule::journal(C_Encrypt), Rule::block(C_Encrypt).during("held")]);
    }
    let call = tokio::spawn({
        let (mut clients, key) = (clients.clone(), key.clone());
        async move { clients.encrypt(&key, b"x").await }
    });
    let holds_it = |hsm: &&str| rig.faults(hsm).journal().iter().any(|entry| entry.outcome == Outcome::Blocked);
    let first = wait_async(|| async { HSMS.into_iter().find(holds_it) }).await;
    rig.host(first).kill();
    let holds_it = |hsm: &&str| rig.faults(hsm).journal().iter().any(|entry| entry.outcome == Outcome::Blocked);
    let second = wait_async(|| async { HSMS.into_iter().find(|hsm| *hsm != first && holds_it(hsm)) }).await;
    let third = HSMS.into_iter().find(|hsm| ![first, second].contains(hsm)).expect("there are three");
    rig.faults(third).clear();
    rig.host(second).kill();
    call.await.unwrap();
    // Nothing of it is held against whoever asks the like again.
    clients.encrypt(&key, b"x").await;
    for hsm in HSMS {
        rig.faults(hsm).unmark("held");
    }
}

#[tokio::test]
async fn a_creation_whose_answer_the_network_lost_is_told_as_unknown_and_settled_by_looking() {
    let (mut rig, mut clients, store) = Rig::new().remote().faulty().connected().await;
    clients.all_healthy(&store).await;
    let before = HSMS.map(|hsm| rig.objects(hsm));
    for hsm in HSMS {
        // It is made, and the answer takes its time.
        rig.faults(hsm).set([Rule::delay(C_GenerateKey, Duration::from_secs(4)).after()]);
    }
    let request =
        pb::CreateKeyRequest { key_store_id: store.clone(), request_id: "again".into(), ..Default::default() };
    let making = tokio::spawn({
        let (mut clients, request) = (clients.clone(), request.clone());
        async move { clients.keys.create_key(request).await }
    });
    wait_async(|| async { (HSMS.map(|hsm| rig.objects(hsm)) != before).then_some(()) }).await;
    for hsm in HSMS {
        rig.host(hsm).network(Weather::Cut);
    }
    let told = making.await.unwrap().unwrap_err();
    assert_eq!(reason(&told), (Code::Aborted, "OUTCOME_UNKNOWN".to_owned()), "{told}");
    for hsm in HSMS {
        rig.faults(hsm).clear();
        rig.host(hsm).network(Weather::Fair);
    }
    clients.all_healthy(&store).await;
    wait_async(|| async { (HSMS.map(|hsm| rig.objects(hsm)) == before).then_some(()) }).await;
    let made = wait_async(|| {
        let (mut clients, request) = (clients.clone(), request.clone());
        async move { clients.keys.create_key(request).await.ok() }
    });
    let key = made.await.into_inner().key.expect("a key").key_id;
    let ciphertext = clients.encrypt(&key, b"x").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
}
