//! What is said of a key: its description, its tags, its aliases; and what it cannot be told.

use super::*;

#[tokio::test]
async fn tags_are_added_replaced_and_removed_within_their_bounds() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key = clients.key(&store).await.key_id;
    let tag = |names: &[&str], value: &str| pb::TagResourceRequest {
        key_id: key.clone(),
        tags: names.iter().map(|name| ((*name).to_owned(), value.to_owned())).collect(),
    };
    let list = || pb::ListResourceTagsRequest { key_id: key.clone() };
    clients.keys.tag_resource(tag(&["team", "stage"], "red")).await.unwrap();
    clients.keys.tag_resource(tag(&["team"], "")).await.unwrap();
    let untag = |names: &[&str]| pb::UntagResourceRequest {
        key_id: key.clone(),
        tag_keys: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    clients.keys.untag_resource(untag(&["stage", "none"])).await.unwrap();
    let tags = clients.keys.list_resource_tags(list()).await.unwrap().into_inner().tags;
    assert_eq!(tags, [("team".to_owned(), String::new())].into());

    let many: Vec<String> = (0..50).map(|number| format!("tag-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused("51 in all", clients.keys.tag_resource(tag(&many, "x")).await, "TAG", "tags");
    assert_eq!(clients.keys.list_resource_tags(list()).await.unwrap().into_inner().tags.len(), 1, "all or none");
    clients.keys.tag_resource(tag(&many[1..], "x")).await.expect("50 in all");
    let (long, longer) = ("n".repeat(128), "n".repeat(129));
    let unfit = [
        ("a reserved name", tag(&["AWS:team"], "x")),
        ("no name", tag(&[""], "x")),
        ("a long name", tag(&[&longer], "x")),
        ("a long value", tag(&["team"], &"v".repeat(257))),
    ];
    for (what, request) in unfit {
        refused(what, clients.keys.tag_resource(request).await, "TAG", "tags");
    }
    clients.keys.untag_resource(untag(&["team"])).await.unwrap();
    clients.keys.tag_resource(tag(&[&long], &"v".repeat(256))).await.expect("as long as may be");
    for names in [&[][..], &["aws:x"], &[""]] {
        refused("names of tags", clients.keys.untag_resource(untag(names)).await, "TAG", "tag_keys");
    }
    let hsm_key = pb::ListResourceTagsRequest { key_id: format!("hsm:{}/orders", rig.cluster_id()) };
    refused("a crypto user's", clients.keys.list_resource_tags(hsm_key).await, "VALIDATION", "key_id");
}

#[tokio::test]
async fn an_alias_is_moved_and_deleted_and_means_at_once_what_it_was_told_to() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let [one, other] = [clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    let made = clients.create_alias("alias/orders", &one).await.unwrap();
    let before = clients.encrypt("alias/orders", b"before").await;
    let to =
        |key: &str| pb::UpdateAliasRequest { alias_name: "alias/orders".to_owned(), target_key_id: key.to_owned() };
    let moved = clients.keys.update_alias(to(&other)).await.unwrap().into_inner().alias.unwrap();
    assert_eq!((moved.target_key_id.as_str(), moved.create_time), (other.as_str(), made.create_time));
    assert_eq!(moved.alias_arn, made.alias_arn);
    assert_eq!(clients.describe_key("alias/orders").await.key_id, other);
    let after = clients.encrypt("alias/orders", b"after").await;
    let named = |ciphertext: &[u8]| pb::DecryptRequest {
        ciphertext: ciphertext.to_vec(),
        key_id: "alias/orders".to_owned(),
        ..Default::default()
    };
    refused("another's", clients.crypto.decrypt(named(&before)).await, "INCORRECT_KEY", "key_id");
    clients.crypto.decrypt(named(&after)).await.expect("its own");

    let unknown = pb::UpdateAliasRequest { alias_name: "alias/none".to_owned(), target_key_id: one.clone() };
    refused("no such alias", clients.keys.update_alias(unknown).await, "NOT_FOUND", "");
    refused("to an alias", clients.keys.update_alias(to("alias/orders")).await, "VALIDATION", "target_key_id");
    let nobody = uuid::Uuid::new_v4().to_string();
    refused("to no key", clients.keys.update_alias(to(&nobody)).await, "NOT_FOUND", "");
    for number in 0..50 {
        clients.create_alias(&format!("alias/one-{number}"), &one).await.unwrap();
    }
    refused("the 51st", clients.keys.update_alias(to(&one)).await, "LIMIT_EXCEEDED", "");

    let delete = || pb::DeleteAliasRequest { alias_name: "alias/orders".to_owned() };
    clients.keys.delete_alias(delete()).await.unwrap();
    refused("it is gone", clients.keys.delete_alias(delete()).await, "NOT_FOUND", "");
    refused("nobody's name", clients.try_encrypt("alias/orders").await, "NOT_FOUND", "");
    let no_alias = pb::DeleteAliasRequest { alias_name: "orders".to_owned() };
    refused("no alias", clients.keys.delete_alias(no_alias).await, "INVALID_ALIAS_NAME", "alias_name");
}

#[tokio::test]
async fn a_description_is_exchanged_and_outlives_the_daemon() {
    let (mut rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key = clients.key(&store).await.key_id;
    let describe = |description: &str| pb::UpdateKeyDescriptionRequest {
        key_id: key.clone(),
        description: description.to_owned(),
    };
    refused(
        "9 KB",
        clients.keys.update_key_description(describe(&"x".repeat(9_000))).await,
        "VALIDATION",
        "description",
    );
    let told = clients.keys.update_key_description(describe("orders of the shop")).await.unwrap();
    assert_eq!(told.into_inner().key.unwrap().description, "orders of the shop");
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    assert_eq!(clients.describe_key(&key).await.description, "orders of the shop");
}
