//! Brings the HSMs level with the records, node by node, whenever one has been proved.
//!
//! Two things, in this order: keys that are still CREATING and nobody's live work were never
//! acknowledged, so what a node may hold of them is destroyed and, once no node is left to look
//! at, their record goes; enabled keys that the node lacks are copied to it from a sibling. Objects
//! without a record are left alone: a missing record proves nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms};
use crate::link::v1::presence::Found;
use crate::model::{CkaId, KeyId, KeyState, KeyVersion};
use crate::node::Health;
use crate::records::{Proof, Unavailable};

use super::Keys;

/// How long one step on a node may take.
const STEP: Duration = Duration::from_secs(60);
/// What could not be settled is looked at again after this long, or when something changes.
const AGAIN: Duration = Duration::from_secs(5);
/// Missing keys are read so many at a time.
const PAGE: u32 = 256;

/// Why a node is not level.
#[derive(Debug, thiserror::Error)]
enum NotLevel {
    #[error("{0} keys are on no node that is in service, or could not be copied")]
    Missing(usize),
    #[error("keys that were never acknowledged could not be settled")]
    Unsettled(#[source] Failure),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// Follows each Connection that is opened, until it is closed.
pub async fn run(keys: Keys, mut opened: mpsc::Receiver<Arc<Connection>>) {
    while let Some(connection) = opened.recv().await {
        let keys = keys.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = follow(&keys, &connection) => {}
                () = connection.closed() => {}
            }
        });
    }
}

async fn follow(keys: &Keys, connection: &Connection) {
    let mut changes = connection.changes();
    loop {
        changes.borrow_and_update();
        let unsettled = keys.0.unsettled.notified();
        let mut again = false;
        for index in 0..connection.members().len() {
            if connection.members()[index].is_proved() {
                again |= !bring_level(keys, connection, index).await;
            }
        }
        let pause = if again { AGAIN } else { Duration::MAX };
        tokio::select! {
            _ = changes.changed() => {}
            () = unsettled => {}
            () = sleep(pause) => {}
        }
    }
}

async fn sleep(pause: Duration) {
    match pause {
        Duration::MAX => std::future::pending().await,
        pause => tokio::time::sleep(pause).await,
    }
}

/// Whether the node is level now.
async fn bring_level(keys: &Keys, connection: &Connection, index: usize) -> bool {
    let member = &connection.members()[index];
    let login = member.node.status().borrow().login;
    match try_level(keys, connection, index).await {
        Ok(()) => {
            member.node.level(login);
            true
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!(hsm = %member.node.hsm(), %error, cause, "node not level");
            if member.node.status().borrow().health == Health::Syncing {
                member.node.not_level(login, &format!("{error}{cause}"));
            }
            false
        }
    }
}

async fn try_level(keys: &Keys, connection: &Connection, index: usize) -> Result<(), NotLevel> {
    settle(keys, connection, index).await?;
    let member = &connection.members()[index];
    let hsm = member.node.hsm();
    let thought_missing = member.missing();
    let (mut after, mut missing) = (None, 0);
    loop {
        let page = keys.0.records.keys_lacking(&connection.cluster, hsm, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        for (key, version) in page {
            if !give(keys, connection, index, key, version).await? {
                missing += 1;
            }
        }
    }
    if missing > 0 {
        return Err(NotLevel::Missing(missing));
    }
    // The records know of nothing that is missing: what was thought so before they were read is here, or is no key.
    for key in thought_missing {
        let being_made = CkaId::parse(key.as_bytes()).is_some_and(|(id, _)| keys.lock_creating().contains(&id));
        if !being_made {
            member.has_unless_doubted(&key);
        }
    }
    Ok(())
}

/// Destroys what this node holds of keys that were never acknowledged. Its former worker is gone, so nothing more can come of them.
async fn settle(keys: &Keys, connection: &Connection, index: usize) -> Result<(), NotLevel> {
    let hsm = connection.members()[index].node.hsm();
    for record in keys.0.records.creating_keys(&connection.cluster).await? {
        let version = KeyVersion::FIRST;
        let here = record.versions.iter().any(|version| version.on.iter().any(|on| on.hsm == *hsm));
        if !here || keys.lock_creating().contains(&record.id) {
            continue;
        }
        // It may have been acknowledged since the list was read. Only its maker could do that, and was
        // just seen to be gone: what the record says now, it goes on saying.
        let now = keys.0.records.key(record.id).await?;
        if now.is_none_or(|now| now.state != KeyState::Creating) {
            continue;
        }
        let cka = CkaId::of(record.id, version);
        connection.destroy_key(index, cka, Instant::now() + STEP).await.map_err(NotLevel::Unsettled)?;
        let left = keys.0.records.clear_creating(record.id, hsm).await?;
        tracing::info!(key = %record.id, %hsm, nodes_left = left.hsms, "settled a key that was never acknowledged");
    }
    Ok(())
}

/// Copies one key from a sibling that has it. `false`: not now.
async fn give(
    keys: &Keys,
    connection: &Connection,
    index: usize,
    id: KeyId,
    version: KeyVersion,
) -> Result<bool, NotLevel> {
    if keys.lock_creating().contains(&id) {
        // Its maker is still copying it, and says so when it leaves anything undone.
        return Ok(true);
    }
    let Some(record) = keys.0.records.key(id).await? else {
        return Ok(true);
    };
    let probe =
        record.versions.iter().find(|candidate| candidate.version == version).and_then(|found| found.probe.clone());
    let Some(probe) = probe else { return Ok(true) };
    let key = KeyInHsms { id: CkaId::of(id, version), probe };
    let member = &connection.members()[index];
    let hsm = member.node.hsm();
    let mut found = prove(connection, index, &key).await;
    if found == Some(Found::Missing) {
        found = copy(connection, index, &key, record.spec).await;
    }
    match found {
        Some(Found::Proven) => {
            keys.0.records.set_presence(id, version, hsm, Proof::Used, clock::now()).await?;
            member.has_now(&key.id);
            Ok(true)
        }
        Some(Found::Different) => {
            tracing::error!(%hsm, key = %id, "another key stands under this key's id; left alone");
            Ok(false)
        }
        Some(Found::Missing | Found::Unspecified) | None => Ok(false),
    }
}

async fn prove(connection: &Connection, index: usize, key: &KeyInHsms) -> Option<Found> {
    connection.prove_key(index, key, Instant::now() + STEP).await.ok()
}

async fn copy(connection: &Connection, index: usize, key: &KeyInHsms, spec: crate::model::KeySpec) -> Option<Found> {
    let members = connection.members().iter().enumerate();
    let holders = members.filter(|(holder, member)| *holder != index && member.is_proved() && member.has(&key.id));
    for (holder, member) in holders {
        match connection.wrap_key(holder, key, Instant::now() + STEP).await {
            Ok(wrapped) => {
                return connection.unwrap_key(index, key, spec, wrapped, Instant::now() + STEP).await.ok();
            }
            Err(error) => {
                tracing::warn!(hsm = %member.node.hsm(), key = ?key.id, %error, "a key could not be wrapped here")
            }
        }
    }
    None
}
