//! An HSM that is away: it gets what its user made, and loses what its user destroyed, when it is back.

use super::*;

/// Alice, while one HSM's tokens of crypto users cannot be reached.
async fn without_hsm_3() -> (Rig, Clients, User) {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    rig.take_away("hsm-3");
    let alice = User::log_in(&rig, &clients, "alice").await;
    (rig, clients, alice)
}

#[tokio::test]
async fn a_node_that_was_away_gets_the_key_when_it_is_back() {
    let (rig, _, alice) = without_hsm_3().await;
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    alice.until_on(&name, &["hsm-1", "hsm-2"]).await;
    let ciphertext = alice.encrypt(&name).await.unwrap().ciphertext;
    rig.put_back("hsm-3");
    alice.until_on(&name, &HSMS).await;
    assert_eq!(rig.user_objects("hsm-3", "alice"), rig.user_objects("hsm-1", "alice"));
    assert_eq!(alice.decrypt(&name, &ciphertext).await.unwrap().plaintext, b"hers");
}

#[tokio::test]
async fn a_key_destroyed_while_an_hsm_is_away_goes_there_once_the_hsm_and_its_user_are_back() {
    for over_a_restart in [false, true] {
        let mut rig = Rig::new().start();
        let mut clients = rig.clients().await;
        let alice = User::new(&rig, &clients, "alice").await;
        for label in ["kept", "orders"] {
            alice.create(label).await.unwrap();
            alice.until_on(&alice.named(label), &HSMS).await;
        }
        clients.users.logout(alice.with_login(pb::LogoutRequest {})).await.unwrap();
        wait_async(|| async { rig.workers().is_empty().then_some(()) }).await;
        rig.take_away("hsm-3");
        let mut alice = User::log_in(&rig, &clients, "alice").await;
        alice.destroy(&alice.named("orders")).await.unwrap();
        refused("it is gone", alice.describe(&alice.named("orders")).await, "NOT_FOUND", "");
        rig.until_labelled("hsm-2", "alice", &["kept"]).await;
        if over_a_restart {
            rig.kill_daemon();
            rig.start_daemon();
            clients = rig.clients().await;
            alice = alice.at(&clients);
        }
        alice.create("orders").await.expect("the label is free, whatever an absent HSM holds");
        rig.put_back("hsm-3");
        let made = alice.until_on(&alice.named("orders"), &HSMS).await;
        rig.until_labelled("hsm-3", "alice", &["kept", "orders"]).await;
        assert_eq!(rig.user_objects("hsm-3", "alice"), rig.user_objects("hsm-1", "alice"), "{made:?}");
    }
}

#[tokio::test]
async fn too_few_hsms_make_no_key_and_without_any_none_is_used_or_destroyed_and_nobody_is_told_it_is_gone() {
    let rig = Rig::new().start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    let bob = User::new(&rig, &clients, "bob").await;
    alice.create("orders").await.unwrap();
    let name = alice.named("orders");
    alice.until_on(&name, &HSMS).await;
    let mut operator = clients.clone();
    for hsm in ["hsm-2", "hsm-3"] {
        operator.drain(&rig, hsm).await;
    }
    let status = wait_async(|| async { alice.create("more").await.err() }).await;
    assert_eq!(crate::rig::reason(&status).1, "NO_NODE", "{status:?}");
    let ciphertext = alice.encrypt(&name).await.expect("one is enough to use a key").ciphertext;

    operator.drain(&rig, "hsm-1").await;
    wait_async(|| async { alice.encrypt(&name).await.err() }).await;
    refused("no HSM is there", alice.destroy(&name).await, "NO_NODE", "");
    refused("the key is not gone", alice.decrypt("", &ciphertext).await, "NO_NODE", "");
    refused("nobody else's", bob.decrypt("", &ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");

    for hsm in HSMS {
        operator.resume_hsm(&rig.cluster_id(), hsm, false).await;
    }
    wait_async(|| async { alice.create("at last").await.ok() }).await;
    let labels = alice.labels().await;
    assert!(labels.contains(&"orders".to_owned()) && labels.contains(&"at last".to_owned()), "{labels:?}");
    assert_eq!(alice.decrypt("", &ciphertext).await.unwrap().plaintext, b"hers");
}
