//! `keyway dev`: a whole cluster of SoftHSM2 nodes on this machine, and a daemon beside it, out of the same parts as production.
//!
//! The daemon is what `keyway serve` is; the cluster is made by the calls that anybody would make it with ([`making`]).
//! Everything lives in one data directory and survives a restart. Not for real keys: the SO PINs
//! lie beside the tokens, and whoever can reach the loopback may do everything.

mod assets;
mod making;
mod material;
mod seed;

use std::collections::BTreeMap;
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
use crate::link::Patience;
use crate::model::Realm;
use crate::proto::v1::Cluster;
use crate::tls::TlsFiles;
use crate::{authz, cluster, keys, keystore, telemetry, users};

use super::failure::Failure;
use super::output::{self, Output};
use super::password;
use super::softhsm2::{self, NoSoftHsm2};
use super::{DevArgs, DevRotation};
use assets::{Assets, AssetsError, CLUSTERS};
use seed::{BadSeed, Seed};

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
    #[error(transparent)]
    NoSoftHsm2(#[from] NoSoftHsm2),
    #[error("{flag} {address} is not on the loopback; add --insecure if you mean it")]
    NotLoopback { flag: &'static str, address: SocketAddr },
    #[error("--zones {zones} is more than --nodes {nodes}")]
    MoreZonesThanNodes { zones: u8, nodes: u8 },
    #[error(
        "{0} holds a cluster of another shape; start with the same --nodes and --zones, or with --reset to begin anew"
    )]
    OtherShape(PathBuf),
    #[error(
        "{0} was made by a former release, which kept its HSMs elsewhere; start with --reset to begin anew, without the keys in it"
    )]
    FormerLayout(PathBuf),
    #[error("{0} is not a data directory of keyway dev, so --reset leaves it alone")]
    NotOurs(PathBuf),
    #[error(
        "{0} was begun with another --cluster-id, or with none; start with the same, or with --reset to begin anew"
    )]
    OtherCluster(PathBuf),
    #[error(transparent)]
    Seed(#[from] BadSeed),
    #[error(
        "{seed}: crypto_users.kmsuser.password: kmsuser has had another one since the first start, in {file}; \
         leave it out, or start with --reset to begin anew"
    )]
    OtherPassword { seed: PathBuf, file: PathBuf },
    #[error(transparent)]
    Assets(#[from] AssetsError),
}

/// How a data directory is laid out. One without a number is older.
const LAYOUT: u8 = 2;

/// What outlives a restart and is not found elsewhere.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    #[serde(default)]
    layout: u8,
    nodes: u8,
    zones: u8,
    /// What the cluster was to be called; `None` for whatever the daemon calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
}

/// Everything but the cluster is on disk; nothing runs yet.
struct Ready {
    assets: Assets,
    shape: Shape,
    config: Config,
    seed: Option<Seed>,
    insecure_listen: bool,
}

fn prepare(args: &DevArgs) -> Result<Ready, DevError> {
    let data_dir = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let assets = Assets::new(data_dir);
    let seed = args.seed.as_deref().map(Seed::read).transpose()?;
    if args.reset {
        reset(&assets)?;
    }
    if args.zones > args.nodes {
        return Err(DevError::MoreZonesThanNodes { zones: args.zones, nodes: args.nodes });
    }
    let (listen, http) = (args.grpc_addr.address(), args.http_addr.address());
    let beyond_loopback = [("--grpc-addr", listen), ("--http-addr", http)]
        .into_iter()
        .find_map(|(flag, address)| Some((flag, address.filter(|address| !address.ip().is_loopback())?)));
    if let (Some((flag, address)), false) = (beyond_loopback, args.insecure) {
        return Err(DevError::NotLoopback { flag, address });
    }
    let module = softhsm2::find(args.softhsm2.as_deref())?;
    let shape = shape(args, &assets)?;
    material::make(&assets, &args.san)?;
    kmsusers_password(args, &assets, seed.as_ref())?;
    let config = Config {
        data_dir: assets.daemon(),
        sealing_key_file: assets.path("secrets/sealing.key"),
        log: telemetry::Settings { level: telemetry::Level::Warn, format: telemetry::Format::Text },
        grpc: door::Settings {
            unix_socket: Some(assets.path(assets::SOCKET)),
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
            pipeline_in_flight: 1_024,
            drain_timeout: Duration::from_secs(10),
        },
        http: http.map(|listen| door::http::Settings { listen, url: None }),
        authz: authz::Settings { admins: vec![ADMIN.to_owned()] },
        key_stores: keystore::Settings {
            quota: 10,
            connect_timeout: Duration::from_secs(600),
            zone: None,
            escrow: assets.daemon().join("escrow"),
        },
        keys: keys::Settings { per_key_store: 100_000, deletion_day: args.deletion_day },
        node_client: None,
        crypto_users: users::Settings { max_logins: 32 },
        made_clusters: Some(made_clusters(&assets, module, (args, &shape))),
        clusters: BTreeMap::new(),
    };
    Ok(Ready { assets, shape, config, seed, insecure_listen: beyond_loopback.is_some() })
}

/// The one that the seed says, or a random one; never another one than at the first start.
fn kmsusers_password(args: &DevArgs, assets: &Assets, seed: Option<&Seed>) -> Result<(), DevError> {
    let said = seed.and_then(Seed::kmsusers_password);
    if !assets.has_password() {
        let password = said.map_or_else(password::random, |said| said.expose().to_owned());
        return Ok(assets.write_password(&password)?);
    }
    match said {
        Some(said) if said.expose() != assets.password()? => Err(DevError::OtherPassword {
            seed: args.seed.clone().unwrap_or_default(),
            file: assets.path(assets::PASSWORD),
        }),
        _ => Ok(()),
    }
}

/// Where the daemon of a dev with this data directory is asked.
pub(super) fn socket_in(data_dir: &Path) -> PathBuf {
    Assets::new(data_dir.to_owned()).path(assets::SOCKET)
}

/// Whether the last dev with this data directory came so far as to say that it is ready.
pub(super) fn is_ready_in(data_dir: &Path) -> bool {
    Assets::new(data_dir.to_owned()).exists(assets::ANNOUNCEMENT)
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
    let cluster_id = args.cluster_id.as_ref().map(ToString::to_string);
    match assets.read_json::<Shape>(assets::SHAPE)? {
        Some(shape) if shape.layout != LAYOUT => Err(DevError::FormerLayout(assets.root().to_owned())),
        Some(shape) if shape.nodes != args.nodes || shape.zones != args.zones => {
            Err(DevError::OtherShape(assets.root().to_owned()))
        }
        Some(shape) if cluster_id.is_some() && cluster_id != shape.cluster_id => {
            Err(DevError::OtherCluster(assets.root().to_owned()))
        }
        Some(shape) => Ok(shape),
        None => {
            let shape = Shape { layout: LAYOUT, nodes: args.nodes, zones: args.zones, cluster_id };
            assets.write_json(assets::SHAPE, &shape)?;
            Ok(shape)
        }
    }
}

/// What a configuration file would say of clusters that keyway makes.
fn made_clusters(assets: &Assets, module: PathBuf, (args, shape): (&DevArgs, &Shape)) -> cluster::MadeSettings {
    cluster::MadeSettings {
        realm: Realm {
            region: "us-east-1".parse().expect("a region"),
            account: "000000000000".parse().expect("an account"),
        },
        quota: 10,
        first: shape.cluster_id.as_ref().and_then(|id| id.parse().ok()),
        module,
        directory: assets.path(CLUSTERS),
        rotation: rotation(args.password_rotation),
        min_hsms_to_create: NonZeroU32::new(2).expect("not zero"),
        pool_size: NonZeroU32::new(args.pool_size.into()).unwrap_or(NonZeroU32::MIN),
        queue_limit: NonZeroU32::new(args.queue_limit).unwrap_or(NonZeroU32::MIN),
        patience: Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(10) },
        memory_limit: u64::from(args.memory_limit_mib) << 20,
    }
}

fn rotation(asked: DevRotation) -> cluster::Rotation {
    let strategy = match asked {
        DevRotation::None => cluster::Strategy::None,
        DevRotation::SetPin => cluster::Strategy::SetPin,
    };
    cluster::Rotation { strategy, ..cluster::Rotation::NEVER }
}

async fn live(ready: Ready) -> Result<ExitCode, StartError> {
    let Ready { assets, shape, config, seed, insecure_listen } = ready;
    assets.forget_announcement();
    let app = App::start(config, None, Mode::Dev).await?;
    let (bound, http) = (app.bound.clone(), app.http);
    let mut running = std::pin::pin!(app.run());
    // Whoever stops it before it is ready need not wait until it is.
    tokio::select! {
        begun = begin(&assets, &shape, seed.as_ref(), (&bound, http), insecure_listen) => {
            if let Err(failure) = begun {
                output::failure(&failure, Output::Table);
                return Ok(failure.exit_code());
            }
        }
        () = &mut running => return Ok(ExitCode::SUCCESS),
    }
    running.await;
    assets.forget_announcement();
    Ok(ExitCode::SUCCESS)
}

/// Everything that is to be there before others may know that dev is ready, and then that it is.
async fn begin(
    assets: &Assets,
    shape: &Shape,
    seed: Option<&Seed>,
    (bound, http): (&Bound, Option<SocketAddr>),
    insecure_listen: bool,
) -> Result<(), Failure> {
    let cluster = making::bring_up(assets, shape).await?;
    if let Some(seed) = seed {
        seed::plant(assets, shape, &cluster, seed).await?;
    }
    announce(assets, &cluster, (bound, http)).map_err(|error| Failure::local(error.to_string()))?;
    if insecure_listen {
        eprintln!("\nWARNING: --insecure: this development daemon listens beyond the loopback.\n");
    }
    welcome(assets, &cluster, (bound, http), seed);
    Ok(())
}

/// What rigs read: written last, when everything answers.
#[derive(Serialize)]
struct Announcement<'a> {
    cluster_id: &'a str,
    region: &'a str,
    account: &'a str,
    hsms: Vec<AnnouncedHsm<'a>>,
    endpoints: Endpoints,
}

#[derive(Serialize)]
struct AnnouncedHsm<'a> {
    hsm_id: &'a str,
    availability_zone: &'a str,
}

#[derive(Serialize)]
struct Endpoints {
    grpc: Option<String>,
    http: Option<String>,
    unix: Option<PathBuf>,
}

fn announce(
    assets: &Assets,
    cluster: &Cluster,
    (bound, http): (&Bound, Option<SocketAddr>),
) -> Result<(), AssetsError> {
    let url = |address: Option<SocketAddr>| address.map(|address| format!("http://{address}"));
    let hsms =
        cluster.hsms.iter().map(|hsm| AnnouncedHsm { hsm_id: &hsm.hsm_id, availability_zone: &hsm.availability_zone });
    let announcement = Announcement {
        cluster_id: &cluster.cluster_id,
        region: &cluster.region,
        account: &cluster.account,
        hsms: hsms.collect(),
        endpoints: Endpoints { grpc: url(bound.tcp), http: url(http), unix: bound.unix.clone() },
    };
    assets.write_json(assets::ANNOUNCEMENT, &announcement)
}

fn welcome(assets: &Assets, cluster: &Cluster, (bound, http): (&Bound, Option<SocketAddr>), seed: Option<&Seed>) {
    let (root, id) = (assets.root().display(), &cluster.cluster_id);
    println!("\nkeyway dev is ready: cluster {id}");
    for hsm in &cluster.hsms {
        println!("  {}  {}", hsm.hsm_id, hsm.availability_zone);
    }
    if let Some(address) = bound.tcp {
        println!("  gRPC         {address} (plaintext from this machine, or TLS with {root}/client.crt)");
    }
    if let Some(path) = &bound.unix {
        println!("  Unix socket  {}", path.display());
    }
    if let Some(address) = http {
        println!("  HTTP         http://{address}: /livez, /readyz, /metrics, /docs");
    }
    let flags = match (bound.tcp, &bound.unix) {
        (Some(address), _) if address.port() == 50051 && address.ip().is_loopback() => String::new(),
        (Some(address), _) => format!(" --addr http://{address}"),
        (None, Some(path)) => format!(" --addr unix:{}", path.display()),
        (None, None) => String::new(),
    };
    let mut seeded = seed.into_iter().flat_map(Seed::key_stores).peekable();
    let is_seeded = seeded.peek().is_some();
    for name in seeded {
        println!("  key store    {name}, connected");
    }
    println!("\nType next:");
    if is_seeded {
        println!("  keyway{flags} alias list");
    } else {
        println!("  keyway{flags} key-store create --name demo --cluster-id {id} \\");
        println!("    --trust-anchor-certificate {root}/customerCA.crt --password-file {root}/kmsuser.password");
        println!("  keyway{flags} key-store connect --name demo --wait");
        println!("  keyway{flags} key create --key-store demo --alias alias/demo");
        println!("  echo 'attack at dawn' | keyway{flags} encrypt --key alias/demo | keyway{flags} decrypt");
    }
    if let Some(address) = bound.tcp {
        println!("  grpcurl -plaintext {address} list");
    }
    println!("\nCtrl-C stops it; the data stays in {root}.");
}
