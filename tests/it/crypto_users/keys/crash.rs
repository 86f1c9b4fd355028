//! `kill -9` amid what a user does with his keys: what was acknowledged stays, and nothing else does.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn a_kill_in_the_middle_of_creations_leaves_every_acknowledged_key_and_no_other() {
    let mut rig = Rig::new().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("first").await.unwrap();
    alice.until_on(&alice.named("first"), &HSMS).await;
    let (acknowledged, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..100 {
        let (alice, acknowledged) = (alice.at(&clients), acknowledged.clone());
        tokio::spawn(async move {
            if let Ok(made) = alice.create(&format!("key-{number}")).await {
                let _ = acknowledged.send(made.hsm_label);
            }
        });
    }
    drop(acknowledged);
    let mut kept: BTreeSet<String> = ["first".to_owned()].into();
    while kept.len() < 20 {
        kept.insert(answers.recv().await.expect("some succeed"));
    }
    rig.kill_daemon();
    while let Some(label) = answers.recv().await {
        kept.insert(label);
    }
    assert!(kept.len() < 100, "the kill came too late to interrupt anything");

    rig.start_daemon();
    let alice = alice.at(&rig.clients().await);
    let listed: BTreeSet<String> = alice.labels().await.into_iter().collect();
    assert!(listed.is_superset(&kept), "an acknowledged key is gone");
    for label in &kept {
        let encrypted = alice.encrypt(&alice.named(label)).await.unwrap();
        assert_eq!(alice.decrypt("", &encrypted.ciphertext).await.unwrap().plaintext, b"hers");
    }
    for label in &listed {
        alice.until_on(&alice.named(label), &HSMS).await;
    }
    let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
    for hsm in HSMS {
        rig.until_labelled(hsm, "alice", &listed).await;
    }
}

#[tokio::test]
async fn a_creation_that_was_killed_leaves_nothing_and_is_made_when_it_is_repeated() {
    for point in ["create-begun", "create-made"] {
        let mut rig = Rig::new().seams().start();
        let clients = rig.clients().await;
        let alice = User::new(&rig, &clients, "alice").await;
        alice.create("first").await.unwrap();
        alice.until_on(&alice.named("first"), &HSMS).await;
        rig.stop_at(point);
        let request = pb::CreateKeyRequest {
            cluster_id: rig.cluster_id(),
            hsm_label: "orders".to_owned(),
            request_id: "again".to_owned(),
            ..Default::default()
        };
        tokio::select! {
            _ = alice.create_as(request.clone()) => panic!("it went past {point}"),
            () = rig.wait_until_stopped_at(point) => {}
        }
        rig.kill_daemon();
        rig.let_pass(point);
        rig.start_daemon();
        let alice = alice.at(&rig.clients().await);
        assert_eq!(alice.labels().await, ["first"], "{point}");
        // Until every HSM was looked at, the label is taken by what nobody was told of.
        let key = wait_async(|| async { alice.create_as(request.clone()).await.ok() }).await;
        alice.until_on(&key.key_id, &HSMS).await;
        let again = alice.create_as(request).await.unwrap();
        assert_eq!(again.key_id, key.key_id, "{point}: repeated once more, it is the same key");
        for hsm in HSMS {
            rig.until_labelled(hsm, "alice", &["first", "orders"]).await;
        }
    }
}

#[tokio::test]
async fn a_destruction_that_was_killed_is_finished_once_its_user_is_back() {
    let mut rig = Rig::new().seams().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    alice.until_on(&name, &HSMS).await;
    rig.stop_at("destroy-begun");
    tokio::select! {
        _ = alice.destroy(&name) => panic!("it went past the stop"),
        () = rig.wait_until_stopped_at("destroy-begun") => {}
    }
    rig.kill_daemon();
    rig.let_pass("destroy-begun");
    assert_eq!(rig.user_objects("hsm-1", "alice").len(), 1, "nothing was done yet");
    rig.start_daemon();
    let alice = alice.at(&rig.clients().await);
    refused("it is gone", alice.describe(&name).await, "NOT_FOUND", "");
    for hsm in HSMS {
        rig.until_labelled(hsm, "alice", &[]).await;
    }
}
