//! `keyway cluster create|init|add-hsm|remove-hsm`: clusters that keyway makes.

use std::path::PathBuf;

use clap::Args;

use crate::clock;
use crate::model::ClusterId;
use crate::pki::{Days, Purpose, SigningRequest};
use crate::proto::v1::{
    AddHsmRequest, AddHsmResponse, CreateClusterRequest, DescribeClustersRequest, InitializeClusterRequest, NewSubnet,
    RemoveHsmRequest,
};

use super::bytes;
use super::ca;
use super::cluster::{hsm_table, text};
use super::connect::{CALL, Client};
use super::failure::Failure;
use super::parse;
use super::table::Paint;

/// Make a cluster without HSMs, to be given its first one and then initialized
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway cluster create --subnet subnet-1=us-east-1a --subnet subnet-2=us-east-1b
  keyway cluster add-hsm CLUSTER --zone us-east-1a
  keyway cluster init CLUSTER --out customer
  keyway cluster add-hsm CLUSTER --zone us-east-1b
  keyway crypto-user create CLUSTER kmsuser --password-file FILE")]
pub(super) struct CreateArgs {
    /// A subnet and the availability zone it lies in; up to 10 times
    #[arg(long = "subnet", value_name = "SUBNET=ZONE", required = true, value_parser = parse::pair)]
    subnets: Vec<(String, String)>,

    /// The region in key ARNs [default: the daemon's]
    #[arg(long, value_name = "REGION", default_value = "", hide_default_value = true)]
    region: String,

    /// The account in key ARNs, 12 digits [default: the daemon's]
    #[arg(long, value_name = "ACCOUNT", default_value = "", hide_default_value = true)]
    account: String,

    /// Makes a repeat give the cluster that was made before
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
}

/// Put a cluster under an authority of its owner's, for good: customerCA.crt and customerCA.key in --out, made if they are
/// not there; or with what another authority has signed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway cluster init CLUSTER --out customer
  keyway cluster init CLUSTER --signed-certificate CLUSTER.crt --trust-anchor customerCA.crt

What another authority is to sign is the cluster's csr:
  keyway --output json cluster describe CLUSTER | jq -r '.clusters[0].clusterCsr' > CLUSTER.csr
  openssl x509 -req -in CLUSTER.csr -CA customerCA.crt -CAkey customerCA.key -CAcreateserial -days 3652 -out CLUSTER.crt")]
pub(super) struct InitArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: ClusterId,

    /// Where customerCA.crt and customerCA.key are, or are made
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with = "signed_certificate")]
    out: PathBuf,

    /// For how many days the cluster's certificate is good; not beyond the authority's own
    #[arg(long, value_name = "N", default_value = "3650", conflicts_with = "signed_certificate")]
    days: Days,

    /// What another authority made of the cluster's csr (PEM)
    #[arg(long, value_name = "FILE", requires = "trust_anchor")]
    signed_certificate: Option<PathBuf>,

    /// That authority's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "signed_certificate")]
    trust_anchor: Option<PathBuf>,
}

/// Add an HSM to a cluster that keyway made: on the daemon's machine, or behind a `keyway node`
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,

    /// The subnet it is to be in
    #[arg(long, value_name = "SUBNET", default_value = "", hide_default_value = true)]
    subnet: String,

    /// Or the availability zone, in a subnet of the cluster's there
    #[arg(long, value_name = "ZONE", default_value = "", hide_default_value = true, conflicts_with = "subnet")]
    zone: String,

    /// What it is to be called [default: an id of keyway's making]
    #[arg(long, value_name = "HSM", default_value = "", hide_default_value = true)]
    hsm_id: String,

    /// The host of the `keyway node` it is behind [default: on the daemon's machine]
    #[arg(long, value_name = "HOST", default_value = "", hide_default_value = true)]
    address: String,

    /// That node's port for session links
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true, requires = "address")]
    session_port: u16,

    /// That node's port for identity
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true, requires = "address")]
    identity_port: u16,

    /// That node's port for administration
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true, requires = "address")]
    administration_port: u16,
}

/// Remove an HSM from a cluster that keyway made, and destroy what it holds; refused where a key would be left on too few
#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,

    /// The HSM's id
    #[arg(value_name = "HSM")]
    hsm_id: String,
}

pub(super) async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let CreateArgs { subnets, region, account, request_id } = args;
    let subnet = |(subnet_id, availability_zone)| NewSubnet { subnet_id, availability_zone };
    let subnets = subnets.into_iter().map(subnet).collect();
    let daemon = client.connect(CALL).await?;
    let request = CreateClusterRequest { subnets, region, account, request_id };
    let made = daemon.clusters().create_cluster(daemon.request(request)).await?.into_inner();
    client.output.show(&made, |made, paint| made.cluster.iter().map(|cluster| text(cluster, paint)).collect())
}

pub(super) async fn init(client: &Client, args: InitArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let (signed_certificate, trust_anchor_certificate) = match (&args.signed_certificate, &args.trust_anchor) {
        (Some(signed), Some(anchor)) => (bytes::certificate(signed)?, bytes::certificate(anchor)?),
        _ => {
            let request =
                DescribeClustersRequest { cluster_ids: vec![args.cluster_id.to_string()], ..Default::default() };
            let described = daemon.clusters().describe_clusters(daemon.request(request)).await?.into_inner();
            match described.clusters.first() {
                // The answer to an earlier one may have been lost: under the same authority this one is a repetition.
                Some(cluster) if !cluster.certificate.is_empty() && ca::has_customers_authority(&args.out) => {
                    let authority = ca::customers_authority(&args.out)?;
                    (cluster.certificate.clone(), authority.certificate().pem().to_owned())
                }
                cluster => sign(&args, cluster.map(|cluster| cluster.cluster_csr.as_str()).unwrap_or_default())?,
            }
        }
    };
    let cluster_id = args.cluster_id.to_string();
    let request = InitializeClusterRequest { cluster_id, signed_certificate, trust_anchor_certificate };
    let initialized = daemon.clusters().initialize_cluster(daemon.request(request)).await?.into_inner();
    client.output.show(&initialized, |initialized, paint| {
        initialized.cluster.iter().map(|cluster| text(cluster, paint)).collect()
    })
}

/// What the authority in `--out` makes of the request, and its own certificate.
fn sign(args: &InitArgs, csr: &str) -> Result<(String, String), Failure> {
    if csr.is_empty() {
        return Err(Failure::usage(format!("cluster {} has no csr to sign", args.cluster_id)).advise(
            "a cluster that keyway made has one from its first HSM (`keyway cluster add-hsm`) until it is initialized",
        ));
    }
    let request = SigningRequest::parse(csr).map_err(|why| Failure::usage(format!("the cluster's csr {why}")))?;
    let authority = ca::customers_authority(&args.out)?;
    let signed = authority.sign(request, Purpose::Cluster, args.days, clock::now()).map_err(ca::refused)?;
    Ok((signed, authority.certificate().pem().to_owned()))
}

pub(super) async fn add_hsm(client: &Client, args: AddArgs) -> Result<(), Failure> {
    let request = AddHsmRequest {
        cluster_id: args.cluster_id,
        subnet_id: args.subnet,
        availability_zone: args.zone,
        hsm_id: args.hsm_id,
        address: args.address,
        session_port: args.session_port.into(),
        identity_port: args.identity_port.into(),
        administration_port: args.administration_port.into(),
    };
    let daemon = client.connect(CALL).await?;
    let added = daemon.clusters().add_hsm(daemon.request(request)).await?.into_inner();
    client.output.show(&added, added_text)
}

fn added_text(added: &AddHsmResponse, paint: Paint) -> String {
    let table = hsm_table(added.hsm.as_slice()).render(paint);
    match added.missing_usernames.as_slice() {
        [] => table,
        missing => {
            format!("{table}\nnot on it until an administrator resets their passwords: {}\n", missing.join(", "))
        }
    }
}

pub(super) async fn remove_hsm(client: &Client, args: RemoveArgs) -> Result<(), Failure> {
    let RemoveArgs { cluster_id, hsm_id } = args;
    let daemon = client.connect(CALL).await?;
    let request = RemoveHsmRequest { cluster_id, hsm_id };
    let removed = daemon.clusters().remove_hsm(daemon.request(request)).await?.into_inner();
    client.output.show(&removed, |removed, paint| hsm_table(removed.hsm.as_slice()).render(paint))
}
