//! Keys of crypto users' own: apart from key stores' and from each other's, and destroyed for good.

use super::*;

fn user(name: &str) -> CryptoUser {
    CryptoUser { cluster: cluster('a'), username: name.parse().unwrap() }
}

fn labelled(user: &CryptoUser, label: &str) -> NewKey {
    let home = NewKeyHome::User { username: user.username.clone(), label: label.parse().unwrap() };
    NewKey { home, ..new_key(&store("none", 'a')) }
}

async fn users_key(records: &Records, user: &CryptoUser, label: &str) -> KeyId {
    let new = labelled(user, label);
    assert_eq!(records.begin_key(&new, &LIMITS).await.unwrap(), BegunKey::Begun);
    assert!(
        records.finish_key(new.id, V1, &Probe(vec![1]), (&[hsm(1), hsm(2)], &[hsm(3)]), |_| true, at(3)).await.unwrap()
    );
    new.id
}

async fn labels(records: &Records, user: &CryptoUser) -> Vec<String> {
    let keys = records.list_user_keys(user, None, 10).await.unwrap();
    keys.iter().map(|key| key.home.label().unwrap().as_str().to_owned()).collect()
}

#[tokio::test]
async fn a_users_keys_are_apart_from_the_stores_on_the_cluster_and_from_every_other_users() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let (alice, bob) = (user("alice"), user("bob"));
    let stores = enabled_key(&records, &record).await;
    let hers = users_key(&records, &alice, "b").await;
    users_key(&records, &alice, "a").await;
    let his = users_key(&records, &bob, "b").await;

    assert_eq!(labels(&records, &alice).await, ["a", "b"]);
    let rest = records.list_user_keys(&alice, Some(&"a".parse().unwrap()), 10).await.unwrap();
    assert_eq!(rest.iter().map(|key| key.id).collect::<Vec<_>>(), [hers]);
    assert_eq!(records.list_keys(None, None, 10).await.unwrap().len(), 1, "those of key stores");
    assert_eq!(records.user_key(&bob, &"b".parse().unwrap()).await.unwrap(), Some(his));
    assert_eq!(records.user_key(&bob, &"a".parse().unwrap()).await.unwrap(), None);

    for (of, keys) in [(kmsuser(&record.cluster), 1), (alice.clone(), 2), (bob.clone(), 1)] {
        assert_eq!(records.keys_lacking(&of, &hsm(3), None, 10).await.unwrap().len(), keys, "{of:?}");
        assert_eq!(records.provable_keys(&of, None, 10).await.unwrap().len(), keys, "{of:?}");
        assert_eq!(records.count_provable_keys(&of).await.unwrap() as usize, keys, "{of:?}");
        assert_eq!(records.keys_proven(&of, &hsm(1), at(4), None, 10).await.unwrap().len(), keys, "{of:?}");
        let all = [stores, hers, his].map(|key| CkaId::of(key, V1));
        assert_eq!(records.known_keys(&of, &all).await.unwrap().len(), 1, "{of:?}");
    }
    records.doubt_presence(&alice, &hsm(1), at(9)).await.unwrap();
    records.expect_keys(&alice, &hsm(9), at(9)).await.unwrap();
    assert_eq!(records.keys_lacking(&alice, &hsm(1), None, 10).await.unwrap().len(), 2);
    assert_eq!(records.keys_lacking(&alice, &hsm(9), None, 10).await.unwrap().len(), 2);
    for other in [kmsuser(&record.cluster), bob] {
        assert!(records.keys_lacking(&other, &hsm(1), None, 10).await.unwrap().is_empty());
        assert!(records.keys_lacking(&other, &hsm(9), None, 10).await.unwrap().is_empty());
    }
    let drifts = records.list_drifts(&record.cluster, &[hsm(1), hsm(3)], None, 10).await.unwrap();
    assert_eq!(drifts.len(), 1, "the store's key on the third");
    assert_eq!(records.count_keys(&record.id).await.unwrap(), 1);
}

#[tokio::test]
async fn a_label_is_one_keys_of_its_user_and_a_users_keys_have_a_quota_of_their_own() {
    let home = Home::new();
    let records = home.open().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let narrow = KeyLimits { keys: 2, ..LIMITS };
    for of in [&alice, &bob] {
        assert_eq!(records.begin_key(&labelled(of, "a"), &narrow).await.unwrap(), BegunKey::Begun);
        assert_eq!(records.begin_key(&labelled(of, "a"), &narrow).await.unwrap(), BegunKey::LabelInUse);
        assert_eq!(records.begin_key(&labelled(of, "b"), &narrow).await.unwrap(), BegunKey::Begun);
        assert_eq!(records.begin_key(&labelled(of, "c"), &narrow).await.unwrap(), BegunKey::TooManyKeys);
    }
    assert_eq!(records.creating_keys(&alice).await.unwrap().len(), 2);
    assert!(records.creating_keys(&kmsuser(&alice.cluster)).await.unwrap().is_empty());
    assert!(labels(&records, &alice).await.is_empty(), "none was acknowledged");
}

#[tokio::test]
async fn a_destroyed_key_is_gone_at_once_and_remembered_for_every_hsm_that_may_hold_it() {
    let home = Home::new();
    let records = home.open().await;
    let (alice, bob) = (user("alice"), user("bob"));
    let key = users_key(&records, &alice, "a").await;
    assert!(!records.destroy_user_key(&bob, key, &[hsm(1)], at(9)).await.unwrap(), "it is not his");
    assert!(records.destroy_user_key(&alice, key, &[hsm(3), hsm(4)], at(9)).await.unwrap());
    assert!(!records.destroy_user_key(&alice, key, &[hsm(1)], at(9)).await.unwrap());
    assert!(records.key(key).await.unwrap().is_none());
    drop(records);

    let records = home.open().await;
    let cka_id = CkaId::of(key, V1);
    for number in 1..=4 {
        assert_eq!(records.destroyed_keys(&alice, &hsm(number)).await.unwrap(), [cka_id], "hsm-{number}");
        assert!(records.destroyed_keys(&bob, &hsm(number)).await.unwrap().is_empty());
    }
    records.destroyed_on(&alice, &hsm(2), &cka_id).await.unwrap();
    assert!(records.destroyed_keys(&alice, &hsm(2)).await.unwrap().is_empty());
    assert_eq!(records.destroyed_keys(&alice, &hsm(1)).await.unwrap(), [cka_id]);
    users_key(&records, &alice, "a").await;
    assert_eq!(labels(&records, &alice).await, ["a"], "the label is free at once");
}

#[tokio::test]
async fn keys_that_are_still_to_go_from_an_hsm_are_as_many_as_the_quota_and_none_is_of_an_hsm_that_was_removed() {
    let home = Home::new();
    let records = home.open().await;
    let alice = user("alice");
    let narrow = KeyLimits { keys: 2, ..LIMITS };
    for label in ["a", "b"] {
        let key = users_key(&records, &alice, label).await;
        assert!(records.destroy_user_key(&alice, key, &[hsm(3)], at(9)).await.unwrap());
    }
    assert_eq!(records.begin_key(&labelled(&alice, "c"), &narrow).await.unwrap(), BegunKey::TooManyKeys);
    let all = [hsm(1), hsm(2), hsm(3)];
    records.forget_destroyed_elsewhere(&alice, &all.each_ref()).await.unwrap();
    assert_eq!(records.begin_key(&labelled(&alice, "c"), &narrow).await.unwrap(), BegunKey::TooManyKeys);
    for key in records.destroyed_keys(&alice, &hsm(2)).await.unwrap() {
        records.destroyed_on(&alice, &hsm(2), &key).await.unwrap();
    }
    records.forget_destroyed_elsewhere(&alice, &[&hsm(2)]).await.unwrap();
    assert!(records.destroyed_keys(&alice, &hsm(3)).await.unwrap().is_empty());
    assert_eq!(records.begin_key(&labelled(&alice, "c"), &narrow).await.unwrap(), BegunKey::Begun);
}

#[tokio::test]
async fn a_key_that_is_being_made_and_a_key_stores_are_not_destroyed_as_a_users() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let alice = user("alice");
    let creating = labelled(&alice, "a");
    records.begin_key(&creating, &LIMITS).await.unwrap();
    let stores = enabled_key(&records, &record).await;
    assert!(!records.destroy_user_key(&alice, creating.id, &[], at(9)).await.unwrap());
    for user in [&alice, &kmsuser(&record.cluster)] {
        assert!(!records.destroy_user_key(user, stores, &[], at(9)).await.unwrap());
    }
    assert!(records.key(stores).await.unwrap().is_some());
    assert!(records.destroyed_keys(&kmsuser(&record.cluster), &hsm(1)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_found_key_is_written_down_once_counted_and_expected_nowhere_but_where_it_may_be() {
    let home = Home::new();
    let records = home.open().await;
    let alice = user("alice");
    let found = |number: u8| FoundKey {
        id: KeyId::from_bytes([number; 16]),
        user: alice.clone(),
        cka_id: [number].as_slice().into(),
        spec: KeySpec::SymmetricDefault,
        probe: Probe(vec![number]),
        found: at(1),
        on: vec![hsm(1)],
        others: vec![hsm(2)],
    };
    assert_eq!(records.adopt_key(&found(1), 2).await.unwrap(), AdoptedKey::Adopted);
    let again = FoundKey { probe: Probe(vec![9]), ..found(1) };
    assert_eq!(records.adopt_key(&again, 2).await.unwrap(), AdoptedKey::Known);
    assert_eq!(records.adopt_key(&found(2), 2).await.unwrap(), AdoptedKey::Adopted);
    assert_eq!(records.adopt_key(&found(3), 2).await.unwrap(), AdoptedKey::TooManyKeys);
    assert_eq!(
        records.begin_key(&labelled(&alice, "a"), &KeyLimits { keys: 2, ..LIMITS }).await.unwrap(),
        BegunKey::TooManyKeys
    );

    let key = records.found_key(&alice, &[1]).await.unwrap().unwrap();
    assert_eq!(records.found_key(&user("bob"), &[1]).await.unwrap(), None);
    let record = records.key(key).await.unwrap().unwrap();
    assert_eq!(record.home, KeyHome::Found { username: alice.username.clone(), cka_id: [1].as_slice().into() });
    assert_eq!(record.versions[0].probe, Some(Probe(vec![1])), "the first probe stands");
    let lacking = records.keys_lacking(&alice, &hsm(2), None, 10).await.unwrap();
    assert_eq!(lacking[0].found.as_deref(), Some(&[1][..]));
    assert!(records.keys_lacking(&alice, &hsm(1), None, 10).await.unwrap().is_empty());
    assert!(
        records.keys_proven(&alice, &hsm(1), at(9), None, 10).await.unwrap().is_empty(),
        "a listing says nothing of it"
    );
    assert!(labels(&records, &alice).await.is_empty());
    assert_eq!(records.reserve_uses(key, V1, 10, 100).await.unwrap(), Reserved::Block { from: 1, to: 11 });

    assert!(
        !records.destroy_user_key(&alice, key, &[hsm(1)], at(9)).await.unwrap(),
        "it is not for every HSM to destroy"
    );
    records.forget_found_key(&user("bob"), key).await.unwrap();
    assert!(records.key(key).await.unwrap().is_some());
    records.forget_found_key(&alice, key).await.unwrap();
    assert!(records.key(key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_user_who_is_deleted_takes_his_keys_along_and_makes_none_on_his_way() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    let alice = user("alice");
    let new = NewCryptoUser {
        cluster: alice.cluster.clone(),
        username: alice.username.clone(),
        password: Password::for_crypto_user(&alice.username, "hunter22".to_owned()).unwrap(),
        second_factor: false,
        created: at(1),
    };
    records.add_crypto_user(&new, &[hsm(1)], 10).await.unwrap();
    let (kept, destroyed) = (users_key(&records, &alice, "a").await, users_key(&records, &alice, "b").await);
    let stores = enabled_key(&records, &record).await;
    records.destroy_user_key(&alice, destroyed, &[], at(9)).await.unwrap();
    records.begin_removing_crypto_user(&alice.cluster, &alice.username, &[hsm(1)]).await.unwrap();
    assert_eq!(records.begin_key(&labelled(&alice, "c"), &LIMITS).await.unwrap(), BegunKey::UserLeaves);
    assert!(records.key(kept).await.unwrap().is_some(), "he is not gone yet");
    records.crypto_user_removed(&alice.cluster, &alice.username, &hsm(1)).await.unwrap();
    assert!(records.key(kept).await.unwrap().is_none());
    assert!(records.destroyed_keys(&alice, &hsm(1)).await.unwrap().is_empty());
    assert!(records.key(stores).await.unwrap().is_some());
}
