//! `keyway whoami` and `keyway server-info`.

use std::collections::BTreeMap;

use crate::proto::v1::{GetServerInfoRequest, GetServerInfoResponse, WhoAmIRequest, WhoAmIResponse};

use super::connect::{CALL, Client};
use super::failure::Failure;
use super::table::{Cell, Paint, Table, Tone};
use super::words;

pub(super) async fn who_am_i(client: &Client) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = daemon.crypto_users().who_am_i(daemon.request(WhoAmIRequest {})).await?.into_inner();
    client.output.show(&response, caller)
}

pub(super) async fn info(client: &Client) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = daemon.server().get_server_info(daemon.request(GetServerInfoRequest {})).await?.into_inner();
    client.output.show(&response, server)
}

fn caller(response: &WhoAmIResponse, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("caller", response.caller.as_str());
    fields.field("known by", words::caller_source(response.source));
    fields.field("cluster", response.cluster_id.as_str());
    fields.field("user", response.username.as_str());
    fields.field("login ends", words::time(&response.expire_time));
    fields.render(paint)
}

fn server(response: &GetServerInfoResponse, paint: Paint) -> String {
    let mut fields = Table::of_fields();
    fields.field("version", response.version.as_str());
    fields.field("commit", response.commit.as_str());
    fields.field("time", words::time(&response.server_time));
    if response.dev {
        fields.field("mode", Cell::toned("development: not safe for real keys", Tone::Passing));
    }
    for (name, value) in response.limits.iter().collect::<BTreeMap<_, _>>() {
        fields.field(name, value.as_str());
    }
    fields.render(paint)
}
