//! A key store's life: made, connected, disconnected, deleted, and taken up again by the next daemon.

use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::rig::{Clients, Rig, Validity, certificate_in, pb, reason, refused, wait_async};

#[tokio::test]
async fn a_connected_store_logs_in_again_after_a_restart_and_its_keys_and_ciphertexts_still_work() {
    for orderly in [true, false] {
        let (mut rig, mut clients, store) = Rig::new().connected().await;
        let key = clients.key(&store).await;
        let ciphertext = clients.encrypt(&key.key_id, b"before").await;
        let created = clients.describe_key(&key.key_id).await.create_time;
        if orderly {
            assert!(rig.stop_daemon().success(), "SIGTERM ends in exit 0");
        } else {
            rig.kill_daemon();
        }
        rig.start_daemon();
        let mut clients = rig.clients().await;
        let told = clients.all_healthy(&store).await;
        assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
        assert_eq!(told.connect_attempt, 1, "it was not connected anew");
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"before");
        assert_eq!(clients.describe_key(&key.key_id).await.create_time, created);
        let after = clients.encrypt(&key.key_id, b"after").await;
        assert_eq!(clients.decrypt(&after).await.unwrap(), b"after");
    }
}

#[tokio::test]
async fn keys_of_a_disconnected_store_are_unavailable_until_it_is_connected_again() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await;
    let ciphertext = clients.encrypt(&key.key_id, b"waits").await;
    clients.disconnect(&store).await;
    assert_eq!(rig.workers(), [], "nobody is logged in any more");
    assert_eq!(clients.describe_key(&key.key_id).await.state(), pb::KeyState::Unavailable);
    let refused = clients.decrypt(&ciphertext).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "KMS_INVALID_STATE".to_owned()));

    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    assert_eq!(clients.describe_key(&key.key_id).await.state(), pb::KeyState::Enabled);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"waits");
}

#[tokio::test]
async fn a_store_is_deleted_only_when_disconnected_and_empty() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    let delete = |id: &str| pb::DeleteKeyStoreRequest { key_store_id: id.to_owned() };
    let refused = clients.stores.delete_key_store(delete(&store)).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "CUSTOM_KEY_STORE_INVALID_STATE".to_owned()));
    clients.key(&store).await;
    clients.disconnect(&store).await;
    let refused = clients.stores.delete_key_store(delete(&store)).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "CUSTOM_KEY_STORE_HAS_CMKS".to_owned()));

    let empty = Rig::new().nodes(2).zones(2).start();
    let mut clients = empty.clients().await;
    let store = clients.connected_store(&empty, "brief").await;
    clients.disconnect(&store).await;
    clients.stores.delete_key_store(delete(&store)).await.unwrap();
    let gone = clients.stores.delete_key_store(delete(&store)).await.unwrap_err();
    assert_eq!(reason(&gone), (Code::NotFound, "CUSTOM_KEY_STORE_NOT_FOUND".to_owned()));
    // The cluster is free for another store, which takes over what stands in the HSMs.
    let again = clients.connected_store(&empty, "second").await;
    clients.key(&again).await;
    drop(rig);
}

#[tokio::test]
async fn the_same_create_request_gives_the_same_disconnected_store() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let first = clients.store(&rig, "one").await;
    assert_eq!(clients.store(&rig, "one").await, first);
    let request = || pb::CreateKeyStoreRequest {
        key_store_name: "one".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let another = certificate_in(Validity::Now, true);
    let unequal = [
        ("another password", pb::CreateKeyStoreRequest { key_store_password: "another1".to_owned(), ..request() }),
        ("another certificate", pb::CreateKeyStoreRequest { trust_anchor_certificate: another, ..request() }),
    ];
    for (what, request) in unequal {
        refused(what, clients.stores.create_key_store(request).await, "CUSTOM_KEY_STORE_NAME_IN_USE", "");
    }
    clients.connect(&first).await;
    clients.settled(&first).await;
    let answer = clients.stores.create_key_store(request()).await;
    refused("a twin that is connected", answer, "CUSTOM_KEY_STORE_NAME_IN_USE", "");
    clients.disconnect(&first).await;
    assert_eq!(clients.store(&rig, "one").await, first);
}

/// The password that counts is the one that the operator gave, not the one that keyway has made since.
#[tokio::test]
async fn the_same_create_request_gives_the_same_store_after_its_password_was_rotated() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).rotating().connected().await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    assert!(!rig.opens("hsm-1", &rig.password()), "it was rotated");
    assert_eq!(clients.store(&rig, "main").await, store);
}

#[tokio::test]
async fn watching_tells_the_present_state_first_and_ends_with_the_store() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "watched").await;
    let request = pb::WatchKeyStoreRequest { key_store_id: store.clone() };
    let mut stream = clients.stores.watch_key_store(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.key_store.unwrap().connection_state(), pb::ConnectionState::Disconnected);
    clients.connect(&store).await;
    let (mut states, mut phases) = (Vec::new(), Vec::new());
    while states.last() != Some(&pb::ConnectionState::Connected) {
        let message = stream.message().await.unwrap().unwrap();
        states.push(message.key_store.unwrap().connection_state());
        phases.extend(message.steps.iter().map(pb::ConnectStep::phase));
    }
    assert!(states.contains(&pb::ConnectionState::Connecting));
    assert!(phases.contains(&pb::ConnectPhase::Probe) || phases.contains(&pb::ConnectPhase::SyncKeys), "{phases:?}");
    clients.disconnect(&store).await;
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: store }).await.unwrap();
    let ended = async { while stream.message().await.unwrap().is_some() {} };
    tokio::time::timeout(crate::rig::PATIENCE, ended).await.expect("the stream ends with the store");
}

#[tokio::test]
async fn health_knows_the_daemon_its_services_and_each_key_store() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "healthy").await;
    let named = format!("key-store/{store}");
    let health = HealthClient::new(clients.channel.clone());
    for service in ["", "keyway.v1.CryptoService"] {
        until(&health, service, ServingStatus::Serving).await;
    }
    until(&health, &named, ServingStatus::NotServing).await;
    clients.connect(&store).await;
    until(&health, &named, ServingStatus::Serving).await;
    clients.disconnect(&store).await;
    until(&health, &named, ServingStatus::NotServing).await;
}

async fn until(health: &HealthClient<tonic::transport::Channel>, service: &str, wanted: ServingStatus) {
    wait_async(|| {
        let (mut health, service) = (health.clone(), service.to_owned());
        async move {
            let answer = health.check(HealthCheckRequest { service }).await.ok()?;
            (answer.into_inner().status() == wanted).then_some(())
        }
    })
    .await;
}

#[tokio::test]
async fn clusters_tell_their_hsms_with_live_health_and_changes_stream() {
    let rig = Rig::new().start();
    let mut clients: Clients = rig.clients().await;
    let request = pb::DescribeClustersRequest::default();
    let told = clients.clusters.describe_clusters(request.clone()).await.unwrap().into_inner().clusters;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].cluster_id, rig.cluster_id());
    assert!(told[0].hsms.iter().all(|hsm| hsm.health() == pb::HsmHealth::NotProbed));

    let watch = pb::WatchClusterRequest { cluster_id: rig.cluster_id() };
    let mut stream = clients.clusters.watch_cluster(watch).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().changes.is_empty(), "the present state comes first");
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let mut healthy = std::collections::BTreeSet::new();
    while healthy.len() < 3 {
        for change in stream.message().await.unwrap().unwrap().changes {
            if change.after() == pb::HsmHealth::Healthy {
                healthy.insert(change.hsm_id);
            }
        }
    }
    let told = clients.clusters.describe_clusters(request).await.unwrap().into_inner().clusters;
    assert_eq!(told[0].key_store_id, store);
    assert!(told[0].hsms.iter().all(|hsm| hsm.health() == pb::HsmHealth::Healthy && !hsm.serial_number.is_empty()));
}
