//! Whole zones are lost, cut off and healed; and everything is lost, and comes back one by one.

use tonic::Code;

use super::callers;
use crate::rig::{Rig, engine, pb, reason};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_is_lost_costs_callers_nothing_and_new_keys_wait_for_a_second_zone() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().nodes(4).zones(2).contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    // Hosts are dealt out to the zones in turn.
    let zone = ["hsm-2", "hsm-4"];
    for hsm in zone {
        rig.host(hsm).container().disconnect();
    }
    for hsm in zone {
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    load.more(20).await;
    let request = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
    let refused = clients.keys.create_key(request).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "NO_NODE".to_owned()), "{refused:?}");
    for hsm in zone {
        rig.host(hsm).container().connect();
    }
    clients.all_healthy(&store).await;
    clients.key(&store).await;
    assert!(load.unharmed().await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_host_was_lost_the_first_that_returns_serves_everything() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"before").await;
    let hsms = ["hsm-1", "hsm-2", "hsm-3"];
    for hsm in hsms {
        rig.host(hsm).kill();
    }
    for hsm in hsms {
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    let refused = clients.decrypt(&ciphertext).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "NO_NODE".to_owned()), "{refused:?}");
    for hsm in hsms {
        rig.host(hsm).start();
        clients.until_health(&store, hsm, pb::HsmHealth::Healthy).await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"before", "with {hsm} back");
    }
    clients.all_healthy(&store).await;
}
