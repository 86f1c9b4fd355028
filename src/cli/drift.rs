//! `keyway cluster drift` and `keyway cluster sync`: what is out of step, and bringing it level.

use clap::Args;
use tokio::time::{Duration, Instant, timeout_at};
use tonic::Request;

use crate::proto::v1::{Drift, ListDriftRequest, ListDriftResponse, SyncClusterRequest, SyncClusterResponse};

use super::connect::{CALL, Client, FOREVER};
use super::failure::Failure;
use super::output::{self, Output};
use super::paging::every_page;
use super::table::{Paint, Table};
use super::words;

/// People hear how far it has come this often.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// List where the records and a cluster's HSMs disagree about keys, as last seen
#[derive(Debug, Args)]
pub(super) struct DriftArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
}

/// Compare a cluster's keys on all its HSMs, and copy what is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway cluster sync cluster-2abcdefghij --dry-run

Nothing is ever destroyed by it, and callers use the keys meanwhile. Stopped, it can be begun again. Exits with 1 when
keys could not be synchronised.")]
pub(super) struct SyncArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
    /// Tell what would be done, and copy nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn list(client: &Client, args: DriftArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let drifts = every_page(async |page_token| {
        let request = ListDriftRequest { cluster_id: args.cluster_id.clone(), page_token, ..Default::default() };
        let page = daemon.clusters().list_drift(daemon.request(request)).await?.into_inner();
        Ok((page.drifts, page.next_page_token))
    })
    .await?;
    let all = ListDriftResponse { drifts, next_page_token: String::new() };
    client.output.show(&all, |all, paint| table(&all.drifts, paint))
}

pub(super) async fn sync(client: &Client, args: SyncArgs) -> Result<(), Failure> {
    let daemon = client.connect(FOREVER).await?;
    let late = |_| Failure::late("the time to compare is over; it can be begun again");
    let request = Request::new(SyncClusterRequest { cluster_id: args.cluster_id, dry_run: args.dry_run });
    let mut stub = daemon.clusters();
    let mut news = timeout_at(daemon.deadline, stub.sync_cluster(request)).await.map_err(late)??.into_inner();
    let (mut last, mut told) = (SyncClusterResponse::default(), Instant::now());
    let mut drifts = Vec::new();
    while let Some(mut response) = timeout_at(daemon.deadline, news.message()).await.map_err(late)?? {
        if client.output == Output::Json {
            client.output.show_next(&response, |_, _| String::new())?;
        } else if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            output::note(&format!("{} of {} keys compared", response.keys_done, response.keys_total));
        }
        drifts.extend(response.drift.take());
        last = response;
    }
    if client.output == Output::Table {
        client.output.show(&last, |last, paint| {
            let differences = if drifts.is_empty() { String::new() } else { table(&drifts, paint) };
            format!("{differences}{}\n", summary(last, drifts.len()))
        })?;
    }
    match (args.dry_run, last.keys_failed) {
        (true, _) | (false, ..=0) => Ok(()),
        (false, failed) => {
            let why = format!("{failed} keys could not be synchronised");
            Err(Failure::refused("ABORTED", "NOT_LEVEL", why).advise("see on which HSMs: keyway cluster list"))
        }
    }
}

fn summary(last: &SyncClusterResponse, differences: usize) -> String {
    format!("{} of {} keys compared, {differences} differences", last.keys_done, last.keys_total)
}

fn table(drifts: &[Drift], paint: Paint) -> String {
    let mut table = Table::new(["FOUND", "HSM", "KIND", "KEY", "WHY"]);
    for drift in drifts {
        table.row([
            words::time(&drift.found_time).into(),
            drift.hsm_id.as_str().into(),
            words::state(words::drift_kind(drift.kind)),
            drift.key_id.as_str().into(),
            drift.detail.as_str().into(),
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::DriftKind;

    #[test]
    fn a_difference_is_a_line_with_its_kind_and_why() {
        let drift = Drift {
            key_id: "k1".to_owned(),
            hsm_id: "hsm-1".to_owned(),
            kind: DriftKind::DifferentMaterial.into(),
            detail: "another key".to_owned(),
            found_time: None,
        };
        let lines = "FOUND  HSM    KIND                KEY  WHY\n-      hsm-1  DIFFERENT_MATERIAL  k1   another key\n";
        assert_eq!(table(&[drift], Paint::Plain), lines);
        let last = SyncClusterResponse { keys_total: 3, keys_done: 2, keys_failed: 1, drift: None };
        assert_eq!(summary(&last, 1), "2 of 3 keys compared, 1 differences");
    }
}
