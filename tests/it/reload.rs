//! SIGHUP: the clusters in the file take the place of those that were declared, all of them or none.

use std::io::BufRead as _;
use std::process::Stdio;

use crate::rig::{Authority, Clients, Served, Validity, certificate_in, pb, refused, with_line};

async fn describe(clients: &mut Clients) -> pb::Cluster {
    let request = pb::DescribeClustersRequest::default();
    clients.clusters.describe_clusters(request).await.expect("they are told").into_inner().clusters.remove(0)
}

#[tokio::test]
async fn a_clusters_state_changes_and_changes_back_while_its_keys_are_used() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await;
    let request = pb::WatchClusterRequest { cluster_id: rig.cluster_id() };
    let mut watch = clients.clusters.watch_cluster(request).await.expect("it is watched").into_inner();
    let first = watch.message().await.expect("the stream lasts").expect("the present state");
    assert_eq!(first.cluster.expect("it is told").state(), pb::ClusterState::Active);

    let line = "state = \"UPDATE_IN_PROGRESS\"\nstate_message = \"an HSM is being added\"";
    let said = served.reload(&with_line(&good, line)).await;
    assert!(said.contains("UPDATE_IN_PROGRESS"), "{said}");
    let told = state_of(&mut watch, pb::ClusterState::UpdateInProgress).await;
    assert_eq!(told.state_message, "an HSM is being added");
    assert_eq!(describe(&mut clients).await.state(), pb::ClusterState::UpdateInProgress);
    let ciphertext = clients.encrypt(&key.key_id, b"as before").await;
    assert_eq!(clients.decrypt(&ciphertext).await.expect("its keys are used"), b"as before");

    served.reload(&good).await;
    state_of(&mut watch, pb::ClusterState::Active).await;
    served.reload(&good.replace(&rig.cluster_id(), "cluster-2zzzzzzzzzz")).await;
    let over = async { while watch.message().await.expect("it ends well").is_some() {} };
    tokio::time::timeout(crate::rig::PATIENCE, over).await.expect("it ends with its cluster");
    assert_eq!(clients.decrypt(&ciphertext).await.expect("who is connected stays so"), b"as before");
}

async fn state_of(watch: &mut tonic::Streaming<pb::WatchClusterResponse>, state: pb::ClusterState) -> pb::Cluster {
    let getting_there = async {
        loop {
            let message = watch.message().await.expect("the stream lasts").expect("the stream lasts");
            let cluster = message.cluster.expect("every message has it");
            if cluster.state() == state {
                return cluster;
            }
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, getting_there).await.expect("it is told")
}

#[tokio::test]
async fn a_file_with_a_problem_changes_nothing() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let before = describe(&mut clients).await;
    let broken = [
        (with_line(&good, "state = \"DEGRADED\"\nbackup_lineage = \"\""), "backup_lineage"),
        (with_line(&good, "state = \"DEGRADED\"\ncertificate = \"nowhere.crt\""), "nowhere.crt"),
        (format!("{}\n[grpc", with_line(&good, "state = \"DEGRADED\"")), "TOML"),
    ];
    for (configuration, named) in broken {
        let said = served.reload(&configuration).await;
        assert!(said.contains("nothing was changed") && said.contains(named), "{said}");
        let now = describe(&mut clients).await;
        assert_eq!((now.state(), &now.subnets), (before.state(), &before.subnets), "{named}");
    }
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn whoever_waits_for_a_cluster_to_be_ready_hears_of_it() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    served.reload(&with_line(&good, "state = \"CREATE_IN_PROGRESS\"")).await;
    let mut waiting = served.keyway(&["cluster", "check", &rig.cluster_id(), "--wait"]);
    let waiting = waiting.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut waiting = waiting.expect("the binary is built");
    let mut said = std::io::BufReader::new(waiting.stderr.take().expect("piped"));
    let (said, first) = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        said.read_line(&mut line).expect("it says what it waits for");
        (said, line)
    })
    .await
    .expect("it is said");
    assert!(first.contains("cluster-active") && first.contains("CREATE_IN_PROGRESS"), "{first}");
    served.reload(&good).await;
    let ended = tokio::task::spawn_blocking(move || (waiting.wait().expect("it is ours"), said)).await;
    assert!(ended.expect("it ends").0.success());
    assert_eq!(describe(&mut clients).await.ineligible_reason, "");
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_warned_of_and_told() {
    let (_rig, served, mut clients) = Served::over_two_hsms().await;
    served.put("cluster.crt", &certificate_in(Validity::Past, false));
    let good = served.configuration();
    served.reload(&with_line(&good, "certificate = \"cluster.crt\"")).await;
    assert!(served.log().contains("certificate: the certificate expired at"), "{}", served.log());
    let told = describe(&mut clients).await;
    assert!(told.certificate.contains("BEGIN CERTIFICATE"), "{told:?}");
    assert_eq!(told.backup_lineage, told.certificate_fingerprint);
    assert_eq!(told.certificate_fingerprint.len(), 64);
}

#[tokio::test]
async fn a_store_whose_cluster_was_not_declared_at_the_start_serves_again_once_it_is() {
    let (rig, mut served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"still there").await;
    served.restart_with(|text| text.replace(&rig.cluster_id(), "cluster-2zzzzzzzzzz")).await;
    let mut clients = served.clients_on_the_socket().await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    let status = refused("using a key", clients.decrypt(&ciphertext).await, "KMS_INVALID_STATE", "");
    assert!(status.message().contains("is not declared") && status.message().contains("SIGHUP"), "{status}");
    let create = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
    refused("making a key", clients.keys.create_key(create).await, "KMS_INVALID_STATE", "");

    served.reload(&good).await;
    assert_eq!(clients.all_healthy(&store).await.nodes.len(), 2);
    assert_eq!(clients.decrypt(&ciphertext).await.expect("as before"), b"still there");
}

#[tokio::test]
async fn an_hsm_whose_cluster_is_not_declared_any_more_is_drained_and_resumed_for_as_long_as_it_serves() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let drain = |hsm: &str| pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: hsm.to_owned(),
        note: "it goes".to_owned(),
        drain_timeout: None,
    };
    served.reload(&good.replace(&rig.cluster_id(), "cluster-2zzzzzzzzzz")).await;
    let told = clients.clusters.drain_hsm(drain("hsm-2")).await.expect("it serves").into_inner().hsm;
    assert_eq!(told.expect("it is told").hsm_id, "hsm-2");
    let drained = |store: &pb::KeyStore| store.nodes[1].health() == pb::HsmHealth::Drained;
    clients.watch_until(&store, drained).await;

    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.all_healthy(&store).await;
    let answer = clients.clusters.drain_hsm(drain("hsm-9")).await;
    refused("one that never was", answer, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
    clients.disconnect(&store).await;
    let answer = clients.clusters.drain_hsm(drain("hsm-2")).await;
    refused("one that serves no more", answer, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_to_its_end_does_not_keep_the_daemon_from_ending() {
    use std::os::unix::fs::OpenOptionsExt as _;

    let (_rig, mut served, _clients) = Served::over_two_hsms().await;
    let file = served.home().join("keyway.toml");
    std::fs::remove_file(&file).expect("our directory");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("coreutils").success());
    served.hang_up();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    // It opens only when somebody reads at the other end, who then waits for a text that never comes.
    let writer = crate::rig::wait_async(|| async {
        std::fs::OpenOptions::new().write(true).custom_flags(nonblocking).open(&file).ok()
    })
    .await;
    served.tell_to_stop();
    assert!(served.ended().await.success());
    drop(writer);
}

#[tokio::test]
async fn new_certificates_are_shown_and_believed_without_a_restart() {
    let (_rig, served, _clients) = Served::over_two_hsms().await;
    let (configuration, ops) = (served.configuration(), served.transport.client("ops"));
    let may_come = async |served: &Served| match served.clients(Some(&ops)).await {
        Ok(mut clients) => clients.users.who_am_i(pb::WhoAmIRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(may_come(&served).await);
    served.put("server.crt", "no certificate");
    let said = served.reload(&configuration).await;
    assert!(said.contains("the certificates cannot be used; nothing was changed"), "{said}");
    assert!(may_come(&served).await, "what was read before is shown");

    let others = Authority::new("another transport");
    let (server, own) = (others.server(), served.transport.server());
    served.put("server.crt", &server.certificate);
    served.put("server.key", &server.key);
    served.reload(&configuration).await;
    assert!(!may_come(&served).await, "who trusts the former CA sees another one's certificate");
    served.put("server.crt", &own.certificate);
    served.put("server.key", &own.key);
    served.reload(&configuration).await;
    assert!(may_come(&served).await);
    served.put("clients-ca.crt", &others.pem());
    served.reload(&configuration).await;
    assert!(!may_come(&served).await, "its certificate is from a CA that is believed no more");
}
