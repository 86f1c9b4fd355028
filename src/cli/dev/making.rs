//! Dev's clusters, made as anybody would make them: by calls over the daemon's own socket.
//!
//! To be repeated at each start: what a start that was cut short has made is found again, and a cluster that is in service
//! is left as it is, whatever became of its HSMs since.

use std::time::Duration;

use crate::cli::ca;
use crate::cli::connect::{Client, Daemon};
use crate::cli::failure::Failure;
use crate::clock;
use crate::pki::{Purpose, SigningRequest};
use crate::proto::v1::{
    AddHsmRequest, Cluster, ClusterState, CreateClusterRequest, CreateCryptoUserRequest, HsmState,
    InitializeClusterRequest, ListCryptoUsersRequest, NewSubnet,
};

use super::Shape;
use super::assets::{self, Assets};

/// Making every token takes no longer, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is left to do for crypto users takes no longer where it can be done.
const USERS: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Of the cluster's certificate; its authority lasts longer.
const DAYS: &str = "3650";
/// The request under which dev's own cluster is asked for at each start.
const OWN: &str = "keyway-dev";

/// Dev's own cluster, whose HSMs are shown in the data directory.
pub(super) async fn bring_up(assets: &Assets, shape: &Shape) -> Result<Cluster, Failure> {
    let daemon = Client::of_socket(assets.path(assets::SOCKET)).connect(PATIENCE).await?;
    let cluster = create(&daemon, shape, OWN).await?;
    assets.show_hsms_of(&cluster.cluster_id).map_err(|error| Failure::local(error.to_string()))?;
    complete(&daemon, assets, shape, (OWN, cluster)).await
}

/// Another one like it, under the same authority and with the same kmsuser. `name` is 1 to 16 characters of a request id.
pub(super) async fn bring_up_another(assets: &Assets, shape: &Shape, name: &str) -> Result<Cluster, Failure> {
    let daemon = Client::of_socket(assets.path(assets::SOCKET)).connect(PATIENCE).await?;
    let request_id = format!("{OWN}-{name}");
    let cluster = create(&daemon, shape, &request_id).await?;
    complete(&daemon, assets, shape, (&request_id, cluster)).await
}

async fn complete(
    daemon: &Daemon,
    assets: &Assets,
    shape: &Shape,
    (request_id, cluster): (&str, Cluster),
) -> Result<Cluster, Failure> {
    let id = &cluster.cluster_id;
    if cluster.state() == ClusterState::Active {
        users_are_everywhere(daemon, id).await?;
        return Ok(cluster);
    }
    for number in 0..shape.nodes {
        add_hsm(daemon, id, shape, number).await?;
    }
    initialize(daemon, assets, create(daemon, shape, request_id).await?).await?;
    let request = CreateCryptoUserRequest {
        cluster_id: id.clone(),
        username: "kmsuser".to_owned(),
        password: assets.password().map_err(|error| Failure::local(error.to_string()))?,
        require_second_factor: false,
    };
    daemon.crypto_users().create_crypto_user(daemon.request(request)).await?;
    create(daemon, shape, request_id).await
}

/// Waits for the daemon to make crypto users where a start that was cut short did not. It does so at once, or not before
/// somebody has mended something: that is no reason not to start.
pub(super) async fn users_are_everywhere(daemon: &Daemon, cluster: &str) -> Result<(), Failure> {
    let until = tokio::time::Instant::now() + USERS;
    while tokio::time::Instant::now() < until {
        // More than dev makes; of what others made nothing is waited for.
        let request = ListCryptoUsersRequest { cluster_id: cluster.to_owned(), page_size: 1_000, ..Default::default() };
        let listed = daemon.crypto_users().list_crypto_users(daemon.request(request)).await?.into_inner();
        if listed.users.iter().all(|user| user.hsms.iter().all(|on| on.present)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Makes the cluster, or finds it as it is now.
async fn create(daemon: &Daemon, shape: &Shape, request_id: &str) -> Result<Cluster, Failure> {
    let subnet = |number| NewSubnet { subnet_id: subnet(number), availability_zone: zone(number) };
    let subnets = (0..shape.zones).map(subnet).collect();
    let request = CreateClusterRequest { subnets, request_id: request_id.to_owned(), ..Default::default() };
    let made = daemon.clusters().create_cluster(daemon.request(request)).await?.into_inner();
    made.cluster.ok_or_else(|| Failure::local("the cluster was not told"))
}

/// Nodes are dealt out to the zones in turn.
async fn add_hsm(daemon: &Daemon, cluster: &str, shape: &Shape, number: u8) -> Result<(), Failure> {
    let (hsm_id, place) = (format!("hsm-{}", number + 1), number % shape.zones);
    eprintln!("adding {hsm_id} in {} ({} of {})", zone(place), number + 1, shape.nodes);
    let request =
        AddHsmRequest { cluster_id: cluster.to_owned(), subnet_id: subnet(place), hsm_id, ..Default::default() };
    let added = daemon.clusters().add_hsm(daemon.request(request)).await?.into_inner();
    let hsm = added.hsm.unwrap_or_default();
    match hsm.state() {
        HsmState::Active => Ok(()),
        _ => Err(Failure::local(format!("{}: {}", hsm.hsm_id, hsm.health_reason))),
    }
}

async fn initialize(daemon: &Daemon, assets: &Assets, cluster: Cluster) -> Result<(), Failure> {
    if cluster.state() != ClusterState::Uninitialized {
        return Ok(());
    }
    let request =
        SigningRequest::parse(&cluster.cluster_csr).map_err(|why| Failure::local(format!("the csr {why}")))?;
    let authority = ca::authority(&assets.path("customerCA.crt"), &assets.path("customerCA.key"))?;
    let days = DAYS.parse().expect("a number of days");
    let signed = authority.sign(request, Purpose::Cluster, days, clock::now()).map_err(ca::refused)?;
    let request = InitializeClusterRequest {
        cluster_id: cluster.cluster_id,
        signed_certificate: signed,
        trust_anchor_certificate: authority.certificate().pem().to_owned(),
    };
    daemon.clusters().initialize_cluster(daemon.request(request)).await?;
    Ok(())
}

fn subnet(number: u8) -> String {
    format!("subnet-dev{}", number + 1)
}

fn zone(number: u8) -> String {
    format!("us-east-1{}", char::from(b'a' + number % 26))
}
