//! `keyway cluster …`: list and watch; what is out of step stands in [`drift`].

use clap::{Args, Subcommand};
use tokio::time::timeout_at;
use tonic::Request;

use crate::proto::v1::{
    Cluster, DescribeClustersRequest, DescribeClustersResponse, HealthChange, WatchClusterRequest, WatchClusterResponse,
};

use super::connect::{CALL, Client, FOREVER};
use super::drift::{self, DriftArgs, SyncArgs};
use super::failure::Failure;
use super::paging::every_page;
use super::table::{Paint, Table};
use super::words;

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// List all clusters and their HSMs
    List,
    Watch(WatchArgs),
    Drift(DriftArgs),
    Sync(SyncArgs),
}

/// Tell a cluster's state now and at every change, until stopped
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
}

impl ClusterCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::List => list(client).await,
            Self::Watch(args) => watch(client, args.cluster_id).await,
            Self::Drift(args) => drift::list(client, args).await,
            Self::Sync(args) => drift::sync(client, args).await,
        }
    }
}

async fn list(client: &Client) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let clusters = every_page(async |page_token| {
        let request = DescribeClustersRequest { page_token, ..Default::default() };
        let page = daemon.clusters().describe_clusters(daemon.request(request)).await?.into_inner();
        Ok((page.clusters, page.next_page_token))
    })
    .await?;
    let all = DescribeClustersResponse { clusters, next_page_token: String::new() };
    client.output.show(&all, |all, paint| {
        let texts: Vec<String> = all.clusters.iter().map(|cluster| text(cluster, paint)).collect();
        texts.join("\n")
    })
}

async fn watch(client: &Client, cluster_id: String) -> Result<(), Failure> {
    let daemon = client.connect(FOREVER).await?;
    let late = |_| Failure::late("the time to watch is over");
    let request = Request::new(WatchClusterRequest { cluster_id });
    let mut stub = daemon.clusters();
    let mut news = timeout_at(daemon.deadline, stub.watch_cluster(request)).await.map_err(late)??.into_inner();
    while let Some(response) = timeout_at(daemon.deadline, news.message()).await.map_err(late)?? {
        client.output.show_next(&response, event)?;
    }
    Ok(())
}

/// The whole cluster at first, then a line for each HSM that changed.
fn event(response: &WatchClusterResponse, paint: Paint) -> String {
    match (&response.cluster, response.changes.as_slice()) {
        (Some(cluster), []) => text(cluster, paint),
        (_, changes) => {
            let mut table = Table::of_fields();
            let time = words::time(&response.time);
            for HealthChange { hsm_id, before, after, reason } in changes {
                table.row([
                    time.as_str().into(),
                    hsm_id.as_str().into(),
                    format!("{} →", words::hsm_health(*before)).into(),
                    words::state(words::hsm_health(*after)),
                    reason.as_str().into(),
                ]);
            }
            table.render(paint)
        }
    }
}

fn text(cluster: &Cluster, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("cluster", cluster.cluster_id.as_str());
    fields.field("state", words::state(words::cluster_state(cluster.state)));
    fields.field("", cluster.state_message.as_str());
    fields.field("key store", cluster.key_store_id.as_str());
    fields.field("no key store because", cluster.ineligible_reason.as_str());
    fields.field("profile", cluster.profile.as_str());
    fields.field("keys are copied", words::sync_mode(cluster.sync_mode));
    let mut hsms = Table::new(["HSM", "ZONE", "STATE", "HEALTH", "P50", "P99", "ENDPOINT", "WHY"]);
    for hsm in &cluster.hsms {
        hsms.row([
            hsm.hsm_id.as_str().into(),
            hsm.availability_zone.as_str().into(),
            words::state(words::hsm_state(hsm.state)),
            words::state(words::hsm_health(hsm.health)),
            words::latency(&hsm.latency_p50).into(),
            words::latency(&hsm.latency_p99).into(),
            hsm.endpoint.as_str().into(),
            hsm.health_reason.as_str().into(),
        ]);
    }
    format!("{}\n{}", fields.render(paint), hsms.render(paint))
}
