//! What is refused says which field is wrong, and what to do.

use tonic::Status;

use crate::rig::{Authority, Clients, Maker, Served, Validity, pb, refused};

fn says(status: &Status, part: &str) {
    assert!(status.message().contains(part), "no {part:?}: {}", status.message());
}

impl Clients {
    async fn initialize(&mut self, cluster: &str, signed: &str, anchor: &str) -> Result<pb::Cluster, Status> {
        let request = pb::InitializeClusterRequest {
            cluster_id: cluster.to_owned(),
            signed_certificate: signed.to_owned(),
            trust_anchor_certificate: anchor.to_owned(),
        };
        Ok(self.clusters.initialize_cluster(request).await?.into_inner().cluster.unwrap())
    }
}

#[tokio::test]
async fn a_new_cluster_is_refused_by_the_field_that_is_wrong() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let subnet = |id: &str, zone: &str| pb::NewSubnet { subnet_id: id.to_owned(), availability_zone: zone.to_owned() };
    let good = || vec![subnet("subnet-1", "us-east-1a")];
    let request = || pb::CreateClusterRequest { subnets: good(), ..Default::default() };
    let twice = || vec![subnet("subnet-1", "a"), subnet("subnet-1", "b")];
    let eleven = || (0..11).map(|number| subnet(&format!("subnet-{number}"), "a")).collect();
    for (field, part, wrong) in [
        ("subnets", "1 to 10, not 0", pb::CreateClusterRequest { subnets: Vec::new(), ..request() }),
        ("subnets", "1 to 10, not 11", pb::CreateClusterRequest { subnets: eleven(), ..request() }),
        ("subnets[1].subnet_id", "once", pb::CreateClusterRequest { subnets: twice(), ..request() }),
        ("subnets[0].subnet_id", "subnet-", pb::CreateClusterRequest { subnets: vec![subnet("x", "a")], ..request() }),
        (
            "subnets[0].availability_zone",
            "required",
            pb::CreateClusterRequest { subnets: vec![subnet("subnet-1", "")], ..request() },
        ),
        ("region", "lower-case", pb::CreateClusterRequest { region: "US".to_owned(), ..request() }),
        ("account", "12 digits", pb::CreateClusterRequest { account: "1".to_owned(), ..request() }),
        ("request_id", "36", pb::CreateClusterRequest { request_id: "x".repeat(37), ..request() }),
    ] {
        says(&refused(field, clients.clusters.create_cluster(wrong).await, "VALIDATION", field), part);
    }
}

#[tokio::test]
async fn a_cluster_is_not_initialized_with_certificates_that_do_not_fit() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let cluster = clients.create_cluster(&["us-east-1a", "us-east-1b"]).await;
    let (own, other) = (Authority::new("customer"), Authority::new("customer"));
    let stranger = own.server().certificate;

    let early = clients.initialize(&cluster, &stranger, &own.pem()).await;
    says(&refused("without an HSM", early, "CLOUD_HSM_INVALID_REQUEST", ""), "add its first HSM");
    clients.add_hsm(&cluster, 1).await;
    let csr = clients.cluster(&cluster).await.cluster_csr;
    let signed = own.sign(&csr, Validity::Now);

    for (what, answer, reason, field, part) in [
        (
            "no certificate",
            clients.initialize(&cluster, "x", &own.pem()).await,
            "VALIDATION",
            "signed_certificate",
            "one X.509 certificate",
        ),
        (
            "no authority",
            clients.initialize(&cluster, &signed, &signed).await,
            "VALIDATION",
            "trust_anchor_certificate",
            "authority",
        ),
        (
            "for another key",
            clients.initialize(&cluster, &stranger, &own.pem()).await,
            "VALIDATION",
            "signed_certificate",
            "cluster_csr",
        ),
        (
            "expired",
            clients.initialize(&cluster, &own.sign(&csr, Validity::Past), &own.pem()).await,
            "VALIDATION",
            "signed_certificate",
            "expired",
        ),
        (
            "another's",
            clients.initialize(&cluster, &signed, &other.pem()).await,
            "INCORRECT_TRUST_ANCHOR",
            "trust_anchor_certificate",
            "authority that signed",
        ),
    ] {
        says(&refused(what, answer, reason, field), part);
    }
    assert_eq!(clients.cluster(&cluster).await.state(), pb::ClusterState::Uninitialized, "nothing has come of it");

    let initialized = clients.initialize(&cluster, &signed, &own.pem()).await.unwrap();
    assert_eq!(initialized.state(), pb::ClusterState::Initialized);
    let again = clients.initialize(&cluster, &other.sign(&csr, Validity::Now), &other.pem()).await;
    says(&refused("another authority", again, "CLOUD_HSM_INVALID_REQUEST", ""), "not UNINITIALIZED");
}

#[tokio::test]
async fn an_hsm_is_refused_by_the_field_that_is_wrong() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let cluster = clients.create_cluster(&["us-east-1a", "us-east-1b"]).await;
    let request = || pb::AddHsmRequest {
        cluster_id: cluster.clone(),
        availability_zone: "us-east-1a".to_owned(),
        ..Default::default()
    };
    let first = clients.clusters.add_hsm(request()).await.unwrap().into_inner().hsm.unwrap();
    assert!(first.hsm_id.starts_with("hsm-") && first.hsm_id.len() == 15, "{}", first.hsm_id);
    let repeat = pb::AddHsmRequest { hsm_id: first.hsm_id.clone(), ..request() };
    let repeat = clients.clusters.add_hsm(repeat).await.unwrap().into_inner().hsm.unwrap();
    assert_eq!((repeat.hsm_id.as_str(), repeat.state()), (first.hsm_id.as_str(), pb::HsmState::Active));
    let elsewhere =
        pb::AddHsmRequest { hsm_id: first.hsm_id.clone(), availability_zone: "us-east-1b".to_owned(), ..request() };
    refused("elsewhere", clients.clusters.add_hsm(elsewhere).await, "ALREADY_EXISTS", "hsm_id");

    for (field, part, wrong) in [
        ("subnet_id", "availability_zone", pb::AddHsmRequest { availability_zone: String::new(), ..request() }),
        ("availability_zone", "leave it empty", pb::AddHsmRequest { subnet_id: "subnet-1".to_owned(), ..request() }),
        (
            "availability_zone",
            "us-east-1b",
            pb::AddHsmRequest { availability_zone: "us-east-1z".to_owned(), ..request() },
        ),
        (
            "subnet_id",
            "subnet-2",
            pb::AddHsmRequest { subnet_id: "subnet-9".to_owned(), availability_zone: String::new(), ..request() },
        ),
        ("hsm_id", "hsm-", pb::AddHsmRequest { hsm_id: "../x".to_owned(), ..request() }),
        ("address", "DNS name", pb::AddHsmRequest { address: "a b".to_owned(), ..request() }),
        ("session_port", "address", pb::AddHsmRequest { session_port: 1, ..request() }),
        ("hsm_id", "node.toml", pb::AddHsmRequest { address: "node.example.org".to_owned(), ..request() }),
        ("identity_port", "65535", pb::AddHsmRequest { address: "a".to_owned(), identity_port: 65_536, ..request() }),
    ] {
        says(&refused(field, clients.clusters.add_hsm(wrong).await, "VALIDATION", field), part);
    }
    let elsewhere =
        pb::AddHsmRequest { address: "node.example.org".to_owned(), hsm_id: "hsm-elsewhere".to_owned(), ..request() };
    let status = refused("a node", clients.clusters.add_hsm(elsewhere).await, "UNSUPPORTED_OPERATION", "address");
    says(&status, "[node_client]");
    let nowhere = pb::AddHsmRequest { cluster_id: "cluster-2abcdefghij".to_owned(), ..request() };
    refused("no cluster", clients.clusters.add_hsm(nowhere).await, "CLOUD_HSM_CLUSTER_NOT_FOUND", "");
    refused("no HSM", clients.remove_hsm(&cluster, "hsm-none").await, "NOT_FOUND", "");
}

#[tokio::test]
async fn a_daemon_makes_no_clusters_unless_it_is_told_to_and_leaves_declared_ones_alone() {
    let (rig, _served, mut clients) = Served::over_two_hsms().await;
    let subnets = vec![pb::NewSubnet { subnet_id: "subnet-1".to_owned(), availability_zone: "a".to_owned() }];
    let request = pb::CreateClusterRequest { subnets, ..Default::default() };
    let status = refused("a cluster", clients.clusters.create_cluster(request).await, "UNSUPPORTED_OPERATION", "");
    says(&status, "[made_clusters]");
    let request = pb::AddHsmRequest {
        cluster_id: rig.cluster_id(),
        availability_zone: "us-east-1a".to_owned(),
        ..Default::default()
    };
    let status = refused("an HSM", clients.clusters.add_hsm(request).await, "UNSUPPORTED_OPERATION", "");
    says(&status, "configuration");
    let removal = clients.remove_hsm(&rig.cluster_id(), "hsm-1").await;
    refused("a removal", removal, "UNSUPPORTED_OPERATION", "");
}

#[tokio::test]
async fn a_cluster_is_made_or_declared_and_never_both() {
    let mut maker = Maker::start();
    let mut clients = maker.clients().await;
    let cluster = clients.create_cluster(&["us-east-1a", "us-east-1b"]).await;
    std::fs::write(maker.path("ca.crt"), Authority::new("customer").pem()).unwrap();
    let declared = format!(
        "[clusters.{cluster}]\nregion = \"us-east-1\"\naccount = \"000000000000\"\nsync = \"wrap\"\nprofile = \"softhsm2\"\n\
         trust_anchor = \"ca.crt\"\n[clusters.{cluster}.nodes.hsm-1]\nzone = \"a\"\nmodule = \"/bin/true\"\n\
         token = {{ label = \"x\" }}\nso_pin_file = \"sealing.key\"\n"
    );
    let as_it_was = maker.configuration();
    let both = format!("{as_it_was}\n{declared}");
    let said = maker.reload(&both);
    assert!(said.contains(&format!("clusters.{cluster}")) && said.contains("no cluster was changed"), "{said}");
    assert!(clients.cluster(&cluster).await.hsms.is_empty());

    maker.kill_daemon();
    let (code, said) = maker.refuses(&both);
    assert!(code == Some(2) && said.contains(&format!("clusters.{cluster}")), "{code:?}: {said}");
    let (before, _) = as_it_was.split_once("[made_clusters]").unwrap();
    let (code, said) = maker.refuses(before);
    assert!(code == Some(2) && said.contains("made_clusters") && said.contains(&cluster), "{code:?}: {said}");
}
