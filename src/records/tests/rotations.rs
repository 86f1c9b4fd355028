//! Versions that are being made, and what becomes of them.

use super::*;

const TWO: RotationLimits = RotationLimits { on_demand: 2, request_retention: Duration::from_secs(60) };

async fn new_version(records: &Records, key: KeyId, asked_by: RotationCause) -> NewVersion {
    NewVersion {
        key: records.key(key).await.unwrap().unwrap(),
        store_state: ConnectionState::Connected,
        asked_by,
        created: at(20),
        hsms: vec![hsm(1), hsm(2)],
        request: None,
    }
}

async fn begun(records: &Records, new: &NewVersion) -> KeyVersion {
    match records.begin_version(new, &TWO).await.unwrap() {
        BegunVersion::Begun(version) => version,
        other => panic!("{other:?}"),
    }
}

async fn finished(records: &Records, key: KeyId, version: KeyVersion) -> bool {
    let nodes = (&[hsm(1), hsm(2)][..], &[hsm(3)][..]);
    records.finish_version((key, version), &Probe(vec![2]), nodes, |_| true, at(21)).await.unwrap()
}

#[tokio::test]
async fn a_version_is_none_of_the_keys_before_it_is_whole_and_then_it_is_the_current_one() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    let new = new_version(&records, key, RotationCause::Demand).await;
    let version = begun(&records, &new).await;
    assert_eq!(records.begin_version(&new, &TWO).await.unwrap(), BegunVersion::Running, "one at a time");
    let user = kmsuser(&store.cluster);
    assert_eq!(records.versions_being_made(&user).await.unwrap(), [CkaId::of(key, version)]);
    let before = records.key(key).await.unwrap().unwrap();
    assert_eq!((before.current_version, before.versions.len()), (V1, 1));
    assert!(records.keys_lacking(&user, &hsm(1), None, 10).await.unwrap().is_empty(), "it is missing nowhere");

    assert!(finished(&records, key, version).await);
    assert!(!finished(&records, key, version).await, "once");
    let after = records.key(key).await.unwrap().unwrap();
    assert_eq!((after.current_version, after.versions.len()), (KeyVersion(2), 2));
    assert_eq!(after.versions[1].probe, Some(Probe(vec![2])));
    let lacking = records.keys_lacking(&user, &hsm(3), None, 10).await.unwrap();
    assert_eq!(lacking.iter().map(|lacking| lacking.version).collect::<Vec<_>>(), [V1, version]);
    let late = records.begin_version(&new, &TWO).await.unwrap();
    assert_eq!(late, BegunVersion::Changed, "it was found with another version");
}

#[tokio::test]
async fn what_comes_to_nothing_is_to_go_from_where_it_may_be_and_its_number_and_request_do_not_stay() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    let claim = RequestClaim { caller: "c".to_owned(), request_id: "r".to_owned(), body_sha256: [7; 32] };
    let new = NewVersion { request: Some(claim), ..new_version(&records, key, RotationCause::Demand).await };
    let version = begun(&records, &new).await;
    assert_eq!(records.begin_version(&new, &TWO).await.unwrap(), BegunVersion::Running);
    records.abandon_version(key, at(22)).await.unwrap();
    assert!(!finished(&records, key, version).await);
    let user = kmsuser(&store.cluster);
    for number in [1, 2] {
        assert_eq!(records.destroyed_keys(&user, &hsm(number)).await.unwrap(), [CkaId::of(key, version)]);
    }
    assert!(records.destroyed_keys(&user, &hsm(3)).await.unwrap().is_empty());

    for number in [1, 2] {
        assert_eq!(records.begin_version(&new, &TWO).await.unwrap(), BegunVersion::Running, "it is still to go");
        records.destroyed_on(&user, &hsm(number), &CkaId::of(key, version)).await.unwrap();
    }
    let next = begun(&records, &new).await;
    assert_eq!((version, next), (KeyVersion(2), KeyVersion(3)));
    assert!(finished(&records, key, next).await);
    assert_eq!(records.begin_version(&new, &TWO).await.unwrap(), BegunVersion::Replay);
    let mut other =
        NewVersion { request: new.request.clone(), ..new_version(&records, key, RotationCause::Demand).await };
    other.request.as_mut().unwrap().body_sha256 = [8; 32];
    assert_eq!(records.begin_version(&other, &TWO).await.unwrap(), BegunVersion::RequestReused);
}

#[tokio::test]
async fn rotations_by_request_are_bounded_and_others_are_not_and_only_an_enabled_key_is_rotated() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    for _ in 0..2 {
        let version = begun(&records, &new_version(&records, key, RotationCause::Demand).await).await;
        assert!(finished(&records, key, version).await);
    }
    let by_request = new_version(&records, key, RotationCause::Demand).await;
    assert_eq!(records.begin_version(&by_request, &TWO).await.unwrap(), BegunVersion::TooMany);
    let version = begun(&records, &new_version(&records, key, RotationCause::Itself).await).await;
    assert!(finished(&records, key, version).await);
    let disabled = (KeyState::Enabled, KeyState::Disabled);
    assert!(records.change_key_state(key, disabled, None).await.unwrap());
    let new = new_version(&records, key, RotationCause::Itself).await;
    assert_eq!(records.begin_version(&new, &TWO).await.unwrap(), BegunVersion::Changed);
}

#[tokio::test]
async fn a_rotation_is_due_by_its_period_and_by_wear_while_the_key_can_be_rotated() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let [periodic, worn, old] =
        [enabled_key(&records, &store).await, enabled_key(&records, &store).await, enabled_key(&records, &store).await];
    assert!(records.set_rotation(periodic, KeyState::Enabled, Some((90, at(50)))).await.unwrap());
    for key in [worn, old] {
        records.reserve_uses(key, V1, 1 << 31, 1 << 32).await.unwrap();
    }
    let version = begun(&records, &new_version(&records, old, RotationCause::Itself).await).await;
    assert!(finished(&records, old, version).await, "its worn version encrypts no more");
    let due = async |now| {
        let (mut due, mut after) = (Vec::new(), Some(RotationCursor::START));
        while let Some(page_after) = after {
            let (page, next) = records.due_rotations(RotationDue { now: at(now) }, page_after, 1).await.unwrap();
            due.extend(page);
            after = next;
        }
        due.sort();
        due
    };
    assert_eq!(due(49).await, [worn]);
    let mut both = [periodic, worn];
    both.sort();
    assert_eq!(due(50).await, both);
    let version = begun(&records, &new_version(&records, periodic, RotationCause::Demand).await).await;
    assert!(finished(&records, periodic, version).await);
    assert_eq!(due(50).await, both, "one that was asked for moves no date");
    let version = begun(&records, &new_version(&records, periodic, RotationCause::Itself).await).await;
    assert!(finished(&records, periodic, version).await);
    let plan = records.key(periodic).await.unwrap().unwrap().rotation.unwrap();
    assert_eq!((plan.days, plan.next), (90, at(21) + Duration::from_secs(90 * 24 * 60 * 60)));
    assert!(moved(&records, &store.id, ConnectionState::Connected, ConnectionState::Disconnecting).await);
    records.set_rotation(periodic, KeyState::Enabled, Some((90, at(0)))).await.unwrap();
    assert!(!due(50).await.contains(&periodic), "its store is not connected");
}
