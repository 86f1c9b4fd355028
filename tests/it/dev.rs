//! `keyway dev`: what it says of itself, and who one is to it.

use std::process::Stdio;

use crate::rig::{Clients, Rig, Seams, opens_as, pb, wait_async};

#[tokio::test]
async fn the_daemon_says_who_it_is_and_who_one_is() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let info = clients.server.get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert!(info.dev);
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    let me = clients.users.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(me.source(), pb::CallerSource::UnixSocket);
    let mut over_tcp = Clients::tcp(&rig.tcp()).await;
    let me = over_tcp.users.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.source(), me.caller.as_str()), (pb::CallerSource::Loopback, "loopback"));
}

#[tokio::test]
async fn its_cluster_is_made_at_the_first_start_and_left_as_it_is_later() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let id = rig.cluster_id();
    let mut clients = rig.clients().await;
    let cluster = clients.cluster(&id).await;
    assert_eq!((cluster.state(), cluster.hsms.len()), (pb::ClusterState::Active, 2));
    assert!(!cluster.certificate.is_empty() && cluster.cluster_csr.is_empty(), "it was initialized");
    clients.remove_hsm(&id, "hsm-2").await.unwrap();
    clients.cluster_until(&id, |cluster| cluster.hsms.len() == 1).await;
    assert!(rig.stop_daemon().success());
    rig.start_daemon();
    assert_eq!(rig.cluster_id(), id);
    assert_eq!(rig.clients().await.cluster(&id).await.hsms.len(), 1, "what was removed does not come back");
    assert!(rig.path("hsms/hsm-1/kmsuser").is_dir() && !rig.path("hsms/hsm-2").exists());
}

#[tokio::test]
async fn a_first_start_that_was_killed_is_finished_by_the_next() {
    for point in ["hsm-written-down", "user-written-down", "user-give-begun", "user-given"] {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().unwrap();
        let seams = Seams(vec![home.path().join("daemon/seams")]);
        std::fs::create_dir_all(home.path().join("daemon/seams")).unwrap();
        seams.stop_at(point);
        let start = || {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyway"));
            command
                .args(["dev", "--grpc-addr", "off", "--http-addr", "off", "--nodes", "2", "--zones", "2", "--data-dir"])
                .arg(home.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut daemon = start();
        seams.wait_until_stopped_at(point).await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        seams.let_pass(point);
        assert!(!home.path().join("cluster.json").exists(), "it did not say that it was ready");

        let mut daemon = start();
        wait_async(|| async { home.path().join("cluster.json").exists().then_some(()) }).await;
        let password = std::fs::read_to_string(home.path().join("kmsuser.password")).unwrap();
        for hsm in ["hsm-1", "hsm-2"] {
            let token = home.path().join("hsms").join(hsm).join("kmsuser/softhsm2.conf");
            wait_async(|| async { opens_as(&token, "kmsuser", password.trim()).then_some(()) }).await;
        }
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}

#[test]
fn a_data_directory_of_a_former_release_is_refused_with_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let former = r#"{ "cluster_id": "cluster-2abcdefghij", "nodes": 3, "zones": 3 }"#;
    std::fs::write(home.path().join("dev.json"), former).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyway"));
    let refused = command
        .args(["dev", "--grpc-addr", "off", "--http-addr", "off", "--data-dir"])
        .arg(home.path())
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && said.contains("former release") && said.contains("--reset"), "{said}");
    assert!(home.path().join("dev.json").exists());
}
