//! What changes of a key after it was made, up to its end.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ON: KeyState = KeyState::Enabled;
const END: KeyState = KeyState::PendingDeletion;

fn in_a_week() -> Deletion {
    Deletion { due: at(0) + 7 * DAY, window: 7 * DAY }
}

fn due_at(now: SystemTime) -> Due {
    Due { now, unseen: DAY }
}

async fn pending_key(records: &Records, store: &KeyStoreRecord) -> KeyId {
    let key = enabled_key(records, store).await;
    assert!(records.change_key_state(key, (ON, END), Some(in_a_week())).await.unwrap());
    key
}

#[tokio::test]
async fn a_key_is_due_when_its_date_has_passed_and_its_window_was_run_through() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = pending_key(&records, &store).await;
    assert_eq!(records.key(key).await.unwrap().unwrap().deletion, Some(in_a_week().due));
    let date = in_a_week().due;
    let due = async |now| records.due_deletions(due_at(now), DueCursor::START, 10).await.unwrap().0;
    assert!(due(date + 365 * DAY).await.is_empty(), "a clock alone ends no window");
    records.pass_deletion_time(6 * DAY - Duration::from_secs(1)).await.unwrap();
    assert!(due(date).await.is_empty(), "nearly");
    assert!(!records.destroy_due_key(key, due_at(date), (&store.cluster, &[])).await.unwrap());
    records.pass_deletion_time(Duration::from_secs(1)).await.unwrap();
    assert!(due(date - Duration::from_secs(1)).await.is_empty(), "its date has not come");
    assert_eq!(due(date).await, [key]);
    records.pass_deletion_time(365 * DAY).await.unwrap();
    assert!(due(date - Duration::from_secs(1)).await.is_empty(), "nor does time alone");
}

#[tokio::test]
async fn a_window_is_run_through_by_no_time_from_before_it_was_opened() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    records.pass_deletion_time(365 * DAY).await.unwrap();
    let key = pending_key(&records, &store).await;
    let date = in_a_week().due;
    let due = async || records.due_deletions(due_at(date), DueCursor::START, 10).await.unwrap().0;
    assert!(due().await.is_empty());
    records.pass_deletion_time(6 * DAY).await.unwrap();
    assert_eq!(due().await, [key]);
}

#[tokio::test]
async fn pages_of_keys_that_are_due_meet_though_none_of_them_is_destroyed() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let mut pending = Vec::new();
    for _ in 0..5 {
        pending.push(pending_key(&records, &store).await);
    }
    records.pass_deletion_time(7 * DAY).await.unwrap();
    let (mut seen, mut after) = (Vec::new(), Some(DueCursor::START));
    while let Some(page_after) = after {
        let (page, next) = records.due_deletions(due_at(in_a_week().due), page_after, 2).await.unwrap();
        seen.extend(page);
        after = next;
    }
    assert_eq!(seen, pending, "those of one date in the order in which they were made");
}

#[tokio::test]
async fn of_the_end_of_a_window_and_its_cancellation_the_first_wins() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let [kept, lost] = [pending_key(&records, &store).await, pending_key(&records, &store).await];
    records.pass_deletion_time(7 * DAY).await.unwrap();
    let due = due_at(in_a_week().due);
    assert_eq!(records.due_deletions(due, DueCursor::START, 10).await.unwrap().0.len(), 2);
    let cancel = (END, KeyState::Disabled);
    assert!(records.change_key_state(kept, cancel, None).await.unwrap());
    assert!(!records.destroy_due_key(lost, due, (&cluster('b'), &[hsm(1)])).await.unwrap(), "it was looked at there");
    assert!(!records.destroy_due_key(kept, due, (&store.cluster, &[hsm(1)])).await.unwrap(), "it was taken back");
    let record = records.key(kept).await.unwrap().unwrap();
    assert_eq!((record.state, record.deletion), (KeyState::Disabled, None));
    assert!(records.destroy_due_key(lost, due, (&store.cluster, &[hsm(1)])).await.unwrap());
    assert!(!records.change_key_state(lost, cancel, None).await.unwrap(), "it is gone");
    assert!(!records.destroy_due_key(lost, due, (&store.cluster, &[hsm(1)])).await.unwrap());
    assert_eq!(records.destroyed_keys(&kmsuser(&store.cluster), &hsm(1)).await.unwrap(), [CkaId::of(lost, V1)]);
}

#[tokio::test]
async fn what_is_destroyed_is_to_go_from_wherever_it_may_be_and_leaves_nothing_else_behind() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    let (here, there) = (kmsuser(&store.cluster), kmsuser(&cluster('b')));
    records.set_presence(key, V1, (&there.cluster, &hsm(7)), Proof::Used, at(4)).await.unwrap();
    let name: AliasName = "alias/orders".parse().unwrap();
    assert_eq!(records.create_alias(&name, key, at(4), 50).await.unwrap(), CreatedAlias::Created);
    assert!(records.change_key_state(key, (ON, END), Some(in_a_week())).await.unwrap());
    let late: AliasName = "alias/late".parse().unwrap();
    assert_eq!(records.create_alias(&late, key, at(4), 50).await.unwrap(), CreatedAlias::NoSuchKey, "it goes");
    let tags = [("team".to_owned(), "red".to_owned())].into();
    assert_eq!(records.tag_key(key, &tags, 50).await.unwrap(), Tagged::NoSuchKey);
    records.pass_deletion_time(7 * DAY).await.unwrap();
    let due = due_at(in_a_week().due);
    assert!(records.destroy_due_key(key, due, (&store.cluster, &[hsm(3), hsm(4)])).await.unwrap());
    for (user, hsms) in [(&here, &[1, 2, 3, 4][..]), (&there, &[7])] {
        for number in hsms {
            let found = records.destroyed_keys(user, &hsm(*number)).await.unwrap();
            assert_eq!(found, [CkaId::of(key, V1)], "{user:?} {number}");
        }
    }
    assert!(records.key(key).await.unwrap().is_none());
    assert_eq!(records.key_id_of_alias(&name).await.unwrap(), None);
    assert!(records.tags(key).await.unwrap().is_empty());
    assert_eq!(records.count_keys(&store.id).await.unwrap(), 0);

    let drifts = async |after: Option<&DriftCursor>| {
        records.list_drifts(&store.cluster, &[hsm(1), hsm(3)], after, 1).await.unwrap()
    };
    let [(first, told)] = &drifts(None).await[..] else { panic!("a page of one") };
    let difference = Difference::Destroyed { key, version: V1 };
    assert_eq!(*told, DriftRecord { hsm: hsm(1), difference, found: due.now });
    let first: DriftCursor = first.to_string().parse().unwrap();
    let [(second, told)] = &drifts(Some(&first)).await[..] else { panic!("a page of one") };
    assert_eq!(told.hsm, hsm(3));
    assert!(drifts(Some(second)).await.is_empty());
}

#[tokio::test]
async fn keys_that_are_still_to_go_from_an_hsm_count_for_the_quota_when_they_are_more() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let due = due_at(in_a_week().due);
    let two = KeyLimits { keys: 2, ..LIMITS };
    for _ in 0..2 {
        let key = pending_key(&records, &store).await;
        records.pass_deletion_time(7 * DAY).await.unwrap();
        assert!(records.destroy_due_key(key, due, (&store.cluster, &[hsm(1)])).await.unwrap());
    }
    assert_eq!(records.begin_key(&new_key(&store), &two).await.unwrap(), BegunKey::TooManyKeys);
    let user = kmsuser(&store.cluster);
    for number in 1..=3 {
        let gone = records.destroyed_keys(&user, &hsm(number)).await.unwrap()[0];
        records.destroyed_on(&user, &hsm(number), &gone).await.unwrap();
    }
    assert_eq!(records.begin_key(&new_key(&store), &two).await.unwrap(), BegunKey::Begun);
}

#[tokio::test]
async fn the_last_use_is_the_latest_that_was_noted() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    assert_eq!(records.key(key).await.unwrap().unwrap().last_used, None);
    records.note_last_uses(&[(key, at(20)), (KeyId::random(), at(30))]).await.unwrap();
    records.note_last_uses(&[(key, at(10))]).await.unwrap();
    assert_eq!(records.key(key).await.unwrap().unwrap().last_used, Some(at(20)));
}
