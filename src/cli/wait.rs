//! `keyway wait`: until the daemon serves and, if one is named, a key store is connected; or until a `keyway dev` is ready.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use tonic_health::pb::HealthCheckResponse;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::proto::v1::ConnectionState;

use super::backoff::Backoff;
use super::connect::Client;
use super::failure::Failure;
use super::output::{self, Output};
use super::{dev, health, key_store, settle, words};

const PATIENCE: Duration = Duration::from_secs(60);
/// One look takes no longer, so that a daemon that hangs is asked again.
const LOOK: Duration = Duration::from_secs(5);

/// Wait until the daemon serves, and a key store is connected; or until a `keyway dev` is ready
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway wait
  keyway wait --connected orders --timeout 5m
  keyway wait --dev ./keyway-dev                everything that its --seed names is there, and connected

Waits for 60s unless --timeout is given. Exits with 3 when no daemon answered until then.")]
pub(super) struct WaitArgs {
    /// Wait for this key store to be CONNECTED, too
    #[arg(long, value_name = "ID|NAME")]
    connected: Option<String>,
    /// Wait for the `keyway dev` with this data directory on this machine, with everything that its seed names
    #[arg(long, value_name = "DIR")]
    dev: Option<PathBuf>,
}

/// What one look found.
enum Found {
    Ready(HealthCheckResponse),
    /// Not yet, and what the command ends with if it stays so.
    NotYet(Failure),
    /// Waiting does not help.
    Hopeless(Failure),
}

pub(super) async fn wait(client: &Client, args: WaitArgs) -> Result<(), Failure> {
    let at_dev = args.dev.as_deref().map(|data_dir| client.at_socket(dev::socket_in(data_dir)));
    let client = at_dev.as_ref().unwrap_or(client);
    let deadline = client.deadline(PATIENCE);
    let mut backoff = Backoff::until(deadline);
    let mut told = String::new();
    loop {
        let failure = match look(client, deadline, &args).await {
            Found::Ready(response) => return client.output.show(&response, health::text),
            Found::Hopeless(failure) => return Err(failure),
            Found::NotYet(failure) => failure,
        };
        if client.output == Output::Table && told != failure.message() {
            told = failure.message().to_owned();
            output::note(&format!("waiting: {told}"));
        }
        backoff.pause(None).await.map_err(|_| failure)?;
    }
}

async fn look(client: &Client, deadline: Instant, args: &WaitArgs) -> Found {
    let glance = deadline.min(Instant::now() + LOOK);
    match look_once(client, glance, args).await {
        Ok(found) => found,
        Err(failure) if failure.is_passing() || failure.is_late() => Found::NotYet(failure),
        Err(failure) => Found::Hopeless(failure),
    }
}

async fn look_once(client: &Client, glance: Instant, args: &WaitArgs) -> Result<Found, Failure> {
    let daemon = client.connect_once(glance).await?;
    let response = health::ask(&daemon, "", LOOK).await?;
    if response.status() != ServingStatus::Serving {
        let status = response.status().as_str_name();
        return Ok(Found::NotYet(Failure::late(format!("the daemon is {status}"))));
    }
    // One that was killed leaves its word behind: only of a daemon that answers does it say anything.
    if let Some(data_dir) = args.dev.as_deref().filter(|data_dir| !dev::is_ready_in(data_dir)) {
        return Ok(Found::NotYet(Failure::late(format!("keyway dev in {} is not ready yet", data_dir.display()))));
    }
    let Some(id_or_name) = &args.connected else {
        return Ok(Found::Ready(response));
    };
    let store = key_store::find(&daemon, id_or_name.clone()).await?;
    Ok(match store.connection_state() {
        ConnectionState::Connected => Found::Ready(response),
        ConnectionState::Failed => Found::Hopeless(settle::not_connected(&store)),
        ConnectionState::Disconnected
        | ConnectionState::Connecting
        | ConnectionState::Disconnecting
        | ConnectionState::Unspecified => {
            let state = words::connection_state(store.connection_state);
            Found::NotYet(Failure::late(format!("key store {id_or_name} is {state}")))
        }
    })
}
