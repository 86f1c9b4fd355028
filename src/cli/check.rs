//! `keyway cluster check`: what a cluster lacks for a key store, phase by phase, each with its remedy.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::model::Password;
use crate::proto::v1::{Check, CheckClusterRequest, CheckClusterResponse, CheckPhase, CheckStatus};

use super::backoff::Backoff;
use super::bytes;
use super::connect::{Client, Daemon};
use super::failure::Failure;
use super::output::{self, Output};
use super::table::{Paint, printable};
use super::{password, words};

/// A login on an HSM that hangs is given up by then.
const CHECKING: Duration = Duration::from_secs(90);
const WAITING: Duration = Duration::from_secs(10 * 60);

/// Tell what a cluster lacks for a key store, and what to do about it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway cluster check cluster-2abcdefghij
  keyway cluster check cluster-2abcdefghij --trust-anchor customerCA.crt --password-file kmsuser.password
  keyway cluster check cluster-2abcdefghij --phase connect --wait --timeout 5m

Exits with 1 when a check failed. Changes nothing, with one exception: a password that is given is tried, by ONE login
as kmsuser on ONE HSM. A wrong one counts towards kmsuser's lock-out there; that HSM is then not asked by a check again
until it is resumed with --allow-one-login, or a key store logs in to it; the next check asks another one. While a key
store is connected there, nothing is tried. With --wait the password is tried once, when nothing else failed.")]
pub(super) struct CheckArgs {
    /// The cluster's id
    #[arg(value_name = "CLUSTER")]
    cluster_id: String,
    /// The certificate one would create the key store with, PEM
    #[arg(long, value_name = "FILE")]
    trust_anchor: Option<PathBuf>,
    /// A file whose first line is kmsuser's password, which is tried on one HSM; `-` for stdin
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Look at this phase alone; may be given several times
    #[arg(long, value_name = "PHASE")]
    phase: Vec<Phase>,
    /// Check again until nothing fails, for 10m unless --timeout is given
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Making a key store
    Create,
    /// Connecting it
    Connect,
    /// Making keys in it
    CreateKey,
    /// Using its keys
    Use,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Create, Self::Connect, Self::CreateKey, Self::Use];

    const fn of_contract(self) -> CheckPhase {
        match self {
            Self::Create => CheckPhase::Create,
            Self::Connect => CheckPhase::Connect,
            Self::CreateKey => CheckPhase::CreateKey,
            Self::Use => CheckPhase::Use,
        }
    }
}

pub(super) async fn check(client: &Client, args: CheckArgs) -> Result<(), Failure> {
    if args.password_file.is_some() && !args.phase.is_empty() && !args.phase.contains(&Phase::Connect) {
        let why = "--password-file is tried when connecting is checked: add --phase connect, or leave the password out";
        return Err(Failure::usage(why));
    }
    let trust_anchor = args.trust_anchor.as_deref().map(bytes::certificate).transpose()?;
    let password = args.password_file.as_deref().map(|file| password::for_key_store(Some(file))).transpose()?;
    let phases = if args.phase.is_empty() { Phase::ALL.to_vec() } else { args.phase };
    let asked = Asked { cluster_id: args.cluster_id, trust_anchor, phases };
    let response = if args.wait {
        until_nothing_fails(client, &asked, password.as_ref()).await?
    } else {
        asked.once(&client.connect(CHECKING).await?, password.as_ref()).await?
    };
    client.output.show(&response, text)?;
    match failed(&response).as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            Err(Failure::refused("FAILED_PRECONDITION", &first.reason, format!("{} failed{more}", first.name)))
        }
    }
}

/// What is to be checked.
struct Asked {
    cluster_id: String,
    trust_anchor: Option<String>,
    phases: Vec<Phase>,
}

impl Asked {
    async fn once(&self, daemon: &Daemon, password: Option<&Password>) -> Result<CheckClusterResponse, Failure> {
        let request = CheckClusterRequest {
            cluster_id: self.cluster_id.clone(),
            trust_anchor_certificate: self.trust_anchor.clone(),
            key_store_password: password.map(|password| password.expose().to_owned()),
        };
        let mut response = daemon.clusters().check_cluster(daemon.request(request)).await?.into_inner();
        response.checks.retain(|check| self.phases.iter().any(|phase| phase.of_contract() == check.phase()));
        response.passed = failed(&response).is_empty();
        Ok(response)
    }
}

/// The last answer. The password is tried once, when nothing else fails: each try may cost one on an HSM.
async fn until_nothing_fails(
    client: &Client,
    asked: &Asked,
    password: Option<&Password>,
) -> Result<CheckClusterResponse, Failure> {
    let daemon = client.connect(WAITING).await?;
    let mut backoff = Backoff::until(daemon.deadline);
    let mut told = String::new();
    loop {
        let response = match asked.once(&daemon, None).await {
            Ok(response) => response,
            Err(failure) if failure.is_passing() => {
                backoff.pause(failure.retry_after()).await.map_err(|_| failure)?;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let waiting_for = match failed(&response).first() {
            Some(first) => format!("{}: {}", first.name, first.problem),
            // Once, also when the answer is lost: the login may have been made.
            None if password.is_some() => return asked.once(&daemon, password).await,
            None => return Ok(response),
        };
        if client.output == Output::Table && told != waiting_for {
            output::note(&format!("waiting: {}", printable(&waiting_for)));
            told = waiting_for;
        }
        if backoff.pause(None).await.is_err() {
            return Ok(response);
        }
    }
}

fn failed(response: &CheckClusterResponse) -> Vec<&Check> {
    response.checks.iter().filter(|check| check.status() == CheckStatus::Failed).collect()
}

/// A heading for each phase, a line for each check, and below it what is wrong and what to do.
fn text(response: &CheckClusterResponse, paint: Paint) -> String {
    const INDENT: &str = "            ";
    let mut text = String::new();
    for phase in Phase::ALL {
        let phase = phase.of_contract();
        let checks: Vec<_> = response.checks.iter().filter(|check| check.phase() == phase).collect();
        if checks.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("{}\n", words::check_phase(phase.into())));
        for check in checks {
            let status = words::check_status(check.status);
            let padding = " ".repeat(10usize.saturating_sub(status.len()));
            let subject = if check.subject.is_empty() { String::new() } else { format!(" of {}", check.subject) };
            let status = words::state(status).painted(paint);
            text.push_str(&format!("  {status}{padding}{}{}\n", printable(&check.name), printable(&subject)));
            let lines = [("", &check.problem), ("do: ", &check.remedy), ("read: ", &check.help_url)];
            for (what, line) in lines.into_iter().filter(|(_, line)| !line.is_empty()) {
                text.push_str(&format!("{INDENT}{what}{}\n", printable(line)));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_told_by_phase_with_problem_and_remedy_and_no_controls() {
        let check = |name: &str, phase: CheckPhase, status: CheckStatus, problem: &str| Check {
            name: name.to_owned(),
            phase: phase.into(),
            status: status.into(),
            problem: problem.to_owned(),
            remedy: if problem.is_empty() { String::new() } else { "Fix it.".to_owned() },
            ..Default::default()
        };
        let response = CheckClusterResponse {
            passed: false,
            checks: vec![
                check("cluster-active", CheckPhase::Create, CheckStatus::Passed, ""),
                check("active-hsm", CheckPhase::Connect, CheckStatus::Failed, "none\u{1b}[2J"),
            ],
        };
        assert_eq!(
            text(&response, Paint::Plain),
            "CREATE\n  PASSED    cluster-active\n\nCONNECT\n  FAILED    active-hsm\n            none\\u{1b}[2J\n            do: Fix it.\n"
        );
    }
}
