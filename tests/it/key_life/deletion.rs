//! Keys whose deletion window ends: on every HSM, through crashes and absences, and by no jump of a clock.

use std::time::{Duration, Instant};

use super::*;

#[tokio::test]
async fn a_key_whose_window_has_ended_is_gone_from_every_hsm_with_its_aliases_and_tags() {
    let (rig, mut clients, store) = Rig::new().deletion_day("300ms").connected().await;
    clients.all_healthy(&store).await;
    let tags = [("team".to_owned(), "red".to_owned())].into();
    let alias = "alias/orders".to_owned();
    let request = pb::CreateKeyRequest { key_store_id: store.clone(), alias, tags, ..Default::default() };
    let key = clients.keys.create_key(request).await.unwrap().into_inner().key.unwrap().key_id;
    let kept = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt("alias/orders", b"lost").await;
    clients.rotate(&key, "").await.expect("it goes in two versions");

    for days in [-1, 1, 6, 31] {
        refused("the window", clients.schedule_deletion(&key, days).await, "VALIDATION", "pending_window_days");
    }
    let told = clients.schedule_deletion("alias/orders", 7).await.unwrap();
    assert_eq!((told.key_id.as_str(), told.state()), (key.as_str(), pb::KeyState::PendingDeletion));
    let at = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos)).expect("it is set");
    assert!(at(told.deletion_time) > at(told.create_time), "{told:?}");
    refused("it is pending", clients.try_encrypt("alias/orders").await, "KMS_INVALID_STATE", "");

    clients.until_gone(&key).await;
    refused("its alias", clients.described("alias/orders").await, "NOT_FOUND", "");
    refused("its ciphertext", clients.decrypt(&ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
    clients.until_level(&rig).await;
    for hsm in HSMS {
        assert_eq!(rig.keys_on(hsm), [format!("keyway:{kept}:1")], "{hsm}");
    }
    // Its name is free, and means the other key at once.
    clients.create_alias("alias/orders", &kept).await.expect("the name is free");
    assert_eq!(clients.describe_key("alias/orders").await.key_id, kept);
    clients.try_encrypt("alias/orders").await.expect("it is remembered as the other one");

    // A store whose keys are all pending deletion still has keys; without keys it can be deleted.
    clients.schedule_deletion(&kept, 30).await.unwrap();
    clients.disconnect(&store).await;
    let delete = || pb::DeleteKeyStoreRequest { key_store_id: store.clone() };
    refused("it has keys", clients.stores.delete_key_store(delete()).await, "CUSTOM_KEY_STORE_HAS_CMKS", "");
    clients.until_gone(&kept).await;
    clients.stores.delete_key_store(delete()).await.expect("it has no keys any more");
}

#[tokio::test]
async fn a_deletion_that_was_cancelled_destroys_nothing() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).deletion_day("300ms").connected().await;
    clients.all_healthy(&store).await;
    let (kept, lost) = (clients.key(&store).await.key_id, clients.key(&store).await.key_id);
    let ciphertext = clients.encrypt(&kept, b"kept").await;
    clients.schedule_deletion(&kept, 7).await.unwrap();
    let told = clients.cancel_deletion(&kept).await.unwrap();
    assert_eq!((told.state(), told.deletion_time), (pb::KeyState::Disabled, None));
    clients.schedule_deletion(&lost, 7).await.unwrap();
    // This one's window ends after the other's would have.
    clients.until_gone(&lost).await;
    clients.enable(&kept).await.unwrap();
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
}

#[tokio::test]
async fn an_hsm_that_is_away_when_a_window_ends_destroys_the_key_when_it_is_back() {
    for over_a_restart in [false, true] {
        let (mut rig, mut clients, store) = Rig::new().deletion_day("200ms").connected().await;
        clients.all_healthy(&store).await;
        let (lost, kept) = (clients.key(&store).await.key_id, clients.key(&store).await.key_id);
        clients.until_level(&rig).await;
        let drain = pb::DrainHsmRequest {
            cluster_id: rig.cluster_id(),
            hsm_id: "hsm-3".to_owned(),
            note: "new fans".to_owned(),
            drain_timeout: None,
        };
        clients.clusters.drain_hsm(drain).await.unwrap();
        clients.schedule_deletion(&lost, 7).await.unwrap();
        clients.until_gone(&lost).await;
        let looking = clients.clone();
        let awaited = wait_async(|| async {
            let drifts = looking.clone().drifts(&rig).await;
            (drifts.len() == 1).then_some(drifts)
        })
        .await;
        let (kind, hsm) = (awaited[0].kind(), awaited[0].hsm_id.as_str());
        assert_eq!((kind, hsm), (pb::DriftKind::AwaitingDeletion, "hsm-3"), "{awaited:?}");
        assert_eq!(awaited[0].key_id, lost);
        if over_a_restart {
            rig.kill_daemon();
            rig.start_daemon();
            clients = rig.clients().await;
        }
        assert_eq!(rig.keys_on("hsm-3").len(), 2, "nobody could destroy it there");
        clients.resume_hsm(&rig.cluster_id(), "hsm-3", false).await;
        clients.all_healthy(&store).await;
        clients.until_level(&rig).await;
        for hsm in HSMS {
            assert_eq!(rig.keys_on(hsm), [format!("keyway:{kept}:1")], "{hsm}");
        }
    }
}

#[tokio::test]
async fn a_destruction_that_was_killed_midway_is_finished_by_the_next_daemon() {
    for point in ["deletion-due", "deletion-begun", "deletion-done"] {
        let (mut rig, mut clients, store) = Rig::new().seams().deletion_day("100ms").connected().await;
        clients.all_healthy(&store).await;
        let key = clients.key(&store).await.key_id;
        clients.until_level(&rig).await;
        rig.stop_at(point);
        clients.schedule_deletion(&key, 7).await.unwrap();
        rig.wait_until_stopped_at(point).await;
        let told = clients.described(&key).await;
        match point {
            "deletion-due" => assert_eq!(told.unwrap().state(), pb::KeyState::PendingDeletion),
            _ => drop(refused(point, told, "NOT_FOUND", "")),
        }
        rig.kill_daemon();

        rig.let_pass(point);
        rig.start_daemon();
        let mut clients = rig.clients().await;
        clients.until_gone(&key).await;
        clients.all_healthy(&store).await;
        clients.until_level(&rig).await;
        for hsm in HSMS {
            assert!(rig.keys_on(hsm).is_empty(), "{point}: {hsm}");
        }
    }
}

#[tokio::test]
async fn a_cancellation_that_comes_before_the_end_is_written_down_keeps_the_key() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).seams().deletion_day("100ms").connected().await;
    clients.all_healthy(&store).await;
    let (key, next) = (clients.key(&store).await.key_id, clients.key(&store).await.key_id);
    let ciphertext = clients.encrypt(&key, b"kept").await;
    rig.stop_at("deletion-due");
    clients.schedule_deletion(&key, 7).await.unwrap();
    rig.wait_until_stopped_at("deletion-due").await;
    assert_eq!(clients.cancel_deletion(&key).await.unwrap().state(), pb::KeyState::Disabled);
    // Whoever was about to destroy it goes on; one key comes after the other.
    rig.let_pass("deletion-due");
    clients.schedule_deletion(&next, 7).await.unwrap();
    clients.until_gone(&next).await;
    clients.enable(&key).await.unwrap();
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
}

#[tokio::test]
async fn a_wall_clock_that_jumps_ends_no_window_early_and_one_that_is_behind_ends_none() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).seams().deletion_day("1s").connected().await;
    clients.all_healthy(&store).await;
    let clock_is_ahead = |seconds: i64| {
        std::fs::write(rig.path("daemon/seams/clock-offset"), seconds.to_string()).expect("seams are on");
    };
    let [first, behind, later] =
        [clients.key(&store).await.key_id, clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    clients.schedule_deletion(&first, 7).await.unwrap();
    let scheduled = Instant::now();
    clock_is_ahead(365 * 24 * 60 * 60);
    clients.until_gone(&first).await;
    // All of the window's days but one.
    assert!(scheduled.elapsed() > Duration::from_secs(5), "after {:?}", scheduled.elapsed());

    clock_is_ahead(0);
    clients.schedule_deletion(&behind, 7).await.unwrap();
    clock_is_ahead(-60 * 60);
    clients.schedule_deletion(&later, 7).await.unwrap();
    clients.until_gone(&later).await;
    assert_eq!(clients.describe_key(&behind).await.state(), pb::KeyState::PendingDeletion, "its date is an hour away");
    clock_is_ahead(0);
    clients.until_gone(&behind).await;
}
