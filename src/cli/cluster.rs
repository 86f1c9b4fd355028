//! `keyway cluster …`: list, describe and watch, and drain and resume an HSM. What a cluster lacks stands in
//! [`check`], what is out of step in [`drift`]; how one is made in [`making`].

use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::time::timeout_at;
use tonic::Request;

use crate::proto::v1::{
    Cluster, DescribeClustersRequest, DescribeClustersResponse, DrainHsmRequest, HealthChange, Hsm, ResumeHsmRequest,
    SecurityGroup, Subnet, WatchClusterRequest, WatchClusterResponse,
};

use super::check::{self, CheckArgs};
use super::connect::{CALL, Client, FOREVER};
use super::drift::{self, DriftArgs, SyncArgs};
use super::failure::Failure;
use super::making;
use super::paging::every_page;
use super::parse;
use super::table::{Cell, Paint, Table, Tone};
use super::words;

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// List all clusters and their HSMs
    List,
    Describe(DescribeArgs),
    Check(CheckArgs),
    Watch(WatchArgs),
    Drain(DrainArgs),
    Resume(ResumeArgs),
    Drift(DriftArgs),
    Sync(SyncArgs),
    Create(making::CreateArgs),
    Init(making::InitArgs),
    AddHsm(making::AddArgs),
    RemoveHsm(making::RemoveArgs),
}

/// Show all that is known of one cluster
#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
}

/// Tell a cluster's state now and at every change, until stopped
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
}

/// Drain an HSM, for maintenance: running calls end, no new ones go there, until it is resumed
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,

    /// The HSM's id
    #[arg(value_name = "HSM")]
    hsm_id: String,

    /// Why, for those who look later
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,

    /// How long running calls may take to end; 0 waits for nothing [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    drain_timeout: Option<Duration>,
}

/// Put an HSM back into use, after a drain, a refused login, or the replacement of its token
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,

    /// The HSM's id
    #[arg(value_name = "HSM")]
    hsm_id: String,

    /// Offer the password, and the SO's PIN, once more, though the HSM refused it. A wrong one counts towards the user's
    /// lock-out there
    #[arg(long)]
    allow_one_login: bool,
}

impl ClusterCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::List => list(client).await,
            Self::Describe(args) => describe(client, args.cluster_id).await,
            Self::Check(args) => check::check(client, args).await,
            Self::Watch(args) => watch(client, args.cluster_id).await,
            Self::Drain(args) => drain(client, args).await,
            Self::Resume(args) => resume(client, args).await,
            Self::Drift(args) => drift::list(client, args).await,
            Self::Sync(args) => drift::sync(client, args).await,
            Self::Create(args) => making::create(client, args).await,
            Self::Init(args) => making::init(client, args).await,
            Self::AddHsm(args) => making::add_hsm(client, args).await,
            Self::RemoveHsm(args) => making::remove_hsm(client, args).await,
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

async fn describe(client: &Client, cluster_id: String) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = DescribeClustersRequest { cluster_ids: vec![cluster_id], ..Default::default() };
    let response = daemon.clusters().describe_clusters(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| {
        response.clusters.iter().map(|cluster| format!("{}{}", text(cluster, paint), details(cluster, paint))).collect()
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

async fn drain(client: &Client, args: DrainArgs) -> Result<(), Failure> {
    let DrainArgs { cluster_id, hsm_id, note, drain_timeout } = args;
    let daemon = client.connect(CALL).await?;
    let drain_timeout = drain_timeout.map(|limit| limit.try_into().expect("the command line allows 30 days"));
    let request = DrainHsmRequest { cluster_id, hsm_id, note, drain_timeout };
    let drained = daemon.clusters().drain_hsm(daemon.request(request)).await?.into_inner();
    client.output.show(&drained, |drained, paint| hsm_table(drained.hsm.as_slice()).render(paint))
}

async fn resume(client: &Client, args: ResumeArgs) -> Result<(), Failure> {
    let ResumeArgs { cluster_id, hsm_id, allow_one_login } = args;
    let daemon = client.connect(CALL).await?;
    let request = ResumeHsmRequest { cluster_id, hsm_id, allow_one_login };
    let resumed = daemon.clusters().resume_hsm(daemon.request(request)).await?.into_inner();
    client.output.show(&resumed, |resumed, paint| hsm_table(resumed.hsm.as_slice()).render(paint))
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

pub(super) fn text(cluster: &Cluster, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("cluster", cluster.cluster_id.as_str());
    fields.field("state", words::state(words::cluster_state(cluster.state)));
    fields.field("", cluster.state_message.as_str());
    match cluster.key_store_id.as_str() {
        "" => fields.field("cannot take a key store", cluster.ineligible_reason.as_str()),
        store => fields.field("key store", store),
    }
    fields.field("profile", cluster.profile.as_str());
    fields.field("keys are copied", words::sync_mode(cluster.sync_mode));
    format!("{}\n{}", fields.render(paint), hsm_table(&cluster.hsms).render(paint))
}

/// What a list leaves out.
fn details(cluster: &Cluster, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("account", cluster.account.as_str());
    fields.field("region", cluster.region.as_str());
    fields.field("certificate", cluster.certificate_fingerprint.as_str());
    fields
        .field("to be signed", if cluster.cluster_csr.is_empty() { "" } else { "its csr, for `keyway cluster init`" });
    fields.field("backup lineage", cluster.backup_lineage.as_str());
    fields.field("password rotation", words::password_rotation(cluster.password_rotation));
    fields.field("a new key is on", format!("{} or more HSMs", cluster.min_hsms_to_create));
    let mut sections = vec![fields.render(paint)];
    if !cluster.subnets.is_empty() {
        sections.push(subnet_table(&cluster.subnets).render(paint));
    }
    if let Some(group) = &cluster.security_group {
        sections.push(rule_table(group).render(paint));
    }
    sections.into_iter().map(|section| format!("\n{section}")).collect()
}

fn subnet_table(subnets: &[Subnet]) -> Table {
    let mut table = Table::new(["SUBNET", "ZONE", "FREE ADDRESSES", ""]);
    for subnet in subnets {
        let free = u32::try_from(subnet.free_addresses).map(|free| free.to_string()).unwrap_or_default();
        table.row([
            subnet.subnet_id.as_str().into(),
            subnet.availability_zone.as_str().into(),
            free.into(),
            if subnet.present { "present".into() } else { Cell::toned("GONE", Tone::Bad) },
        ]);
    }
    table
}

fn rule_table(group: &SecurityGroup) -> Table {
    let mut table = Table::new(["SECURITY GROUP", "DIRECTION", "PROTOCOL", "PORTS", "PEER"]);
    for rule in &group.rules {
        table.row([
            group.security_group_id.as_str().into(),
            words::rule_direction(rule.direction).into(),
            rule.protocol.as_str().into(),
            format!("{}-{}", rule.from_port, rule.to_port).into(),
            rule.peer_security_group_id.as_str().into(),
        ]);
    }
    table
}

pub(super) fn hsm_table(hsms: &[Hsm]) -> Table {
    let mut table = Table::new(["HSM", "ZONE", "STATE", "HEALTH", "P50", "P99", "ENDPOINT", "WHY"]);
    for hsm in hsms {
        table.row([
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
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_names_its_key_store_or_what_keeps_one_away() {
        let cluster = |store: &str, reason: &str| Cluster {
            key_store_id: store.to_owned(),
            ineligible_reason: reason.to_owned(),
            ..Default::default()
        };
        let used = text(&cluster("cks-1", "it is tied to key store cks-1"), Paint::Plain);
        assert!(used.contains("key store:") && !used.contains("tied"), "{used}");
        let unfit = text(&cluster("", "it is DEGRADED, not ACTIVE"), Paint::Plain);
        assert!(unfit.contains("cannot take a key store:") && unfit.contains("DEGRADED"), "{unfit}");
        assert!(!text(&cluster("", ""), Paint::Plain).contains("key store"), "it is free");
    }
}
