//! `keyway alias …`: create, update, delete, list.

use clap::{Args, Subcommand};

use crate::proto::v1::{
    Alias, CreateAliasRequest, DeleteAliasRequest, ListAliasesRequest, ListAliasesResponse, UpdateAliasRequest,
};

use super::connect::{CALL, Client};
use super::failure::Failure;
use super::paging::every_page;
use super::table::{Paint, Table};
use super::words;

#[derive(Debug, Subcommand)]
pub(super) enum AliasCommand {
    Create(CreateArgs),
    Update(UpdateArgs),
    Delete(DeleteArgs),
    List(ListArgs),
}

/// Give a key another name
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway alias create alias/orders 1234abcd-12ab-34cd-56ef-1234567890ab")]
pub(super) struct CreateArgs {
    /// The alias, alias/NAME
    #[arg(value_name = "NAME")]
    alias_name: String,
    /// The key it shall stand for: its id or ARN
    #[arg(value_name = "KEY")]
    target_key_id: String,
}

/// Point an alias at another key of the same kind
#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The alias, alias/NAME
    #[arg(value_name = "NAME")]
    alias_name: String,
    /// The key it shall stand for: its id or ARN
    #[arg(value_name = "KEY")]
    target_key_id: String,
}

/// Delete an alias; its key stays
#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// The alias, alias/NAME
    #[arg(value_name = "NAME")]
    alias_name: String,
}

/// List aliases
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only those of this key: its id or ARN
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    key: String,
}

impl AliasCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create(client, args).await,
            Self::Update(args) => update(client, args).await,
            Self::Delete(args) => delete(client, args).await,
            Self::List(args) => list(client, args).await,
        }
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = CreateAliasRequest { alias_name: args.alias_name, target_key_id: args.target_key_id };
    let response = daemon.keys().create_alias(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| table(&response.alias, paint))
}

async fn update(client: &Client, args: UpdateArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = UpdateAliasRequest { alias_name: args.alias_name, target_key_id: args.target_key_id };
    let response = daemon.keys().update_alias(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |response, paint| table(&response.alias, paint))
}

async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = DeleteAliasRequest { alias_name: args.alias_name.clone() };
    let response = daemon.keys().delete_alias(daemon.request(request)).await?.into_inner();
    client.output.show(&response, |_, _| format!("deleted {}\n", args.alias_name))
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let aliases = every_page(async |page_token| {
        let request = ListAliasesRequest { key_id: args.key.clone(), page_token, ..Default::default() };
        let page = daemon.keys().list_aliases(daemon.request(request)).await?.into_inner();
        Ok((page.aliases, page.next_page_token))
    })
    .await?;
    let all = ListAliasesResponse { aliases, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.aliases, paint))
}

fn table<'a>(aliases: impl IntoIterator<Item = &'a Alias>, paint: Paint) -> String {
    let mut table = Table::new(["ALIAS", "KEY", "CREATED"]);
    for alias in aliases {
        table.row([
            alias.alias_name.as_str().into(),
            alias.target_key_id.as_str().into(),
            words::time(&alias.create_time).into(),
        ]);
    }
    table.render(paint)
}
