//! A store that moves to a cluster restored from a backup of its own, and back.

use tonic::Code;

use super::update;
use crate::rig::{Clients, Restored, Rig, Served, pb, reason, refused};

const RESTORED: &str = "cluster-2restored234";

/// A served daemon with a connected store.
async fn served(nodes: u8) -> (Rig, Served, Clients, String) {
    let mut rig = Rig::new().nodes(nodes).zones(nodes).start();
    assert!(rig.stop_daemon().success());
    let served = Served::start_with(&rig, &["admin"], "backup_lineage = \"first\"\npassword_rotation = \"none\"");
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    (rig, served, clients, store)
}

/// Declares the restored cluster beside the first.
async fn declare(rig: &Rig, served: &mut Served, restored: &Restored, lineage: &str) -> Clients {
    let declaration = restored.declaration(rig, lineage);
    served.restart_with(|text| text + &declaration).await;
    served.clients_on_the_socket().await
}

fn to(store: &str, cluster: &str) -> pb::UpdateKeyStoreRequest {
    pb::UpdateKeyStoreRequest { cluster_id: Some(cluster.to_owned()), ..update(store) }
}

impl Clients {
    async fn move_store(&mut self, store: &str, cluster: &str) {
        self.disconnect(store).await;
        assert_eq!(self.update_store(to(store, cluster)).await.cluster_id, cluster);
        self.connect(store).await;
        let settled = self.settled(store).await;
        assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "{settled:?}");
    }

    /// Waits until nobody looks for the key any more, and tells that it is nowhere.
    async fn until_lost(&mut self, ciphertext: &[u8]) {
        crate::rig::wait_async(|| {
            let mut clients = self.clone();
            async move {
                let status = clients.decrypt(ciphertext).await.unwrap_err();
                match (status.code(), reason(&status).1.as_str()) {
                    (Code::FailedPrecondition, "KMS_INVALID_STATE") => Some(()),
                    (Code::Unavailable, "KEY_UNAVAILABLE" | "NO_NODE") => None,
                    _ => panic!("{status:?}"),
                }
            }
        })
        .await;
    }

    /// Waits until a key is found where it is.
    async fn until_decrypted(&mut self, ciphertext: &[u8], plaintext: &[u8]) {
        crate::rig::wait_async(|| {
            let mut clients = self.clone();
            async move {
                match clients.decrypt(ciphertext).await {
                    Ok(found) => {
                        assert_eq!(found, plaintext);
                        Some(())
                    }
                    Err(status) => {
                        assert_eq!(status.code(), Code::Unavailable, "{status}");
                        None
                    }
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_store_moves_to_a_restored_cluster_and_back_and_each_serves_the_keys_that_it_holds() {
    // The copies may be called as the originals are, or otherwise.
    for prefix in ["hsm-", "hsm-x"] {
        let (rig, mut served, mut clients, store) = served(2).await;
        let old = clients.key(&store).await.key_id;
        let old_text = clients.encrypt(&old, b"before the backup").await;
        clients.all_healthy(&store).await;
        let restored = rig.restore_elsewhere(RESTORED, prefix);
        let newer = clients.key(&store).await.key_id;
        let newer_text = clients.encrypt(&newer, b"after the backup").await;
        let mut clients = declare(&rig, &mut served, &restored, "first").await;
        clients.all_healthy(&store).await;
        let arn = clients.describe_key(&old).await.arn;

        clients.move_store(&store, RESTORED).await;
        clients.until_decrypted(&old_text, b"before the backup").await;
        clients.until_lost(&newer_text).await;
        let told = clients.describe_key(&newer).await;
        assert_eq!((told.state(), told.cluster_id.as_str()), (pb::KeyState::Enabled, RESTORED), "it is not forgotten");
        assert_eq!(told.nodes.len(), 2, "{told:?}");
        assert!(told.nodes.iter().all(|node| node.proof() == pb::KeyProof::Missing), "{told:?}");
        assert_eq!(clients.describe_key(&old).await.arn, arn, "a key keeps its name");
        let there = clients.key(&store).await.key_id;
        let there_text = clients.encrypt(&there, b"made there").await;

        clients.move_store(&store, &rig.cluster_id()).await;
        for (text, plaintext) in [(&old_text, &b"before the backup"[..]), (&newer_text, b"after the backup")] {
            assert_eq!(clients.decrypt(text).await.unwrap(), plaintext, "it was proved there before");
        }
        clients.until_lost(&there_text).await;

        clients.move_store(&store, RESTORED).await;
        served.kill_daemon();
        served.start_daemon();
        let mut clients = served.clients_on_the_socket().await;
        let serving = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Syncing;
        clients.watch_until(&store, |store| store.nodes.iter().all(serving) && store.nodes.len() == 2).await;
        clients.until_decrypted(&there_text, b"made there").await;
        clients.until_decrypted(&old_text, b"before the backup").await;
        clients.until_lost(&newer_text).await;
        let objects = rig.objects("hsm-1").into_iter().filter(|object| object.label.contains(&newer)).count();
        assert_eq!(objects, 1, "nothing is destroyed");
        for label in ["keyway:kek", "keyway:canary"] {
            let of_it = restored.objects(1).into_iter().filter(|object| object.label == label).count();
            assert_eq!(of_it, 1, "{label}: that of the first cluster, and no other");
        }
    }
}

#[tokio::test]
async fn a_store_moves_with_the_password_that_keyway_made_and_finds_that_of_its_first_cluster_when_it_comes_back() {
    let (rig, mut served, clients, store) = served(2).await;
    drop(clients);
    let rotating = |text: String| text.replace("password_rotation = \"none\"", "password_rotation = \"set-pin\"");
    served.restart_with(rotating).await;
    let mut clients = served.clients_on_the_socket().await;
    clients.move_store(&store, &rig.cluster_id()).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"wherever it is").await;
    let versions = |store: &pb::KeyStore| store.nodes.iter().map(|node| node.password_version).collect::<Vec<_>>();
    let here = clients.all_healthy(&store).await;
    assert_eq!((versions(&here), rig.try_objects("hsm-1").is_err()), (vec![2, 2], true), "keyway's own, on both");

    let restored = rig.restore_elsewhere(RESTORED, "hsm-");
    let declaration = rotating(restored.declaration(&rig, "first"));
    served.restart_with(|text| text + &declaration).await;
    let mut clients = served.clients_on_the_socket().await;
    clients.move_store(&store, RESTORED).await;
    clients.until_decrypted(&ciphertext, b"wherever it is").await;
    let there = clients.all_healthy(&store).await;
    assert_eq!(versions(&there), [2, 2], "given, and rotated once");

    clients.move_store(&store, &rig.cluster_id()).await;
    clients.until_decrypted(&ciphertext, b"wherever it is").await;
    assert_eq!(versions(&clients.all_healthy(&store).await), [3, 3]);
    clients.move_store(&store, RESTORED).await;
    clients.until_decrypted(&ciphertext, b"wherever it is").await;
}

#[tokio::test]
async fn a_cluster_that_is_not_related_not_there_or_not_fit_is_refused_and_nothing_changes() {
    let (rig, mut served, _, store) = served(2).await;
    let restored = rig.restore_elsewhere(RESTORED, "hsm-");
    let mut clients = declare(&rig, &mut served, &restored, "another").await;
    clients.disconnect(&store).await;
    let other = pb::CreateKeyStoreRequest {
        key_store_name: "other".to_owned(),
        cluster_id: RESTORED.to_owned(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let other = clients.stores.create_key_store(other).await.unwrap().into_inner().key_store_id;
    let before = clients.describe_store(&store).await;
    let taken = pb::UpdateKeyStoreRequest {
        new_key_store_name: Some("other".to_owned()),
        key_store_password: Some("another1".to_owned()),
        ..update(&store)
    };
    let taken = clients.stores.update_key_store(taken).await;
    refused("another store's name", taken, "CUSTOM_KEY_STORE_NAME_IN_USE", "");
    let taken = clients.stores.update_key_store(to(&store, RESTORED)).await;
    refused("another store's cluster", taken, "CLOUD_HSM_CLUSTER_IN_USE", "");
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: other }).await.unwrap();
    let renamed = |cluster: &str| pb::UpdateKeyStoreRequest {
        new_key_store_name: Some("moved".to_owned()),
        key_store_password: Some("another1".to_owned()),
        ..to(&store, cluster)
    };
    let unknown = clients.stores.update_key_store(renamed("cluster-2nobodysaw2")).await;
    refused("an unknown cluster", unknown, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
    let unrelated = clients.stores.update_key_store(renamed(RESTORED)).await;
    refused("an unrelated cluster", unrelated, "CLOUD_HSM_CLUSTER_NOT_RELATED", "");
    assert_eq!(clients.describe_store(&store).await, before);

    served.restart_with(|text| text.replace("\"another\"", "\"first\"\nstate = \"DEGRADED\"")).await;
    let mut clients = served.clients_on_the_socket().await;
    let not_active = clients.stores.update_key_store(renamed(RESTORED)).await;
    refused("a cluster that is not active", not_active, "CLOUD_HSM_CLUSTER_NOT_ACTIVE", "");
    let one_zone = |text: String| {
        let (first, second) = text.split_at(text.find(&format!("[clusters.{RESTORED}]")).expect("it is declared"));
        let second = second.replace("state = \"DEGRADED\"", "").replace("us-east-1b", "us-east-1a");
        format!("{first}{second}")
    };
    served.restart_with(one_zone).await;
    let mut clients = served.clients_on_the_socket().await;
    let unfit = clients.stores.update_key_store(renamed(RESTORED)).await;
    refused("a cluster in one zone", unfit, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", "");
    assert_eq!(clients.describe_store(&store).await, before);

    // The password is still the one it was.
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
}

#[tokio::test]
async fn a_store_whose_cluster_is_gone_is_told_so_and_lives_on_in_a_restored_one() {
    let (rig, mut served, mut clients, store) = served(2).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"outlives its cluster").await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    let arn = clients.describe_key(&key).await.arn;
    assert!(arn.starts_with("arn:aws:kms:us-east-1:123456789012:key/"), "{arn}");
    let restored = rig.restore_elsewhere(RESTORED, "hsm-");
    let here = restored.declaration(&rig, "first");
    let elsewhere = here.replace("region = \"us-east-1\"", "region = \"eu-west-1\"");
    let first = format!("[clusters.{}]", rig.cluster_id());
    served.restart_with(|text| text[..text.find(&first).expect("it is declared")].to_owned() + &elsewhere).await;
    let mut clients = served.clients_on_the_socket().await;
    assert_eq!(clients.describe_key(&key).await.arn, arn, "a key keeps its name");
    let answer = clients.stores.update_key_store(to(&store, RESTORED)).await;
    let status = refused("a cluster in another region", answer, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
    assert!(status.message().contains("eu-west-1") && status.message().contains("us-east-1"), "{status}");
    let with_it_here = served.configuration().replace(&elsewhere, &here);
    served.reload(&with_it_here).await;

    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::ClusterNotFound, "{failed:?}");
    assert!(failed.connection_error_remedy.contains("related cluster"), "{failed:?}");
    clients.move_store(&store, RESTORED).await;
    clients.until_decrypted(&ciphertext, b"outlives its cluster").await;
}

#[tokio::test]
async fn a_cluster_whose_tokens_hold_nothing_of_the_stores_fails_at_once_and_is_left_as_it_is() {
    let (rig, mut served, mut clients, store) = served(2).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"still at home").await;
    let restored = rig.restore_elsewhere(RESTORED, "hsm-");
    (1..=2).for_each(|number| restored.empty_token(number));
    let mut clients = declare(&rig, &mut served, &restored, "first").await;
    clients.disconnect(&store).await;
    clients.update_store(to(&store, RESTORED)).await;
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InternalError, "{failed:?}");
    assert!(failed.connection_error_message.contains("no HSM can be proved to hold"), "{failed:?}");
    assert_eq!((restored.objects(1).len(), restored.objects(2).len()), (0, 0), "nothing is made there");
    clients.move_store(&store, &rig.cluster_id()).await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"still at home");
}
