//! Keys and aliases that cannot be made, and pages that cannot be turned.

use std::collections::HashMap;

use crate::rig::{Clients, Holdings, Rig, pb, refused};

#[tokio::test]
async fn a_key_that_cannot_be_made_leaves_nothing_behind() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let taken = pb::CreateKeyRequest {
        key_store_id: store.clone(),
        alias: "alias/taken".to_owned(),
        request_id: "used-before".to_owned(),
        ..Default::default()
    };
    clients.keys.create_key(taken).await.expect("the first may have it");
    let before = Holdings::of(&rig, &mut clients).await;
    let but = |change: &dyn Fn(&mut pb::CreateKeyRequest)| {
        let mut request = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
        change(&mut request);
        request
    };
    let tag = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let many_tags: HashMap<_, _> = (0..51).map(|n| (n.to_string(), String::new())).collect();
    let cases = [
        ("no store", but(&|it| it.key_store_id.clear()), "VALIDATION", "key_store_id"),
        ("a store's name", but(&|it| it.key_store_id = "main".into()), "VALIDATION", "key_store_id"),
        (
            "an unknown store",
            but(&|it| it.key_store_id = "cks-0123456789abcdef0".into()),
            "CUSTOM_KEY_STORE_NOT_FOUND",
            "",
        ),
        ("a spec that is none", but(&|it| it.key_spec = 999), "VALIDATION", "key_spec"),
        ("no usage for RSA", but(&|it| it.set_key_spec(pb::KeySpec::Rsa2048)), "VALIDATION", "key_usage"),
        ("a usage that is none", but(&|it| it.key_usage = 55), "VALIDATION", "key_usage"),
        (
            "a usage of another spec",
            but(&|it| it.set_key_usage(pb::KeyUsage::SignVerify)),
            "INVALID_KEY_USAGE",
            "key_usage",
        ),
        ("a long description", but(&|it| it.description = "é".repeat(8_193)), "VALIDATION", "description"),
        ("51 tags", but(&|it| it.tags = many_tags.clone()), "TAG", "tags"),
        ("a tag of AWS's", but(&|it| it.tags = tag("AWS:x", "")), "TAG", "tags"),
        ("a tag without a name", but(&|it| it.tags = tag("", "x")), "TAG", "tags"),
        ("a long tag", but(&|it| it.tags = tag("x", &"é".repeat(257))), "TAG", "tags"),
        ("a long request id", but(&|it| it.request_id = "x".repeat(37)), "VALIDATION", "request_id"),
        ("a request id with a line break", but(&|it| it.request_id = "a\nb".into()), "VALIDATION", "request_id"),
        (
            "a request id used for another key",
            but(&|it| it.request_id = "used-before".into()),
            "REQUEST_ID_REUSED",
            "request_id",
        ),
        ("an alias that is none", but(&|it| it.alias = "orders".into()), "INVALID_ALIAS_NAME", "alias"),
        ("an alias in use", but(&|it| it.alias = "alias/taken".into()), "ALREADY_EXISTS", ""),
        ("a label in a key store", but(&|it| it.hsm_label = "x".into()), "VALIDATION", "hsm_label"),
        ("a key store and a cluster", but(&|it| it.cluster_id = rig.cluster_id()), "VALIDATION", "cluster_id"),
    ];
    for (what, request, reason, field) in cases {
        refused(what, clients.keys.create_key(request).await, reason, field);
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
    assert_eq!(before_keys(&mut clients, &store).await, 1, "the store counts the one key there is");
}

async fn before_keys(clients: &mut Clients, store: &str) -> i32 {
    clients.settled(store).await.key_count
}

#[tokio::test]
async fn an_alias_keeps_to_its_rules_and_a_page_to_its_list() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key = clients.key(&store).await;
    let alias = |name: &str, target: &str| pb::CreateAliasRequest {
        alias_name: name.to_owned(),
        target_key_id: target.to_owned(),
    };
    clients.keys.create_alias(alias("alias/taken", &key.key_id)).await.expect("the first may have it");
    let before = Holdings::of(&rig, &mut clients).await;
    let long = format!("alias/{}", "x".repeat(251));
    let names = ["", "orders", "alias/", "alias/a b", "alias/é", "alias/aws/orders", &long];
    for name in names {
        let answer = clients.keys.create_alias(alias(name, &key.key_id)).await;
        refused(&format!("{name:?}"), answer, "INVALID_ALIAS_NAME", "alias_name");
    }
    let unknown = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let cases = [
        ("alias/taken", key.key_id.as_str(), "ALREADY_EXISTS", ""),
        ("alias/new", "", "VALIDATION", "target_key_id"),
        ("alias/new", "alias/taken", "VALIDATION", "target_key_id"),
        ("alias/new", "my key", "VALIDATION", "target_key_id"),
        ("alias/new", unknown, "NOT_FOUND", ""),
    ];
    for (name, target, reason, field) in cases {
        let what = format!("{name} for {target:?}");
        refused(&what, clients.keys.create_alias(alias(name, target)).await, reason, field);
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
    turn_impossible_pages(&mut clients).await;
}

async fn turn_impossible_pages(clients: &mut Clients) {
    let pages = [
        (-1, "", "VALIDATION", "page_size"),
        (i32::MIN, "", "VALIDATION", "page_size"),
        (10, "made up", "INVALID_MARKER", "page_token"),
        (10, "after:", "INVALID_MARKER", "page_token"),
        (10, "after:-1", "INVALID_MARKER", "page_token"),
        (10, "after:é\n", "INVALID_MARKER", "page_token"),
        (10, &"x".repeat(100_000), "INVALID_MARKER", "page_token"),
    ];
    for (page_size, page_token, reason, field) in pages {
        let (what, page_token) = (format!("{page_size}, {page_token:.9}"), page_token.to_owned());
        let request = pb::ListKeysRequest { page_size, page_token: page_token.clone(), ..Default::default() };
        refused(&what, clients.keys.list_keys(request).await, reason, field);
        let request = pb::ListAliasesRequest { page_size, page_token: page_token.clone(), ..Default::default() };
        refused(&what, clients.keys.list_aliases(request).await, reason, field);
        let request = pb::DescribeKeyStoresRequest { page_size, page_token, ..Default::default() };
        refused(&what, clients.stores.describe_key_stores(request).await, reason, field);
    }
    let elsewhere = pb::ListKeysRequest { key_store_id: "cks-0123456789abcdef0".to_owned(), ..Default::default() };
    let answer = clients.keys.list_keys(elsewhere).await;
    refused("an unknown store's keys", answer, "CUSTOM_KEY_STORE_NOT_FOUND", "");
    let huge = pb::ListKeysRequest { page_size: i32::MAX, ..Default::default() };
    assert_eq!(clients.keys.list_keys(huge).await.expect("cut to 1,000").into_inner().keys.len(), 1);
}
