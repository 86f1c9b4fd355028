//! Rotating `kmsuser`'s password: on the way from CONNECTING to CONNECTED, and at no other time.
//!
//! One node has proved the present password by then. A new one is made, sealed in the records and, where the operator
//! wants that, encrypted for him as well; then every node that can be reached is given it, one first and, once that one
//! has let a fresh worker in with it, the others. A node that was missed keeps the old password until the next connect: with
//! `set-pin` it then gets the others', when no new one is due.
//!
//! That a rotation fails makes no connect fail: a node has its old password or its new one, and finds out which.

mod command;
mod due;
mod escrow;
mod password;
mod set_pin;

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::cluster::{Connection, Member, Rotation, Strategy};
use crate::model::{PasswordVersion, Username, with_causes};
use crate::node::{Credential, Health};
use crate::records::{KeyStoreRecord, Unavailable};

use super::{KeyStores, Store};
use due::Due;

/// A node that was given a new password gets this long to be logged in to again.
const SETTLING: Duration = Duration::from_secs(20);
/// A program that nobody has configured any more is given this long to end.
const FORMER: Duration = Duration::from_secs(60);

/// Whether the nodes may have another password than before, and log in anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rotated {
    No,
    Perhaps,
    /// A program may be changing it yet, as the text says: nobody is to log in before it has ended.
    UnderWay(String),
}

/// Why no rotation was begun.
#[derive(Debug, thiserror::Error)]
enum NotBegun {
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
    #[error("the system gives no random bytes")]
    NoRandomness,
    #[error("the new password cannot be kept for the operator in {path}")]
    Escrow {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Waits for a program of a former connect, which may be changing the password yet. One that does not end is an error: what
/// it does to the password after a login nobody would know.
pub(super) async fn wait_for_former(stores: &KeyStores, store: &Store) -> Result<(), String> {
    let record = store.record();
    let patience = match rotation(stores, &record).map(|rotation| rotation.strategy) {
        Some(Strategy::Command(program)) => program.timeout,
        // There was a program, before the configuration was changed.
        Some(Strategy::None | Strategy::SetPin) | None => FORMER,
    };
    let gone = stores.0.host.program_gone(&record.cluster, &Username::kmsuser(), patience).await;
    gone.map_err(|error| format!("nobody may log in while rotation_command is at work: {}", with_causes(&error)))
}

/// Rotates the password, if that is due. What comes of it stands in the records and in the nodes' status.
///
/// HSMs that take longer than `limit` are left to find out by themselves.
pub(super) async fn rotate(
    stores: &KeyStores,
    store: &Store,
    connection: &Arc<Connection>,
    limit: Duration,
) -> Rotated {
    let record = store.record();
    let Some(rotation) = rotation(stores, &record).filter(|rotation| rotation.strategy != Strategy::None) else {
        return Rotated::No;
    };
    let rotated = rotate_if_due(stores, &record, &rotation, connection, limit).await.unwrap_or_else(|error| {
        let why = with_causes(&error);
        tracing::error!(key_store = %record.id, why, "the password was not rotated");
        for member in connection.members().iter() {
            member.node.note_trouble(&format!("the password was not rotated: {why}"));
        }
        Rotated::Perhaps
    });
    note_rotated(stores, store).await;
    rotated
}

/// Keeps the time of the last rotation as the records have it, for as long as the Connection lasts: a node may accept its
/// new password long after the connect that gave it.
pub(super) async fn follow(stores: KeyStores, store: Arc<Store>, connection: Arc<Connection>) {
    let mut confirmations = connection.passwords().confirmations();
    loop {
        tokio::select! {
            () = connection.closed() => return,
            confirmed = confirmations.changed() => if confirmed.is_err() { return },
        }
        note_rotated(&stores, &store).await;
    }
}

/// In the store's turn: whoever changes the record meanwhile would put the former time back.
async fn note_rotated(stores: &KeyStores, store: &Store) {
    let _turn = store.turn.lock().await;
    let record = store.record();
    match stores.0.records.password_rotated(&record.cluster).await {
        Ok(last) => {
            let rotated = last.map(|last| last.time);
            store.record.send_if_modified(|record| std::mem::replace(&mut record.password_rotated, rotated) != rotated);
        }
        Err(error) => tracing::error!(key_store = %record.id, %error, "the time of the rotation cannot be read"),
    }
}

/// Passwords that no node needs any more go, once a node has accepted the one it has now.
pub(super) async fn forget_unneeded(stores: &KeyStores, connection: &Connection) {
    if let Err(error) = stores.0.records.forget_passwords(connection.passwords().owner()).await {
        tracing::error!(cluster = %connection.cluster, %error, "passwords that nobody needs stay in the records");
    }
}

/// Waits until nothing can change a password on behalf of a Connection that is closed: whoever resets it by hand once the
/// store is DISCONNECTED or FAILED has the last word.
pub(super) async fn ended(stores: &KeyStores, connection: &Connection) {
    connection.passwords().changes_ended().await;
    // A worker that was cut off in the middle may be at it yet.
    let members = connection.members();
    let unsettled = members.iter().filter(|member| member.node.status().borrow().password.is_none());
    let slots: Vec<_> = unsettled.map(|member| member.node.spec.clone()).collect();
    if let Err(error) = stores.0.host.vacate(&slots).await {
        tracing::error!(cluster = %connection.cluster, %error, "a worker that may be changing a password does not leave");
    }
}

fn rotation(stores: &KeyStores, record: &KeyStoreRecord) -> Option<Rotation> {
    stores.0.clusters.get(&record.cluster).map(|cluster| cluster.rotation.clone())
}

async fn rotate_if_due(
    stores: &KeyStores,
    record: &KeyStoreRecord,
    rotation: &Rotation,
    connection: &Arc<Connection>,
    limit: Duration,
) -> Result<Rotated, NotBegun> {
    let records = &stores.0.records;
    let owner = connection.passwords().owner();
    let known = records.node_passwords(owner).await?;
    // One that the operator gave since is his until it is rotated, whenever the last rotation was.
    let is_ours = known.values().any(|node| node.confirmed > owner.given);
    let last = records.password_rotated(&owner.cluster).await?.filter(|_| is_ours);
    let due = due::what_is_due(last, record.connect_attempt, rotation.interval, clock::now());
    match (due, &rotation.strategy) {
        (Due::Nothing, _) | (_, Strategy::None) | (Due::Stragglers, Strategy::Command(_)) => return Ok(Rotated::No),
        (Due::Stragglers, Strategy::SetPin) => {
            let Some((newest, behind)) = set_pin::stragglers(connection).await? else { return Ok(Rotated::No) };
            let _ = tokio::time::timeout(limit, set_pin::rotate(connection, behind, newest)).await;
        }
        (Due::Rotation, Strategy::SetPin) => {
            let new = new_password(stores, record, rotation, connection).await?;
            let _ = tokio::time::timeout(limit, set_pin::rotate(connection, set_pin::proved(connection), new)).await;
        }
        (Due::Rotation, Strategy::Command(program)) => {
            let Some(old) = command::present(connection).await? else { return Ok(Rotated::No) };
            let new = new_password(stores, record, rotation, connection).await?;
            if let Err(under_way) = command::rotate(stores, connection, program, (old, new), limit).await {
                return Ok(Rotated::UnderWay(with_causes(&under_way)));
            }
        }
    }
    Ok(Rotated::Perhaps)
}

/// Sealed in the records, and kept for the operator, before anybody has it.
async fn new_password(
    stores: &KeyStores,
    record: &KeyStoreRecord,
    rotation: &Rotation,
    connection: &Connection,
) -> Result<Arc<Credential>, NotBegun> {
    let owner = connection.passwords().owner();
    let password = password::random().ok_or(NotBegun::NoRandomness)?;
    let time = clock::now();
    let version = stores.0.records.new_password(owner, &password, time, record.connect_attempt).await?;
    #[cfg(debug_assertions)]
    crate::seams::stop_point("new-password-sealed");
    if let Some(key) = &rotation.escrow {
        let sealed = key.seal(&password).ok_or(NotBegun::NoRandomness)?;
        let kept = escrow::Kept { cluster: &owner.cluster, version, time, key };
        escrow::keep(&stores.0.settings.escrow, &kept, sealed).await?;
    }
    Ok(Arc::new(Credential { username: owner.username.clone(), password, version }))
}

/// What a node has let a fresh worker in with; `None` when it has not in time, or lets nobody in.
async fn settled(member: &Member) -> Option<PasswordVersion> {
    let mut status = member.node.status();
    let decided = status.wait_for(|status| {
        let stuck = matches!(status.health, Health::LoginRefused | Health::WrongIdentity | Health::Drained);
        status.password.is_some() || stuck
    });
    tokio::time::timeout(SETTLING, decided).await.ok()?.ok()?.password
}
