//! What is asked for in a way that cannot be: told with the field, and nothing is made of it.

use super::*;

#[tokio::test]
async fn a_key_is_made_either_in_a_key_store_or_under_a_label_on_a_cluster() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    let alice = User::new(&rig, &clients, "alice").await;
    let request = |store: &str, cluster: &str, label: &str| pb::CreateKeyRequest {
        key_store_id: store.to_owned(),
        cluster_id: cluster.to_owned(),
        hsm_label: label.to_owned(),
        ..Default::default()
    };
    let (cluster, elsewhere) = (rig.cluster_id(), "cluster-2zzzzzzzzzz");
    for (asked, field) in [
        (request("", "", ""), "key_store_id"),
        (request(&store, &cluster, "x"), "cluster_id"),
        (request(&store, &cluster, ""), "cluster_id"),
        (request(&store, "", "x"), "hsm_label"),
        (request("", "", "x"), "cluster_id"),
        (request("", &cluster, ""), "hsm_label"),
        (request("", &cluster, "a\nb"), "hsm_label"),
        (request("", &cluster, "keyway:kek"), "hsm_label"),
        (request("", &cluster, &"x".repeat(129)), "hsm_label"),
        (pb::CreateKeyRequest { alias: "alias/x".to_owned(), ..request("", &cluster, "x") }, "alias"),
    ] {
        refused(field, alice.create_as(asked).await, "VALIDATION", field);
    }
    refused("elsewhere", alice.create_as(request("", elsewhere, "x")).await, "LOGIN_REQUIRED", "");
    alice.create(&"é".repeat(64)).await.expect("128 bytes");

    alice.create("orders").await.unwrap();
    let taken = refused("its label is taken", alice.create("orders").await, "ALREADY_EXISTS", "");
    assert!(taken.message().contains(&alice.named("orders")), "{}", taken.message());
}

#[tokio::test]
async fn a_repeated_request_makes_one_key_and_another_under_its_id_is_refused() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    let request = |label: &str| pb::CreateKeyRequest {
        cluster_id: rig.cluster_id(),
        hsm_label: label.to_owned(),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let made = alice.create_as(request("orders")).await.unwrap();
    assert_eq!(alice.create_as(request("orders")).await.unwrap().key_id, made.key_id);
    refused("another label", alice.create_as(request("more")).await, "REQUEST_ID_REUSED", "request_id");
    assert_eq!(alice.labels().await, ["orders"]);
    let bob = User::new(&rig, &clients, "bob").await;
    refused("as another user", bob.create_as(request("orders")).await, "REQUEST_ID_REUSED", "request_id");
    alice.until_on(&made.key_id, &["hsm-1", "hsm-2"]).await;
    assert_eq!(rig.user_objects("hsm-1", "alice").len(), 1);
}

#[tokio::test]
async fn names_that_are_none_are_refused_and_aliases_are_for_key_stores() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    alice.create("orders").await.unwrap();
    let long = "x".repeat(129);
    for name in [
        "hsm:",
        "hsm:orders",
        "hsm:cluster-1/orders",
        &alice.named(""),
        &alice.named("%zz"),
        &alice.named("id=0"),
        &alice.named(&long),
    ] {
        refused(name, alice.describe(name).await, "VALIDATION", "key_id");
        refused(name, alice.encrypt(name).await, "VALIDATION", "key_id");
        refused(name, alice.destroy(name).await, "VALIDATION", "key_id");
    }
    let uuid = uuid::Uuid::new_v4().to_string();
    refused("a key store's", alice.destroy(&uuid).await, "VALIDATION", "key_id");
    refused("nobody's", alice.describe(&alice.named("nobody")).await, "NOT_FOUND", "");
    refused("nobody's", alice.destroy(&alice.named("id=00ff")).await, "NOT_FOUND", "");

    let alias = pb::CreateAliasRequest { alias_name: "alias/x".to_owned(), target_key_id: alice.named("orders") };
    let answer = clients.keys.create_alias(alice.with_login(alias)).await;
    refused("an alias", answer, "VALIDATION", "target_key_id");
    let aliases = pb::ListAliasesRequest { key_id: alice.named("orders"), ..Default::default() };
    refused("its aliases", clients.keys.list_aliases(alice.with_login(aliases)).await, "VALIDATION", "key_id");
    let both = pb::ListKeysRequest {
        key_store_id: "cks-00000000000000000".to_owned(),
        cluster_id: rig.cluster_id(),
        ..Default::default()
    };
    refused("both", clients.keys.list_keys(alice.with_login(both)).await, "VALIDATION", "cluster_id");
}

#[tokio::test]
async fn a_users_keys_are_listed_in_pages_by_label() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let alice = User::new(&rig, &clients, "alice").await;
    for label in ["c", "a", "b c"] {
        alice.create(label).await.unwrap();
    }
    let page = |page_token: String| pb::ListKeysRequest {
        cluster_id: rig.cluster_id(),
        page_size: 2,
        page_token,
        ..Default::default()
    };
    let labels = |page: &pb::ListKeysResponse| page.keys.iter().map(|key| key.hsm_label.clone()).collect::<Vec<_>>();
    let first = clients.keys.list_keys(alice.with_login(page(String::new()))).await.unwrap().into_inner();
    assert_eq!(labels(&first), ["a", "b c"]);
    assert!(first.keys.iter().all(|key| key.nodes.is_empty()));
    let second = clients.keys.list_keys(alice.with_login(page(first.next_page_token))).await.unwrap().into_inner();
    assert_eq!((labels(&second), second.next_page_token.as_str()), (vec!["c".to_owned()], ""));
    let strange = clients.keys.list_keys(alice.with_login(page("after:\n".to_owned()))).await;
    refused("made up", strange, "INVALID_MARKER", "page_token");
}
