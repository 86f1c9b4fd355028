//! A host more, in one of the zones, while callers work.

use super::callers;
use crate::failing::node;
use crate::rig::{Declaring, Rig, engine, pb};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_host_that_is_declared_joins_under_load_takes_every_key_and_serves_alone() {
    let Some(_) = engine() else { return };
    let (mut cluster, mut clients) = Declaring::over(Rig::new().contained()).await;
    let store = clients.connected_store(&cluster.rig, "main").await;
    clients.all_healthy(&store).await;
    let mut ciphertexts = Vec::new();
    let mut key = String::new();
    for number in 0..5_u8 {
        key = clients.key(&store).await.key_id;
        ciphertexts.push(clients.encrypt(&key, &[number]).await);
    }
    let load = callers(&clients, &key);
    load.more(20).await;
    cluster.rig.add_host("hsm-4");
    cluster.reload(&cluster.rig.remote_configuration(&[])).await;
    let joined = clients
        .watch_until(&store, |store| store.nodes.len() == 4 && node(store, "hsm-4").health() == pb::HsmHealth::Healthy)
        .await;
    assert_eq!(node(&joined, "hsm-4").keys_missing, 0);
    load.more(20).await;
    assert!(load.unharmed().await > 0);
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        cluster.rig.host(hsm).kill();
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    for (number, ciphertext) in (0..5_u8).zip(ciphertexts) {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), [number]);
    }
    clients.encrypt(&key, b"by itself").await;
}
