//! Clusters that keyway makes, from nothing to a key in use; HSMs added to them, and removed.

mod crash;
mod hsms;
mod refusals;

use crate::rig::{Maker, PASSWORD, opens_as, openssl, pb, refused};

impl Maker {
    /// Whether a user's own token on an HSM lets him in, asked past keyway.
    fn opens(&self, cluster: &str, hsm: &str, user: &str, password: &str) -> bool {
        let home = self.hsm(cluster, hsm);
        let token = if user == "kmsuser" { home.join("kmsuser") } else { home.join("users").join(user) };
        opens_as(&token.join("softhsm2.conf"), user, password)
    }
}

/// As AWS's guide has it: create, the first HSM, its request signed with openssl, initialize, activate, one more HSM.
#[tokio::test]
async fn a_cluster_is_made_on_the_command_line_signed_with_openssl_and_serves() {
    let maker = Maker::start();
    let created =
        maker.json(&["cluster", "create", "--subnet", "subnet-1=us-east-1a", "--subnet", "subnet-2=us-east-1b"]);
    let cluster = created["cluster"]["clusterId"].as_str().unwrap().to_owned();
    assert_eq!(created["cluster"]["state"], "CLUSTER_STATE_UNINITIALIZED");
    assert!(created["cluster"]["clusterCsr"].is_null(), "there is none before the first HSM");

    let described = || maker.json(&["cluster", "describe", &cluster])["clusters"][0].clone();
    let added = maker.json(&["cluster", "add-hsm", &cluster, "--zone", "us-east-1a", "--hsm-id", "hsm-1"]);
    assert_eq!(added["hsm"]["state"], "HSM_STATE_ACTIVE", "{added}");
    let csr = described()["clusterCsr"].as_str().unwrap().to_owned();
    std::fs::write(maker.path("cluster.csr"), &csr).unwrap();
    maker.json(&["cluster", "add-hsm", &cluster, "--subnet", "subnet-2", "--hsm-id", "hsm-2"]);
    assert_eq!(described()["clusterCsr"].as_str(), Some(csr.as_str()), "the first HSM's request stays");

    let here = maker.path("");
    openssl(&["genrsa", "-out", "customerCA.key", "2048"], &here);
    let subject = ["-subj", "/CN=customer"];
    let request = ["req", "-new", "-x509", "-days", "3652", "-key", "customerCA.key", "-out", "customerCA.crt"];
    openssl(&[&request[..], &subject].concat(), &here);
    let with = ["-CA", "customerCA.crt", "-CAkey", "customerCA.key", "-CAcreateserial", "-out", "cluster.crt"];
    openssl(&[&["x509", "-req", "-days", "3652", "-in", "cluster.csr"], &with[..]].concat(), &here);
    let (signed, anchor) = (maker.path("cluster.crt"), maker.path("customerCA.crt"));
    let (signed, anchor) = (signed.to_str().unwrap(), anchor.to_str().unwrap());
    let init = ["cluster", "init", &cluster, "--signed-certificate", signed, "--trust-anchor", anchor];
    for _ in 0..2 {
        let initialized = maker.json(&init);
        assert_eq!(initialized["cluster"]["state"], "CLUSTER_STATE_INITIALIZED", "also when it is repeated");
    }
    let initialized = described();
    assert!(initialized["clusterCsr"].is_null(), "it is there only while the cluster is UNINITIALIZED");
    assert_eq!(initialized["certificate"], std::fs::read_to_string(signed).unwrap());

    std::fs::write(maker.path("password"), PASSWORD).unwrap();
    let password = maker.path("password");
    let password = ["--password-file", password.to_str().unwrap()];
    maker.json(&[&["crypto-user", "create", &cluster, "kmsuser"], &password[..]].concat());
    assert_eq!(described()["state"], "CLUSTER_STATE_ACTIVE", "the first crypto user activates it");
    let check = ["cluster", "check", &cluster, "--trust-anchor", anchor];
    let checked = maker.json(&[&check[..], &password].concat());
    assert_eq!(checked["passed"], true, "{checked}");

    let store =
        ["key-store", "create", "--name", "main", "--cluster-id", &cluster, "--trust-anchor-certificate", anchor];
    maker.json(&[&store[..], &password].concat());
    assert!(maker.keyway(&["key-store", "connect", "main", "--wait"]).status.success());
    maker.json(&["key", "create", "--key-store", "main", "--alias", "alias/first"]);
    for hsm in ["hsm-1", "hsm-2"] {
        assert!(maker.opens(&cluster, hsm, "kmsuser", PASSWORD));
    }
}

#[tokio::test]
async fn keyway_makes_the_authority_of_a_cluster_once_and_signs_with_it() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let one = maker.uninitialized(&mut clients, 1).await;
    maker.initialize(&one, "customer");
    let key = maker.path("customer/customerCA.key");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let (authority, certificate) =
        (std::fs::read(&key).unwrap(), std::fs::read(maker.path("customer/customerCA.crt")).unwrap());
    let other = maker.uninitialized(&mut clients, 1).await;
    maker.initialize(&other, "customer");
    assert_eq!(
        (std::fs::read(&key).unwrap(), std::fs::read(maker.path("customer/customerCA.crt")).unwrap()),
        (authority, certificate)
    );
    // As after an answer that was lost.
    let again = maker.initialize(&one, "customer");
    assert_eq!(again["cluster"]["state"], "CLUSTER_STATE_INITIALIZED");
    let (one, other) = (clients.cluster(&one).await, clients.cluster(&other).await);
    assert_ne!(one.certificate, other.certificate);
    assert_ne!(one.backup_lineage, other.backup_lineage, "they are no relatives");
    assert_eq!((one.state(), one.cluster_csr.as_str()), (pb::ClusterState::Initialized, ""));
}

#[tokio::test]
async fn a_repeated_request_gives_the_cluster_that_it_made() {
    let mut maker = Maker::start_with("quota = 2");
    let mut clients = maker.clients().await;
    let request = |zone: &str, request_id: &str| pb::CreateClusterRequest {
        subnets: vec![pb::NewSubnet { subnet_id: "subnet-1".to_owned(), availability_zone: zone.to_owned() }],
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    let id = |made: tonic::Response<pb::CreateClusterResponse>| made.into_inner().cluster.unwrap().cluster_id;
    let made = id(clients.clusters.create_cluster(request("us-east-1a", "once")).await.unwrap());
    maker.kill_daemon();
    maker.start_daemon();
    let mut clients = maker.clients().await;
    assert_eq!(id(clients.clusters.create_cluster(request("us-east-1a", "once")).await.unwrap()), made);
    let other = clients.clusters.create_cluster(request("us-east-1b", "once")).await;
    refused("another cluster under the same id", other, "REQUEST_ID_REUSED", "request_id");
    assert_ne!(id(clients.clusters.create_cluster(request("us-east-1a", "twice")).await.unwrap()), made);
    let third = clients.clusters.create_cluster(request("us-east-1a", "")).await;
    let status = refused("a third cluster", third, "LIMIT_EXCEEDED", "");
    assert!(status.message().contains("made_clusters.quota"), "{}", status.message());
}
