//! HSMs that come to a cluster in use, and leave it.

use crate::rig::{Load, Maker, PASSWORD, pb, refused, wait_async};

#[tokio::test]
async fn an_hsm_added_to_a_connected_cluster_gets_every_key_and_serves_alone() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 2).await;
    let mut ciphertexts = Vec::new();
    for number in 0..5_u8 {
        let key = clients.key(&store).await;
        ciphertexts.push(clients.encrypt(&key.key_id, &[number]).await);
    }
    let added = clients.add_hsm(&cluster, 3).await;
    assert_eq!(added.hsm.unwrap().state(), pb::HsmState::Active);
    assert!(added.missing_usernames.is_empty(), "the key store's kmsuser is made on it: {:?}", added.missing_usernames);
    clients.all_level(&store, 3).await;
    for hsm in ["hsm-1", "hsm-2"] {
        let request = pb::DrainHsmRequest { cluster_id: cluster.clone(), hsm_id: hsm.to_owned(), ..Default::default() };
        clients.clusters.drain_hsm(request).await.unwrap();
    }
    let is_drained = |node: &&pb::NodeConnection| node.health() == pb::HsmHealth::Drained;
    clients.watch_until(&store, |store| store.nodes.iter().filter(is_drained).count() == 2).await;
    for (number, ciphertext) in (0..).zip(&ciphertexts) {
        assert_eq!(clients.decrypt(ciphertext).await.unwrap(), [number]);
    }
}

#[tokio::test]
async fn users_whose_passwords_nobody_knows_any_more_are_named_and_come_with_their_reset() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let cluster = maker.initialized(&mut clients, 2).await;
    clients.create_kmsuser(&cluster).await;
    let added = clients.add_hsm(&cluster, 3).await;
    assert_eq!(added.missing_usernames, ["kmsuser"]);
    assert!(!maker.opens(&cluster, "hsm-3", "kmsuser", PASSWORD));
    let request = pb::ResetPasswordRequest {
        cluster_id: cluster.clone(),
        username: "kmsuser".to_owned(),
        new_password: PASSWORD.to_owned(),
    };
    let pending = clients.users.reset_password(request).await.unwrap().into_inner().pending_hsm_ids;
    assert!(pending.is_empty(), "{pending:?}");
    assert!(maker.opens(&cluster, "hsm-3", "kmsuser", PASSWORD));
}

#[tokio::test]
async fn an_hsm_is_removed_under_traffic_and_nothing_is_left_of_it() {
    let mut maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 3).await;
    let key = clients.key(&store).await.key_id;
    wait_async(|| async {
        let key = clients.clone().describe_key(&key).await;
        (key.nodes.iter().filter(|on| on.proof() == pb::KeyProof::Used).count() == 3).then_some(())
    })
    .await;
    let load = Load::start(&clients, &key, 4);
    load.more(20).await;
    let removed = clients.remove_hsm(&cluster, "hsm-2").await.unwrap();
    assert!(removed.hsm.is_none_or(|hsm| hsm.state() == pb::HsmState::DeleteInProgress));
    clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == 2).await;
    load.more(20).await;
    load.unharmed().await;

    assert!(!maker.hsm(&cluster, "hsm-2").exists());
    let kept = std::fs::read_dir(maker.path("data/host")).unwrap().flatten();
    let kept: Vec<_> = kept.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(!kept.iter().any(|name| name.contains(".hsm-2.")), "{kept:?}");
    let on: Vec<_> = clients.describe_key(&key).await.nodes.into_iter().map(|on| on.hsm_id).collect();
    assert_eq!(on, ["hsm-1", "hsm-3"]);
    let ciphertext = clients.encrypt(&key, b"still").await;

    // One of the same name comes as a new one.
    clients.add_hsm(&cluster, 2).await;
    maker.kill_daemon();
    maker.start_daemon();
    let mut clients = maker.clients().await;
    clients.all_level(&store, 3).await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"still");
}

#[tokio::test]
async fn an_hsm_stays_while_keys_would_be_left_on_too_few() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 3).await;
    let drained =
        |hsm: &str| pb::DrainHsmRequest { cluster_id: cluster.clone(), hsm_id: hsm.to_owned(), ..Default::default() };
    clients.clusters.drain_hsm(drained("hsm-3")).await.unwrap();
    let keys = [clients.key(&store).await, clients.key(&store).await];
    let removal = clients.remove_hsm(&cluster, "hsm-1").await;
    let status = refused("hsm-1", removal, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");
    assert!(status.message().contains("2 keys would be on fewer than 2 HSMs"), "{}", status.message());
    clients.resume_hsm(&cluster, "hsm-3", false).await;
    clients.all_level(&store, 3).await;
    clients.clusters.drain_hsm(drained("hsm-2")).await.unwrap();
    let removal = clients.remove_hsm(&cluster, "hsm-1").await;
    let status = refused("beside one out of service", removal, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");
    assert!(status.message().contains("2 keys would be on fewer than 2 HSMs"), "{}", status.message());
    clients.resume_hsm(&cluster, "hsm-2", false).await;
    clients.all_level(&store, 3).await;

    for (hsm, left) in [("hsm-1", 2), ("hsm-2", 1)] {
        clients.remove_hsm(&cluster, hsm).await.unwrap();
        clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == left).await;
    }
    clients.encrypt(&keys[0].key_id, b"one HSM serves").await;
    let last = clients.remove_hsm(&cluster, "hsm-3").await;
    let status = refused("the last", last, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");
    assert!(status.message().contains(&store), "{}", status.message());
}

#[tokio::test]
async fn an_hsm_stays_while_who_has_its_keys_as_well_is_out_of_service() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 2).await;
    let key = clients.key(&store).await.key_id;
    clients.all_level(&store, 2).await;
    let drained = pb::DrainHsmRequest { cluster_id: cluster.clone(), hsm_id: "hsm-2".to_owned(), ..Default::default() };
    clients.clusters.drain_hsm(drained).await.unwrap();
    let removal = clients.remove_hsm(&cluster, "hsm-1").await;
    refused("beside a drained one", removal, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");

    clients.resume_hsm(&cluster, "hsm-2", false).await;
    clients.all_level(&store, 2).await;
    clients.disconnect(&store).await;
    let removal = clients.remove_hsm(&cluster, "hsm-1").await;
    let status = refused("of a store that is not connected", removal, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");
    assert!(status.message().contains("connect the key store"), "{}", status.message());

    clients.connect(&store).await;
    clients.all_level(&store, 2).await;
    clients.remove_hsm(&cluster, "hsm-1").await.unwrap();
    clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == 1).await;
    clients.encrypt(&key, b"what was on both").await;
}

#[tokio::test]
async fn of_two_removals_at_once_that_would_leave_none_one_is_refused() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 2).await;
    let key = clients.key(&store).await.key_id;
    clients.all_level(&store, 2).await;
    let (mut one, mut other) = (clients.clone(), clients.clone());
    let removed = tokio::join!(one.remove_hsm(&cluster, "hsm-1"), other.remove_hsm(&cluster, "hsm-2"));
    assert!(removed.0.is_ok() != removed.1.is_ok(), "{removed:?}");
    clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == 1).await;
    clients.encrypt(&key, b"one serves").await;
}

#[tokio::test]
async fn an_empty_cluster_asks_for_another_certificate_with_its_next_first_hsm() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let cluster = clients.create_cluster(&["us-east-1a", "us-east-1b"]).await;
    clients.add_hsm(&cluster, 1).await;
    let first = clients.cluster(&cluster).await.cluster_csr;
    clients.remove_hsm(&cluster, "hsm-1").await.unwrap();
    let empty = clients.cluster_until(&cluster, |cluster| cluster.hsms.is_empty()).await;
    assert_eq!(empty.cluster_csr, "");
    clients.add_hsm(&cluster, 1).await;
    let second = clients.cluster(&cluster).await.cluster_csr;
    assert!(!second.is_empty() && second != first);
}
