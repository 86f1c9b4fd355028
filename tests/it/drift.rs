//! Records and HSMs out of step: told as it is, brought level, and nothing destroyed for it.

use tonic::{Code, Streaming};

use crate::rig::{Clients, Rig, pb, reason, refused, wait_async};

use pb::DriftKind;

#[tokio::test]
async fn a_stranger_in_a_token_is_reported_and_left_alone() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    clients.key(&store).await;
    assert_eq!(drifts(&mut clients, &rig).await, []);
    rig.add_secret_key("hsm-2", "0badcafe", "somebody else's");
    rig.add_key_pair("hsm-2", "0badf00d", "pair");
    let before = rig.objects("hsm-2");

    // What the next login's listing shows.
    restart_worker(&rig, &mut clients, &store, "hsm-2").await;
    let told = drifts(&mut clients, &rig).await;
    let (cluster, orphan) = (rig.cluster_id(), DriftKind::Orphan);
    let name = |label: &str| format!("hsm:{cluster}/{label}");
    let expected = [
        ("hsm-2", orphan, name("pair")),
        ("hsm-2", orphan, name("pair")),
        ("hsm-2", orphan, name("somebody%20else%27s")),
    ];
    assert_eq!(told, expected.map(|(hsm, kind, key)| (hsm.to_owned(), kind, key)));
    let request = pb::ListDriftRequest { cluster_id: cluster, page_size: 1, ..Default::default() };
    let first = clients.clusters.list_drift(request).await.unwrap().into_inner();
    assert!(first.drifts[0].detail.contains("0badcafe") || first.drifts[0].detail.contains("0badf00d"));
    assert!(!first.next_page_token.is_empty());

    // Neither a sync nor a daemon without any record of it destroys it.
    let last = synced(&mut clients, &rig, false).await;
    assert_eq!((last.messages.last().unwrap().keys_failed, last.drifts.len()), (0, 3));
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.objects("hsm-2"), before);
    assert_eq!(drifts(&mut clients, &rig).await.len(), 3);

    rig.delete_object("hsm-2", "0badcafe");
    restart_worker(&rig, &mut clients, &store, "hsm-2").await;
    assert_eq!(drifts(&mut clients, &rig).await.len(), 2, "what is gone is no difference any more");
}

#[tokio::test]
async fn a_key_deleted_behind_our_back_is_missing_until_a_sync_puts_it_back_and_a_dry_run_only_says_so() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let keys = [clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    everywhere(&mut clients, &keys).await;
    let whole = rig.objects("hsm-2");
    delete_key(&rig, "hsm-2", &keys[0]);
    let robbed = rig.objects("hsm-2");

    let missing = [("hsm-2".to_owned(), DriftKind::Missing, keys[0].clone())];
    let dry = synced(&mut clients, &rig, true).await;
    assert_eq!(dry.drifts, missing);
    let first = &dry.messages[0];
    assert_eq!((first.keys_total, first.keys_done, first.drift.is_none()), (2, 0, true));
    let last = dry.messages.last().unwrap();
    assert_eq!((last.keys_total, last.keys_done, last.keys_failed, last.drift.is_none()), (2, 2, 0, true));
    assert_eq!(rig.objects("hsm-2"), robbed, "a dry run copies nothing");
    assert_eq!(drifts(&mut clients, &rig).await, missing);
    let on_hsm_2 = |key: &pb::Key| key.nodes.iter().find(|node| node.hsm_id == "hsm-2").unwrap().proof();
    assert_eq!(on_hsm_2(&clients.describe_key(&keys[0]).await), pb::KeyProof::Missing);

    let real = synced(&mut clients, &rig, false).await;
    assert_eq!((real.drifts, real.messages.last().unwrap().keys_failed), (missing.to_vec(), 0));
    assert_eq!(rig.objects("hsm-2"), whole);
    assert_eq!(drifts(&mut clients, &rig).await, []);
    assert_eq!(on_hsm_2(&clients.describe_key(&keys[0]).await), pb::KeyProof::Used);
    let again = synced(&mut clients, &rig, false).await;
    assert_eq!(again.drifts, []);
}

#[tokio::test]
async fn what_a_dry_run_found_missing_is_still_put_back_when_a_caller_meets_the_gap() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    everywhere(&mut clients, std::slice::from_ref(&key)).await;
    let ciphertext = clients.encrypt(&key, b"kept").await;
    let whole = rig.objects("hsm-2");
    delete_key(&rig, "hsm-2", &key);
    assert_eq!(synced(&mut clients, &rig, true).await.drifts.len(), 1);
    wait_async(|| {
        let (mut clients, ciphertext, rig, whole) = (clients.clone(), ciphertext.clone(), &rig, &whole);
        async move {
            assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
            (rig.objects("hsm-2") == *whole).then_some(())
        }
    })
    .await;
    clients.all_healthy(&store).await;
    assert_eq!(drifts(&mut clients, &rig).await, []);
}

#[tokio::test]
async fn a_key_that_a_login_does_not_find_is_put_back_without_an_operator() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let keys = [clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    everywhere(&mut clients, &keys).await;
    let whole = rig.objects("hsm-3");
    delete_key(&rig, "hsm-3", &keys[1]);
    // Nobody asks for the key: the listing alone shows that it is not there.
    restart_worker(&rig, &mut clients, &store, "hsm-3").await;
    assert_eq!(rig.objects("hsm-3"), whole);
    assert_eq!(drifts(&mut clients, &rig).await, []);
}

#[tokio::test]
async fn another_key_under_a_keys_id_is_told_and_never_used_while_its_siblings_serve() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    everywhere(&mut clients, std::slice::from_ref(&key)).await;
    let ciphertext = clients.encrypt(&key, b"kept").await;
    let id = delete_key(&rig, "hsm-2", &key);
    rig.add_secret_key("hsm-2", &id, &format!("keyway:{key}:1"));
    let swapped = rig.objects("hsm-2");

    let different = [("hsm-2".to_owned(), DriftKind::DifferentMaterial, key.clone())];
    let sync = synced(&mut clients, &rig, false).await;
    assert_eq!((sync.drifts, sync.messages.last().unwrap().keys_failed), (different.to_vec(), 1));
    assert_eq!(drifts(&mut clients, &rig).await, different);
    // Idle nodes take turns: nine calls in a row would meet each of three nodes three times.
    let mut fresh = Vec::new();
    for round in 0..9u8 {
        fresh.push(clients.encrypt(&key, &[round]).await);
    }
    for (round, fresh) in (0..9u8).zip(&fresh) {
        assert_eq!(clients.decrypt(fresh).await.unwrap(), [round]);
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
    }
    // A new login looks at it again, leaves it alone, and is level but for it.
    restart_worker(&rig, &mut clients, &store, "hsm-2").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
    assert_eq!(drifts(&mut clients, &rig).await, different);
    assert_eq!(rig.objects("hsm-2"), swapped, "nothing was destroyed, and nothing put beside it");

    // The operator removes the impostor, and the key comes back.
    rig.delete_object("hsm-2", &id);
    let sync = synced(&mut clients, &rig, false).await;
    assert_eq!(sync.messages.last().unwrap().keys_failed, 0);
    assert_eq!(drifts(&mut clients, &rig).await, []);
}

#[tokio::test]
async fn what_a_node_missed_while_it_was_away_is_its_difference_until_it_is_back() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let (here, away) = (rig.path("hsms/hsm-3"), rig.path("hsm-3-away"));
    std::fs::rename(&here, &away).unwrap();
    kill_worker(&rig, "hsm-3");
    let gone = |node: &pb::NodeConnection| node.hsm_id == "hsm-3" && node.health() == pb::HsmHealth::Unreachable;
    clients.watch_until(&store, |store| store.nodes.iter().any(gone)).await;
    let key = clients.key(&store).await.key_id;

    let missing = [("hsm-3".to_owned(), DriftKind::Missing, key.clone())];
    assert_eq!(drifts(&mut clients, &rig).await, missing);
    let sync = synced(&mut clients, &rig, false).await;
    assert_eq!((sync.drifts, sync.messages.last().unwrap().keys_failed), (missing.to_vec(), 1));

    std::fs::rename(&away, &here).unwrap();
    clients.all_healthy(&store).await;
    assert_eq!(drifts(&mut clients, &rig).await, []);
    assert_eq!(rig.objects("hsm-3"), rig.objects("hsm-1"));
}

#[tokio::test]
async fn a_token_that_shows_nothing_costs_no_record_and_is_filled_again() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let keys = [clients.key(&store).await.key_id, clients.key(&store).await.key_id, clients.key(&store).await.key_id];
    everywhere(&mut clients, &keys).await;
    let whole = rig.objects("hsm-1");
    rig.empty_token("hsm-1");
    restart_worker(&rig, &mut clients, &store, "hsm-1").await;
    assert_eq!(rig.objects("hsm-1"), whole);
    assert_eq!(drifts(&mut clients, &rig).await, []);
    for key in &keys {
        assert_eq!(clients.describe_key(key).await.state(), pb::KeyState::Enabled);
    }
}

#[tokio::test]
async fn one_cluster_is_compared_once_at_a_time_and_a_reader_who_leaves_makes_room() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    for _ in 0..4 {
        clients.key(&store).await;
    }
    // It waits in the one HSM that hangs.
    let request = || pb::SyncClusterRequest { cluster_id: rig.cluster_id(), dry_run: false };
    let key = clients.key(&store).await.key_id;
    everywhere(&mut clients, std::slice::from_ref(&key)).await;
    delete_key(&rig, "hsm-2", &key);
    let hung = rig.hang_next_creation("hsm-2");
    let mut first: Streaming<_> = clients.clusters.sync_cluster(request()).await.unwrap().into_inner();
    assert!(first.message().await.unwrap().is_some());
    let second = clients.clusters.sync_cluster(request()).await;
    let conflict = second.expect_err("one is running");
    assert_eq!(reason(&conflict), (Code::Aborted, "CONFLICT".to_owned()), "{conflict}");
    drop(first);
    drop(hung);
    wait_async(|| {
        let (mut clients, request) = (clients.clone(), request());
        async move { clients.clusters.sync_cluster(request).await.ok() }
    })
    .await;
}

#[tokio::test]
async fn keys_are_used_while_their_cluster_is_compared() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    for _ in 0..20 {
        clients.key(&store).await;
    }
    let mut news = clients
        .clusters
        .sync_cluster(pb::SyncClusterRequest { cluster_id: rig.cluster_id(), dry_run: false })
        .await
        .unwrap()
        .into_inner();
    while let Some(progress) = news.message().await.unwrap() {
        assert_eq!(progress.keys_failed, 0);
        let ciphertext = clients.encrypt(&key, b"meanwhile").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"meanwhile");
    }
}

#[tokio::test]
async fn only_a_declared_cluster_with_somebody_logged_in_can_be_compared() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let sync = |cluster: &str| pb::SyncClusterRequest { cluster_id: cluster.to_owned(), dry_run: true };
    let list = |cluster: &str| pb::ListDriftRequest { cluster_id: cluster.to_owned(), ..Default::default() };
    for (cluster, reason, field) in
        [("production", "VALIDATION", "cluster_id"), ("cluster-2abcdefghij", "CLOUD_HSM_CLUSTER_NOT_FOUND", "")]
    {
        refused(cluster, clients.clusters.sync_cluster(sync(cluster)).await, reason, field);
        refused(cluster, clients.clusters.list_drift(list(cluster)).await, reason, field);
    }
    let made_up = pb::ListDriftRequest { page_token: "after:here".to_owned(), ..list(&rig.cluster_id()) };
    refused("a token", clients.clusters.list_drift(made_up).await, "INVALID_MARKER", "page_token");
    let negative = pb::ListDriftRequest { page_size: -1, ..list(&rig.cluster_id()) };
    refused("a page of -1", clients.clusters.list_drift(negative).await, "VALIDATION", "page_size");

    let invalid = "CUSTOM_KEY_STORE_INVALID_STATE";
    refused("no key store", clients.clusters.sync_cluster(sync(&rig.cluster_id())).await, invalid, "");
    let store = clients.connected_store(&rig, "main").await;
    clients.disconnect(&store).await;
    refused("disconnected", clients.clusters.sync_cluster(sync(&rig.cluster_id())).await, invalid, "");
    assert_eq!(drifts(&mut clients, &rig).await, []);
}

#[tokio::test]
async fn differences_are_listed_and_mended_from_the_command_line() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    everywhere(&mut clients, std::slice::from_ref(&key)).await;
    delete_key(&rig, "hsm-2", &key);
    let cluster = rig.cluster_id();
    let run = |args: &[&str]| {
        let output = rig.keyway(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let dry = run(&["cluster", "sync", &cluster, "--dry-run"]);
    assert!(dry.contains("MISSING") && dry.contains(&key) && dry.contains("1 of 1 keys compared"), "{dry}");
    assert!(run(&["cluster", "drift", &cluster]).contains(&key));
    let lines = run(&["--output", "json", "cluster", "sync", &cluster]);
    assert!(lines.lines().any(|line| line.contains("DRIFT_KIND_MISSING")), "{lines}");
    assert!(!run(&["cluster", "drift", &cluster]).contains(&key));
}

type Told = (String, DriftKind, String);

/// What a sync said: every message, and the differences among them.
struct Synced {
    messages: Vec<pb::SyncClusterResponse>,
    drifts: Vec<Told>,
}

async fn synced(clients: &mut Clients, rig: &Rig, dry_run: bool) -> Synced {
    let request = pb::SyncClusterRequest { cluster_id: rig.cluster_id(), dry_run };
    let mut news = clients.clusters.sync_cluster(request).await.expect("it begins").into_inner();
    let mut messages = Vec::new();
    while let Some(message) = news.message().await.expect("it ends well") {
        messages.push(message);
    }
    let drifts = told(messages.iter().filter_map(|message| message.drift.clone()));
    Synced { messages, drifts }
}

/// Every difference of the cluster, in pages of two.
async fn drifts(clients: &mut Clients, rig: &Rig) -> Vec<Told> {
    let mut all: Vec<pb::Drift> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListDriftRequest { cluster_id: rig.cluster_id(), page_size: 2, page_token };
        let page = clients.clusters.list_drift(request).await.expect("listed").into_inner();
        all.extend(page.drifts);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let seconds = |drift: &pb::Drift| drift.found_time.map(|time| (time.seconds, time.nanos));
    assert!(all.is_sorted_by_key(seconds), "oldest first: {all:?}");
    told(all.into_iter())
}

fn told(drifts: impl Iterator<Item = pb::Drift>) -> Vec<Told> {
    let mut told: Vec<Told> = drifts.map(|it| (it.hsm_id.clone(), it.kind(), it.key_id)).collect();
    told.sort_by(|one, other| (&one.0, &one.2).cmp(&(&other.0, &other.2)));
    told
}

/// Waits until each key is proved on every node, as far as the records know.
async fn everywhere(clients: &mut Clients, keys: &[String]) {
    for key in keys {
        wait_async(|| {
            let (mut clients, key) = (clients.clone(), key.clone());
            async move {
                let nodes = clients.describe_key(&key).await.nodes;
                (nodes.len() == 3 && nodes.iter().all(|node| node.proof() == pb::KeyProof::Used)).then_some(())
            }
        })
        .await;
    }
}

/// Deletes a key from a node's token, as somebody with the password could; its `CKA_ID`.
fn delete_key(rig: &Rig, hsm: &str, key: &str) -> String {
    let id = rig.objects(hsm).into_iter().find(|object| object.label.contains(key)).expect("it is there").id;
    rig.delete_object(hsm, &id);
    id
}

fn kill_worker(rig: &Rig, hsm: &str) {
    let pid = rustix::process::Pid::from_raw(rig.worker_of(hsm).cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
}

/// Has the node log in again, and waits until it is level.
async fn restart_worker(rig: &Rig, clients: &mut Clients, store: &str, hsm: &str) {
    let of = |store: &pb::KeyStore| {
        store.nodes.iter().find(|node| node.hsm_id == hsm).map_or(0, |node| node.worker_restarts)
    };
    let before = of(&clients.all_healthy(store).await);
    kill_worker(rig, hsm);
    clients.watch_until(store, |store| of(store) > before).await;
    clients.all_healthy(store).await;
}
