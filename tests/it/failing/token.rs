//! Tokens that vanish, come back, change places or are not the ones they were; and HSMs taken out of use on purpose.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::{Outcome, Rule};
use tokio_stream::StreamExt as _;

use super::{node, ready};
use crate::rig::{Load, kill, pb, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

#[tokio::test]
async fn a_token_that_vanishes_is_noticed_though_it_says_ok_and_is_back_in_use_when_it_returns() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 16);
    load.more(50).await;
    let (here, away) = (rig.path("hsms/hsm-3/kmsuser/tokens"), rig.path("hsms/hsm-3/kmsuser/away"));
    std::fs::rename(&here, &away).unwrap();
    clients.until_health(&store, "hsm-3", pb::HsmHealth::Unreachable).await;
    load.more(50).await;
    assert_eq!(clients.describe_key(&key).await.nodes.len(), 3, "nothing is forgotten");
    std::fs::rename(&away, &here).unwrap();
    clients.all_healthy(&store).await;
    load.more(50).await;
    load.unharmed().await;
}

#[tokio::test]
async fn a_token_emptied_while_it_serves_is_noticed_by_its_canary_and_gets_everything_back() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 8);
    load.more(50).await;
    let before = rig.objects("hsm-2");
    let (mut watching, watched) = (clients.clone(), store.clone());
    let noticed = tokio::spawn(async move { watching.until_health(&watched, "hsm-2", pb::HsmHealth::Syncing).await });
    rig.empty_token("hsm-2");
    noticed.await.unwrap();
    clients.all_healthy(&store).await;
    assert_eq!(rig.objects("hsm-2"), before);
    load.unharmed().await;
}

#[tokio::test]
async fn slot_numbers_that_change_are_followed_by_the_tokens_name() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 16);
    load.more(50).await;
    rig.faults("hsm-1").set([Rule::slot_offset(7)]);
    clients.until_replaced(&store, "hsm-1", 1).await;
    load.more(50).await;
    load.unharmed().await;
}

#[tokio::test]
async fn no_password_is_sent_to_a_token_with_another_serial_number_until_the_operator_accepts_it() {
    let (rig, mut clients, store, _) = ready().await;
    rig.faults("hsm-2").set([Rule::serial("deadbeef")]);
    let told = clients.until_health(&store, "hsm-2", pb::HsmHealth::WrongIdentity).await;
    assert!(node(&told, "hsm-2").last_error.contains("deadbeef"), "{told:?}");
    let logins = rig.faults("hsm-2").count(C_Login);
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), logins + 1, "none before the operator's word, and one after");
}

#[tokio::test]
async fn a_store_whose_hsms_all_have_other_tokens_fails_without_a_login_and_connects_once_each_is_resumed() {
    let (rig, mut clients, store, key) = ready().await;
    let ciphertext = clients.encrypt(&key, b"moved to new tokens").await;
    clients.disconnect(&store).await;
    let logins = || HSMS.map(|hsm| rig.faults(hsm).count(C_Login));
    let before = logins();
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::serial(&hsm.replace("hsm-", "deadbeef"))]);
    }
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InternalError, "{failed:?}");
    for part in ["deadbeef1", "deadbeef2", "deadbeef3", "resume the HSM"] {
        assert!(failed.connection_error_message.contains(part), "{failed:?}");
    }
    // Before and after anybody has looked at it since, and after the disconnect.
    clients.resume_hsm(&rig.cluster_id(), "hsm-1", false).await;
    clients.until_reach(pb::HsmHealth::NotProbed, "it can be reached").await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected, "{connected:?}");
    assert_eq!(node(&connected, "hsm-3").health(), pb::HsmHealth::WrongIdentity, "nobody spoke for it");
    assert_eq!(logins()[2], before[2], "no password was sent there");
    clients.disconnect(&store).await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", false).await;
    clients.connect(&store).await;
    clients.settled(&store).await;
    clients.all_healthy(&store).await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"moved to new tokens");
}

#[tokio::test]
async fn a_drained_hsm_gets_no_calls_stays_drained_over_a_restart_and_comes_back_level() {
    let (mut rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 16);
    load.more(50).await;
    let drain = pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: "hsm-1".to_owned(),
        note: "new firmware".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(drain).await.unwrap();
    let told = clients.until_health(&store, "hsm-1", pb::HsmHealth::Drained).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
    wait_async(|| async { rig.workers_of("hsm-1").is_empty().then_some(()) }).await;
    load.more(50).await;
    load.unharmed().await;

    let watch = pb::WatchClusterRequest { cluster_id: rig.cluster_id() };
    let mut stream = clients.clusters.watch_cluster(watch).await.unwrap().into_inner();
    stream.message().await.unwrap().expect("the present state");
    let drain = pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: "hsm-1".to_owned(),
        note: "newer firmware".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(drain).await.unwrap();
    let noted = stream.flat_map_changes("hsm-1").next().await;
    assert_eq!(noted, Some((pb::HsmHealth::Drained, "newer firmware".to_owned())));

    rig.stop_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.until_health(&store, "hsm-1", pb::HsmHealth::Drained).await;
    clients.until_health(&store, "hsm-2", pb::HsmHealth::Healthy).await;
    clients.until_health(&store, "hsm-3", pb::HsmHealth::Healthy).await;
    let made_meanwhile = clients.key(&store).await.key_id;
    let cluster = clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.unwrap();
    let hsm = cluster.into_inner().clusters[0].hsms[0].clone();
    assert_eq!((hsm.health(), hsm.health_reason.as_str()), (pb::HsmHealth::Drained, "newer firmware"));
    assert!(rig.workers_of("hsm-1").is_empty());

    clients.resume_hsm(&rig.cluster_id(), "hsm-1", false).await;
    clients.all_healthy(&store).await;
    assert!(rig.objects("hsm-1").iter().any(|object| object.label.contains(&made_meanwhile)));
}

#[tokio::test]
async fn watching_a_cluster_tells_each_change_of_health_with_its_reason() {
    let (rig, mut clients, store, _) = ready().await;
    let watch = pb::WatchClusterRequest { cluster_id: rig.cluster_id() };
    let stream = clients.clusters.watch_cluster(watch).await.unwrap().into_inner();
    kill(rig.worker_of("hsm-2"));
    clients.until_replaced(&store, "hsm-2", 1).await;
    let mut changes = stream.flat_map_changes("hsm-2");
    assert_eq!(changes.next().await, Some((pb::HsmHealth::Unreachable, "its worker ended".to_owned())));
    while let Some((health, reason)) = changes.next().await {
        assert!(!reason.is_empty(), "{health:?}");
        if health == pb::HsmHealth::Healthy {
            return;
        }
    }
    panic!("it never became healthy");
}

#[tokio::test]
async fn hsms_that_nobody_is_logged_in_to_are_known_to_be_reachable_or_not_without_any_login() {
    let rig = crate::rig::Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let logins = || ["hsm-1", "hsm-2", "hsm-3"].map(|hsm| rig.faults(hsm).count(C_Login));
    let before = logins();
    let reached = clients.until_reach(pb::HsmHealth::NotProbed, "it can be reached").await;
    assert!(reached.iter().all(|hsm| !hsm.serial_number.is_empty()), "{reached:?}");
    let (here, away) = (rig.path("hsms/hsm-1/kmsuser/tokens"), rig.path("hsms/hsm-1/kmsuser/away"));
    std::fs::rename(&here, &away).unwrap();
    clients.until_reach(pb::HsmHealth::Unreachable, "").await;
    std::fs::rename(&away, &here).unwrap();
    clients.until_reach(pb::HsmHealth::NotProbed, "it can be reached").await;
    assert_eq!(logins(), before);
    assert_eq!(rig.workers_and_lookouts().len(), 3);
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    wait_async(|| async { (rig.workers_and_lookouts() == rig.workers()).then_some(()) }).await;
}

#[tokio::test]
async fn nobody_goes_on_looking_at_hsms_once_they_are_connected_or_out_of_use_though_the_library_blocks() {
    let mut rig = crate::rig::Rig::new().faulty().start();
    rig.stop_daemon();
    rig.faults("hsm-1").set([Rule::block(C_Initialize)]);
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let looking = |rig: &crate::rig::Rig, hsm: &str| {
        let lookout = format!(".{hsm}.kmsuser.lookout");
        rig.workers_and_lookouts().iter().any(|(_, slot)| slot.ends_with(&lookout))
    };
    let blocked = || rig.faults("hsm-1").journal().iter().filter(|it| it.outcome == Outcome::Blocked).count();
    wait_async(|| async { (blocked() > 0).then_some(()) }).await;
    // Long before a worker that lost its daemon would end by itself.
    let promptly = std::time::Duration::from_secs(5);
    let gone = async |rig: &crate::rig::Rig, hsms: &[&str]| {
        let gone = wait_async(|| async { (!hsms.iter().any(|hsm| looking(rig, hsm))).then_some(()) });
        tokio::time::timeout(promptly, gone).await.expect("its lookout is gone");
    };

    let drain = pb::DrainHsmRequest { cluster_id: rig.cluster_id(), hsm_id: "hsm-1".into(), ..Default::default() };
    clients.clusters.drain_hsm(drain).await.unwrap();
    gone(&rig, &["hsm-1"]).await;
    let before = blocked();
    assert!(looking(&rig, "hsm-2"), "the others are looked at");
    clients.resume_hsm(&rig.cluster_id(), "hsm-1", false).await;
    wait_async(|| async { (blocked() > before).then_some(()) }).await;
    assert!(looking(&rig, "hsm-1"));

    let store = clients.store(&rig, "main").await;
    clients.connect(&store).await;
    gone(&rig, &["hsm-1", "hsm-2", "hsm-3"]).await;
    rig.faults("hsm-1").clear();
    for pid in rig.workers_of("hsm-1") {
        kill(pid);
    }
    clients.all_healthy(&store).await;
}

/// The changes of one HSM in a watch.
trait Changes {
    fn flat_map_changes(
        self,
        hsm: &'static str,
    ) -> std::pin::Pin<Box<dyn tokio_stream::Stream<Item = (pb::HsmHealth, String)>>>;
}

impl Changes for tonic::Streaming<pb::WatchClusterResponse> {
    fn flat_map_changes(
        self,
        hsm: &'static str,
    ) -> std::pin::Pin<Box<dyn tokio_stream::Stream<Item = (pb::HsmHealth, String)>>> {
        let messages = self.map(|message| message.expect("the stream lasts").changes);
        let flat = futures_util::StreamExt::flat_map(messages, futures_util::stream::iter);
        Box::pin(flat.filter(move |change| change.hsm_id == hsm).map(|change| (change.after(), change.reason)))
    }
}
