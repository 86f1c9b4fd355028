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
use crate::link::v1::{self, presence::Found, request::Verb, response::Outcome};
use crate::model::{CkaId, Probe, with_causes};
use crate::node::{Health, Node};
use crate::records::{self, KekRecord, Proof};

use super::Failure;
use super::abilities;
use super::ceremony::{self, Spent, Undone};
use super::connection::Connection;
use super::failover::Effect;
use super::member::{Member, Stuck};

/// The label under which operators find the canary in a token.
const CANARY_LABEL: &str = "keyway:canary";
/// How long one step on a node may take.
const STEP: Duration = Duration::from_secs(30);
/// The pause before a node that could not be proved is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A login that could not be proved so many times in a row counts as stuck, whatever the reason.
const TRIES: u32 = 5;
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
    #[error(transparent)]
    Ceremony(#[from] Undone),
    #[error("the records cannot be read")]
    Records(#[from] records::Unavailable),
}

impl Unproved {
    fn pause_after(&self, pause: Duration) -> Duration {
        match self {
            // Costs no node anything, and nobody tells when the other node gives up.
            Self::NotOurs => FIRST_PAUSE,
            Self::NoSource | Self::OtherCluster | Self::Step(_) | Self::Ceremony(_) | Self::Records(_) => {
                (pause * 2).min(LONGEST_PAUSE)
            }
        }
    }

    /// Whether nothing is wrong yet after so many tries: another node is on its way to be proved, or was a moment ago.
    fn is_a_wait(&self, tries: u32) -> bool {
        match self {
            Self::NotOurs => true,
            Self::NoSource => tries <= 1,
            Self::OtherCluster | Self::Step(_) | Self::Ceremony(_) | Self::Records(_) => false,
        }
    }

    /// Whether nothing will come of further tries, of which there were so many.
    fn stuck(&self, tries: u32) -> Option<Stuck> {
        match self {
            Self::OtherCluster => Some(Stuck::NeedsOperator),
            Self::Ceremony(undone) if undone.needs_operator() => Some(Stuck::NeedsOperator),
            Self::NoSource => (!self.is_a_wait(tries)).then_some(Stuck::NeedsAnother),
            // The other node gets there, or is stuck itself and gives way.
            Self::NotOurs => None,
            Self::Step(_) | Self::Ceremony(_) | Self::Records(_) => (tries >= TRIES).then_some(Stuck::KeepsFailing),
        }
    }
}

/// Proves the node after each login and whenever it is doubted, until told to stop.
pub(super) async fn keep_proved(connection: Arc<Connection>, member: Arc<Member>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = keep(&connection, &member) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn keep(connection: &Connection, member: &Member) {
    let mut status = member.node.status();
    let mut tries = Tries::of(0);
    loop {
        let login = match status.wait_for(|status| status.health.is_logged_in()).await {
            Ok(status) => status.login,
            Err(_) => return,
        };
        if tries.login != login {
            tries = Tries::of(login);
        }
        // Another node's proof, or an operator's word, may be what this one waits for: also what comes meanwhile.
        let mut changes = connection.changes();
        let Err(why) = prove(connection, member, &mut tries).await else {
            (tries.pause, tries.failed, tries.told) = (FIRST_PAUSE, 0, String::new());
            member.set_stuck(login, None);
            member.set_proved(login);
            member.node.proved(login);
            tracing::info!(hsm = %member.node.hsm(), "proved");
            connection.changed();
            tokio::select! {
                _ = status.wait_for(|status| status.login != login || status.health == Health::Unreachable) => {}
                () = member.doubted.notified() => member.node.not_level(login, "a key was missing; being proved again"),
                () = abilities::learn(connection, member) => {}
            }
            continue;
        };
        tries.failed += 1;
        member.set_proved(0);
        // Before the reason: whoever waits for a change looks at both.
        member.set_stuck(login, why.stuck(tries.failed));
        if why.is_a_wait(tries.failed) {
            member.node.waits(login, &why.to_string());
        } else {
            tries.tell(&member.node, &why);
            member.node.not_level(login, &tries.told);
        }
        tokio::select! {
            () = tokio::time::sleep(tries.pause) => tries.pause = why.pause_after(tries.pause),
            _ = changes.changed() => member.set_stuck(login, None),
            _ = status.wait_for(|status| status.login != login || !status.health.is_logged_in()) => {}
        }
    }
}

/// The tries to prove one login.
struct Tries {
    login: u64,
    is_swept: bool,
    /// Before the next try, unless something changes.
    pause: Duration,
    /// How many failed in a row.
    failed: u32,
    /// Why the last one failed, as it was told. Empty when it did not.
    told: String,
}

impl Tries {
    fn of(login: u64) -> Self {
        Self { login, is_swept: false, pause: FIRST_PAUSE, failed: 0, told: String::new() }
    }

    /// Told to people once, and not at each try.
    fn tell(&mut self, node: &Node, why: &Unproved) {
        let reason = with_causes(why);
        if reason == self.told {
            tracing::debug!(hsm = %node.hsm(), reason, "node still not proved");
        } else {
            tracing::warn!(hsm = %node.hsm(), reason, "node not proved");
        }
        self.told = reason;
    }
}

async fn prove(connection: &Connection, member: &Member, tries: &mut Tries) -> Result<(), Unproved> {
    // Only workers of former logins can have left anything, and it takes the whole token.
    if !tries.is_swept && connection.is_keyways_alone() {
        sweep(connection, member).await?;
        tries.is_swept = true;
    }
    if !answers(connection, member).await? {
        become_one_of_us(connection, member).await?;
    }
    write_doubts(connection, member).await?;
    // What it lacks is known before anything is asked of it.
    Ok(note_missing(connection, member).await?)
}

/// Whether the token holds the cluster's canary and key-encryption key already: nothing is made or moved, so that a node
/// which hangs here holds up no other.
async fn answers(connection: &Connection, member: &Member) -> Result<bool, Unproved> {
    let records = &connection.common.records;
    let kek = records.kek(&connection.cluster, connection.common.passwords.username()).await?;
    let Some(KekRecord { canary_id, canary_probe: Some(probe), kek_id, .. }) = kek else { return Ok(false) };
    Ok(look(connection, member, &canary_id, Some(&probe)).await? == Found::Proven
        && look(connection, member, &kek_id, None).await? == Found::Proven)
}

/// Gives the token what it lacks, or makes it for the first time: one node of the cluster at a time.
async fn become_one_of_us(connection: &Connection, member: &Member) -> Result<(), Unproved> {
    let _one_at_a_time = connection.ceremony.lock().await;
    let hsm = member.node.hsm();
    let (cluster, records) = (&connection.cluster, &connection.common.records);
    let kek = match records.kek(cluster, connection.common.passwords.username()).await? {
        Some(kek) => kek,
        None => records.begin_kek(&new_kek(connection, member)).await?,
    };
    let Some(probe) = &kek.canary_probe else {
        return found(connection, member, kek).await;
    };
    match look(connection, member, &kek.canary_id, Some(probe)).await? {
        Found::Proven if look(connection, member, &kek.kek_id, None).await? == Found::Proven => Ok(()),
        Found::Proven => join(connection, member, &kek).await,
        Found::Missing | Found::Unspecified => {
            tracing::info!(%hsm, "the token does not hold the cluster's keys; giving them to it");
            records.doubt_presence(&connection.user(), hsm, clock::now()).await?;
            join(connection, member, &kek).await?;
            give_canary(connection, member, &kek, probe).await
        }
        Found::Different => Err(Unproved::OtherCluster),
    }
}

/// Keys that were not found where the records say they are: written down as unknown, so that bringing the node level looks for them.
async fn write_doubts(connection: &Connection, member: &Member) -> Result<(), Unproved> {
    let place = (&connection.cluster, member.node.hsm());
    for doubt in member.take_doubts() {
        let Some((key, version)) = CkaId::parse(doubt.as_bytes()) else { continue };
        let written = connection.common.records.set_presence(key, version, place, Proof::Unknown, clock::now()).await;
        if written.is_err() {
            member.doubt(doubt);
        }
        written?;
    }
    Ok(())
}

/// Notes the keys that the records do not know to be here, so that none of them is asked for here.
pub(super) async fn note_missing(connection: &Connection, member: &Member) -> Result<(), records::Unavailable> {
    let (records, user) = (&connection.common.records, connection.user());
    records.expect_keys(&user, member.node.hsm(), clock::now()).await?;
    let mut after = None;
    loop {
        let page = records.keys_lacking(&user, member.node.hsm(), after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.key, last.version));
        member.lacks(page.iter().map(|lacking| CkaId::of(lacking.key, lacking.version)));
    }
}

fn new_kek(connection: &Connection, member: &Member) -> KekRecord {
    KekRecord {
        cluster: connection.cluster.clone(),
        username: connection.common.passwords.username().clone(),
        kek_id: *Uuid::new_v4().as_bytes(),
        canary_id: *Uuid::new_v4().as_bytes(),
        made_on: member.node.hsm().clone(),
        canary_probe: None,
    }
}

/// The first node of a cluster: makes the KEK and the canary. An earlier, unfinished founding protected no key, and is
/// finished by the node that began it. Another node begins anew, under other names.
async fn found(connection: &Connection, member: &Member, kek: KekRecord) -> Result<(), Unproved> {
    let ours = kek.made_on == *member.node.hsm();
    if !ours
        && let Some(founder) = connection.member(&kek.made_on)
        && !founder.is_out()
        && founder.stuck().is_none()
        && spent(connection, &founder.node).await?.is_none()
    {
        return Err(Unproved::NotOurs);
    }
    let kek =
        if ours { kek } else { connection.common.records.take_over_kek(&kek, &new_kek(connection, member)).await? };
    tracing::info!(hsm = %member.node.hsm(), "making the cluster's key-encryption key");
    ceremony::make_kek(&connection.common, &member.node.spec, &kek).await?;
    #[cfg(debug_assertions)]
    crate::seams::stop_point("kek-made");
    destroy(connection, member, &kek.canary_id).await?;
    let verb = Verb::GenerateKey(v1::GenerateKey {
        cka_id: kek.canary_id.to_vec(),
        label: CANARY_LABEL.to_owned(),
        kind: v1::KeyKind::Aes256.into(),
        kek_cka_id: kek.kek_id.to_vec(),
    });
    let Outcome::NewKey(canary) = connection.ask(member, verb, Effect::Once, Instant::now() + STEP).await? else {
        return Err(Failure::OutOfTurn.into());
    };
    let user = connection.common.passwords.username();
    connection.common.records.finish_kek(&connection.cluster, user, &Probe(canary.probe)).await?;
    Ok(())
}

/// A proved node seals the KEK to this one. What this token has under the KEK's id, if anything,
/// is not known to be the KEK, and goes once there is something to put in its place.
async fn join(connection: &Connection, member: &Member, kek: &KekRecord) -> Result<(), Unproved> {
    let source = sealing_source(connection, member).await?;
    let (joiner, source) = (&member.node.spec, &source.node.spec);
    tracing::info!(hsm = %joiner.hsm, from = %source.hsm, "giving the node the cluster's key-encryption key");
    let common = &connection.common;
    let began = Instant::now();
    let joining = ceremony::offer_join(common, joiner).await?;
    // All else here takes no time beside this: the token's library looks for primes.
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(hsm = %joiner.hsm, took_ms, "the node has made a key pair to be given it under");
    let sealed = ceremony::seal_kek(common, source, kek, &joining).await?;
    destroy(connection, member, &kek.kek_id).await?;
    Ok(ceremony::accept_kek(common, joiner, kek, joining, sealed).await?)
}

/// A proved node on which the ceremony may still log in.
async fn sealing_source(connection: &Connection, joiner: &Member) -> Result<Arc<Member>, Unproved> {
    let mut why = None;
    for source in sources(connection, joiner) {
        match spent(connection, &source.node).await? {
            None => return Ok(source),
            Some(spent) => why = Some(spent),
        }
    }
    Err(why.map_or(Unproved::NoSource, |spent| Undone::Login(spent).into()))
}

/// The login that the ceremony would need on this node, and that nobody may make without an operator.
async fn spent(connection: &Connection, node: &Node) -> Result<Option<Spent>, Unproved> {
    match ceremony::may_take_part(&connection.common, &node.spec).await {
        Ok(()) => Ok(None),
        Err(Undone::Login(spent)) => Ok(Some(spent)),
        Err(undone @ (Undone::Job { .. } | Undone::BeingChanged(_) | Undone::Records(_))) => Err(undone.into()),
    }
}

async fn give_canary(connection: &Connection, member: &Member, kek: &KekRecord, probe: &Probe) -> Result<(), Unproved> {
    let source = sources(connection, member).next().ok_or(Unproved::NoSource)?;
    let wrap = Verb::WrapKey(v1::WrapKey {
        cka_id: kek.canary_id.to_vec(),
        kek_cka_id: kek.kek_id.to_vec(),
        probe: probe.0.clone(),
    });
    let Outcome::Opaque(wrapped) = connection.ask(&source, wrap, Effect::Repeatable, Instant::now() + STEP).await?
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
    match connection.ask(member, unwrap, Effect::Once, Instant::now() + STEP).await? {
        Outcome::Presence(presence) if presence.found() == Found::Proven => Ok(()),
        Outcome::Presence(_) => Err(Unproved::OtherCluster),
        _ => Err(Failure::OutOfTurn.into()),
    }
}

/// The nodes that may give this one what it lacks.
fn sources(connection: &Connection, joiner: &Member) -> impl Iterator<Item = Arc<Member>> {
    connection.ready_for_new_keys().into_iter().filter(|source| source.node.hsm() != joiner.node.hsm())
}

/// Half-made objects that a killed worker left: nameless, and the token is ours alone.
async fn sweep(connection: &Connection, member: &Member) -> Result<(), Unproved> {
    let verb = Verb::SweepUnfinished(v1::SweepUnfinished {});
    match connection.ask(member, verb, Effect::Repeatable, Instant::now() + STEP).await? {
        Outcome::Done(v1::Done { count: 0 }) => Ok(()),
        Outcome::Done(v1::Done { count }) => {
            tracing::warn!(hsm = %member.node.hsm(), count, "destroyed half-made objects");
            Ok(())
        }
        _ => Err(Failure::OutOfTurn.into()),
    }
}

async fn destroy(connection: &Connection, member: &Member, id: &[u8]) -> Result<(), Unproved> {
    let verb = Verb::DestroyKey(v1::DestroyKey { cka_id: id.to_vec() });
    connection.ask(member, verb, Effect::Repeatable, Instant::now() + STEP).await?;
    Ok(())
}

async fn look(connection: &Connection, member: &Member, id: &[u8], probe: Option<&Probe>) -> Result<Found, Unproved> {
    let probe = probe.map(|probe| probe.0.clone()).unwrap_or_default();
    let verb = Verb::ProveKey(v1::ProveKey { cka_id: id.to_vec(), probe, afresh: false });
    match connection.ask(member, verb, Effect::Repeatable, Instant::now() + STEP).await? {
        Outcome::Presence(presence) => Ok(presence.found()),
        _ => Err(Failure::OutOfTurn.into()),
    }
}
