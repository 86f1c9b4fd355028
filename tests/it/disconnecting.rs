//! Disconnecting: new calls are refused at once, running ones get the time that was asked for, and no longer.

use std::time::{Duration, Instant};

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use tonic::{Code, Status};

use crate::rig::{Clients, Rig, pb, reason, wait_async};

pub const HSMS: [&str; 2] = ["hsm-1", "hsm-2"];

/// A connected store with a key, on HSMs that fail when told to.
pub async fn ready() -> (Rig, Clients, String, String) {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).faulty().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    clients.all_healthy(&store).await;
    (rig, clients, store, key)
}

/// An encryption that has reached an HSM, and stays there as the rule says.
pub async fn running(
    rig: &Rig,
    clients: &Clients,
    key: &str,
    rule: Rule,
) -> tokio::task::JoinHandle<Result<Vec<u8>, Status>> {
    for hsm in HSMS {
        rig.faults(hsm).set([rule.clone(), Rule::journal(C_EncryptInit)]);
    }
    let calls = || HSMS.iter().map(|hsm| rig.faults(hsm).count(C_EncryptInit)).sum::<usize>();
    let before = calls();
    let (mut clients, key) = (clients.clone(), key.to_owned());
    let call = tokio::spawn(async move {
        let request = pb::EncryptRequest { key_id: key, plaintext: b"x".to_vec(), ..Default::default() };
        Ok(clients.crypto.encrypt(request).await?.into_inner().ciphertext)
    });
    wait_async(|| async { (calls() > before).then_some(()) }).await;
    call
}

pub async fn disconnect(clients: &mut Clients, store: &str, drain: Duration) -> pb::KeyStore {
    let drain_timeout = Some(drain.try_into().expect("short"));
    let request = pb::DisconnectKeyStoreRequest { key_store_id: store.to_owned(), drain_timeout };
    let answer = clients.stores.disconnect_key_store(request).await.expect("disconnecting begins");
    answer.into_inner().key_store.expect("it is told")
}

async fn refused_at_once(clients: &mut Clients, store: &str, key: &str) {
    let began = Instant::now();
    let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: b"y".to_vec(), ..Default::default() };
    let status = clients.crypto.encrypt(request).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "KMS_INVALID_STATE".to_owned()), "{status}");
    let request = pb::CreateKeyRequest { key_store_id: store.to_owned(), ..Default::default() };
    let status = clients.keys.create_key(request).await.unwrap_err();
    assert_eq!(reason(&status).1, "CUSTOM_KEY_STORE_INVALID_STATE", "{status}");
    let request = pb::GenerateRandomRequest { key_store_id: store.to_owned(), number_of_bytes: 8 };
    let status = clients.crypto.generate_random(request).await.unwrap_err();
    assert_eq!(reason(&status).1, "CUSTOM_KEY_STORE_INVALID_STATE", "{status}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_drain_lets_running_calls_end_and_refuses_new_ones_at_once() {
    let (rig, mut clients, store, key) = ready().await;
    let call = running(&rig, &clients, &key, Rule::delay(C_Encrypt, Duration::from_secs(1))).await;
    let told = disconnect(&mut clients, &store, Duration::from_secs(60)).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Disconnecting);
    assert!(!call.is_finished());
    refused_at_once(&mut clients, &store, &key).await;
    assert_eq!(clients.describe_key(&key).await.state(), pb::KeyState::Unavailable);
    let ciphertext = call.await.unwrap().expect("it had its time");
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);

    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    assert_eq!(clients.describe_key(&key).await.state(), pb::KeyState::Enabled, "as it was before");
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
}

#[tokio::test]
async fn a_kill_switch_or_a_drain_that_is_over_fails_running_calls_and_says_why() {
    let (rig, mut clients, store, key) = ready().await;
    for drain in [Duration::ZERO, Duration::from_millis(500)] {
        HSMS.iter().for_each(|hsm| rig.faults(hsm).mark("hang"));
        let call = running(&rig, &clients, &key, Rule::block(C_Encrypt).during("hang")).await;
        let began = Instant::now();
        disconnect(&mut clients, &store, drain).await;
        refused_at_once(&mut clients, &store, &key).await;
        let status = call.await.unwrap().unwrap_err();
        assert_eq!(reason(&status), (Code::FailedPrecondition, "KMS_INVALID_STATE".to_owned()), "{status}");
        let took = began.elapsed();
        assert!(drain <= took && took < drain + Duration::from_secs(3), "{took:?}");
        assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);
        HSMS.iter().for_each(|hsm| rig.faults(hsm).unmark("hang"));
        HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
        clients.connect(&store).await;
        clients.all_healthy(&store).await;
        let ciphertext = clients.encrypt(&key, b"back").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"back", "nobody is held back for it");
    }
}

#[tokio::test]
async fn a_disconnect_that_a_kill_cut_off_is_finished_by_the_next_daemon() {
    let (mut rig, mut clients, store, key) = ready().await;
    HSMS.iter().for_each(|hsm| rig.faults(hsm).mark("hang"));
    let call = running(&rig, &clients, &key, Rule::block(C_Encrypt).during("hang")).await;
    let told = disconnect(&mut clients, &store, Duration::from_secs(60)).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Disconnecting);
    rig.kill_daemon();
    assert!(call.await.unwrap().is_err());
    HSMS.iter().for_each(|hsm| rig.faults(hsm).unmark("hang"));
    rig.start_daemon();
    let mut clients = rig.clients().await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);
    assert_eq!(clients.describe_key(&key).await.state(), pb::KeyState::Unavailable);
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    clients.encrypt(&key, b"back").await;
}

#[tokio::test]
async fn a_connect_that_a_kill_cut_off_before_it_began_is_made_by_the_next_daemon() {
    let mut rig = Rig::new().nodes(2).zones(2).seams().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    rig.stop_at("connecting");
    clients.connect(&store).await;
    rig.wait_until_stopped_at("connecting").await;
    rig.kill_daemon();
    rig.let_pass("connecting");
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let told = clients.settled(&store).await;
    assert_eq!((told.connection_state(), told.connect_attempt), (pb::ConnectionState::Connected, 1));
    clients.key(&store).await;
}

#[tokio::test]
async fn a_store_is_disconnected_while_it_connects_and_connects_again() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for round in 1..=10 {
        clients.connect(&store).await;
        disconnect(&mut clients, &store, Duration::ZERO).await;
        let told = clients.settled(&store).await;
        assert_eq!((told.connection_state(), told.connect_attempt), (pb::ConnectionState::Disconnected, round));
        wait_async(|| async { rig.workers().is_empty().then_some(()) }).await;
    }
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    clients.all_healthy(&store).await;
}
