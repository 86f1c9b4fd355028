//! Changes of a key store that cannot be made: the field is named, and nothing of the request is done.

use crate::rig::{Clients, Holdings, Rig, pb, refused};
use crate::update::update;

const UNKNOWN: &str = "cks-0123456789abcdef0";

#[tokio::test]
async fn a_change_that_cannot_be_made_names_its_field_and_changes_nothing() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let before = (Holdings::of(&rig, &mut clients).await, clients.describe_store(&store).await);

    let none = update(&store);
    refused("no change at all", ask(&mut clients, none).await, "VALIDATION", "new_key_store_name");
    for id in ["", "main", "cks-0123456789ABCDEF0", "cks-0123456789abcdef", &format!("cks-{}", "0".repeat(61))] {
        let request = pb::UpdateKeyStoreRequest { new_key_store_name: Some("other".into()), ..update(id) };
        refused(&format!("the id {id:?}"), ask(&mut clients, request).await, "VALIDATION", "key_store_id");
    }
    let request = pb::UpdateKeyStoreRequest { new_key_store_name: Some("other".into()), ..update(UNKNOWN) };
    refused("an unknown id", ask(&mut clients, request).await, "CUSTOM_KEY_STORE_NOT_FOUND", "");

    for name in ["", &"é".repeat(257), "a\nb", "nul\0"] {
        let request = pb::UpdateKeyStoreRequest { new_key_store_name: Some(name.into()), ..update(&store) };
        refused(&format!("the name {name:?}"), ask(&mut clients, request).await, "VALIDATION", "new_key_store_name");
    }
    let passwords = ["", "short1", "a password", "p@ssw0rd", "pässword1", "tab\tbed1", &"a".repeat(33)];
    for password in passwords {
        let request = pb::UpdateKeyStoreRequest {
            new_key_store_name: Some("other".into()),
            key_store_password: Some(password.into()),
            ..update(&store)
        };
        let status =
            refused(&format!("{password:?}"), ask(&mut clients, request).await, "VALIDATION", "key_store_password");
        assert!(password.is_empty() || !format!("{status:?}").contains(password), "it is told: {status:?}");
    }
    let clusters = ["", "production", "cluster-1", "cluster-2ABCDEFGHIJ", "cluster-2abcdefghijklmnopq"];
    for cluster in clusters {
        let request = pb::UpdateKeyStoreRequest {
            new_key_store_name: Some("other".into()),
            cluster_id: Some(cluster.into()),
            ..update(&store)
        };
        refused(&format!("the cluster {cluster:?}"), ask(&mut clients, request).await, "VALIDATION", "cluster_id");
    }
    assert_eq!((Holdings::of(&rig, &mut clients).await, clients.describe_store(&store).await), before);
}

#[tokio::test]
async fn what_is_just_within_the_limits_is_done() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for name in ["x".to_owned(), "é".repeat(256), "main".to_owned()] {
        let request = pb::UpdateKeyStoreRequest { new_key_store_name: Some(name.clone()), ..update(&store) };
        assert_eq!(clients.update_store(request).await.key_store_name, name);
    }
    for password in ["a".repeat(7), "Z9".repeat(16)] {
        let request = pb::UpdateKeyStoreRequest { key_store_password: Some(password), ..update(&store) };
        clients.update_store(request).await;
    }
    let same = pb::UpdateKeyStoreRequest { cluster_id: Some(rig.cluster_id()), ..update(&store) };
    assert_eq!(clients.update_store(same).await.cluster_id, rig.cluster_id());
}

#[tokio::test]
async fn pages_of_key_stores_have_sizes_and_tokens_that_were_given_out() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.store(&rig, "main").await;
    for size in [-1, i32::MIN] {
        let request = pb::DescribeKeyStoresRequest { page_size: size, ..Default::default() };
        let answer = clients.stores.describe_key_stores(request).await;
        refused(&format!("a page of {size}"), answer, "VALIDATION", "page_size");
    }
    for size in [0, 1, 1_000, i32::MAX] {
        let request = pb::DescribeKeyStoresRequest { page_size: size, ..Default::default() };
        let page = clients.stores.describe_key_stores(request).await.expect("a size like another").into_inner();
        assert_eq!((page.key_stores.len(), page.next_page_token.as_str()), (1, ""));
    }
    for token in ["made up", "after:", "after:-1", "after:x", &"9".repeat(1_025)] {
        let request = pb::DescribeKeyStoresRequest { page_token: token.into(), ..Default::default() };
        let answer = clients.stores.describe_key_stores(request).await;
        refused(&format!("the token {token:?}"), answer, "INVALID_MARKER", "page_token");
    }
}

async fn ask(
    clients: &mut Clients,
    request: pb::UpdateKeyStoreRequest,
) -> Result<tonic::Response<pb::UpdateKeyStoreResponse>, tonic::Status> {
    clients.stores.update_key_store(request).await
}
