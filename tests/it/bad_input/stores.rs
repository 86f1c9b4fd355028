//! Key stores that cannot be made, and work that a store's state does not allow.

use crate::rig::{Clients, Holdings, Rig, Validity, certificate_in, pb, refused};
use pb::describe_key_stores_request::Selector;

#[tokio::test]
async fn a_key_store_that_cannot_be_made_is_not_there() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let before = Holdings::of(&rig, &mut clients).await;
    let good = pb::CreateKeyStoreRequest {
        key_store_name: "main".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let but = |change: &dyn Fn(&mut pb::CreateKeyStoreRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let passwords = ["", "short1", "a password", "p@ssw0rd", "pässword1", "semi;colon1", "tab\tbed1", &"a".repeat(33)];
    for password in passwords {
        let request = but(&|it| it.key_store_password = password.to_owned());
        let answer = clients.stores.create_key_store(request).await;
        let status = refused(&format!("{password:?}"), answer, "VALIDATION", "key_store_password");
        let told = format!("{status:?}");
        assert!(password.is_empty() || !told.contains(password), "it is told: {told}");
    }
    let anchors = [
        ("no certificate", String::new(), "VALIDATION"),
        ("garbage", "hello".to_owned(), "VALIDATION"),
        ("a garbled certificate", rig.trust_anchor().replacen("MI", "AA", 1), "VALIDATION"),
        ("two certificates", rig.trust_anchor().repeat(2), "VALIDATION"),
        ("100,000 letters", "x".repeat(100_000), "VALIDATION"),
        ("an expired one", certificate_in(Validity::Past, true), "VALIDATION"),
        ("one that is not valid yet", certificate_in(Validity::Future, true), "VALIDATION"),
        ("one that is no CA's", certificate_in(Validity::Now, false), "VALIDATION"),
        ("another CA", certificate_in(Validity::Now, true), "INCORRECT_TRUST_ANCHOR"),
    ];
    for (what, anchor, reason) in anchors {
        let request = but(&|it| it.trust_anchor_certificate = anchor.clone());
        let answer = clients.stores.create_key_store(request).await;
        refused(what, answer, reason, "trust_anchor_certificate");
    }
    let others = [
        ("no name", but(&|it| it.key_store_name.clear()), "VALIDATION", "key_store_name"),
        ("a long name", but(&|it| it.key_store_name = "é".repeat(257)), "VALIDATION", "key_store_name"),
        ("a name with a line break", but(&|it| it.key_store_name = "a\nb".into()), "VALIDATION", "key_store_name"),
        ("no cluster", but(&|it| it.cluster_id.clear()), "VALIDATION", "cluster_id"),
        ("a cluster id that is none", but(&|it| it.cluster_id = "production".into()), "VALIDATION", "cluster_id"),
        (
            "an unknown cluster",
            but(&|it| it.cluster_id = "cluster-2abcdefghij".into()),
            "CLOUD_HSM_CLUSTER_NOT_FOUND",
            "",
        ),
    ];
    for (what, request, reason, field) in others {
        refused(what, clients.stores.create_key_store(request).await, reason, field);
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);

    clients.stores.create_key_store(good.clone()).await.expect("what is right works");
    let made = Holdings::of(&rig, &mut clients).await;
    clients.stores.create_key_store(good.clone()).await.expect("a repeat gives the same store");
    let taken = [
        (
            "the name, with another password",
            but(&|it| it.key_store_password = "anotherpassword1".into()),
            "CUSTOM_KEY_STORE_NAME_IN_USE",
        ),
        ("the cluster, under another name", but(&|it| it.key_store_name = "second".into()), "CLOUD_HSM_CLUSTER_IN_USE"),
    ];
    for (what, request, reason) in taken {
        refused(what, clients.stores.create_key_store(request).await, reason, "");
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, made);
}

#[tokio::test]
async fn a_store_that_is_not_connected_gives_no_key_and_no_work_and_loses_none() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key = clients.key(&store).await;
    let ciphertext = clients.encrypt(&key.key_id, b"still there").await;
    refused("deleting a connected store", delete(&mut clients, &store).await, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    clients.disconnect(&store).await;
    let before = Holdings::of(&rig, &mut clients).await;

    let create = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
    let created = clients.keys.create_key(create).await;
    refused("a new key", created, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    let encrypt = pb::EncryptRequest { key_id: key.key_id.clone(), plaintext: b"x".to_vec(), ..Default::default() };
    refused("encrypting", clients.crypto.encrypt(encrypt).await, "KMS_INVALID_STATE", "");
    refused("decrypting", clients.decrypt(&ciphertext).await, "KMS_INVALID_STATE", "");
    for key_store_id in [store.clone(), String::new()] {
        let random = pb::GenerateRandomRequest { number_of_bytes: 8, key_store_id };
        let drawn = clients.crypto.generate_random(random).await;
        refused("random bytes", drawn, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    }
    refused("deleting a store with keys", delete(&mut clients, &store).await, "CUSTOM_KEY_STORE_HAS_CMKS", "");
    assert_eq!(clients.describe_key(&key.key_id).await.state(), pb::KeyState::Unavailable);
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);

    refused("another disconnect", disconnect(&mut clients, &store, None).await, "CUSTOM_KEY_STORE_INVALID_STATE", "");

    clients.connect(&store).await;
    clients.settled(&store).await;
    assert_eq!(clients.decrypt(&ciphertext).await.expect("nothing was lost"), b"still there");
    for (seconds, nanos) in [(-1, 0), (601, 0), (0, -1), (i64::MAX, i32::MAX), (i64::MIN, i32::MIN)] {
        let patience = prost_types::Duration { seconds, nanos };
        let answer = disconnect(&mut clients, &store, Some(patience)).await;
        refused(&format!("a drain of {patience:?}"), answer, "VALIDATION", "drain_timeout");
    }
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
}

#[tokio::test]
async fn a_store_or_cluster_that_is_not_there_is_not_found_and_a_name_that_is_none_is_told_so() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let cases = [
        ("", "VALIDATION", "key_store_id"),
        ("main", "VALIDATION", "key_store_id"),
        ("cks-0123456789ABCDEF0", "VALIDATION", "key_store_id"),
        ("cks-0123456789abcdef0", "CUSTOM_KEY_STORE_NOT_FOUND", ""),
    ];
    for (id, reason, field) in cases {
        refused(&format!("deleting {id:?}"), delete(&mut clients, id).await, reason, field);
        let connect = pb::ConnectKeyStoreRequest { key_store_id: id.to_owned() };
        let answer = clients.stores.connect_key_store(connect).await;
        refused(&format!("connecting {id:?}"), answer, reason, field);
        let watch = pb::WatchKeyStoreRequest { key_store_id: id.to_owned() };
        let answer = clients.stores.watch_key_store(watch).await;
        refused(&format!("watching {id:?}"), answer, reason, field);
        refused(&format!("disconnecting {id:?}"), disconnect(&mut clients, id, None).await, reason, field);
        let answer = describe(&mut clients, Selector::KeyStoreId(id.to_owned())).await;
        refused(&format!("describing {id:?}"), answer, reason, field);
    }
    let answer = describe(&mut clients, Selector::KeyStoreName("nobody".to_owned())).await;
    refused("an unknown name", answer, "CUSTOM_KEY_STORE_NOT_FOUND", "");
    let answer = describe(&mut clients, Selector::KeyStoreName(String::new())).await;
    refused("no name", answer, "VALIDATION", "key_store_name");
    let clusters =
        [("production", "VALIDATION", "cluster_ids"), ("cluster-2abcdefghij", "CLOUD_HSM_CLUSTER_NOT_FOUND", "")];
    for (id, reason, field) in clusters {
        let request = pb::DescribeClustersRequest { cluster_ids: vec![id.to_owned()], ..Default::default() };
        refused(id, clients.clusters.describe_clusters(request).await, reason, field);
    }
}

async fn describe(
    clients: &mut Clients,
    selector: Selector,
) -> Result<tonic::Response<pb::DescribeKeyStoresResponse>, tonic::Status> {
    let request = pb::DescribeKeyStoresRequest { selector: Some(selector), ..Default::default() };
    clients.stores.describe_key_stores(request).await
}

async fn disconnect(
    clients: &mut Clients,
    id: &str,
    drain_timeout: Option<prost_types::Duration>,
) -> Result<tonic::Response<pb::DisconnectKeyStoreResponse>, tonic::Status> {
    let request = pb::DisconnectKeyStoreRequest { key_store_id: id.to_owned(), drain_timeout };
    clients.stores.disconnect_key_store(request).await
}

async fn delete(clients: &mut Clients, id: &str) -> Result<tonic::Response<pb::DeleteKeyStoreResponse>, tonic::Status> {
    let request = pb::DeleteKeyStoreRequest { key_store_id: id.to_owned() };
    clients.stores.delete_key_store(request).await
}
