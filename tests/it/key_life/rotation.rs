//! New versions of a key: the newest encrypts, every one decrypts, and what comes to nothing leaves nothing.

use super::*;

impl Clients {
    /// All of them, in pages of one: so that the pages meet.
    async fn versions(&mut self, key: &str) -> Vec<pb::KeyVersion> {
        let (mut versions, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListKeyVersionsRequest { key_id: key.to_owned(), page_size: 1, page_token };
            let page = self.keys.list_key_versions(request).await.expect("listed").into_inner();
            versions.extend(page.versions);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return versions;
            }
        }
    }

    /// With which version the key encrypts now, and what.
    async fn encrypt_now(&mut self, key: &str) -> (i32, Vec<u8>) {
        let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: b"kept".to_vec(), ..Default::default() };
        let made = self.crypto.encrypt(request).await.expect("the key encrypts").into_inner();
        (made.key_version, made.ciphertext)
    }

    async fn until_current(&mut self, key: &str, version: i32) -> pb::Key {
        let clients = self.clone();
        wait_async(|| async {
            let told = clients.clone().describe_key(key).await;
            (told.current_version == version).then_some(told)
        })
        .await
    }
}

fn labels(key: &str, versions: &[i32]) -> Vec<String> {
    versions.iter().map(|version| format!("keyway:{key}:{version}")).collect()
}

#[tokio::test]
async fn after_a_rotation_the_new_version_encrypts_and_every_version_decrypts_on_every_hsm() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let (key, other) = (clients.key(&store).await.key_id, clients.key(&store).await.key_id);
    let (first, by_first) = clients.encrypt_now(&key).await;
    let told = clients.rotate(&key, "once").await.unwrap();
    assert_eq!((first, told.current_version, told.key_id.as_str()), (1, 2, key.as_str()));
    assert_eq!(told.uses, 1, "its probe; a version counts for itself");
    let (second, by_second) = clients.encrypt_now(&key).await;
    assert_eq!(second, 2);

    // A repetition rotates once; the same id for another key is a mistake.
    assert_eq!(clients.rotate(&key, "once").await.unwrap().current_version, 2);
    refused("another key", clients.rotate(&other, "once").await, "REQUEST_ID_REUSED", "request_id");
    assert_eq!(clients.rotate(&key, "").await.unwrap().current_version, 3);
    let versions = clients.versions(&key).await;
    let told: Vec<_> = versions.iter().map(|version| (version.version, version.state())).collect();
    let old = pb::KeyVersionState::DecryptOnly;
    assert_eq!(told, [(3, pb::KeyVersionState::Current), (2, old), (1, old)]);
    assert_eq!(versions[2].nodes.len(), 3, "{versions:?}");

    clients.until_level(&rig).await;
    for hsm in HSMS {
        let mut keys = rig.keys_on(hsm);
        keys.retain(|label| !label.contains(&other));
        keys.sort();
        assert_eq!(keys, labels(&key, &[1, 2, 3]), "{hsm}");
    }
    for ciphertext in [&by_first, &by_second] {
        assert_eq!(clients.decrypt(ciphertext).await.unwrap(), b"kept");
    }
}

#[tokio::test]
async fn an_hsm_that_is_away_gets_the_new_version_when_it_is_back() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let cluster = rig.cluster_id();
    let drain = |hsm: &str| pb::DrainHsmRequest {
        cluster_id: cluster.clone(),
        hsm_id: hsm.to_owned(),
        note: "new fans".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(drain("hsm-3")).await.unwrap();
    clients.rotate(&key, "").await.unwrap();
    let (version, ciphertext) = clients.encrypt_now(&key).await;
    assert_eq!(version, 2);
    clients.resume_hsm(&cluster, "hsm-3", false).await;
    clients.all_healthy(&store).await;
    clients.until_level(&rig).await;
    // It alone serves.
    for hsm in ["hsm-1", "hsm-2"] {
        clients.clusters.drain_hsm(drain(hsm)).await.unwrap();
    }
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
    refused("one zone is not enough", clients.rotate(&key, "").await, "NO_NODE", "");
    assert_eq!(clients.describe_key(&key).await.current_version, 2);
}

#[tokio::test]
async fn a_rotation_that_was_killed_midway_leaves_the_key_as_it_was_and_its_number_does_not_come_again() {
    for point in ["rotate-begun", "rotate-made"] {
        let (mut rig, mut clients, store) = Rig::new().seams().connected().await;
        clients.all_healthy(&store).await;
        let key = clients.key(&store).await.key_id;
        clients.until_level(&rig).await;
        rig.stop_at(point);
        let (mut rotating, asked) = (clients.clone(), key.clone());
        let call = tokio::spawn(async move { rotating.rotate(&asked, "again").await });
        rig.wait_until_stopped_at(point).await;
        let versions = clients.versions(&key).await;
        assert_eq!((versions[0].version, versions[0].state()), (2, pb::KeyVersionState::Creating), "{point}");
        refused("one at a time", clients.try_rotate(&key, "other").await, "CONFLICT", "");
        rig.kill_daemon();
        assert!(call.await.unwrap().is_err());

        rig.let_pass(point);
        rig.start_daemon();
        let mut clients = rig.clients().await;
        clients.all_healthy(&store).await;
        clients.until_level(&rig).await;
        assert_eq!(clients.encrypt_now(&key).await.0, 1, "{point}");
        for hsm in HSMS {
            assert_eq!(rig.keys_on(hsm), labels(&key, &[1]), "{point}: {hsm}");
        }
        assert_eq!(clients.rotate(&key, "again").await.unwrap().current_version, 3, "{point}");
    }
}

#[tokio::test]
async fn a_key_rotates_by_itself_when_its_period_is_over_and_when_its_version_is_worn() {
    let (mut rig, mut clients, store) = Rig::new().nodes(2).zones(2).seams().deletion_day("100ms").connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let (_, ciphertext) = clients.encrypt_now(&key).await;
    let enable = |days: i32| pb::EnableKeyRotationRequest { key_id: key.clone(), rotation_period_days: days };
    for days in [-1, 89, 2_561] {
        let answer = clients.keys.enable_key_rotation(enable(days)).await;
        refused("the period", answer, "VALIDATION", "rotation_period_days");
    }
    let told = clients.keys.enable_key_rotation(enable(90)).await.unwrap().into_inner().key.unwrap();
    assert_eq!((told.rotation_period_days, told.next_rotation_time.is_some()), (90, true));
    std::fs::write(rig.path("daemon/seams/clock-offset"), (91 * 24 * 60 * 60).to_string()).unwrap();
    let rotated = clients.until_current(&key, 2).await;
    let next = |key: &pb::Key| key.next_rotation_time.expect("it rotates by itself").seconds;
    assert!(next(&rotated) >= next(&told) + 90 * 24 * 60 * 60, "{told:?} {rotated:?}");

    let disable = pb::DisableKeyRotationRequest { key_id: key.clone() };
    let told = clients.keys.disable_key_rotation(disable).await.unwrap().into_inner().key.unwrap();
    assert_eq!((told.rotation_period_days, told.next_rotation_time), (0, None));
    let worn = clients.key(&store).await.key_id;
    rig.stop_daemon();
    let records = rig.path("daemon/records.sqlite3");
    let records = sqlx::SqlitePool::connect(&format!("sqlite://{}", records.display())).await.unwrap();
    let id = uuid::Uuid::parse_str(&worn).unwrap();
    let set = sqlx::query("UPDATE key_versions SET uses_reserved = ? WHERE key_id = ?");
    let set = set.bind(1_i64 << 31).bind(id.as_bytes().to_vec()).execute(&records).await.unwrap();
    assert_eq!(set.rows_affected(), 1);
    records.close().await;
    rig.start_daemon();
    let mut clients = rig.clients().await;
    assert_eq!(clients.until_current(&worn, 2).await.uses, 1);
    assert_eq!(clients.describe_key(&key).await.current_version, 2, "nothing is due of the other one");
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
}
