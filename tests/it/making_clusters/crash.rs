//! A daemon that is killed while an HSM comes or goes: the next one finishes it.

use crate::rig::{Clients, Maker, PASSWORD, pb};

async fn adds(mut clients: Clients, cluster: String) {
    let request = pb::AddHsmRequest {
        cluster_id: cluster,
        availability_zone: "us-east-1c".to_owned(),
        hsm_id: "hsm-3".to_owned(),
        ..Default::default()
    };
    let _ = clients.clusters.add_hsm(request).await;
}

async fn removes(mut clients: Clients, cluster: String) {
    let _ = clients.remove_hsm(&cluster, "hsm-2").await;
}

/// Has this asked for, and kills the daemon at a point of it: clients of the next one.
async fn killed_at(maker: &mut Maker, point: &str, asked: impl Future<Output = ()> + Send + 'static) -> Clients {
    maker.seams().stop_at(point);
    let asking = tokio::spawn(asked);
    maker.seams().wait_until_stopped_at(point).await;
    maker.kill_daemon();
    asking.await.unwrap();
    maker.seams().let_pass(point);
    maker.start_daemon();
    maker.clients().await
}

#[tokio::test]
async fn a_kill_anywhere_in_adding_an_hsm_leaves_one_that_the_next_daemon_finishes() {
    let mut maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 2).await;
    let key = clients.key(&store).await.key_id;
    for point in ["hsm-written-down", "hsm-home-made", "user-give-begun", "hsm-has-kmsuser"] {
        clients = killed_at(&mut maker, point, adds(clients.clone(), cluster.clone())).await;
        let active = |hsm: &pb::Hsm| hsm.hsm_id == "hsm-3" && hsm.state() == pb::HsmState::Active;
        clients.cluster_until(&cluster, |cluster| cluster.hsms.iter().any(active)).await;
        assert!(maker.opens(&cluster, "hsm-3", "kmsuser", PASSWORD), "{point}");
        let tokens = std::fs::read_dir(maker.hsm(&cluster, "hsm-3").join("kmsuser/tokens")).unwrap().count();
        assert_eq!(tokens, 1, "{point}: no token is made twice");
        clients.all_level(&store, 3).await;
        clients.encrypt(&key, point.as_bytes()).await;
        clients.remove_hsm(&cluster, "hsm-3").await.unwrap();
        clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == 2).await;
    }
}

#[tokio::test]
async fn a_kill_anywhere_in_removing_an_hsm_leaves_nothing_of_it_once_the_next_daemon_runs() {
    let mut maker = Maker::start();
    let mut clients = maker.clients().await;
    let (cluster, store) = maker.connected(&mut clients, 3).await;
    let key = clients.key(&store).await.key_id;
    for point in ["hsm-removal-written-down", "hsm-given-up", "hsm-home-moved-away", "hsm-home-removed"] {
        clients.all_level(&store, 3).await;
        clients = killed_at(&mut maker, point, removes(clients.clone(), cluster.clone())).await;
        clients.cluster_until(&cluster, |cluster| cluster.hsms.len() == 2).await;
        for name in ["hsm-2", ".removed.hsm-2"] {
            assert!(!maker.hsm(&cluster, name).exists(), "{point}: {name}");
        }
        clients.all_level(&store, 2).await;
        clients.encrypt(&key, point.as_bytes()).await;
        clients.add_hsm(&cluster, 2).await;
    }
}
