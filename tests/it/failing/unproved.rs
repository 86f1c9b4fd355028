//! A daemon over tokens that it did not make: no SO was ever let in for it.

use faulty_pkcs11::{Function::*, Outcome, Rule};

use crate::rig::{Rig, Served, pb, wait_async};

#[tokio::test]
async fn a_login_of_the_so_that_is_never_answered_is_not_made_again_and_no_other_node_is_held_up() {
    let (served, rig) = Served::over(Rig::new().faulty(), &["ops"], |_| String::new()).await;
    let mut clients = served.clients_on_the_socket().await;
    // Whichever node is first to make the cluster's key: its worker dies when the SO is logged in, the user is already.
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::crash(C_Login).nth(2)]);
    }
    let store = clients.store(&rig, "main").await;
    clients.connect(&store).await;
    let crashed = || {
        let of = |hsm: &&&str| rig.faults(hsm).journal().iter().any(|it| it.outcome == Outcome::Crashed);
        ["hsm-1", "hsm-2", "hsm-3"].iter().filter(of).count()
    };
    wait_async(|| async { (crashed() > 0).then_some(()) }).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    // One that was not asked may still be waiting for a sibling to give it the cluster's keys.
    let stopped = |node: &pb::NodeConnection| node.last_error.contains("a login as SO was never answered");
    let settled = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy || stopped(node);
    let told = clients.watch_until(&store, |store| store.nodes.iter().all(settled)).await;
    assert_eq!(told.nodes.iter().filter(|node| stopped(node)).count(), crashed(), "{told:?}");
    for stopped in told.nodes.iter().filter(|node| stopped(node)) {
        clients.resume_hsm(&rig.cluster_id(), &stopped.hsm_id, true).await;
    }
    clients.all_healthy(&store).await;
    // Before the tokens go.
    drop(served);
}
