//! `keyway key …`: create, list, describe, destroy; what is done with a key that is there is in [`key_life`].

use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::proto::v1::{
    CreateKeyRequest, CreateKeyResponse, DescribeKeyRequest, DestroyHsmKeyRequest, Key, ListKeysRequest,
    ListKeysResponse,
};

use super::backoff::Backoff;
use super::connect::{CALL, Client, Daemon};
use super::failure::Failure;
use super::output::{self, Output};
use super::paging::every_page;
use super::table::{Paint, Table};
use super::{key_life, key_store, parse, words};

/// How often a create is sent before the daemon's trouble becomes the caller's.
const ATTEMPTS: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    Create(CreateArgs),
    List(ListArgs),
    Describe(DescribeArgs),
    Update(key_life::UpdateArgs),
    /// Let a key be used again
    Enable(key_life::WhichKey),
    /// Let a key be used by nobody until it is enabled
    Disable(key_life::WhichKey),
    ScheduleDeletion(key_life::ScheduleDeletionArgs),
    /// Keep a key that is pending deletion; it is disabled then
    CancelDeletion(key_life::WhichKey),
    Rotate(key_life::RotateArgs),
    EnableRotation(key_life::EnableRotationArgs),
    /// Have a key rotate by itself no more
    DisableRotation(key_life::WhichKey),
    /// List the versions of a key, newest first
    Versions(key_life::WhichKey),
    Tag(key_life::TagArgs),
    Untag(key_life::UntagArgs),
    /// List the tags of a key
    Tags(key_life::WhichKey),
    Destroy(DestroyArgs),
}

/// Make a key in the HSMs of a key store, or a crypto user's own under a login
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway key create --key-store orders --alias alias/orders --tag team=payments
  keyway key create --cluster cluster-2abcdefghij --label orders --login-file alice.login

A daemon that is briefly away is asked again; the request id makes sure that one key comes of it.")]
pub(super) struct CreateArgs {
    /// The key store to make it in
    #[arg(long, value_name = "ID|NAME", required_unless_present = "cluster", conflicts_with = "cluster")]
    key_store: Option<String>,
    /// The cluster to make your own key on; needs --login-file
    #[arg(long, value_name = "ID", requires = "label")]
    cluster: Option<String>,
    /// What your own key is called in the HSMs
    #[arg(long, requires = "cluster")]
    label: Option<String>,
    /// Words for people
    #[arg(long, default_value = "")]
    description: String,
    /// An alias to make with it, alias/NAME
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "cluster")]
    alias: String,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse::pair)]
    tags: Vec<(String, String)>,
    /// Makes a repetition harmless: the same id gives the same key for 24 hours [default: a random one]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// List keys
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only the keys of this key store
    #[arg(long, value_name = "ID|NAME", conflicts_with = "cluster")]
    key_store: Option<String>,
    /// Your own keys on this cluster; needs --login-file
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
}

/// Destroy a crypto user's own key on every HSM, at once and for good
#[derive(Debug, Args)]
pub(super) struct DestroyArgs {
    /// hsm:CLUSTER/LABEL, the label percent-encoded, or hsm:CLUSTER/id=HEX; needs --login-file
    #[arg(value_name = "KEY")]
    key_id: String,
}

/// Show one key and the proof of it on each HSM
#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    /// Its id, its ARN, alias/NAME or an alias ARN; with --login-file also hsm:CLUSTER/LABEL
    #[arg(value_name = "KEY")]
    key_id: String,
}

impl KeyCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(client, args).await,
            Self::List(args) => list(client, args).await,
            Self::Describe(args) => describe(client, args).await,
            Self::Update(args) => key_life::update(client, args).await,
            Self::Enable(key) => key_life::enable(client, key).await,
            Self::Disable(key) => key_life::disable(client, key).await,
            Self::ScheduleDeletion(args) => key_life::schedule_deletion(client, args).await,
            Self::CancelDeletion(key) => key_life::cancel_deletion(client, key).await,
            Self::Rotate(args) => key_life::rotate(client, args).await,
            Self::EnableRotation(args) => key_life::enable_rotation(client, args).await,
            Self::DisableRotation(key) => key_life::disable_rotation(client, key).await,
            Self::Versions(key) => key_life::versions(client, key).await,
            Self::Tag(args) => key_life::tag(client, args).await,
            Self::Untag(args) => key_life::untag(client, args).await,
            Self::Tags(key) => key_life::tags(client, key).await,
            Self::Destroy(args) => destroy(client, args).await,
        }
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let tags = parse::distinct("--tag", args.tags)?;
    let daemon = client.connect(CALL).await?;
    let request = CreateKeyRequest {
        key_store_id: resolved(&daemon, args.key_store).await?,
        cluster_id: args.cluster.unwrap_or_default(),
        hsm_label: args.label.unwrap_or_default(),
        description: args.description,
        tags,
        alias: args.alias,
        request_id: args.request_id.unwrap_or_else(|| Uuid::new_v4().to_string()),
        ..Default::default()
    };
    let response = create_once(client, &daemon, request).await?;
    client.output.show(&response, |response, paint| response.key.iter().map(|key| details(key, paint)).collect())
}

/// Sends a create until it is answered; its request id makes one key of however many arrive.
async fn create_once(
    client: &Client,
    daemon: &Daemon,
    request: CreateKeyRequest,
) -> Result<CreateKeyResponse, Failure> {
    let created = until_answered(client, daemon, async || {
        Ok(daemon.keys().create_key(daemon.request(request.clone())).await?.into_inner())
    });
    let what = "the key may exist: repeat the command";
    created.await.map_err(|failure| with_way_back(failure, what, &request.request_id))
}

/// Asks again while the daemon's trouble passes. Only of what a request id makes harmless.
pub(super) async fn until_answered<T>(
    client: &Client,
    daemon: &Daemon,
    ask: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut backoff = Backoff::until(daemon.deadline);
    let mut attempts_left = ATTEMPTS;
    loop {
        let failure = match ask().await {
            Ok(response) => return Ok(response),
            Err(failure) => failure,
        };
        attempts_left -= 1;
        if attempts_left == 0 || !failure.is_passing() || backoff.pause(failure.retry_after()).await.is_err() {
            return Err(failure);
        }
        if client.output == Output::Table {
            output::note(&format!("{}; asking again", failure.message()));
        }
    }
}

/// What may have been done is found by asking for it again, in the same words.
pub(super) fn with_way_back(failure: Failure, what: &str, request_id: &str) -> Failure {
    if !failure.leaves_doubt() {
        return failure;
    }
    let advice = format!("{what} with --request-id {request_id}, which makes no second one");
    failure.with("requestId", request_id).advise(advice)
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let key_store_id = resolved(&daemon, args.key_store).await?;
    let cluster_id = args.cluster.unwrap_or_default();
    let keys = every_page(async |page_token| {
        let (key_store_id, cluster_id) = (key_store_id.clone(), cluster_id.clone());
        let request = ListKeysRequest { key_store_id, cluster_id, page_token, ..Default::default() };
        let page = daemon.keys().list_keys(daemon.request(request)).await?.into_inner();
        Ok((page.keys, page.next_page_token))
    })
    .await?;
    let all = ListKeysResponse { keys, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.keys, paint))
}

async fn describe(client: &Client, args: DescribeArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = DescribeKeyRequest { key_id: args.key_id, ..Default::default() };
    let response = daemon.keys().describe_key(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| response.key.iter().map(|key| details(key, paint)).collect())
}

async fn destroy(client: &Client, args: DestroyArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = DestroyHsmKeyRequest { key_id: args.key_id.clone() };
    let response = daemon.keys().destroy_hsm_key(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| format!("destroyed {}\n", args.key_id))
}

/// Empty when none is named.
async fn resolved(daemon: &Daemon, key_store: Option<String>) -> Result<String, Failure> {
    match key_store {
        Some(key_store) => key_store::resolve(daemon, key_store).await,
        None => Ok(String::new()),
    }
}

fn table(keys: &[Key], paint: Paint) -> String {
    let mut table = Table::new(["ID", "KEY STORE", "SPEC", "STATE", "CREATED", "DESCRIPTION"]);
    for key in keys {
        table.row([
            key.key_id.as_str().into(),
            key.key_store_id.as_str().into(),
            words::key_spec(key.key_spec).into(),
            words::state(words::key_state(key.state)),
            words::time(&key.create_time).into(),
            key.description.as_str().into(),
        ]);
    }
    table.render(paint)
}

pub(super) fn details(key: &Key, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("id", key.key_id.as_str());
    fields.field("arn", key.arn.as_str());
    fields.field("label", key.hsm_label.as_str());
    fields.field("description", key.description.as_str());
    fields.field("state", words::state(words::key_state(key.state)));
    fields.field("", key.state_reason.as_str());
    fields.field("key store", key.key_store_id.as_str());
    fields.field("cluster", key.cluster_id.as_str());
    fields.field("spec", words::key_spec(key.key_spec));
    fields.field("usage", words::key_usage(key.key_usage));
    fields.field("version", key.current_version.to_string());
    fields.field("uses", uses(key));
    fields.field("last use", words::time(&key.last_use_time));
    fields.field("rotation", words::time(&key.next_rotation_time));
    fields.field("created", words::time(&key.create_time));
    fields.field("deletion", words::time(&key.deletion_time));
    let mut hsms = Table::new(["HSM", "ZONE", "PROOF", "SEEN"]);
    for node in &key.nodes {
        hsms.row([
            node.hsm_id.as_str().into(),
            node.availability_zone.as_str().into(),
            words::state(words::key_proof(node.proof)),
            words::time(&node.proof_time).into(),
        ]);
    }
    format!("{}\n{}", fields.render(paint), hsms.render(paint))
}

fn uses(key: &Key) -> String {
    if key.use_limit == 0 { key.uses.to_string() } else { format!("{} of {}", key.uses, key.use_limit) }
}
