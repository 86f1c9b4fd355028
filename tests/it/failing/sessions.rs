//! Sessions and logins that are lost, limited, or left in the middle of something.

use std::time::Duration;

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;

use super::ready;
use crate::rig::{Load, pb, wait_async};

#[tokio::test]
async fn a_node_that_loses_every_session_at_once_costs_no_caller_anything_and_one_login() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 64);
    load.more(200).await;
    let logins = rig.faults("hsm-2").count(C_Login);
    // As on a rebooted HSM, which also deals its handles out anew.
    rig.faults("hsm-2").reboot();
    clients.until_replaced(&store, "hsm-2", 1).await;
    load.more(200).await;
    load.unharmed().await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), logins + 1, "one login for however many callers met it");
}

#[tokio::test]
async fn a_login_that_is_lost_while_the_sessions_live_comes_back_once_for_all_who_met_it() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 50);
    load.more(200).await;
    let logins = rig.faults("hsm-1").count(C_Login);
    rig.faults("hsm-1").lose_login();
    clients.until_replaced(&store, "hsm-1", 1).await;
    load.more(200).await;
    load.unharmed().await;
    assert_eq!(rig.faults("hsm-1").count(C_Login), logins + 1);
}

#[tokio::test]
async fn fifty_callers_at_once_meet_a_node_that_was_logged_in_once() {
    let (rig, clients, _, key) = ready().await;
    let load = Load::start(&clients, &key, 50);
    load.more(500).await;
    load.unharmed().await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        // The trust ceremony has logins of its own; from the last of them on there was one.
        let journal = rig.faults(hsm).journal();
        let serving = rig.workers_of(hsm);
        let of_the_pool = journal.iter().filter(|entry| entry.function == C_Login && serving.contains(&entry.pid));
        assert_eq!(of_the_pool.count(), 1, "{hsm}");
    }
}

#[tokio::test]
async fn a_token_with_few_sessions_serves_with_those_and_says_how_many_it_has() {
    let mut rig = crate::rig::Rig::new().faulty().start();
    rig.stop_daemon();
    for ckr in [CKR_SESSION_COUNT, CKR_ARGUMENTS_BAD] {
        // CloudHSM says ARGUMENTS_BAD at its limit. One session holds the login, so two serve.
        rig.faults("hsm-1").set([Rule::max_sessions(3, ckr)]);
        rig.start_daemon_with(&["--pool-size", "8"]);
        let mut clients = rig.clients().await;
        let stores = clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await.unwrap();
        let store = match stores.into_inner().key_stores.pop() {
            Some(store) => store.key_store_id,
            None => clients.connected_store(&rig, "main").await,
        };
        let told = clients.all_healthy(&store).await;
        assert_eq!(super::node(&told, "hsm-1").sessions_open, 2, "0x{ckr:x}");
        assert_eq!(super::node(&told, "hsm-2").sessions_open, 8, "0x{ckr:x}");
        let key = clients.key(&store).await.key_id;
        let load = Load::start(&clients, &key, 64);
        load.more(300).await;
        load.unharmed().await;
        rig.stop_daemon();
    }
}

#[tokio::test]
async fn sessions_that_expire_when_idle_are_opened_again_before_anybody_notices() {
    let (rig, mut clients, store, key) = ready().await;
    rig.faults("hsm-1").set([Rule::idle(Duration::from_millis(700))]);
    let ciphertext = clients.encrypt(&key, b"idle").await;
    // Long enough for a session that nobody uses to expire, several times over.
    for _ in 0..4 {
        let before = rig.faults("hsm-1").count(C_Login);
        let _ = tokio::time::timeout(Duration::from_secs(2), async {
            // Ends early when an expired anchor has cost the login, which must come back as well.
            wait_async(|| async { (rig.faults("hsm-1").count(C_Login) > before).then_some(()) }).await;
        })
        .await;
        for _ in 0..12 {
            assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"idle");
        }
    }
    rig.faults("hsm-1").clear();
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn an_operation_left_active_in_a_session_never_meets_the_next_request() {
    let (rig, clients, _, key) = ready().await;
    let load = Load::start(&clients, &key, 16);
    load.more(100).await;
    // The library did the work and keeps the operation: a used session would refuse the next one.
    rig.faults("hsm-1").set([Rule::fail([C_Encrypt, C_Decrypt], CKR_BUFFER_TOO_SMALL).every(3)]);
    load.more(300).await;
    rig.faults("hsm-1").set([Rule::fail([C_EncryptInit, C_DecryptInit], CKR_OPERATION_ACTIVE).every(3)]);
    load.more(300).await;
    load.unharmed().await;
}
