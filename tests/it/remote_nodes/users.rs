//! Crypto users whose host is cut off in the middle of what is done for one, or does not manage them.

use std::os::unix::fs::DirBuilderExt;

use faulty_pkcs11::{Function::C_InitToken, Rule};

use crate::crypto_users::{FIRST, SECOND, all_done, present_on};
use crate::rig::{Faults, Rig, Weather, refused, wait_async};

#[tokio::test]
async fn a_user_who_is_being_made_on_a_host_when_the_network_is_cut_is_pending_there_and_caught_up_with() {
    let mut rig = Rig::new().faulty().remote().start();
    let mut clients = rig.clients().await;
    let token = rig.user_token("hsm-2", "alice");
    std::fs::DirBuilder::new().mode(0o700).create(&token).unwrap();
    let faults = Faults::beside(&token.join("softhsm2.conf"));
    faults.mark("held-up");
    faults.set([Rule::block(C_InitToken).during("held-up")]);

    let creating = tokio::spawn({
        let (mut clients, request) = (clients.clone(), rig.creation_of("alice", FIRST));
        async move { clients.users.create_crypto_user(request).await }
    });
    wait_async(|| async { (faults.count(C_InitToken) > 0).then_some(()) }).await;
    rig.host("hsm-2").network(Weather::Cut);
    let alice = creating.await.unwrap().unwrap().into_inner().user.unwrap();
    assert_eq!(present_on(&alice), ["hsm-1", "hsm-3"], "one that is on some HSMs only is told as such");
    assert_eq!(clients.reset_password(&rig, "alice", SECOND).await.unwrap(), ["hsm-2"]);
    clients.log_in(&rig, "alice", SECOND).await.unwrap();

    faults.unmark("held-up");
    rig.host("hsm-2").network(Weather::Fair);
    wait_async(|| {
        let (mut clients, rig) = (clients.clone(), &rig);
        async move { (present_on(&clients.user(rig, "alice").await?).len() == 3).then_some(()) }
    })
    .await;
    all_done(&mut clients, &rig, "alice").await;
    assert!(rig.user_opens("hsm-2", "alice", SECOND) && !rig.user_opens("hsm-2", "alice", FIRST));
    assert!(clients.reset_password(&rig, "alice", FIRST).await.unwrap().is_empty());
}

#[tokio::test]
async fn where_a_nodes_own_configuration_has_no_directory_for_them_users_are_not_changed_there() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    rig.host("hsm-2").stop();
    rig.host("hsm-2").configure(|configuration| {
        configuration.lines().filter(|line| !line.starts_with("user_tokens")).map(|line| format!("{line}\n")).collect()
    });
    rig.host("hsm-2").start();
    assert_eq!(clients.reset_password(&rig, "alice", SECOND).await.unwrap(), ["hsm-2"]);
    assert!(rig.user_opens("hsm-1", "alice", SECOND) && rig.user_opens("hsm-2", "alice", FIRST));
    rig.host("hsm-1").stop();
    let nowhere = refused("nobody is there", clients.delete_user(&rig, "alice").await, "NO_NODE", "");
    assert!(nowhere.message().contains("user_tokens"), "{}", nowhere.message());
}

#[tokio::test]
async fn a_cluster_may_have_hsms_on_this_machine_and_on_others() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    rig.host("hsm-1").stop();
    let (elsewhere, here) = (rig.host("hsm-1").address(), rig.declared_here("hsm-1"));
    rig.restart_with(|configuration| configuration.replace(&elsewhere, &here));
    let mut clients = rig.clients().await;
    let alice = clients.create_user(&rig, "alice", FIRST).await.unwrap();
    assert_eq!(present_on(&alice), ["hsm-1", "hsm-2"]);
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
    assert!(["hsm-1", "hsm-2"].iter().all(|hsm| rig.user_opens(hsm, "alice", SECOND)));
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    clients.key(&store).await;
    clients.delete_user(&rig, "alice").await.unwrap();
    assert!(["hsm-1", "hsm-2"].iter().all(|hsm| !rig.user_token(hsm, "alice").exists()));
}
