//! A key store that is changed: as a whole or not at all, and what moves with it to a related cluster.

use super::*;

const V2: PasswordVersion = PasswordVersion(2);

async fn updated(records: &Records, before: &KeyStoreRecord, update: KeyStoreUpdate) -> KeyStoreRecord {
    match records.update_key_store(before, &update).await.unwrap() {
        UpdatedKeyStore::Updated(after) => *after,
        other => panic!("{other:?}"),
    }
}

fn to(letter: char) -> KeyStoreUpdate {
    KeyStoreUpdate { cluster: Some(cluster(letter)), ..Default::default() }
}

/// A DISCONNECTED store on cluster a, with a key, its KEK, and one more key that is being made.
async fn store_with_keys(records: &Records) -> (KeyStoreRecord, KeyId, KeyId) {
    let mut record = connected_store(records).await;
    let key = enabled_key(records, &record).await;
    let creating = new_key(&record);
    records.begin_key(&creating, &LIMITS).await.unwrap();
    let kek = kek_of(&record.cluster);
    records.begin_kek(&kek).await.unwrap();
    records.finish_kek(&kek.cluster, &kek.username, &Probe(vec![7])).await.unwrap();
    assert!(moved(records, &record.id, ConnectionState::Connected, OFF).await);
    (record.state, record.password_version) = (OFF, PasswordVersion(1));
    (record, key, creating.id)
}

fn kek_of(cluster: &ClusterId) -> KekRecord {
    KekRecord {
        cluster: cluster.clone(),
        username: Username::kmsuser(),
        kek_id: [1; 16],
        canary_id: [2; 16],
        made_on: hsm(1),
        canary_probe: None,
    }
}

async fn expose(records: &Records, record: &KeyStoreRecord) -> Option<String> {
    let stored = records.password(&record.cluster, &Username::kmsuser(), record.password_version).await.unwrap();
    stored.map(|password| password.expose().to_owned())
}

#[tokio::test]
async fn a_name_and_a_password_change_together_and_only_from_what_was_seen() {
    let home = Home::new();
    let records = home.open().await;
    let (before, ..) = store_with_keys(&records).await;
    records.add_key_store(&store("taken", 'b'), &password("hunter22"), 10).await.unwrap();
    let taken = KeyStoreUpdate {
        name: Some("taken".parse().unwrap()),
        password: Some(password("changed1")),
        ..Default::default()
    };
    let refused = records.update_key_store(&before, &taken).await.unwrap();
    assert!(matches!(refused, UpdatedKeyStore::NameInUse));
    assert_eq!(expose(&records, &before).await.as_deref(), Some("hunter22"), "nothing of it was done");

    let free = KeyStoreUpdate { name: Some("free".parse().unwrap()), ..taken };
    let after = updated(&records, &before, free).await;
    assert_eq!((after.name.as_str(), after.password_version), ("free", V2));
    assert_eq!(expose(&records, &after).await.as_deref(), Some("changed1"));
    assert_eq!(expose(&records, &before).await.as_deref(), Some("hunter22"), "no HSM has judged the new one");
    let stale = records.update_key_store(&before, &to('c')).await.unwrap();
    assert!(matches!(stale, UpdatedKeyStore::Changed));
}

#[tokio::test]
async fn to_a_related_cluster_go_the_keys_and_the_kek_and_nothing_that_is_known_of_tokens() {
    let home = Home::new();
    let records = home.open().await;
    let (before, key, creating) = store_with_keys(&records).await;
    let user = Username::kmsuser();
    records.begin_login(&before.cluster, &hsm(1), &user, PasswordVersion(1)).await.unwrap();
    records.login_succeeded(&before.cluster, &hsm(1), &user, PasswordVersion(1)).await.unwrap();

    let there = updated(&records, &before, to('b')).await;
    assert_eq!(expose(&records, &there).await.as_deref(), Some("hunter22"));
    assert_eq!(records.login_standing(&there.cluster, &user).await.unwrap(), []);
    let kek = records.kek(&there.cluster, &user).await.unwrap().unwrap();
    assert_eq!((kek.kek_id, kek.canary_id, kek.canary_probe), ([1; 16], [2; 16], Some(Probe(vec![7]))));
    let moved_key = records.key(key).await.unwrap().unwrap();
    assert_eq!((moved_key.cluster, moved_key.versions[0].on.len()), (there.cluster.clone(), 0));
    records.expect_keys(&kmsuser(&there.cluster), &hsm(1), at(9)).await.unwrap();
    assert_eq!(
        records.keys_lacking(&kmsuser(&there.cluster), &hsm(1), None, 9).await.unwrap().len(),
        1,
        "not believed to be here"
    );
    // What may be on the first cluster's nodes of a key that was never acknowledged is to be destroyed there.
    assert_eq!(records.creating_keys(&kmsuser(&there.cluster)).await.unwrap().len(), 0);
    assert_eq!(records.creating_keys(&kmsuser(&before.cluster)).await.unwrap()[0].id, creating);
    let late = records
        .finish_key(creating, V1, (&Probe(vec![1]), None), (&[hsm(1), hsm(2)], &[]), |_| true, at(9))
        .await
        .unwrap();
    assert!(!late, "acknowledged in a cluster that the store has left");
    let place = (&there.cluster, &hsm(1));
    records.set_presence(key, V1, place, Proof::Missing, at(10)).await.unwrap();

    let back = updated(&records, &there, to('a')).await;
    assert_eq!((&back.cluster, back.password_version), (&before.cluster, PasswordVersion(1)), "as it was there");
    let key = records.key(key).await.unwrap().unwrap();
    let proven = key.versions[0].on.iter().filter(|on| on.proof == Proof::Used).count();
    assert_eq!((key.cluster, proven), (back.cluster.clone(), 2));
    assert_eq!(records.kek(&back.cluster, &user).await.unwrap().unwrap().kek_id, [1; 16]);
}

#[tokio::test]
async fn a_former_password_that_was_refused_there_and_accepted_by_no_hsm_does_not_come_back() {
    let home = Home::new();
    let records = home.open().await;
    let (first, ..) = store_with_keys(&records).await;
    let user = Username::kmsuser();
    let wrong = KeyStoreUpdate { password: Some(password("mistyped1")), ..to('b') };
    let there = updated(&records, &first, wrong).await;
    let refuse = async |on: u8| {
        records.begin_login(&there.cluster, &hsm(on), &user, there.password_version).await.unwrap();
        records.login_refused(&there.cluster, &hsm(on), &user, there.password_version).await.unwrap();
    };
    refuse(1).await;
    let back = updated(&records, &there, to('a')).await;
    let again = updated(&records, &back, to('b')).await;
    assert_eq!(expose(&records, &again).await.as_deref(), Some("hunter22"), "what the store has now");
    assert!(again.password_version > there.password_version, "and nobody there has judged it");

    // One HSM that accepts it outweighs another that does not.
    records.begin_login(&again.cluster, &hsm(1), &user, again.password_version).await.unwrap();
    records.login_succeeded(&again.cluster, &hsm(1), &user, again.password_version).await.unwrap();
    records.begin_login(&again.cluster, &hsm(2), &user, again.password_version).await.unwrap();
    records.login_refused(&again.cluster, &hsm(2), &user, again.password_version).await.unwrap();
    let back = updated(&records, &again, to('a')).await;
    let third = updated(&records, &back, to('b')).await;
    assert_eq!(third.password_version, again.password_version);
}

#[tokio::test]
async fn a_cluster_that_another_store_stands_on_is_taken_and_with_a_store_go_all_its_passwords() {
    let home = Home::new();
    let records = home.open().await;
    let mut first = store("first", 'a');
    records.add_key_store(&first, &password("hunter22"), 10).await.unwrap();
    first.password_version = PasswordVersion(1);
    records.add_key_store(&store("second", 'c'), &password("hunter33"), 10).await.unwrap();
    assert!(matches!(records.update_key_store(&first, &to('c')).await.unwrap(), UpdatedKeyStore::ClusterInUse));
    let there = updated(&records, &first, to('b')).await;
    assert_eq!(records.delete_key_store(&first.id, OFF).await.unwrap(), DeletedKeyStore::Deleted);
    assert_eq!((expose(&records, &first).await, expose(&records, &there).await), (None, None));
    let second = records.key_stores().await.unwrap().remove(0);
    assert_eq!(expose(&records, &second).await.as_deref(), Some("hunter33"));
}
