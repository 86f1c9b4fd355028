//! Brings one node up and keeps it up, until told to stop.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::host::Host;
use crate::records::Records;

use super::link::Link;
use super::login::{self, LoginError};
use super::{Credential, Health, LoginRefusal, Node, TokenFacts, change};

/// The first pause after a worker ended or could not be started; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Beyond its patience, a worker gets this long to see that its link has ended.
const GRACE: Duration = Duration::from_secs(1);
/// A worker that served this long starts the pauses anew.
const SETTLED: Duration = Duration::from_secs(10);

/// Runs until `stop` turns true or its sender is gone; then hands the link back to the worker, which lets its running calls return.
pub async fn supervise(
    node: Arc<Node>,
    host: Host,
    records: Records,
    credential: Arc<Credential>,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = pin!(stopped(stop));
    let mut pause = FIRST_PAUSE;
    loop {
        let link = tokio::select! {
            () = &mut stopped => break,
            established = establish(&node, &host, &records, &credential) => established,
        };
        match link {
            Ok(link) => {
                let began = Instant::now();
                tokio::select! {
                    () = &mut stopped => {
                        node.publish(None);
                        link.close();
                        // A worker leaves by itself within its patience, unless no thread of it is left to see the end.
                        if tokio::time::timeout(node.spec.patience.longest() + GRACE, link.ended()).await.is_err() {
                            link.kill();
                        }
                        break;
                    }
                    () = link.ended() => {}
                }
                node.publish(None);
                unreachable(&node, "its worker ended", Some(FIRST_PAUSE));
                node.status.send_modify(|status| status.worker_restarts += 1);
                if began.elapsed() >= SETTLED {
                    pause = FIRST_PAUSE;
                }
            }
            Err(LoginError::Refused(refusal)) => {
                refused(&node, refusal);
                stopped.await;
                break;
            }
            Err(LoginError::Worker(error)) => unreachable(&node, &chain(&error), Some(pause)),
            Err(LoginError::Records(error)) => unreachable(&node, &chain(&error), Some(pause)),
        }
        tokio::select! {
            () = &mut stopped => break,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    node.status.send_modify(|status| change(status, Health::NotProbed, "disconnected"));
}

/// A worker with its user logged in, serving.
async fn establish(
    node: &Arc<Node>,
    host: &Host,
    records: &Records,
    credential: &Arc<Credential>,
) -> Result<Arc<Link>, LoginError> {
    let mut worker = host.start(&node.spec).await.map_err(LoginError::Worker)?;
    let opened = worker.opened();
    let facts = TokenFacts {
        serial: opened.serial.clone(),
        model: opened.model.clone(),
        firmware_version: opened.firmware_version.clone(),
        sessions: opened.sessions,
    };
    node.status.send_modify(|status| status.token = Some(facts.clone()));
    login::log_in(host, records, &node.spec, &mut worker, credential).await?;
    let login = node.status.borrow().login + 1;
    let link = Link::start(worker, login, node.queue_limit, node.spec.patience);
    node.publish(Some(link.clone()));
    tracing::info!(hsm = %node.spec.hsm, serial = %facts.serial, sessions = facts.sessions, "logged in");
    node.status.send_modify(|status| {
        change(status, Health::Syncing, "logged in; being proved");
        status.login = login;
        status.next_retry = None;
        status.login_refusal = None;
    });
    Ok(link)
}

fn unreachable(node: &Node, reason: &str, retry_in: Option<Duration>) {
    tracing::warn!(hsm = %node.spec.hsm, reason, "node unreachable");
    node.status.send_modify(|status| {
        change(status, Health::Unreachable, reason);
        status.last_error = Some((reason.to_owned(), clock::now()));
        status.next_retry = retry_in.map(|pause| clock::now() + pause);
    });
}

fn refused(node: &Node, refusal: LoginRefusal) {
    let reason = match refusal {
        LoginRefusal::Incorrect => "the token refused the password; it is not tried again",
        LoginRefusal::Locked => "the token has locked the crypto user",
        LoginRefusal::LoggedInElsewhere => "the crypto user is logged in elsewhere",
        LoginRefusal::Unsettled => "an earlier login was never answered; disconnect and connect to try once more",
    };
    tracing::warn!(hsm = %node.spec.hsm, reason, "login refused");
    node.status.send_modify(|status| {
        change(status, Health::LoginRefused, reason);
        status.login_refusal = Some(refusal);
        status.last_error = Some((reason.to_owned(), clock::now()));
        status.next_retry = None;
    });
}

/// Resolves when told to stop, or when nobody could tell any more.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Between three quarters of `pause` and all of it, so that nodes do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let random = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    pause - pause.mul_f64(0.25) * random / 255
}

/// An error with its causes, for a person.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
