//! `kill -9` at any point: what was acknowledged stays, what was not leaves nothing behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tonic::Code;

use crate::rig::{Clients, Rig, kill, pb, wait, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

#[tokio::test]
async fn a_kill_in_the_middle_of_200_creations_leaves_every_acknowledged_key_and_no_stranger() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let (acknowledged, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..200 {
        let (mut clients, store, acknowledged) = (clients.clone(), store.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let request =
                pb::CreateKeyRequest { key_store_id: store, request_id: format!("r{number}"), ..Default::default() };
            if let Ok(made) = clients.keys.create_key(request).await {
                let _ = acknowledged.send(made.into_inner().key.unwrap().key_id);
            }
        });
    }
    drop(acknowledged);
    let mut kept = Vec::new();
    while kept.len() < 40 {
        kept.push(answers.recv().await.expect("some succeed"));
    }
    rig.kill_daemon();
    while let Some(key) = answers.recv().await {
        kept.push(key);
    }
    assert!(kept.len() < 200, "the kill came too late to interrupt anything");

    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;
    let keys = listed(&mut clients, &store).await;
    for key in &kept {
        assert!(keys.contains(key), "acknowledged key {key} is gone");
        let ciphertext = clients.encrypt(key, b"still here").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"still here");
    }
    for hsm in HSMS {
        let labels: Vec<String> = rig.objects(hsm).into_iter().map(|object| object.label).collect();
        let distinct: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(labels.len(), distinct.len(), "{hsm} holds something twice");
        let mut expected: BTreeSet<String> = keys.iter().map(|key| format!("keyway:{key}:1")).collect();
        expected.extend(["keyway:kek".to_owned(), "keyway:canary".to_owned()]);
        let found: BTreeSet<String> = labels.into_iter().collect();
        assert_eq!(found, expected, "{hsm}");
    }
}

#[tokio::test]
async fn a_creation_killed_before_or_after_the_hsm_made_the_key_leaves_nothing() {
    for point in ["create-begun", "create-made"] {
        let (mut rig, mut clients, store) = Rig::new().seams().connected().await;
        clients.all_healthy(&store).await;
        let before = rig.objects("hsm-1");
        rig.stop_at(point);
        let request = pb::CreateKeyRequest {
            key_store_id: store.clone(),
            alias: "alias/interrupted".to_owned(),
            request_id: "again".to_owned(),
            ..Default::default()
        };
        let mut creating = clients.clone();
        let asked = request.clone();
        let call = tokio::spawn(async move { creating.keys.create_key(asked).await });
        rig.wait_until_stopped_at(point).await;
        rig.kill_daemon();
        assert!(call.await.unwrap().is_err());

        rig.let_pass(point);
        rig.start_daemon();
        let mut clients = rig.clients().await;
        clients.all_healthy(&store).await;
        assert_eq!(listed(&mut clients, &store).await.len(), 0, "{point}");
        for hsm in HSMS {
            assert_eq!(rig.objects(hsm), before, "{point}: {hsm}");
        }
        // The same request, repeated, makes the key, and the alias was not lost to the dead one.
        let key = clients.keys.create_key(request).await.unwrap().into_inner().key.unwrap();
        assert_eq!(clients.describe_key("alias/interrupted").await.key_id, key.key_id, "{point}");
    }
}

#[tokio::test]
async fn a_founding_killed_halfway_is_finished_by_the_next_daemon() {
    let mut rig = Rig::new().seams().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    rig.stop_at("kek-made");
    clients.connect(&store).await;
    rig.wait_until_stopped_at("kek-made").await;
    // A login that the kill cut off would rightly not be tried again by itself: let all be answered first.
    let logged_in = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Syncing;
    clients.watch_until(&store, |store| store.nodes.len() == 3 && store.nodes.iter().all(logged_in)).await;
    rig.kill_daemon();

    rig.let_pass("kek-made");
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let settled = clients.settled(&store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "CONNECTING resumes: {settled:?}");
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await;
    assert_eq!(clients.describe_key(&key.key_id).await.state(), pb::KeyState::Enabled);
    for hsm in HSMS {
        let labels: Vec<_> = rig.objects(hsm).into_iter().map(|object| object.label).collect();
        assert_eq!(labels.len(), 3, "{hsm}: one KEK, one canary, one key: {labels:?}");
    }
}

#[tokio::test]
async fn a_login_whose_answer_was_lost_is_not_tried_again_until_an_operator_says_so() {
    let mut rig = Rig::new().seams().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    rig.stop_at("login-begun");
    clients.connect(&store).await;
    rig.wait_until_stopped_at("login-begun").await;
    rig.kill_daemon();

    rig.let_pass("login-begun");
    rig.start_daemon();
    let mut clients = rig.clients().await;
    // The one node whose attempt is open stays out; the others were never asked, and prove the password.
    let settled = clients.settled(&store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Connected);
    let (out, others): (Vec<_>, Vec<_>) =
        settled.nodes.iter().partition(|node| node.health() == pb::HsmHealth::LoginRefused);
    assert_eq!((out.len(), others.len()), (1, 2), "{settled:?}");
    assert!(out[0].last_error.contains("never answered"), "{}", out[0].last_error);
    assert_eq!(out[0].login_attempts_left, 0);
    // Resuming it without a word about the login changes nothing.
    clients.resume_hsm(&rig.cluster_id(), &out[0].hsm_id, false).await;
    let decided =
        |node: &pb::NodeConnection| matches!(node.health(), pb::HsmHealth::Healthy | pb::HsmHealth::LoginRefused);
    let still = clients.watch_until(&store, |store| store.nodes.iter().all(decided)).await;
    assert_eq!(still.nodes.iter().filter(|it| it.health() == pb::HsmHealth::LoginRefused).count(), 1);
    clients.resume_hsm(&rig.cluster_id(), &out[0].hsm_id, true).await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn killing_one_worker_under_load_loses_no_encryption() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await;
    let victim = rig.workers().into_iter().find(|(_, slot)| slot.contains("hsm-2")).expect("it runs").0;
    let done = Arc::new(AtomicU32::new(0));
    let load: Vec<_> = (0..16u8)
        .map(|caller| tokio::spawn(encrypt_many(clients.clone(), key.key_id.clone(), caller, done.clone())))
        .collect();
    wait_async(|| async { (done.load(Relaxed) > 100).then_some(()) }).await;
    kill(victim);
    assert!(done.load(Relaxed) < 16 * 100, "the kill came when the load was over");
    for caller in load {
        caller.await.unwrap();
    }
    let back = clients.all_healthy(&store).await;
    let restarts: i32 = back.nodes.iter().map(|node| node.worker_restarts).sum();
    assert_eq!(restarts, 1, "one worker was replaced: {back:?}");
}

async fn encrypt_many(mut clients: Clients, key: String, caller: u8, done: Arc<AtomicU32>) {
    for round in 0..100u8 {
        let ciphertext = clients.encrypt(&key, &[caller, round]).await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), [caller, round]);
        done.fetch_add(1, Relaxed);
    }
}

#[tokio::test]
async fn a_node_whose_token_was_emptied_gets_every_key_back_from_its_siblings() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let keys = [clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    let ciphertext = clients.encrypt(&keys[0], b"kept").await;
    let before = rig.objects("hsm-3");
    rig.empty_token("hsm-3");
    let victim = rig.workers().into_iter().find(|(_, slot)| slot.contains("hsm-3")).expect("it runs").0;
    kill(victim);
    clients.watch_until(&store, |store| store.nodes.iter().any(|node| node.worker_restarts == 1)).await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.objects("hsm-3"), before);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
    assert_eq!(listed(&mut clients, &store).await.len(), 2);
}

#[tokio::test]
async fn a_key_deleted_from_one_hsm_behind_our_back_is_served_by_its_siblings_and_put_back() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"kept").await;
    let before = rig.objects("hsm-2");
    rig.delete_object("hsm-2", &before.iter().find(|object| object.label.contains(&key)).unwrap().id);
    assert_eq!(rig.objects("hsm-2").len(), before.len() - 1);
    wait_async(|| {
        // Idle nodes take turns, so some of these calls meet the node that lacks the key.
        let (mut clients, ciphertext, rig, before) = (clients.clone(), ciphertext.clone(), &rig, &before);
        async move {
            assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
            (rig.objects("hsm-2") == *before).then_some(())
        }
    })
    .await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn with_every_node_gone_calls_are_refused_at_once_and_nothing_is_forgotten() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    // With their tokens moved away no worker can come back.
    let (here, away) = (rig.path("hsms"), rig.path("hsms-away"));
    std::fs::rename(&here, &away).unwrap();
    for (pid, _) in rig.workers() {
        kill(pid);
    }
    // A call that was under way on both as they died would be given up as a suspect: not the one that is meant here.
    let gone = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Unreachable;
    clients.watch_until(&store, |store| store.nodes.iter().all(gone)).await;
    let request = pb::EncryptRequest { key_id: key.clone(), plaintext: b"x".to_vec(), ..Default::default() };
    let refused = clients.crypto.encrypt(request).await.unwrap_err();
    assert_eq!(crate::rig::reason(&refused), (Code::Unavailable, "NO_NODE".to_owned()), "{refused}");
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "200");
    let request = pb::DescribeKeyStoresRequest::default();
    let told = clients.stores.describe_key_stores(request).await.unwrap().into_inner().key_stores;
    assert_eq!(told[0].connection_state(), pb::ConnectionState::Connected, "node trouble is not a store's state");

    std::fs::rename(&away, &here).unwrap();
    clients.all_healthy(&store).await;
    let ciphertext = clients.encrypt(&key, b"back").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"back");
}

#[tokio::test]
async fn a_call_that_hangs_in_one_hsm_holds_up_nobody_and_its_worker_is_replaced() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let stuck = rig.workers_of("hsm-2");
    let hung = rig.hang_next_creation("hsm-2");
    let key = clients.key_from_whoever_is_quickest(&store).await;
    let ciphertext = clients.encrypt(&key, b"meanwhile").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"meanwhile");
    wait_async(|| async { (rig.workers_of("hsm-2") != stuck).then_some(()) }).await;
    drop(hung);
    clients.all_healthy(&store).await;
    wait_async(|| async { (rig.objects("hsm-2") == rig.objects("hsm-1")).then_some(()) }).await;
}

#[tokio::test]
async fn a_new_daemon_waits_until_the_former_ones_stuck_worker_has_left() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let stuck = rig.workers_of("hsm-2");
    let hung = rig.hang_next_creation("hsm-2");
    let key = clients.key_from_whoever_is_quickest(&store).await;
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    wait_async(|| async {
        let now = rig.workers_of("hsm-2");
        assert!(now.len() <= 1, "two workers on one slot: {now:?}");
        (!now.is_empty() && now != stuck).then_some(())
    })
    .await;
    drop(hung);
    clients.all_healthy(&store).await;
    let ciphertext = clients.encrypt(&key, b"after").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"after");
    wait_async(|| async { (rig.objects("hsm-2") == rig.objects("hsm-1")).then_some(()) }).await;
}

#[tokio::test]
async fn workers_outlive_no_daemon() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.workers().len(), 3);
    rig.kill_daemon();
    wait(|| rig.workers().is_empty().then_some(()));
}

async fn listed(clients: &mut Clients, store: &str) -> Vec<String> {
    let request = pb::ListKeysRequest { key_store_id: store.to_owned(), page_size: 1_000, ..Default::default() };
    let page = clients.keys.list_keys(request).await.unwrap().into_inner();
    page.keys.into_iter().map(|key| key.key_id).collect()
}
