//! Connecting a key store: one node proves the password, then the others follow.
//!
//! A password that is wrong is thus tried on one node, once. A later node that refuses it does
//! not stop the connection: that node alone stays LOGIN_REFUSED. One node that is logged in and
//! proved suffices for CONNECTED.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;

use crate::clock;
use crate::cluster::{Closing, Connection, Member};
use crate::model::{ConnectionErrorCode, ConnectionState, HsmId};
use crate::node::{Health, LoginRefusal};
use crate::records::ConnectionFault;

use super::lifecycle::Event;
use super::{KeyStores, Store};

/// Once one node is proved, the others get this long before the store is CONNECTED without them.
const OTHERS: Duration = Duration::from_secs(20);

/// Where a node stands on its way into a Connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Reach,
    LogIn,
    Probe,
    SyncKeys,
    Ready,
}

/// A node's phase, whether it is stuck there, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub hsm: HsmId,
    pub phase: Phase,
    pub failed: bool,
    pub reason: String,
}

/// How far each node has come.
pub fn progress(connection: &Connection) -> Vec<Progress> {
    connection.members().iter().map(progress_of).collect()
}

fn progress_of(member: &Member) -> Progress {
    let status = member.node.status();
    let status = status.borrow();
    let (phase, failed) = match status.health {
        Health::NotProbed => (Phase::Reach, false),
        Health::Unreachable => (Phase::Reach, true),
        Health::LoginRefused => (Phase::LogIn, true),
        Health::Syncing if member.is_proved() => (Phase::SyncKeys, false),
        Health::Syncing => (Phase::Probe, false),
        Health::Healthy => (Phase::Ready, false),
    };
    Progress { hsm: member.node.hsm().clone(), phase, failed, reason: status.reason.clone() }
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
    let Some(outcome) = outcome else {
        // Disconnected meanwhile, perhaps before there was anything to close.
        if let Some(connection) = store.connection.send_replace(None) {
            connection.close(Closing::Now).await;
        }
        return;
    };
    let outcome = outcome.unwrap_or_else(|_| {
        Err(fault(ConnectionErrorCode::NetworkErrors, "the attempt took longer than connect_timeout".to_owned(), None))
    });
    let moved = match outcome {
        Ok(()) => stores.advance(&store, Event::Connected, |record| record.last_error = None).await,
        Err(fault) => {
            tracing::warn!(key_store = %store.id(), code = %fault.code, message = %fault.message, "connecting failed");
            if let Some(connection) = store.connection.send_replace(None) {
                connection.close(Closing::Now).await;
            }
            stores.advance(&store, Event::Failed, |record| record.last_error = Some(fault)).await
        }
    };
    if let Err(error) = moved {
        tracing::error!(key_store = %store.id(), %error, "the end of a connect could not be written down");
    }
}

async fn attempt(stores: &KeyStores, store: &Store) -> Result<(), ConnectionFault> {
    let connection = match stores.open(store).await {
        Ok(Some(connection)) => connection,
        Ok(None) => {
            let cluster = store.record().cluster;
            return Err(fault(ConnectionErrorCode::ClusterNotFound, format!("cluster {cluster} cannot be used"), None));
        }
        Err(error) => return Err(fault(ConnectionErrorCode::InternalError, error.to_string(), None)),
    };
    let first = prove_password(&connection).await?;
    for index in (0..connection.members().len()).filter(|index| *index != first) {
        connection.bring_up(index);
    }
    let all_decided = || connection.members().iter().all(|member| member.is_proved() || is_out(member));
    let _ = tokio::time::timeout(OTHERS, until(&connection, all_decided)).await;
    if connection.members().iter().any(Member::is_proved) {
        return Ok(());
    }
    // Nobody is proved yet: wait on, until the whole attempt's time is over or nobody is left.
    until(&connection, || {
        connection.members().iter().any(Member::is_proved) || connection.members().iter().all(is_out)
    })
    .await;
    if connection.members().iter().any(Member::is_proved) {
        return Ok(());
    }
    let reasons = reasons(&connection);
    Err(fault(ConnectionErrorCode::InternalError, format!("no HSM could be proved: {reasons}"), None))
}

/// Logs in on one node; the index of the one that accepted the password. A node that cannot be reached is passed over.
async fn prove_password(connection: &Arc<Connection>) -> Result<usize, ConnectionFault> {
    for (index, member) in connection.members().iter().enumerate() {
        connection.bring_up(index);
        until(connection, || is_logged_in(member) || is_out(member)).await;
        let status = member.node.status().borrow().clone();
        if is_logged_in(member) {
            return Ok(index);
        }
        if let Some(refusal) = status.login_refusal {
            let code = match refusal {
                LoginRefusal::Incorrect => ConnectionErrorCode::InvalidCredentials,
                LoginRefusal::Locked => ConnectionErrorCode::UserLockedOut,
                LoginRefusal::LoggedInElsewhere => ConnectionErrorCode::UserLoggedIn,
                LoginRefusal::Unsettled => ConnectionErrorCode::InternalError,
            };
            return Err(fault(code, status.reason, Some(member.node.hsm().clone())));
        }
        // Not left to come up by itself: it would try a password that nobody has proved yet.
        connection.take_down(index).await;
    }
    Err(fault(ConnectionErrorCode::NetworkErrors, "no HSM of the cluster can be reached".to_owned(), None))
}

fn is_logged_in(member: &Member) -> bool {
    matches!(member.node.status().borrow().health, Health::Syncing | Health::Healthy)
}

fn is_out(member: &Member) -> bool {
    matches!(member.node.status().borrow().health, Health::Unreachable | Health::LoginRefused)
}

/// Waits until the condition holds, looking again whenever a node changes.
async fn until(connection: &Connection, condition: impl Fn() -> bool) {
    let mut changes = connection.changes();
    let mut statuses: Vec<_> = connection.members().iter().map(|member| member.node.status()).collect();
    while !condition() {
        let any = select_all(statuses.iter_mut().map(|status| Box::pin(status.changed())));
        tokio::select! {
            _ = any => {}
            _ = changes.changed() => {}
        }
    }
}

fn reasons(connection: &Connection) -> String {
    let each = progress(connection).into_iter().map(|node| format!("{}: {}", node.hsm, node.reason));
    each.collect::<Vec<_>>().join("; ")
}

fn fault(code: ConnectionErrorCode, message: String, hsm: Option<HsmId>) -> ConnectionFault {
    ConnectionFault { code, message, hsm, time: clock::now() }
}
