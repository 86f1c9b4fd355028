//! Handles that name another key, creations whose answer is lost, devices that answer nonsense, uses that run out.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;
use tonic::Code;

use super::ready;
use crate::rig::{Load, kill, pb, reason, wait_async};

#[tokio::test]
async fn handles_dealt_out_anew_after_a_reset_never_encrypt_under_another_key() {
    let (rig, mut clients, store, key) = ready().await;
    let mut keys = vec![key];
    for _ in 0..4 {
        keys.push(clients.key(&store).await.key_id);
    }
    let mut kept = Vec::new();
    for round in 0..u8::try_from(rig.rounds(3)).unwrap() {
        for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
            rig.faults(hsm).reboot();
            for (number, key) in keys.iter().enumerate() {
                let plaintext = [round, u8::try_from(number).unwrap()];
                for _ in 0..3 {
                    kept.push((plaintext, clients.encrypt(key, &plaintext).await));
                }
            }
            clients.all_healthy(&store).await;
        }
    }
    for (plaintext, ciphertext) in kept {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), plaintext);
    }
}

#[tokio::test]
async fn a_search_that_finds_the_wrong_key_is_not_believed() {
    let (rig, mut clients, store, key) = ready().await;
    clients.key(&store).await;
    rig.faults("hsm-1").set([Rule::find_wrong()]);
    // A new worker has to look every key up.
    kill(rig.worker_of("hsm-1"));
    let told = |store: &pb::KeyStore| super::node(store, "hsm-1").last_error.contains("another key");
    clients.watch_until(&store, told).await;
    let mut kept = Vec::new();
    for number in 0..30_u8 {
        kept.push((number, clients.encrypt(&key, &[number]).await));
    }
    rig.faults("hsm-1").clear();
    for worker in rig.workers_of("hsm-1") {
        kill(worker);
    }
    clients.all_healthy(&store).await;
    for (number, ciphertext) in kept {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), [number]);
    }
}

#[tokio::test]
async fn a_creation_that_was_done_and_then_refused_is_told_as_unknown_and_settled_by_looking() {
    let (rig, mut clients, store, _) = ready().await;
    let before = ["hsm-1", "hsm-2", "hsm-3"].map(|hsm| rig.objects(hsm));
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::fail(C_GenerateKey, CKR_DEVICE_ERROR).after().once()]);
    }
    let request =
        pb::CreateKeyRequest { key_store_id: store.clone(), request_id: "again".into(), ..Default::default() };
    let refused = clients.keys.create_key(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Aborted, "OUTCOME_UNKNOWN".to_owned()), "{refused}");
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    wait_async(|| async { (["hsm-1", "hsm-2", "hsm-3"].map(|hsm| rig.objects(hsm)) == before).then_some(()) }).await;
    // The same request, repeated, makes the key: one.
    let key = wait_async(|| {
        let (mut clients, request) = (clients.clone(), request.clone());
        async move { clients.keys.create_key(request).await.ok() }
    });
    let key = key.await.into_inner().key.unwrap().key_id;
    clients.all_healthy(&store).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        assert_eq!(rig.objects(hsm).iter().filter(|object| object.label.contains(&key)).count(), 1, "{hsm}");
    }
}

#[tokio::test]
async fn a_new_key_that_a_healthy_node_has_no_room_for_is_told_as_missing_and_brought_once_there_is_room() {
    let (rig, mut clients, store, _) = ready().await;
    let logins = rig.faults("hsm-3").count(C_Login);
    rig.faults("hsm-3").set([Rule::fail(C_UnwrapKey, CKR_DEVICE_MEMORY), Rule::fail(C_GenerateKey, CKR_DEVICE_MEMORY)]);
    let key = clients.key(&store).await.key_id;
    let told = clients.until_health(&store, "hsm-3", pb::HsmHealth::Syncing).await;
    assert!(super::node(&told, "hsm-3").last_error.contains("could not be copied"), "{told:?}");
    assert!(!rig.objects("hsm-3").iter().any(|object| object.label.contains(&key)));
    let request = pb::ListDriftRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    let [drift] = &clients.clusters.list_drift(request.clone()).await.unwrap().into_inner().drifts[..] else {
        panic!("one key is missing on one node")
    };
    assert_eq!((drift.hsm_id.as_str(), drift.kind(), &drift.key_id), ("hsm-3", pb::DriftKind::Missing, &key));
    // It goes on serving what it has, and its siblings the new key.
    let ciphertext = clients.encrypt(&key, b"meanwhile").await;

    rig.faults("hsm-3").clear();
    let level = clients.all_healthy(&store).await;
    assert_eq!(super::node(&level, "hsm-3").worker_restarts, 0, "no new login was needed");
    assert_eq!(rig.faults("hsm-3").count(C_Login), logins);
    assert_eq!(rig.objects("hsm-3"), rig.objects("hsm-1"));
    assert_eq!(clients.clusters.list_drift(request).await.unwrap().into_inner().drifts, []);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"meanwhile");
}

#[tokio::test]
async fn a_device_that_answers_errors_for_a_while_costs_no_caller_anything() {
    let (rig, clients, _, key) = ready().await;
    let load = Load::start(&clients, &key, 32);
    load.more(100).await;
    for ckr in
        [CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR, CKR_DEVICE_MEMORY, CKR_HOST_MEMORY, 0x8000_0001]
    {
        rig.faults("hsm-1").set([Rule::fail([C_EncryptInit, C_Encrypt, C_DecryptInit, C_Decrypt], ckr)]);
        load.more(100).await;
    }
    rig.faults("hsm-1").clear();
    load.unharmed().await;
}

#[tokio::test]
async fn a_device_that_is_gone_in_every_way_costs_no_caller_anything() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 32);
    load.more(100).await;
    for ckr in [CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_SLOT_ID_INVALID] {
        rig.faults("hsm-2").set([Rule::fail([C_EncryptInit, C_DecryptInit, C_GetTokenInfo], ckr)]);
        clients.until_health(&store, "hsm-2", pb::HsmHealth::Unreachable).await;
        rig.faults("hsm-2").clear();
        clients.all_healthy(&store).await;
    }
    load.unharmed().await;
}

#[tokio::test]
async fn what_a_generation_leaves_that_was_cut_off_at_its_very_beginning_is_destroyed() {
    let (rig, mut clients, store, _) = ready().await;
    let before = rig.objects("hsm-2");
    // SoftHSM2 gives an object its defaults first, of which one says that it is no object of the token, and only then
    // what was asked for.
    let number = |number: u64| number.to_be_bytes().to_vec();
    let [generation, class, token, key_type] = [number(1), number(0), number(1), number(0x100)];
    let [is_a_bool, is_a_number, secret_key, aes] = [number(1), number(2), number(4), number(0x1f)];
    let class = [class, is_a_number.clone(), secret_key].concat();
    let key_type = [key_type, is_a_number, aes].concat();
    let token = [token, is_a_bool, vec![0]].concat();
    let half_made = [generation, class, token, key_type].concat();
    let tokens = std::fs::read_dir(rig.path("hsms/hsm-2/kmsuser/tokens")).unwrap();
    let token = tokens.flatten().next().unwrap().path();
    std::fs::write(token.join("0badcafe-0bad-0bad-0bad-0badcafe0bad.object"), half_made).unwrap();
    assert_eq!(rig.objects("hsm-2").len(), before.len() + 1);
    kill(rig.worker_of("hsm-2"));
    clients.until_replaced(&store, "hsm-2", 1).await;
    assert_eq!(rig.objects("hsm-2"), before);
}

#[tokio::test]
async fn a_library_that_reads_no_attributes_costs_a_token_none_of_its_keys() {
    let (rig, mut clients, store, key) = ready().await;
    let (before, destroyed) = (rig.objects("hsm-2"), rig.faults("hsm-2").count(C_DestroyObject));
    let ciphertext = clients.encrypt(&key, b"before").await;
    for (times, ckr) in [(1, CKR_FUNCTION_NOT_SUPPORTED), (2, CKR_ARGUMENTS_BAD), (3, CKR_ATTRIBUTE_VALUE_INVALID)] {
        rig.faults("hsm-2").set([Rule::journal(C_GetAttributeValue), Rule::fail(C_GetAttributeValue, ckr)]);
        let former = rig.worker_of("hsm-2");
        kill(former);
        // Its successor has looked for what the former may have left half-made: at every object.
        let asked = || {
            let journal = rig.faults("hsm-2").journal();
            let asked = journal.iter().filter(|it| it.function == C_GetAttributeValue && it.pid != former);
            asked.filter(|it| it.outcome == faulty_pkcs11::Outcome::Answered(ckr)).count()
        };
        wait_async(|| async { (asked() >= before.len()).then_some(()) }).await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"before");
        rig.faults("hsm-2").clear();
        clients.until_replaced(&store, "hsm-2", times).await;
        assert_eq!(rig.objects("hsm-2"), before, "0x{ckr:x}");
        assert_eq!(rig.faults("hsm-2").count(C_DestroyObject), destroyed, "0x{ckr:x}");
    }
}

#[tokio::test]
async fn an_encryption_that_moves_to_another_hsm_spends_another_use_and_does_not_move_past_the_limit() {
    let (mut rig, mut clients, store, key) = ready().await;
    let ciphertext = clients.encrypt(&key, b"from before").await;
    rig.stop_daemon();
    let spent = (1_u64 << 32) - 3;
    let records = format!("sqlite://{}", rig.path("daemon/records.sqlite3").display());
    let records = sqlx::SqlitePool::connect(&records).await.expect("the daemon has ended");
    let set = sqlx::query("UPDATE key_versions SET uses_reserved = ?").bind(spent.cast_signed());
    assert_eq!(set.execute(&records).await.unwrap().rows_affected(), 1);
    records.close().await;
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;

    // Three uses are left. Two HSMs are asked, and each may have made an IV.
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::fail(C_Encrypt, CKR_DEVICE_ERROR), Rule::journal(C_Encrypt)]);
    }
    let tried = || -> usize { ["hsm-1", "hsm-2", "hsm-3"].iter().map(|hsm| rig.faults(hsm).count(C_Encrypt)).sum() };
    let request = pb::EncryptRequest { key_id: key, plaintext: b"x".to_vec(), ..Default::default() };
    let refused = clients.crypto.encrypt(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "NO_NODE".to_owned()), "{refused:?}");
    assert_eq!(tried(), 2);
    let refused = clients.crypto.encrypt(request.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "KEY_USE_LIMIT".to_owned()), "{refused:?}");
    assert_eq!(tried(), 3, "a second HSM was asked with no use left");
    let refused = clients.crypto.encrypt(request).await.unwrap_err();
    assert_eq!(reason(&refused).1, "KEY_USE_LIMIT");
    assert_eq!(tried(), 3);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"from before", "it goes on decrypting");
}
