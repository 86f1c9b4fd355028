//! `keyway dev`: a whole cluster of SoftHSM2 nodes on this machine, and a daemon beside it, out of the same parts as production.
//!
//! Everything lives in one data directory and survives a restart. Not for real keys: the SO PINs
//! lie beside the tokens, and whoever can reach the loopback may do everything.

mod assets;
mod material;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{App, StartError};
use crate::config::Config;
use crate::door::grpc::Mode;
use crate::door::{self, Bound, Protection, TcpSettings};
use crate::host::{Host, LocalToken, Location, TokenDirectory, TokenName, WorkerSpec, usual_softhsm2};
use crate::link::Patience;
use crate::model::{ClusterId, ClusterState, HsmId, HsmState, Invalid, TrustAnchor, Username};
use crate::tls::TlsFiles;
use crate::{authz, cluster, keys, keystore, telemetry, users};

use super::{DevArgs, DevRotation, Listen};
use assets::{Assets, AssetsError};

/// Bad usage.
const BAD_USAGE: u8 = 2;
/// The name on the client certificate that dev makes.
pub const ADMIN: &str = "dev-admin";
pub(super) fn run(args: DevArgs) -> ExitCode {
    telemetry::start(&telemetry::Settings { level: telemetry::Level::Warn, format: telemetry::Format::Text });
    match prepare(&args) {
        Ok(ready) => super::serve::on_a_runtime(live(ready)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(BAD_USAGE)
        }
    }
}

/// Why dev cannot start.
#[derive(Debug, thiserror::Error)]
enum DevError {
    #[error(
        "SoftHSM2 is not installed, or not in a usual place; on Debian and Ubuntu: apt install softhsm2; else: --softhsm2 PATH"
    )]
    NoSoftHsm,
    #[error("--softhsm2 {0} is not a file")]
    NotALibrary(PathBuf),
    #[error("--grpc-addr {0} is not on the loopback; add --insecure if you mean it")]
    NotLoopback(SocketAddr),
    #[error("--zones {zones} is more than --nodes {nodes}")]
    MoreZonesThanNodes { zones: u8, nodes: u8 },
    #[error(
        "{0} holds a cluster of another shape; start with the same --nodes and --zones, or with --reset to begin anew"
    )]
    OtherShape(PathBuf),
    #[error("{0} is not a data directory of keyway dev, so --reset leaves it alone")]
    NotOurs(PathBuf),
    #[error("{0} {1}")]
    TrustAnchor(PathBuf, Invalid),
    #[error(transparent)]
    Assets(#[from] AssetsError),
}

/// What outlives a restart and is not found elsewhere.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    cluster_id: String,
    nodes: u8,
    zones: u8,
}

/// Everything is on disk; nothing runs yet.
struct Ready {
    assets: Assets,
    cluster_id: ClusterId,
    config: Config,
    insecure_listen: bool,
}

fn prepare(args: &DevArgs) -> Result<Ready, DevError> {
    let data_dir = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let assets = Assets::new(data_dir);
    if args.reset {
        reset(&assets)?;
    }
    if args.zones > args.nodes {
        return Err(DevError::MoreZonesThanNodes { zones: args.zones, nodes: args.nodes });
    }
    let listen = match args.grpc_addr {
        Listen::Off => None,
        Listen::At(address) => Some(address),
    };
    let beyond_loopback = listen.filter(|address| !address.ip().is_loopback());
    if let (Some(address), false) = (beyond_loopback, args.insecure) {
        return Err(DevError::NotLoopback(address));
    }
    let module = softhsm2(args)?;
    let shape = shape(args, &assets)?;
    let cluster_id: ClusterId = shape.cluster_id.parse().map_err(|_| DevError::OtherShape(assets.root().to_owned()))?;
    material::make(&assets)?;
    let cluster = declare(&assets, &shape, &module, args)?;
    let config = Config {
        data_dir: assets.daemon(),
        sealing_key_file: assets.path("secrets/sealing.key"),
        log: telemetry::Settings { level: telemetry::Level::Warn, format: telemetry::Format::Text },
        grpc: door::Settings {
            unix_socket: Some(assets.path("keyway.sock")),
            tcp: listen.map(|listen| TcpSettings {
                listen,
                protection: Protection::DevLoopback(TlsFiles {
                    certificate: assets.path("server.crt"),
                    private_key: assets.path("server.key"),
                    client_ca: assets.path("ca.crt"),
                }),
            }),
            max_connections: 4096,
            max_message_bytes: 1 << 20,
            drain_timeout: Duration::from_secs(10),
        },
        authz: authz::Settings { admins: vec![ADMIN.to_owned()] },
        key_stores: keystore::Settings {
            quota: 10,
            connect_timeout: Duration::from_secs(600),
            zone: None,
            escrow: assets.daemon().join("escrow"),
        },
        keys: keys::Settings { per_key_store: 100_000 },
        node_client: None,
        crypto_users: users::Settings { max_logins: 32 },
        made_clusters: None,
        clusters: [(cluster_id.clone(), cluster)].into(),
    };
    Ok(Ready { assets, cluster_id, config, insecure_listen: beyond_loopback.is_some() })
}

/// The library that was named, or the one that is where distributions keep it.
fn softhsm2(args: &DevArgs) -> Result<PathBuf, DevError> {
    match &args.softhsm2 {
        // Workers are to find it whatever their directory.
        Some(named) => {
            let found = named.canonicalize().ok().filter(|path| path.is_file());
            found.ok_or(DevError::NotALibrary(named.clone()))
        }
        None => usual_softhsm2().ok_or(DevError::NoSoftHsm),
    }
}

/// Removes what a former dev made here, and nothing else.
fn reset(assets: &Assets) -> Result<(), DevError> {
    if !assets.root().exists() {
        return Ok(());
    }
    if !assets.path(assets::SHAPE).is_file() {
        return Err(DevError::NotOurs(assets.root().to_owned()));
    }
    eprintln!("removing {}", assets.root().display());
    Ok(assets.remove()?)
}

/// The cluster's shape: as it was made, or as asked for now.
fn shape(args: &DevArgs, assets: &Assets) -> Result<Shape, DevError> {
    match assets.read_json::<Shape>(assets::SHAPE)? {
        Some(shape) if shape.nodes == args.nodes && shape.zones == args.zones => Ok(shape),
        Some(_) => Err(DevError::OtherShape(assets.root().to_owned())),
        None => {
            let shape = Shape { cluster_id: ClusterId::random().to_string(), nodes: args.nodes, zones: args.zones };
            assets.write_json(assets::SHAPE, &shape)?;
            Ok(shape)
        }
    }
}

/// The cluster as a configuration file would declare it: nodes dealt out to the zones in turn.
fn declare(assets: &Assets, shape: &Shape, module: &Path, args: &DevArgs) -> Result<cluster::Settings, DevError> {
    let zone = |number: u8| {
        let name = format!("us-east-1{}", char::from(b'a' + number % 26));
        name.parse::<crate::model::Zone>().expect("a zone's alphabet")
    };
    let subnet =
        |number: u8| format!("subnet-dev{}", number + 1).parse::<crate::model::SubnetId>().expect("its alphabet");
    let mut nodes = std::collections::BTreeMap::new();
    for number in 0..shape.nodes {
        let hsm: HsmId = format!("hsm-{}", number + 1).parse().expect("its alphabet");
        let directory =
            TokenDirectory::make(assets.path(&format!("hsms/{hsm}/kmsuser"))).map_err(AssetsError::token(&hsm))?;
        let user_tokens = assets.path(&format!("hsms/{hsm}/users"));
        std::fs::create_dir_all(&user_tokens).map_err(AssetsError::token(&hsm))?;
        let so_pin_file = format!("hsms/{hsm}/so-pin");
        material::so_pin(assets, &so_pin_file)?;
        let settings = cluster::NodeSettings {
            subnet: Some(subnet(number % shape.zones)),
            zone: zone(number % shape.zones),
            state: HsmState::Active,
            vendor_cluster: false,
            location: Location::Here(LocalToken {
                module: module.to_owned(),
                name: TokenName::Label(format!("{hsm}.kmsuser")),
                environment: [("SOFTHSM2_CONF".to_owned(), directory.configuration().display().to_string())].into(),
                so_pin_file: Some(assets.path(&so_pin_file)),
                locks_user: true,
            }),
            pool_size: NonZeroU32::new(args.pool_size.into()).unwrap_or(NonZeroU32::MIN),
            queue_limit: NonZeroU32::new(args.queue_limit).unwrap_or(NonZeroU32::MIN),
            patience: Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(10) },
            memory_limit: u64::from(args.memory_limit_mib) << 20,
            user_tokens: Some(user_tokens),
        };
        nodes.insert(hsm, settings);
    }
    Ok(cluster::Settings {
        region: "us-east-1".parse().expect("a region"),
        account: "000000000000".parse().expect("an account"),
        state: ClusterState::Active,
        state_message: String::new(),
        certificate: None,
        trust_anchor: Some(trust_anchor(assets)?),
        backup_lineage: None,
        sync: cluster::SyncMode::Wrap,
        profile: cluster::Profile::SoftHsm2,
        rotation: rotation(args.password_rotation),
        subnets: (0..shape.zones)
            .map(|number| {
                let zone = zone(number);
                (subnet(number), cluster::SubnetSettings { zone, free_addresses: Some(250), present: true })
            })
            .collect(),
        security_group: Some(security_group()),
        min_hsms_to_create: NonZeroU32::new(2).expect("not zero"),
        nodes,
        origin: cluster::Origin::Configured,
    })
}

fn trust_anchor(assets: &Assets) -> Result<TrustAnchor, DevError> {
    let pem = assets.read("customerCA.crt")?;
    TrustAnchor::parse(&pem).map_err(|rule| DevError::TrustAnchor(assets.path("customerCA.crt"), rule))
}

/// As CloudHSM makes it: the HSMs' ports, from the group itself and to it.
fn security_group() -> cluster::SecurityGroup {
    let id: cluster::SecurityGroupId = "sg-dev".parse().expect("its alphabet");
    let both = [cluster::Direction::Ingress, cluster::Direction::Egress];
    let rules = both.map(|direction| cluster::SecurityGroupRule {
        direction,
        protocol: cluster::Protocol::Tcp,
        from_port: 2223,
        to_port: 2225,
        peer: id.clone(),
    });
    cluster::SecurityGroup { id, rules: rules.into() }
}

fn rotation(asked: DevRotation) -> cluster::Rotation {
    let strategy = match asked {
        DevRotation::None => cluster::Strategy::None,
        DevRotation::SetPin => cluster::Strategy::SetPin,
    };
    cluster::Rotation { strategy, ..cluster::Rotation::NEVER }
}

async fn live(ready: Ready) -> Result<(), StartError> {
    let Ready { assets, cluster_id, config, insecure_listen } = ready;
    let failed = |source| StartError::Directory { path: assets.root().to_owned(), source };
    assets.forget_announcement();
    let cluster = config.clusters[&cluster_id].clone();
    init_tokens(&assets, &cluster_id, &cluster, &config.data_dir).await.map_err(failed)?;
    let app = App::start(config, None, Mode::Dev).await?;
    announce(&assets, &cluster_id, &cluster, &app.bound).map_err(failed)?;
    if insecure_listen {
        eprintln!("\nWARNING: --insecure: this development daemon listens beyond the loopback.\n");
    }
    welcome(&assets, &cluster_id, &cluster, &app.bound);
    app.run().await;
    assets.forget_announcement();
    Ok(())
}

/// Makes the tokens that are not there yet. One whose making was cut short holds nothing, and is made anew.
async fn init_tokens(
    assets: &Assets,
    id: &ClusterId,
    cluster: &cluster::Settings,
    data_dir: &Path,
) -> std::io::Result<()> {
    let host = Host::new(data_dir.join("host"), None)?;
    let (user, password) = (Username::kmsuser(), assets.password()?);
    for (number, (hsm, node)) in cluster.nodes.iter().enumerate() {
        let made = assets.path(&format!("hsms/{hsm}/token-made"));
        if made.exists() {
            continue;
        }
        eprintln!("making the token of {hsm} in {} ({} of {})", node.zone, number + 1, cluster.nodes.len());
        let home = assets.path(&format!("hsms/{hsm}/kmsuser"));
        std::fs::remove_dir_all(&home)?;
        TokenDirectory::make(home)?;
        let spec = WorkerSpec {
            cluster: id.clone(),
            hsm: hsm.clone(),
            username: user.clone(),
            location: node.location.clone(),
            sessions: 1,
            patience: node.patience,
            memory_limit: node.memory_limit,
        };
        host.init_token(&spec, &user, &password).await.map_err(std::io::Error::other)?;
        std::fs::write(made, b"")?;
    }
    Ok(())
}

/// What rigs read: written last, when everything answers.
#[derive(Serialize)]
struct Announcement<'a> {
    cluster_id: &'a str,
    region: &'a str,
    account: String,
    hsms: Vec<AnnouncedHsm>,
    endpoints: Endpoints,
}

#[derive(Serialize)]
struct AnnouncedHsm {
    hsm_id: String,
    availability_zone: String,
}

#[derive(Serialize)]
struct Endpoints {
    grpc: Option<String>,
    unix: Option<PathBuf>,
}

fn announce(assets: &Assets, id: &ClusterId, cluster: &cluster::Settings, bound: &Bound) -> std::io::Result<()> {
    let hsms = cluster
        .nodes
        .iter()
        .map(|(hsm, node)| AnnouncedHsm { hsm_id: hsm.to_string(), availability_zone: node.zone.to_string() });
    let announcement = Announcement {
        cluster_id: id.as_str(),
        region: cluster.region.as_str(),
        account: cluster.account.to_string(),
        hsms: hsms.collect(),
        endpoints: Endpoints { grpc: bound.tcp.map(|address| format!("http://{address}")), unix: bound.unix.clone() },
    };
    assets.write_json(assets::ANNOUNCEMENT, &announcement).map_err(std::io::Error::other)
}

fn welcome(assets: &Assets, id: &ClusterId, cluster: &cluster::Settings, bound: &Bound) {
    let root = assets.root().display();
    println!("\nkeyway dev is ready: cluster {id}");
    for (hsm, node) in &cluster.nodes {
        println!("  {hsm}  {}", node.zone);
    }
    if let Some(address) = bound.tcp {
        println!("  gRPC         {address} (plaintext from this machine, or TLS with {root}/client.crt)");
    }
    if let Some(path) = &bound.unix {
        println!("  Unix socket  {}", path.display());
    }
    let flags = match (bound.tcp, &bound.unix) {
        (Some(address), _) if address.port() == 50051 && address.ip().is_loopback() => String::new(),
        (Some(address), _) => format!(" --addr http://{address}"),
        (None, Some(path)) => format!(" --addr unix:{}", path.display()),
        (None, None) => String::new(),
    };
    println!("\nType next:");
    println!("  keyway{flags} key-store create --name demo --cluster-id {id} \\");
    println!("    --trust-anchor-certificate {root}/customerCA.crt --password-file {root}/kmsuser.password");
    println!("  keyway{flags} key-store connect --name demo --wait");
    println!("  keyway{flags} key create --key-store demo --alias alias/demo");
    println!("  echo 'attack at dawn' | keyway{flags} encrypt --key alias/demo | keyway{flags} decrypt");
    if let Some(address) = bound.tcp {
        println!("  grpcurl -plaintext {address} list");
    }
    println!("\nCtrl-C stops it; the data stays in {root}.");
}
