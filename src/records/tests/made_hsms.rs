use super::*;
use crate::model::HsmState;

/// Cluster `a`, as if keyway had made it, with so many HSMs in use.
async fn made(records: &Records, hsms: u8) -> ClusterId {
    let id = cluster('a');
    sqlx::query(
        "INSERT INTO made_clusters (cluster_id, region, account, state, created, caller)
         VALUES (?, 'us-east-1', '123456789012', 'ACTIVE', 0, 'caller')",
    )
    .bind(id.as_str())
    .execute(&records.0.write)
    .await
    .unwrap();
    for number in 1..=hsms {
        sqlx::query("INSERT INTO made_hsms (cluster_id, hsm_id, subnet_id, state) VALUES (?, ?, 'subnet-1', 'ACTIVE')")
            .bind(id.as_str())
            .bind(hsm(number).as_str())
            .execute(&records.0.write)
            .await
            .unwrap();
    }
    id
}

#[tokio::test]
async fn a_key_is_not_acknowledged_on_an_hsm_that_is_being_removed() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 3).await;
    let store = connected_store(&records).await;
    let (one, other) = (new_key(&store), new_key(&store));
    for key in [&one, &other] {
        assert_eq!(records.begin_key(key, &LIMITS).await.unwrap(), BegunKey::Begun);
    }
    let all = [hsm(1), hsm(2), hsm(3)];
    let removal = records.begin_removing_made_hsm(&id, &hsm(2), 2, &all).await.unwrap();
    assert_eq!(removal, BegunRemoval::Begun, "no key that anybody was told of is on it");

    let two = |staying: &[HsmId]| staying.len() >= 2;
    let on_two = (&[hsm(1), hsm(2)][..], &[hsm(3)][..]);
    assert!(
        !records.finish_key(one.id, V1, (&Probe(vec![1]), None), on_two, two, at(3)).await.unwrap(),
        "on one that stays"
    );
    assert_eq!(records.creating_keys(&kmsuser(&id)).await.unwrap().len(), 2, "it is still to be settled");
    assert!(records.finish_key(other.id, V1, (&Probe(vec![1]), None), (&all, &[]), two, at(3)).await.unwrap());

    records.forget_made_hsm(&id, &hsm(2)).await.unwrap();
    records.set_presence(other.id, V1, (&id, &hsm(2)), Proof::Used, at(4)).await.unwrap();
    let on = &records.key(other.id).await.unwrap().unwrap().versions[0].on;
    assert_eq!(on.iter().map(|on| on.hsm.clone()).collect::<Vec<_>>(), [hsm(1), hsm(3)], "a late answer says nothing");
}

#[tokio::test]
async fn an_hsm_is_ready_with_the_key_store_that_there_is() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 1).await;
    sqlx::query("UPDATE made_hsms SET state = 'CREATE_IN_PROGRESS'").execute(&records.0.write).await.unwrap();
    connected_store(&records).await;
    let store = records.key_stores().await.unwrap().remove(0);
    let ready = async |store| records.made_hsm_is_ready(&id, &hsm(1), store).await.unwrap();
    assert!(!ready(None).await, "one came meanwhile");
    assert!(!ready(Some((&store.id, PasswordVersion(7)))).await, "its password was changed");
    assert!(ready(Some((&store.id, store.password_version))).await);
    assert_eq!(records.made_cluster(&id).await.unwrap().unwrap().hsms[&hsm(1)].state, HsmState::Active);
}

#[tokio::test]
async fn only_keys_that_an_hsm_in_service_has_as_well_let_another_go() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 3).await;
    let store = connected_store(&records).await;
    // On the first two; of the third it is not known.
    enabled_key(&records, &store).await;
    let all = [hsm(1), hsm(2), hsm(3)];
    let left = |needed| BegunRemoval::KeysLeft { keys: 1, needed };
    for in_service in [&[][..], &[hsm(1)], &[hsm(1), hsm(3)]] {
        assert_eq!(records.begin_removing_made_hsm(&id, &hsm(1), 1, in_service).await.unwrap(), left(1));
    }
    assert_eq!(records.begin_removing_made_hsm(&id, &hsm(1), 2, &all).await.unwrap(), left(2));
    assert_eq!(records.begin_removing_made_hsm(&id, &hsm(1), 1, &all).await.unwrap(), BegunRemoval::Begun);
    assert_eq!(records.begin_removing_made_hsm(&id, &hsm(2), 1, &all).await.unwrap(), left(1), "the first one goes");

    // Whoever has it as well is away meanwhile.
    let state = async || records.made_cluster(&id).await.unwrap().unwrap().hsms[&hsm(1)].state;
    assert_eq!(records.give_up_made_hsm(&id, &hsm(1), &[hsm(3)]).await.unwrap(), 1);
    assert_eq!(state().await, HsmState::DeleteInProgress);
    records.keep_made_hsm(&id, &hsm(1)).await.unwrap();
    assert_eq!(state().await, HsmState::Active);
    assert_eq!(records.begin_removing_made_hsm(&id, &hsm(1), 1, &all).await.unwrap(), BegunRemoval::Begun);
    assert_eq!(records.give_up_made_hsm(&id, &hsm(1), &all).await.unwrap(), 0);
    records.keep_made_hsm(&id, &hsm(1)).await.unwrap();
    assert_eq!(state().await, HsmState::Deleted, "what is being destroyed does not come back");
}

#[tokio::test]
async fn with_the_last_hsm_a_user_is_forgotten_and_what_was_being_made_for_him() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 1).await;
    let user = kmsuser(&id);
    records.adopt_crypto_user(&id, &user.username, &[hsm(1)], at(0)).await.unwrap();
    let kek = KekRecord {
        cluster: id.clone(),
        username: user.username.clone(),
        kek_id: [1; 16],
        canary_id: [2; 16],
        made_on: hsm(1),
        canary_probe: None,
    };
    records.begin_kek(&kek).await.unwrap();
    records.forget_made_hsm(&id, &hsm(1)).await.unwrap();
    assert!(records.crypto_user(&id, &user.username).await.unwrap().is_none());
    assert!(records.kek(&id, &user.username).await.unwrap().is_none(), "no token has it any more");
}

#[tokio::test]
async fn a_key_that_was_being_made_goes_with_the_last_hsm_that_may_have_it() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 3).await;
    let store = connected_store(&records).await;
    records.begin_key(&new_key(&store), &LIMITS).await.unwrap();
    for (number, left) in [(1, 1), (2, 1), (3, 0)] {
        records.forget_made_hsm(&id, &hsm(number)).await.unwrap();
        assert_eq!(records.creating_keys(&kmsuser(&id)).await.unwrap().len(), left);
    }
}

#[tokio::test]
async fn a_version_that_comes_to_nothing_is_not_to_go_from_an_hsm_that_is_forgotten() {
    let home = Home::new();
    let records = home.open().await;
    let id = made(&records, 3).await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    let new = NewVersion {
        key: records.key(key).await.unwrap().unwrap(),
        store_state: ConnectionState::Connected,
        asked_by: RotationCause::Itself,
        created: at(4),
        hsms: vec![hsm(1), hsm(2)],
        request: None,
    };
    let limits = RotationLimits { on_demand: 25, request_retention: Duration::from_secs(60) };
    let BegunVersion::Begun(version) = records.begin_version(&new, &limits).await.unwrap() else { panic!("it begins") };
    records.forget_made_hsm(&id, &hsm(1)).await.unwrap();
    records.abandon_version(key, at(5)).await.unwrap();
    let user = kmsuser(&id);
    // Another one may come under its name, and nobody would ever look there.
    assert!(records.destroyed_keys(&user, &hsm(1)).await.unwrap().is_empty());
    assert_eq!(records.destroyed_keys(&user, &hsm(2)).await.unwrap(), [CkaId::of(key, version)]);
}
