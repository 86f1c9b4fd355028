//! `keyway health`: asks the standard health service, as a load balancer would.

use std::time::Duration;

use clap::Args;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::connect::{CALL, Client, Daemon};
use super::failure::Failure;
use super::table::{Cell, Paint, Tone};

/// Tell whether the daemon, or one of its services, is SERVING
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway health
  keyway health keyway.v1.CryptoService
  keyway health key-store/cks-1234567890abcdef0

Exits with 0 when it is SERVING, with 1 when it is not, with 3 when no daemon answers.")]
pub(super) struct HealthArgs {
    /// A service's full name, or key-store/ID; left out, the daemon as a whole
    #[arg(default_value = "", hide_default_value = true)]
    service: String,
}

pub(super) async fn check(client: &Client, args: HealthArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let response = ask(&daemon, &args.service, CALL).await?;
    client.output.show(&response, text)?;
    if response.status() == ServingStatus::Serving {
        return Ok(());
    }
    let what = if args.service.is_empty() { "the daemon" } else { &args.service };
    let status = response.status().as_str_name();
    Err(Failure::refused("UNAVAILABLE", status, format!("{what} is {status}")))
}

pub(super) async fn ask(daemon: &Daemon, service: &str, limit: Duration) -> Result<HealthCheckResponse, Failure> {
    let request = HealthCheckRequest { service: service.to_owned() };
    Ok(daemon.health().check(daemon.request_within(request, limit)).await?.into_inner())
}

pub(super) fn text(response: &HealthCheckResponse, paint: Paint) -> String {
    let tone = if response.status() == ServingStatus::Serving { Tone::Good } else { Tone::Bad };
    let mut table = super::table::Table::of_fields();
    table.row([Cell::toned(response.status().as_str_name(), tone)]);
    table.render(paint)
}
