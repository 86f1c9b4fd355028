//! Proves every node that logs in, and gives it the cluster's key-encryption key when it lacks it.
//!
//! A node's word that all is well proves nothing: an emptied token answers every question but
//! finds no key. What proves a token is its *canary*, a key made when the cluster was first
//! connected: a token that answers the canary's probe holds this cluster's keys, and holds the
//! same key-encryption key as its siblings, since that is how the canary came there.
//!
//! ```text
//!   logged in ─▶ is there a canary at all? ─no─▶ this node makes the KEK and the canary ─▶ proved
//!                  │ yes
//!                  ├─ answers here ────────────▶ proved
//!                  ├─ missing here ─▶ a proved node seals the KEK to this one, and the canary follows ─▶ proved
//!                  └─ another key under its id ▶ not proved; reported
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock;
use crate::host::{AdminError, Kek, pin_text};
use crate::link::v1::{self, presence::Found, request::Verb, response::Outcome};
use crate::model::{CkaId, Probe};
use crate::node::{Health, Node};
use crate::records::{self, KekRecord, Proof};

use super::Failure;
use super::connection::Connection;
use super::failover::Effect;

/// The label under which operators find the canary in a token.
const CANARY_LABEL: &str = "keyway:canary";
/// How long one step on a node may take.
const STEP: Duration = Duration::from_secs(30);
/// The pause before a node that could not be proved is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Missing keys are read so many at a time.
const PAGE: u32 = 1_000;

/// Why a node that is logged in is not proved yet.
#[derive(Debug, thiserror::Error)]
enum Unproved {
    #[error("no node that holds the cluster's keys is in service to take them from")]
    NoSource,
    #[error("another node is making the cluster's key-encryption key")]
    NotOurs,
    #[error("its canary is another key than the cluster's")]
    OtherCluster,
    #[error("a step failed")]
    Step(#[from] Failure),
    #[error("the trust ceremony failed")]
    Ceremony(#[from] AdminError),
    #[error("the records cannot be read")]
    Records(#[from] records::Unavailable),
}

/// Proves the node after each login and whenever it is doubted, until told to stop.
pub(super) async fn keep_proved(connection: Arc<Connection>, index: usize, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = keep(&connection, index) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn keep(connection: &Connection, index: usize) {
    let member = &connection.members()[index];
    let mut status = member.node.status();
    loop {
        let login = match status.wait_for(|status| status.health.is_logged_in()).await {
            Ok(status) => status.login,
            Err(_) => return,
        };
        match prove(connection, index).await {
            Ok(()) => {
                member.set_proved(login);
                member.node.proved(login);
                connection.changed();
                tokio::select! {
                    _ = status.wait_for(|status| status.login != login || status.health == Health::Unreachable) => {}
                    () = member.doubted.notified() => member.node.not_level(login, "a key was missing; being proved again"),
                }
            }
            Err(why) => {
                let mut reason = why.to_string();
                if let Some(cause) = std::error::Error::source(&why) {
                    reason = format!("{reason}: {cause}");
                }
                tracing::warn!(hsm = %member.node.hsm(), reason, "node not proved");
                member.set_proved(0);
                member.node.not_level(login, &reason);
                // Another node's proof may be what this one waits for.
                let mut changes = connection.changes();
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    _ = changes.changed() => {}
                }
            }
        }
    }
}

async fn prove(connection: &Connection, index: usize) -> Result<(), Unproved> {
    sweep(connection, index).await?;
    if !answers(connection, index).await? {
        become_one_of_us(connection, index).await?;
    }
    write_doubts(connection, index).await?;
    // What it lacks is known before anything is asked of it.
    note_missing(connection, index).await
}

/// Whether the token holds the cluster's canary and key-encryption key already: nothing is made or moved, so that a node
/// which hangs here holds up no other.
async fn answers(connection: &Connection, index: usize) -> Result<bool, Unproved> {
    let records = &connection.common.records;
    let kek = records.kek(&connection.cluster, &connection.common.credential.username).await?;
    let Some(KekRecord { canary_id, canary_probe: Some(probe), kek_id, .. }) = kek else { return Ok(false) };
    Ok(look(connection, index, &canary_id, Some(&probe)).await? == Found::Proven
        && look(connection, index, &kek_id, None).await? == Found::Proven)
}

/// Gives the token what it lacks, or makes it for the first time: one node of the cluster at a time.
async fn become_one_of_us(connection: &Connection, index: usize) -> Result<(), Unproved> {
    let _one_at_a_time = connection.ceremony.lock().await;
    let hsm = connection.members()[index].node.hsm();
    let (cluster, records) = (&connection.cluster, &connection.common.records);
    let kek = match records.kek(cluster, &connection.common.credential.username).await? {
        Some(kek) => kek,
        None => records.begin_kek(&new_kek(connection, index)).await?,
    };
    let Some(probe) = &kek.canary_probe else {
        return found(connection, index, kek).await;
    };
    match look(connection, index, &kek.canary_id, Some(probe)).await? {
        Found::Proven if look(connection, index, &kek.kek_id, None).await? == Found::Proven => Ok(()),
        Found::Proven => join(connection, index, &kek).await,
        Found::Missing | Found::Unspecified => {
            tracing::info!(%hsm, "the token does not hold the cluster's keys; giving them to it");
            records.doubt_presence(cluster, hsm, clock::now()).await?;
            join(connection, index, &kek).await?;
            give_canary(connection, index, &kek, probe).await
        }
        Found::Different => Err(Unproved::OtherCluster),
    }
}

/// Keys that were not found where the records say they are: written down as unknown, so that bringing the node level looks for them.
async fn write_doubts(connection: &Connection, index: usize) -> Result<(), Unproved> {
    let member = &connection.members()[index];
    let hsm = member.node.hsm();
    for doubt in member.take_doubts() {
        let Some((key, version)) = CkaId::parse(doubt.as_bytes()) else { continue };
        let written = connection.common.records.set_presence(key, version, hsm, Proof::Unknown, clock::now()).await;
        if written.is_err() {
            member.doubt(doubt);
        }
        written?;
    }
    Ok(())
}

/// Notes the keys that the records do not know to be here, so that none of them is asked for here.
async fn note_missing(connection: &Connection, index: usize) -> Result<(), Unproved> {
    let member = &connection.members()[index];
    connection.common.records.expect_keys(&connection.cluster, member.node.hsm(), clock::now()).await?;
    let mut after = None;
    loop {
        let page = connection.common.records.keys_lacking(&connection.cluster, member.node.hsm(), after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.key, last.version));
        member.lacks(page.iter().map(|lacking| CkaId::of(lacking.key, lacking.version)));
    }
}

fn new_kek(connection: &Connection, index: usize) -> KekRecord {
    KekRecord {
        cluster: connection.cluster.clone(),
        username: connection.common.credential.username.clone(),
        kek_id: *Uuid::new_v4().as_bytes(),
        canary_id: *Uuid::new_v4().as_bytes(),
        made_on: connection.members()[index].node.hsm().clone(),
        canary_probe: None,
    }
}

/// The first node of a cluster: makes the KEK and the canary. An earlier, unfinished founding protected no key, and is
/// finished by the node that began it. Another node begins anew, under other names.
async fn found(connection: &Connection, index: usize, kek: KekRecord) -> Result<(), Unproved> {
    let member = &connection.members()[index];
    let ours = kek.made_on == *member.node.hsm();
    if !ours && connection.member(&kek.made_on).is_some_and(|founder| may_yet_serve(&founder.node)) {
        return Err(Unproved::NotOurs);
    }
    let kek =
        if ours { kek } else { connection.common.records.take_over_kek(&kek, &new_kek(connection, index)).await? };
    tracing::info!(hsm = %member.node.hsm(), "making the cluster's key-encryption key");
    let pin = pin_text(&connection.common.credential.username, &connection.common.credential.password);
    let by_id = Kek { id: &kek.kek_id, user_pin: &pin };
    connection.common.host.make_kek(&member.node.spec, by_id).await?;
    #[cfg(debug_assertions)]
    crate::seams::stop_point("kek-made");
    destroy(connection, index, &kek.canary_id).await?;
    let verb = Verb::GenerateKey(v1::GenerateKey {
        cka_id: kek.canary_id.to_vec(),
        label: CANARY_LABEL.to_owned(),
        kind: v1::KeyKind::Aes256.into(),
        kek_cka_id: kek.kek_id.to_vec(),
    });
    let Outcome::NewKey(canary) = connection.ask(index, verb, Effect::Once, Instant::now() + STEP).await? else {
        return Err(Failure::OutOfTurn.into());
    };
    let user = &connection.common.credential.username;
    connection.common.records.finish_kek(&connection.cluster, user, &Probe(canary.probe)).await?;
    Ok(())
}

/// A proved node seals the KEK to this one. What this token has under the KEK's id, if anything,
/// is not known to be the KEK, and goes first.
async fn join(connection: &Connection, index: usize, kek: &KekRecord) -> Result<(), Unproved> {
    let source = source(connection, index).ok_or(Unproved::NoSource)?;
    let (joiner, source) = (&connection.members()[index].node.spec, &connection.members()[source].node.spec);
    tracing::info!(hsm = %joiner.hsm, from = %source.hsm, "giving the node the cluster's key-encryption key");
    destroy(connection, index, &kek.kek_id).await?;
    let pin = pin_text(&connection.common.credential.username, &connection.common.credential.password);
    let by_id = Kek { id: &kek.kek_id, user_pin: &pin };
    let joining = connection.common.host.offer_join(joiner).await?;
    let sealed = connection.common.host.seal_kek(source, by_id, &joining).await?;
    connection.common.host.accept_kek(joiner, by_id, joining, sealed).await?;
    Ok(())
}

/// Logged in, or on its way there.
fn may_yet_serve(node: &Node) -> bool {
    match node.status().borrow().health {
        Health::NotProbed | Health::Syncing | Health::Healthy | Health::Slow => true,
        Health::Unreachable | Health::LoginRefused | Health::Drained | Health::WrongIdentity => false,
    }
}

async fn give_canary(connection: &Connection, index: usize, kek: &KekRecord, probe: &Probe) -> Result<(), Unproved> {
    let source = source(connection, index).ok_or(Unproved::NoSource)?;
    let wrap = Verb::WrapKey(v1::WrapKey {
        cka_id: kek.canary_id.to_vec(),
        kek_cka_id: kek.kek_id.to_vec(),
        probe: probe.0.clone(),
    });
    let Outcome::Opaque(wrapped) = connection.ask(source, wrap, Effect::Repeatable, Instant::now() + STEP).await?
    else {
        return Err(Failure::OutOfTurn.into());
    };
    let unwrap = Verb::UnwrapKey(v1::UnwrapKey {
        cka_id: kek.canary_id.to_vec(),
        label: CANARY_LABEL.to_owned(),
        kind: v1::KeyKind::Aes256.into(),
        wrapped: wrapped.bytes,
        kek_cka_id: kek.kek_id.to_vec(),
        probe: probe.0.clone(),
    });
    match connection.ask(index, unwrap, Effect::Once, Instant::now() + STEP).await? {
        Outcome::Presence(presence) if presence.found() == Found::Proven => Ok(()),
        Outcome::Presence(_) => Err(Unproved::OtherCluster),
        _ => Err(Failure::OutOfTurn.into()),
    }
}

fn source(connection: &Connection, joiner: usize) -> Option<usize> {
    connection.ready_for_new_keys().into_iter().find(|index| *index != joiner)
}

/// Half-made objects that a killed worker left: nameless, and the token is ours alone.
async fn sweep(connection: &Connection, index: usize) -> Result<(), Unproved> {
    let verb = Verb::SweepUnfinished(v1::SweepUnfinished {});
    match connection.ask(index, verb, Effect::Repeatable, Instant::now() + STEP).await? {
        Outcome::Done(v1::Done { count: 0 }) => Ok(()),
        Outcome::Done(v1::Done { count }) => {
            tracing::warn!(hsm = %connection.members()[index].node.hsm(), count, "destroyed half-made objects");
            Ok(())
        }
        _ => Err(Failure::OutOfTurn.into()),
    }
}

async fn destroy(connection: &Connection, index: usize, id: &[u8]) -> Result<(), Unproved> {
    let verb = Verb::DestroyKey(v1::DestroyKey { cka_id: id.to_vec() });
    connection.ask(index, verb, Effect::Repeatable, Instant::now() + STEP).await?;
    Ok(())
}

async fn look(connection: &Connection, index: usize, id: &[u8], probe: Option<&Probe>) -> Result<Found, Unproved> {
    let probe = probe.map(|probe| probe.0.clone()).unwrap_or_default();
    let verb = Verb::ProveKey(v1::ProveKey { cka_id: id.to_vec(), probe });
    match connection.ask(index, verb, Effect::Repeatable, Instant::now() + STEP).await? {
        Outcome::Presence(presence) => Ok(presence.found()),
        _ => Err(Failure::OutOfTurn.into()),
    }
}
