//! The disk of an HSM's host is full.

use super::callers;
use crate::failing::node;
use crate::rig::{Rig, engine, kill, pb};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_disk_is_full_serves_the_keys_it_has_and_spends_no_login_until_there_is_room_again() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained_with_little_disks().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    rig.host("hsm-2").fill_disk();
    // It has no room for these. The others have; one that it was asked for first, whether it is there is not known.
    let mut ciphertexts = Vec::new();
    for request in ["first", "second", "third"] {
        let newer = clients.key_in_the_end(&store, request).await.key_id;
        ciphertexts.push(clients.encrypt(&newer, request.as_bytes()).await);
    }
    load.more(20).await;
    let lacking = clients.watch_until(&store, |store| node(store, "hsm-2").keys_missing == 3).await;
    assert!(matches!(node(&lacking, "hsm-2").health(), pb::HsmHealth::Healthy | pb::HsmHealth::Syncing), "{lacking:?}");
    // A login writes, and has a copy made before.
    kill(rig.worker_of("hsm-2"));
    let no_room = |node: &pb::NodeConnection| {
        node.health() == pb::HsmHealth::Unreachable && node.last_error.contains("No space left")
    };
    let away = clients.watch_until(&store, |store| no_room(node(store, "hsm-2"))).await;
    assert_eq!(node(&away, "hsm-2").login_attempts_left, 1);
    load.more(20).await;
    rig.host("hsm-2").free_disk();
    clients.all_healthy(&store).await;
    assert!(load.unharmed().await > 0);
    for hsm in ["hsm-1", "hsm-3"] {
        rig.host(hsm).kill();
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    for (ciphertext, request) in ciphertexts.into_iter().zip(["first", "second", "third"]) {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), request.as_bytes());
    }
    clients.encrypt(&key, b"older").await;
}
