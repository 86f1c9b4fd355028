//! The command line's shape: the global flags and the first word. Each noun's own flags stand in its file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::model::ClusterId;
use crate::pki::AlternativeName;

use super::output::Output;
use super::{
    alias, ca, cluster, crypto, crypto_user, data_key, data_key_pair, file, health, key, key_store, node, parse,
    re_encrypt, sign, wait,
};

const EXAMPLES: &str = "\
Examples:
  keyway dev                                    a whole cluster of software HSMs on this machine
  keyway key-store list                         what the daemon at KEYWAY_ADDR has
  keyway key create --key-store orders --alias alias/orders
  echo attack at dawn | keyway encrypt --key alias/orders --base64
  keyway --output json key describe alias/orders

Environment:
  KEYWAY_ADDR, KEYWAY_CACERT, KEYWAY_CERT, KEYWAY_KEY stand in for --addr, --cacert, --cert, --key.

Exit codes:
  0  success
  1  an error from the daemon
  2  bad usage or configuration
  3  the daemon cannot be reached";

/// A self-hosted KMS whose keys live in HSMs you own
#[derive(Debug, Parser)]
#[command(name = "keyway", version, after_help = EXAMPLES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) client: ClientArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How the client commands reach a daemon and print its answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Client options")]
pub(super) struct ClientArgs {
    /// The daemon: host:port, http://…, https://… or unix:/path [KEYWAY_ADDR; default http://127.0.0.1:50051]
    #[arg(long, global = true, value_name = "ADDR")]
    pub(super) addr: Option<String>,

    /// The CA that signed the daemon's certificate, PEM (KEYWAY_CACERT)
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,

    /// Your client certificate, PEM (KEYWAY_CERT)
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,

    /// Your client certificate's private key, PEM; stands before the command, after it --key names a KMS key (KEYWAY_KEY)
    // Not global: `encrypt --key alias/orders` means another kind of key.
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,

    /// A file with the token of a login, as `crypto-user login` writes it; `-` for stdin. Once for each cluster
    #[arg(long = "login-file", global = true, value_name = "FILE")]
    pub(super) login_files: Vec<PathBuf>,

    /// How to print answers and errors
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,

    /// How long the command may take, for instance 500ms, 30s or 5m [default: 30s, or what the command says]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse::timeout)]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Dev(DevArgs),
    Serve(ServeArgs),
    Node(NodeArgs),
    /// Certificates on a desk: make a CA, and sign clients' and servers' certificates with it
    #[command(subcommand)]
    Ca(ca::CaCommand),
    #[command(flatten)]
    Client(ClientCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Custom key stores: create, connect, describe, delete
    #[command(subcommand)]
    KeyStore(key_store::KeyStoreCommand),
    /// Clusters of HSMs: list and watch them, drain and resume an HSM, synchronise keys; make them, add HSMs and remove them
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Crypto users: create, list, delete, change and reset passwords; log in as one
    #[command(subcommand)]
    CryptoUser(crypto_user::CryptoUserCommand),
    /// Keys: create, list, describe, change, enable, disable, rotate, delete; destroy a crypto user's own
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Aliases: create, update, delete, list
    #[command(subcommand)]
    Alias(alias::AliasCommand),
    Encrypt(crypto::EncryptArgs),
    Decrypt(crypto::DecryptArgs),
    ReEncrypt(re_encrypt::ReEncryptArgs),
    GenerateDataKey(data_key::DataKeyArgs),
    GenerateDataKeyPair(data_key_pair::DataKeyPairArgs),
    Sign(sign::SignArgs),
    Verify(sign::VerifyArgs),
    Mac(sign::MacArgs),
    VerifyMac(sign::VerifyMacArgs),
    /// Files of any length: encrypt, decrypt
    #[command(subcommand)]
    File(file::FileCommand),
    Random(crypto::RandomArgs),
    /// Tell who the daemon takes you for
    Whoami,
    /// Tell the daemon's version and its limits
    ServerInfo,
    Health(health::HealthArgs),
    Wait(wait::WaitArgs),
}

/// Run the daemon
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Its configuration, TOML
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
}

/// Serve the HSMs of this host to daemons on others, or prepare one
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct NodeArgs {
    /// Its configuration, TOML
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Option<NodeCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    Init(node::init::InitArgs),
}

/// Start a cluster of SoftHSM2 nodes and a daemon on this machine, and print what to type next
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway dev
  keyway dev --nodes 4 --zones 2 --grpc-addr 127.0.0.1:0
  keyway dev --seed seed.toml                   with key stores, crypto users and keys to begin with
  keyway dev --reset                            begins anew, without the keys made before")]
pub struct DevArgs {
    /// Where gRPC listens: an address, port 0 for a free one, or `off`
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub grpc_addr: Listen,

    /// Where /livez, /readyz, /metrics and /docs are: an address, port 0 for a free one, or `off`
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: Listen,

    /// How many HSM nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub nodes: u8,

    /// How many availability zones they are spread over
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=10))]
    pub zones: u8,

    /// Where everything is kept between runs
    #[arg(long, value_name = "DIR", default_value = "./keyway-dev")]
    pub data_dir: PathBuf,

    /// Key stores, crypto users and keys to make if they are not there, TOML; dev is ready once they are, and the key stores
    /// connected
    #[arg(long, value_name = "FILE")]
    pub seed: Option<PathBuf>,

    /// The cluster's id, `cluster-` and 11 to 16 characters of 2-7 and a-z [default: a random one]
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<ClusterId>,

    /// A name or an address that clients know this machine by, beside `localhost`, for the TLS certificate; may be repeated
    #[arg(long = "san", value_name = "NAME")]
    pub san: Vec<AlternativeName>,

    /// Begin anew: remove the data directory first, with every key in it
    #[arg(long)]
    pub reset: bool,

    /// Allow listening beyond loopback; callers from there need dev's client certificate
    #[arg(long)]
    pub insecure: bool,

    /// SoftHSM2's library, where it is not in a usual place
    #[arg(long, value_name = "PATH")]
    pub softhsm2: Option<PathBuf>,

    /// Whether connecting a key store changes kmsuser's password, as production does: `none` or `set-pin`. Dev leaves it,
    /// so that its tokens can be opened with the password in `kmsuser.password`; once changed, nobody but the daemon has it
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub password_rotation: DevRotation,

    /// How long a day of a key's deletion window is, 10ms to 24h: with 1s a window of 7 days has passed in 7 seconds
    #[arg(long, value_name = "LENGTH", default_value = "24h", value_parser = super::parse::deletion_day)]
    pub deletion_day: Duration,

    /// How many PKCS#11 sessions each node has
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub pool_size: u16,

    /// How many requests may wait for each node
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub queue_limit: u32,

    /// How big a node's worker may grow before it is replaced, in MiB
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(32..=65_536))]
    pub memory_limit_mib: u32,
}

/// What dev does with the password when a key store is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DevRotation {
    None,
    SetPin,
}

/// Where a listener stands, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl Listen {
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| "give an IP address and a port, or `off`".to_owned()),
        }
    }
}
