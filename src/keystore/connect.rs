//! Connecting a key store: one node proves the password, then the others follow.
//!
//! A password that is wrong is thus tried on one node, once (the nodes' gate sees to that). A later
//! node that refuses it does not stop the connection: that node alone stays LOGIN_REFUSED. One node
//! that is logged in and proved suffices for CONNECTED, and none that hangs holds up the others. When none is left of
//! which anything is to be hoped, the store is FAILED at once, and told what to mend.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::cluster::{Closing, Connection, Member};
use crate::model::{ConnectionErrorCode, ConnectionState, HsmId};
use crate::node::{Health, LoginRefusal};
use crate::records::ConnectionFault;

use super::lifecycle::Event;
use super::open::NotOpened;
use super::rotate::{self, Rotated};
use super::{Error, KeyStores, Store, prerequisites};

/// Once one node is proved, the others get this long before the store is CONNECTED without them.
const OTHERS: Duration = Duration::from_secs(20);

/// Where a node stands on its way into a Connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectPhase {
    Reach,
    LogIn,
    /// It is given a new password, or finds out whether it was.
    RotatePassword,
    Probe,
    SyncKeys,
    Ready,
    /// Out of use: it takes no part.
    Drained,
    /// Its token is not the one it was: no password is sent there.
    OtherToken,
}

/// A node's phase, whether it is stuck there, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub hsm: HsmId,
    pub phase: ConnectPhase,
    pub failed: bool,
    pub reason: String,
    /// What a refused login is called, which says what to do about it.
    pub refusal: Option<ConnectionErrorCode>,
}

/// How far each node has come.
pub(super) fn progress(connection: &Connection) -> Vec<Progress> {
    connection.members().iter().map(|member| progress_of(member)).collect()
}

fn progress_of(member: &Member) -> Progress {
    let status = member.node.status();
    let status = status.borrow();
    let (phase, failed) = match status.health {
        // Between the worker that changed it and the one that logs in with it, too.
        Health::NotProbed | Health::Unreachable if status.password.is_none() => (ConnectPhase::RotatePassword, false),
        Health::Syncing | Health::Healthy | Health::Slow if status.password.is_none() => {
            (ConnectPhase::RotatePassword, false)
        }
        Health::NotProbed => (ConnectPhase::Reach, false),
        Health::Unreachable => (ConnectPhase::Reach, true),
        Health::WrongIdentity => (ConnectPhase::OtherToken, true),
        Health::Drained => (ConnectPhase::Drained, false),
        Health::LoginRefused => (ConnectPhase::LogIn, true),
        Health::Syncing if member.is_proved() => (ConnectPhase::SyncKeys, false),
        Health::Syncing => (ConnectPhase::Probe, false),
        Health::Healthy | Health::Slow => (ConnectPhase::Ready, false),
    };
    let refusal = status.login_refusal.filter(|_| status.health == Health::LoginRefused).map(code);
    Progress { hsm: member.node.hsm().clone(), phase, failed, reason: status.reason.clone(), refusal }
}

/// Connects a CONNECTING store, or says why that failed. Gives up quietly when the store is disconnected meanwhile.
pub(super) async fn run(stores: KeyStores, store: Arc<Store>) {
    #[cfg(debug_assertions)]
    crate::seams::stop_point("connecting");
    let mut changes = store.record_changes();
    let outcome = tokio::select! {
        biased;
        _ = changes.wait_for(|record| record.state != ConnectionState::Connecting) => None,
        outcome = tokio::time::timeout(stores.0.settings.connect_timeout, attempt(&stores, &store)) => Some(outcome),
    };
    // Disconnected meanwhile: whoever did that waits for this end, and closes what was opened.
    let Some(outcome) = outcome else { return };
    let outcome = outcome.unwrap_or_else(|_| {
        Err(fault(ConnectionErrorCode::NetworkErrors, "the attempt took longer than connect_timeout".to_owned(), None))
    });
    let moved = match outcome {
        Ok(()) => stores.advance_in_the_end(&store, Event::Connected, |record| record.last_error = None).await,
        Err(fault) => {
            tracing::warn!(key_store = %store.id(), code = %fault.code, message = %fault.message, "connecting failed");
            store.leave_at(store.progress());
            if let Some(connection) = store.connection.send_replace(None) {
                connection.close(Closing::Now).await;
                rotate::ended(&stores, &connection).await;
            }
            stores.advance_in_the_end(&store, Event::Failed, |record| record.last_error = Some(fault.clone())).await
        }
    };
    match moved {
        Ok(()) => {}
        Err(Error::InvalidState(refused)) => {
            tracing::info!(key_store = %store.id(), %refused, "disconnected before the attempt had ended");
        }
        Err(error) => {
            tracing::error!(key_store = %store.id(), %error, "the end of a connect could not be written down");
        }
    }
}

async fn attempt(stores: &KeyStores, store: &Arc<Store>) -> Result<(), ConnectionFault> {
    let began = Instant::now();
    let facts = stores.facts(&store.record().cluster);
    prerequisites::while_connecting(&facts)
        .map_err(|refusal| fault(refusal.unmet.code(), refusal.to_string(), None))?;
    stores.kmsuser_may_log_in(&facts.id).await?;
    let former_gone = rotate::wait_for_former(stores, store).await;
    former_gone.map_err(|message| fault(ConnectionErrorCode::InternalError, message, None))?;
    let connection = stores.open(store).await.map_err(|error| {
        let code = match &error {
            NotOpened::Undeclared(_) => ConnectionErrorCode::ClusterNotFound,
            NotOpened::NoPassword | NotOpened::Records(_) => ConnectionErrorCode::InternalError,
        };
        fault(code, error.to_string(), None)
    })?;
    // Nobody joins or leaves before the attempt has ended.
    let members = connection.members();
    for member in members.iter() {
        connection.bring_up(member);
    }
    let left = || stores.0.settings.connect_timeout.saturating_sub(began.elapsed());
    if !come_up(&connection, &members, left(), Member::is_out).await {
        return Err(why_nobody(&connection));
    }
    let proved: Vec<_> = members.iter().filter(|member| member.is_proved()).cloned().collect();
    // It must not cost the store what the first node has proved.
    match rotate::rotate(stores, store, &connection, left() / 2).await {
        Rotated::No => {}
        Rotated::UnderWay(message) => return Err(fault(ConnectionErrorCode::InternalError, message, None)),
        // Those that have a new password log in with it. Each could be reached before, and is waited for.
        Rotated::Perhaps if come_up(&connection, &proved, left(), Member::is_lost).await => {}
        Rotated::Perhaps => return Err(why_nobody(&connection)),
    }
    rotate::forget_unneeded(stores, &connection).await;
    Ok(())
}

/// Waits until one node is proved, and a while for the others among `members`; or until nothing is to be hoped of any of
/// these. Whether one is proved.
async fn come_up(
    connection: &Connection,
    members: &[Arc<Member>],
    left: Duration,
    is_lost: fn(&Member) -> bool,
) -> bool {
    let nobody = || members.iter().all(|member| is_lost(member) || member.stuck().is_some());
    connection.until(|| connection.any_proved() || nobody() || refused(connection)).await;
    let all_decided = || members.iter().all(|member| member.is_proved() || is_lost(member));
    if connection.any_proved() {
        // One suffices: the time for the others must not cost the store what the first has proved.
        let _ = tokio::time::timeout(OTHERS.min(left / 2), connection.until(all_decided)).await;
    }
    connection.any_proved()
}

/// One node refused the password, and none was found to accept it: the others are not asked, but for one that an operator
/// has granted a login.
fn refused(connection: &Connection) -> bool {
    let may_yet_be_asked = |member: &Member| connection.has_granted_login(member.node.hsm()) && !member.is_out();
    connection.is_refused()
        && refusals(connection).iter().any(|(_, refusal, _)| is_verdict(*refusal))
        && !connection.members().iter().any(|member| may_yet_be_asked(member))
}

/// The token looked at the password.
fn is_verdict(refusal: LoginRefusal) -> bool {
    match refusal {
        LoginRefusal::Incorrect | LoginRefusal::Locked => true,
        LoginRefusal::NoUser
        | LoginRefusal::LoggedInElsewhere
        | LoginRefusal::Unsettled
        | LoginRefusal::NotTried
        | LoginRefusal::Throttled => false,
    }
}

fn refusals(connection: &Connection) -> Vec<(HsmId, LoginRefusal, String)> {
    let refusal = |member: &Arc<Member>| {
        let status = member.node.status().borrow().clone();
        Some((member.node.hsm().clone(), status.login_refusal?, status.reason))
    };
    connection.members().iter().filter_map(refusal).collect()
}

/// What keeps the nodes that are logged in from being proved; or the refusal that says most; or that nobody was asked,
/// since a token is another than before, or none could be reached.
fn why_nobody(connection: &Connection) -> ConnectionFault {
    let members = connection.members();
    let stuck = members.iter().filter_map(|member| Some((member.stuck()?, member.node.hsm())));
    if let Some((_, hsm)) = stuck.min() {
        let message = format!("no HSM can be proved to hold the cluster's keys: {}", reasons(connection));
        return fault(ConnectionErrorCode::InternalError, message, Some(hsm.clone()));
    }
    let most_telling = refusals(connection).into_iter().min_by_key(|(_, refusal, _)| match refusal {
        LoginRefusal::Incorrect => 0,
        LoginRefusal::Locked => 1,
        LoginRefusal::NoUser => 2,
        LoginRefusal::LoggedInElsewhere => 3,
        LoginRefusal::Unsettled => 4,
        LoginRefusal::NotTried => 5,
        LoginRefusal::Throttled => 6,
    });
    if let Some((hsm, refusal, reason)) = most_telling {
        return fault(code(refusal), reason, Some(hsm));
    }
    let other_token = |member: &&Arc<Member>| member.node.status().borrow().health == Health::WrongIdentity;
    let other_token = members.iter().find(other_token).map(|member| member.node.hsm().clone());
    // Something is there and answers: its host and its network are not to blame.
    let code = match other_token {
        Some(_) => ConnectionErrorCode::InternalError,
        None => ConnectionErrorCode::NetworkErrors,
    };
    fault(code, format!("no HSM of the cluster can be used: {}", reasons(connection)), other_token)
}

/// What a refused login is called in AWS.
pub(super) fn code(refusal: LoginRefusal) -> ConnectionErrorCode {
    match refusal {
        LoginRefusal::Incorrect | LoginRefusal::NotTried => ConnectionErrorCode::InvalidCredentials,
        LoginRefusal::Locked | LoginRefusal::Throttled => ConnectionErrorCode::UserLockedOut,
        LoginRefusal::NoUser => ConnectionErrorCode::UserNotFound,
        LoginRefusal::LoggedInElsewhere => ConnectionErrorCode::UserLoggedIn,
        LoginRefusal::Unsettled => ConnectionErrorCode::InternalError,
    }
}

fn reasons(connection: &Connection) -> String {
    let each = progress(connection).into_iter().map(|node| format!("{}: {}", node.hsm, node.reason));
    each.collect::<Vec<_>>().join("; ")
}

pub(super) fn fault(code: ConnectionErrorCode, message: String, hsm: Option<HsmId>) -> ConnectionFault {
    ConnectionFault { code, message, hsm, time: clock::now() }
}
