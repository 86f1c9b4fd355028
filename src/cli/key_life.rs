//! `keyway key …` on a key that is there: its state, its deletion, its versions, and what is said of it.

use clap::Args;
use uuid::Uuid;

use crate::proto::v1::{
    CancelKeyDeletionRequest, DisableKeyRequest, DisableKeyRotationRequest, EnableKeyRequest, EnableKeyRotationRequest,
    Key, KeyVersion, ListKeyVersionsRequest, ListKeyVersionsResponse, ListResourceTagsRequest,
    RotateKeyOnDemandRequest, RotateKeyOnDemandResponse, ScheduleKeyDeletionRequest, TagResourceRequest,
    UntagResourceRequest, UpdateKeyDescriptionRequest,
};

use super::connect::{CALL, Client};
use super::failure::Failure;
use super::key::{details, until_answered, with_way_back};
use super::paging::every_page;
use super::table::{Paint, Table};
use super::{parse, words};

/// Which key.
#[derive(Debug, Args)]
pub(super) struct WhichKey {
    /// Its id, its ARN, alias/NAME or an alias ARN
    #[arg(value_name = "KEY")]
    key_id: String,
}

/// Delete a key at the end of a window, with all that it encrypted
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway key schedule-deletion alias/orders --days 7

Until the window ends `keyway key cancel-deletion` takes it back. Then the key is destroyed on every HSM, and nothing
brings back what it encrypted.")]
pub(super) struct ScheduleDeletionArgs {
    #[command(flatten)]
    key: WhichKey,
    /// After how many days, 7 to 30
    #[arg(long, value_name = "N", default_value_t = 30)]
    days: i32,
}

/// Make a new version of a key now; older ones go on decrypting
#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    key: WhichKey,
    /// Makes a repetition harmless: the same id rotates once in 24 hours [default: a random one]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// Have a key rotate by itself, or change how often
#[derive(Debug, Args)]
pub(super) struct EnableRotationArgs {
    #[command(flatten)]
    key: WhichKey,
    /// How many days between rotations, 90 to 2560
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: i32,
}

/// Change what is said of a key
#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    #[command(flatten)]
    key: WhichKey,
    /// Words for people; empty for none
    #[arg(long)]
    description: String,
}

/// Add tags to a key, or change their values
#[derive(Debug, Args)]
pub(super) struct TagArgs {
    #[command(flatten)]
    key: WhichKey,
    #[arg(value_name = "NAME=VALUE", value_parser = parse::pair, required = true)]
    tags: Vec<(String, String)>,
}

/// Remove tags from a key
#[derive(Debug, Args)]
pub(super) struct UntagArgs {
    #[command(flatten)]
    key: WhichKey,
    #[arg(value_name = "NAME", required = true)]
    tag_keys: Vec<String>,
}

fn shown(key: Option<&Key>, paint: Paint) -> String {
    key.map(|key| details(key, paint)).unwrap_or_default()
}

pub(super) async fn enable(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = daemon.keys().enable_key(daemon.request(EnableKeyRequest { key_id })).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn disable(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = daemon.keys().disable_key(daemon.request(DisableKeyRequest { key_id })).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn schedule_deletion(client: &Client, args: ScheduleDeletionArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = ScheduleKeyDeletionRequest { key_id: args.key.key_id, pending_window_days: args.days };
    let response = daemon.keys().schedule_key_deletion(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn cancel_deletion(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = CancelKeyDeletionRequest { key_id };
    let response = daemon.keys().cancel_key_deletion(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn rotate(client: &Client, args: RotateArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request_id = args.request_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    let request = RotateKeyOnDemandRequest { key_id: args.key.key_id, request_id: request_id.clone() };
    let rotated = until_answered(client, &daemon, async || {
        let response = daemon.keys().rotate_key_on_demand(daemon.request(request.clone())).await?;
        Ok::<RotateKeyOnDemandResponse, Failure>(response.into_inner())
    });
    let what = "the new version may be there: repeat the command";
    let response = rotated.await.map_err(|failure| with_way_back(failure, what, &request_id))?;
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn enable_rotation(client: &Client, args: EnableRotationArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = EnableKeyRotationRequest { key_id: args.key.key_id, rotation_period_days: args.days };
    let response = daemon.keys().enable_key_rotation(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn disable_rotation(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = DisableKeyRotationRequest { key_id };
    let response = daemon.keys().disable_key_rotation(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn versions(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let versions = every_page(async |page_token| {
        let request = ListKeyVersionsRequest { key_id: key_id.clone(), page_token, ..Default::default() };
        let page = daemon.keys().list_key_versions(daemon.request(request)).await?.into_inner();
        Ok((page.versions, page.next_page_token))
    })
    .await?;
    let all = ListKeyVersionsResponse { versions, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.versions, paint))
}

pub(super) async fn update(client: &Client, args: UpdateArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = UpdateKeyDescriptionRequest { key_id: args.key.key_id, description: args.description };
    let response = daemon.keys().update_key_description(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| shown(response.key.as_ref(), paint))
}

pub(super) async fn tag(client: &Client, args: TagArgs) -> Result<(), Failure> {
    let tags = parse::distinct("the tag", args.tags)?;
    let daemon = client.connect(CALL).await?;
    let request = TagResourceRequest { key_id: args.key.key_id, tags };
    let response = daemon.keys().tag_resource(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| "tagged\n".to_owned())
}

pub(super) async fn untag(client: &Client, args: UntagArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = UntagResourceRequest { key_id: args.key.key_id, tag_keys: args.tag_keys };
    let response = daemon.keys().untag_resource(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| "untagged\n".to_owned())
}

pub(super) async fn tags(client: &Client, WhichKey { key_id }: WhichKey) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = ListResourceTagsRequest { key_id };
    let response = daemon.keys().list_resource_tags(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| {
        let mut tags: Vec<_> = response.tags.iter().collect();
        tags.sort();
        let mut table = Table::new(["TAG", "VALUE"]);
        for (name, value) in tags {
            table.row([name.as_str().into(), value.as_str().into()]);
        }
        table.render(paint)
    })
}

fn table(versions: &[KeyVersion], paint: Paint) -> String {
    let mut table = Table::new(["VERSION", "STATE", "USES", "CREATED", "HSMS"]);
    for version in versions {
        let proven = version.nodes.iter().filter(|on| words::key_proof(on.proof) == "USED");
        let hsms: Vec<&str> = proven.map(|on| on.hsm_id.as_str()).collect();
        table.row([
            version.version.to_string().into(),
            words::state(words::key_version_state(version.state)),
            version.uses.to_string().into(),
            words::time(&version.create_time).into(),
            hsms.join(", ").into(),
        ]);
    }
    table.render(paint)
}
