//! `keyway key-store …`: create, list, describe, update, connect, disconnect, delete.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::model::KeyStoreId;
use crate::proto::v1::describe_key_stores_request::Selector;
use crate::proto::v1::{
    ConnectKeyStoreRequest, CreateKeyStoreRequest, DeleteKeyStoreRequest, DescribeKeyStoresRequest,
    DescribeKeyStoresResponse, DisconnectKeyStoreRequest, HsmHealth, KeyStore, NodeConnection, UpdateKeyStoreRequest,
};

use super::bytes;
use super::connect::{CALL, Client, Daemon};
use super::failure::Failure;
use super::paging::every_page;
use super::settle::{self, Goal};
use super::table::{Cell, Paint, Table, Tone};
use super::{parse, password, words};

/// The daemon gives up connecting after ten minutes by default; it shall be the one to say so.
const CONNECTING: Duration = Duration::from_secs(11 * 60);
const DISCONNECTING: Duration = Duration::from_secs(2 * 60);

#[derive(Debug, Subcommand)]
pub(super) enum KeyStoreCommand {
    Create(CreateArgs),
    /// List all key stores
    List,
    /// Show one key store and its connection to each HSM
    Describe(Which),
    Update(UpdateArgs),
    Connect(ConnectArgs),
    Disconnect(DisconnectArgs),
    /// Delete a disconnected key store that holds no keys
    Delete(Which),
}

/// Tie a name to a cluster of HSMs
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway key-store create --name orders --cluster-id cluster-2abcdefghij \\
      --trust-anchor-certificate customerCA.crt --password-file kmsuser.password

The password of the crypto user kmsuser is asked for on the terminal unless --password-file is given.")]
pub(super) struct CreateArgs {
    /// The key store's name
    #[arg(long)]
    name: String,
    /// The cluster it uses
    #[arg(long, value_name = "CLUSTER")]
    cluster_id: String,
    /// The certificate the cluster was initialised under, PEM
    #[arg(long, value_name = "FILE")]
    trust_anchor_certificate: Option<PathBuf>,
    /// A file whose first line is kmsuser's password; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Change a key store's name, or, while it is disconnected, the password it knows or its cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway key-store update orders --name invoices
  keyway key-store update orders --password-file kmsuser.password
  keyway key-store update orders --cluster cluster-2restoredaa

The password is the one that kmsuser has on the HSMs now: it is given to keyway, and not changed there. A cluster must
descend from a backup of the present one.")]
pub(super) struct UpdateArgs {
    /// The key store's id, or the name it has now
    #[arg(value_name = "ID|NAME")]
    id_or_name: String,
    #[command(flatten)]
    what: WhatToUpdate,
}

/// At least one of it.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct WhatToUpdate {
    /// Its new name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A file whose first line is the password that kmsuser has now; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The cluster it is to use
    #[arg(long, visible_alias = "cluster-id", value_name = "CLUSTER")]
    cluster: Option<String>,
}

/// Connect a key store: log in to its HSMs as kmsuser
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway key-store connect --name orders --wait

With --wait, --timeout is 11m unless given; the daemon itself gives up after 10m.")]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    which: Which,
    /// Wait until it is connected, telling each step on stderr
    #[arg(long)]
    wait: bool,
}

/// Disconnect a key store: its keys cannot be used until it is connected again
#[derive(Debug, Args)]
pub(super) struct DisconnectArgs {
    #[command(flatten)]
    which: Which,
    /// Wait until it is disconnected
    #[arg(long)]
    wait: bool,
    /// How long running calls may take to end; 0 waits for nothing [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    drain_timeout: Option<Duration>,
}

/// One key store, by id or by name.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// The key store's id or name
    #[arg(value_name = "ID|NAME")]
    id_or_name: Option<String>,
    /// The key store's id
    #[arg(long)]
    id: Option<String>,
    /// The key store's name, letter for letter
    #[arg(long)]
    name: Option<String>,
}

impl Which {
    fn selector(self) -> Selector {
        match (self.id, self.name) {
            (Some(id), _) => Selector::KeyStoreId(id),
            (None, Some(name)) => Selector::KeyStoreName(name),
            (None, None) => selector(self.id_or_name.unwrap_or_default()),
        }
    }

    async fn id(self, daemon: &Daemon) -> Result<String, Failure> {
        id_of(daemon, self.selector()).await
    }
}

/// What looks like an id is one; anything else is a name.
fn selector(id_or_name: String) -> Selector {
    if id_or_name.parse::<KeyStoreId>().is_ok() {
        Selector::KeyStoreId(id_or_name)
    } else {
        Selector::KeyStoreName(id_or_name)
    }
}

/// The id of the store that `ID|NAME` means.
pub(super) async fn resolve(daemon: &Daemon, id_or_name: String) -> Result<String, Failure> {
    id_of(daemon, selector(id_or_name)).await
}

/// The store that `ID|NAME` means.
pub(super) async fn find(daemon: &Daemon, id_or_name: String) -> Result<KeyStore, Failure> {
    one(described(daemon, selector(id_or_name)).await?)
}

async fn id_of(daemon: &Daemon, selector: Selector) -> Result<String, Failure> {
    match selector {
        Selector::KeyStoreId(id) => Ok(id),
        Selector::KeyStoreName(_) => Ok(one(described(daemon, selector).await?)?.key_store_id),
    }
}

async fn described(daemon: &Daemon, selector: Selector) -> Result<DescribeKeyStoresResponse, Failure> {
    let request = DescribeKeyStoresRequest { selector: Some(selector), ..Default::default() };
    Ok(daemon.key_stores().describe_key_stores(daemon.request(request)).await?.into_inner())
}

fn one(mut response: DescribeKeyStoresResponse) -> Result<KeyStore, Failure> {
    response.key_stores.pop().ok_or_else(|| Failure::refused("INTERNAL", "", "the daemon names no such key store"))
}

impl KeyStoreCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(client, args).await,
            Self::List => list(client).await,
            Self::Describe(which) => describe(client, which).await,
            Self::Update(args) => update(client, args).await,
            Self::Connect(args) => connect(client, args).await,
            Self::Disconnect(args) => disconnect(client, args).await,
            Self::Delete(which) => delete(client, which).await,
        }
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let trust_anchor_certificate = match &args.trust_anchor_certificate {
        Some(path) => bytes::certificate(path)?,
        None => String::new(),
    };
    let password = password::for_key_store(args.password_file.as_deref())?;
    let daemon = client.connect(CALL).await?;
    let request = CreateKeyStoreRequest {
        key_store_name: args.name,
        cluster_id: args.cluster_id,
        key_store_password: password.expose().to_owned(),
        trust_anchor_certificate,
    };
    let response = daemon.key_stores().create_key_store(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| table(&response.key_store, paint))
}

async fn list(client: &Client) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let key_stores = every_page(async |page_token| {
        let request = DescribeKeyStoresRequest { page_token, ..Default::default() };
        let page = daemon.key_stores().describe_key_stores(daemon.request(request)).await?.into_inner();
        Ok((page.key_stores, page.next_page_token))
    })
    .await?;
    let all = DescribeKeyStoresResponse { key_stores, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.key_stores, paint))
}

async fn describe(client: &Client, which: Which) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = described(&daemon, which.selector()).await?;
    client
        .output
        .show(&response, |response, paint| response.key_stores.iter().map(|store| details(store, paint)).collect())
}

async fn update(client: &Client, args: UpdateArgs) -> Result<(), Failure> {
    let WhatToUpdate { name, password_file, cluster } = args.what;
    let password = password_file.map(|file| password::for_key_store(Some(&file))).transpose()?;
    let daemon = client.connect(CALL).await?;
    let request = UpdateKeyStoreRequest {
        key_store_id: resolve(&daemon, args.id_or_name).await?,
        new_key_store_name: name,
        key_store_password: password.map(|password| password.expose().to_owned()),
        cluster_id: cluster,
    };
    let response = daemon.key_stores().update_key_store(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| table(&response.key_store, paint))
}

async fn connect(client: &Client, args: ConnectArgs) -> Result<(), Failure> {
    let daemon = client.connect(if args.wait { CONNECTING } else { CALL }).await?;
    let key_store_id = args.which.id(&daemon).await?;
    let request = ConnectKeyStoreRequest { key_store_id: key_store_id.clone() };
    let response = daemon.key_stores().connect_key_store(daemon.request(request)).await?.into_inner();
    if args.wait {
        return settle::until(client, &daemon, key_store_id, Goal::Connected).await;
    }
    client.output.show(&response, |response, paint| table(&response.key_store, paint))
}

async fn disconnect(client: &Client, args: DisconnectArgs) -> Result<(), Failure> {
    let drain = args.drain_timeout.unwrap_or_default();
    let daemon = client.connect(if args.wait { DISCONNECTING + drain } else { CALL }).await?;
    let key_store_id = args.which.id(&daemon).await?;
    let drain_timeout = args.drain_timeout.map(|drain| prost_types::Duration {
        seconds: i64::try_from(drain.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(drain.subsec_nanos()).unwrap_or(0),
    });
    let request = DisconnectKeyStoreRequest { key_store_id: key_store_id.clone(), drain_timeout };
    let response = daemon.key_stores().disconnect_key_store(daemon.request(request)).await?.into_inner();
    if args.wait {
        return settle::until(client, &daemon, key_store_id, Goal::Disconnected).await;
    }
    client.output.show(&response, |response, paint| table(&response.key_store, paint))
}

async fn delete(client: &Client, which: Which) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let key_store_id = which.id(&daemon).await?;
    let request = DeleteKeyStoreRequest { key_store_id: key_store_id.clone() };
    let response = daemon.key_stores().delete_key_store(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| format!("deleted {key_store_id}\n"))
}

/// A line for each store.
pub(super) fn table<'a>(stores: impl IntoIterator<Item = &'a KeyStore>, paint: Paint) -> String {
    let mut table = Table::new(["ID", "NAME", "CLUSTER", "STATE", "ERROR", "HSMS HEALTHY", "KEYS"]);
    for store in stores {
        table.row([
            store.key_store_id.as_str().into(),
            store.key_store_name.as_str().into(),
            store.cluster_id.as_str().into(),
            words::state(words::connection_state(store.connection_state)),
            Cell::toned(words::connection_error(store.connection_error_code), Tone::Bad),
            healthy(&store.nodes).into(),
            store.key_count.to_string().into(),
        ]);
    }
    table.render(paint)
}

fn healthy(nodes: &[NodeConnection]) -> String {
    let healthy = nodes.iter().filter(|node| node.health() == HsmHealth::Healthy).count();
    format!("{healthy}/{}", nodes.len())
}

fn details(store: &KeyStore, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("id", store.key_store_id.as_str());
    fields.field("name", store.key_store_name.as_str());
    fields.field("cluster", store.cluster_id.as_str());
    fields.field("state", words::state(words::connection_state(store.connection_state)));
    fields.field("since", words::time(&store.state_change_time));
    if let Some(error) = &store.last_connection_error {
        fields.field("last error", Cell::toned(words::connection_error(error.code), Tone::Bad));
        fields.field("", error.message.as_str());
        fields.field("remedy", error.remedy.as_str());
        fields.field("read", error.help_url.as_str());
    }
    fields.field("attempts", store.connect_attempt.to_string());
    fields.field("keys", store.key_count.to_string());
    fields.field("created", words::time(&store.create_time));
    fields.field("password rotated", words::time(&store.password_rotate_time));
    format!("{}\n{}", fields.render(paint), nodes(&store.nodes, paint))
}

/// Which one it is: HSMs that were missed by a rotation have an older one.
fn password(version: i32) -> String {
    if version == 0 { "unknown".to_owned() } else { format!("version {version}") }
}

fn nodes(nodes: &[NodeConnection], paint: Paint) -> String {
    let mut table =
        Table::new(["HSM", "ZONE", "HEALTH", "SESSIONS BUSY", "WAITING", "KEYS MISSING", "PASSWORD", "LAST ERROR"]);
    for node in nodes {
        table.row([
            node.hsm_id.as_str().into(),
            node.availability_zone.as_str().into(),
            words::state(words::hsm_health(node.health)),
            format!("{}/{}", node.sessions_busy, node.sessions_open).into(),
            node.requests_waiting.to_string().into(),
            node.keys_missing.to_string().into(),
            password(node.password_version).into(),
            node.last_error.as_str().into(),
        ]);
    }
    table.render(paint)
}
