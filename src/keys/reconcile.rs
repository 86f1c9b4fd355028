//! Brings the HSMs level with the records, each node for itself, whenever one has been proved: each Connection's user's
//! tokens with what is that user's.
//!
//! ```text
//!   proved ─▶ settle ─▶ inventory, once for each login ─▶ copy what is lacking ─▶ level
//!                                                            └─ not all could be had ─▶ again, later
//! ```
//!
//! Keys that are still CREATING and nobody's live work were never acknowledged, so what a node may
//! hold of them is destroyed and, once no node is left to look at, their record goes. So is what it holds of keys that
//! their user has destroyed, or whose deletion was due. Acknowledged keys that the node lacks are copied to it from a sibling. Objects without a record are left alone: a missing record proves nothing.
//!
//! Only what the records say is lacking is looked at. A node with a thousand keys to take in delays no other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock;
use crate::cluster::{Connection, Failure, Member, Members};
use crate::model::{CkaId, HsmId, KeyState, KeyVersion, with_causes};
use crate::records::{NewProof, Proof, ProvableKey, Unavailable};

use super::copy::Errand;
use super::inventory::{self, Inventory, Unshown};
use super::{Keys, thousands};

/// How long destroying a key may take.
const STEP: Duration = Duration::from_secs(60);
/// What could not be settled is looked at again after this long, or when something changes.
const AGAIN: Duration = Duration::from_secs(5);
/// The pause is doubled up to this while nothing changes.
const AGAIN_AT_LAST: Duration = Duration::from_secs(60);
/// Missing keys are read, and what became of them is written, so many at a time.
const PAGE: u32 = 256;
/// So many keys are on their way to one node at once: its siblings wrap while it unwraps.
const IN_FLIGHT: usize = 4;
/// A node that is doubted again and again is not listed more often than this.
const LIST_AGAIN: Duration = Duration::from_secs(60);
/// How often a node tells how far it has come.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Why a node is not level.
#[derive(Debug, thiserror::Error)]
enum NotLevel {
    #[error("{} keys are on no node that is in service, or could not be copied", thousands(*.0))]
    Missing(usize),
    #[error("keys that were never acknowledged, or were destroyed, could not be settled")]
    Unsettled(#[source] Failure),
    #[error("what it holds is not known")]
    Inventory(#[from] inventory::Error),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// Follows each Connection that is opened, until it is closed.
pub async fn run(keys: Keys, mut opened: mpsc::Receiver<Arc<Connection>>) {
    while let Some(connection) = opened.recv().await {
        let keys = keys.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = keep_all_level(&keys, &connection) => {}
                () = connection.closed() => {}
            }
        });
    }
}

/// Each member in a task of its own, from when it has joined until it has left.
async fn keep_all_level(keys: &Keys, connection: &Arc<Connection>) {
    let mut membership = connection.membership();
    let mut before = Members::default();
    loop {
        let members = membership.borrow_and_update().clone();
        for member in members.iter().filter(|member| !before.iter().any(|before| Arc::ptr_eq(before, member))) {
            let (keys, connection, member) = (keys.clone(), connection.clone(), member.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = keep_level(&keys, &connection, &member) => {}
                    () = connection.parted(&member) => {}
                    () = connection.closed() => {}
                }
            });
        }
        before = members;
        if membership.changed().await.is_err() {
            return;
        }
    }
}

/// How far a node has come.
#[derive(Default)]
struct Standing {
    listed: Option<Listed>,
    /// The proof for which it was found level.
    level: Option<u64>,
}

/// When its token was last listed.
struct Listed {
    proof: u64,
    login: u64,
    at: Instant,
}

impl Standing {
    /// Once for each login; and when the node was doubted since, but not for every doubt: callers may raise many.
    fn list_is_due(&self, proof: u64, login: u64) -> bool {
        self.listed
            .as_ref()
            .is_none_or(|listed| listed.login != login || (listed.proof != proof && listed.at.elapsed() >= LIST_AGAIN))
    }
}

async fn keep_level(keys: &Keys, connection: &Connection, member: &Member) {
    let mut changes = connection.changes();
    let mut standing = Standing::default();
    let mut pause = AGAIN;
    loop {
        changes.borrow_and_update();
        let unsettled = keys.0.unsettled.notified();
        let proof = member.proof();
        if let Some(proof) = proof {
            // What was level once may not be any more: a key was made since, and this node could not take it.
            standing.level = bring_level(keys, connection, member, proof, &mut standing).await.then_some(proof);
        }
        if standing.level.is_some() {
            pause = AGAIN;
        }
        let waits = if proof.is_some() && proof != standing.level { pause } else { Duration::MAX };
        tokio::select! {
            () = something_to_do(member, &mut changes, &standing) => pause = AGAIN,
            () = unsettled => {}
            () = sleep(waits) => pause = (pause * 2).min(AGAIN_AT_LAST),
        }
    }
}

/// Resolves at a change that may matter here: this node was proved anew, or it is not level and another may now give what it lacks.
async fn something_to_do(member: &Member, changes: &mut tokio::sync::watch::Receiver<u64>, standing: &Standing) {
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        if member.proof().is_some_and(|proof| standing.level != Some(proof)) {
            return;
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
async fn bring_level(
    keys: &Keys,
    connection: &Connection,
    member: &Member,
    proof: u64,
    standing: &mut Standing,
) -> bool {
    let login = member.node.status().borrow().login;
    match try_level(keys, connection, member, proof, standing).await {
        // Doubted meanwhile: it is being proved again, and then levelled again.
        Ok(()) if member.is_doubted() || member.proof() != Some(proof) => false,
        Ok(()) => {
            member.node.level(login);
            true
        }
        Err(error) => {
            let reason = with_causes(&error);
            tracing::warn!(hsm = %member.node.hsm(), reason, "node not level");
            member.node.not_level(login, &reason);
            false
        }
    }
}

async fn try_level(
    keys: &Keys,
    connection: &Connection,
    member: &Member,
    proof: u64,
    standing: &mut Standing,
) -> Result<(), NotLevel> {
    // What cannot be settled yet keeps nothing else from the node.
    let settled = settle(keys, connection, member).await;
    let login = member.node.status().borrow().login;
    let due = standing.list_is_due(proof, login);
    // Before anything is copied: its worker then knows where everything is, and copying needs no searches.
    let taken = if due { inventory::take(keys, connection, member, Unshown::Avoid).await.map(Some) } else { Ok(None) };
    if due && taken.is_ok() {
        standing.listed = Some(Listed { proof, login, at: Instant::now() });
    }
    let inventory = taken.as_ref().ok().and_then(Option::as_ref);
    let copied = Levelling::new(keys, connection, member).run(inventory).await;
    settled?;
    // A token that cannot be listed takes its keys all the same; but it is not level.
    taken?;
    copied
}

/// Destroys what this node holds of keys that were never acknowledged. Its former worker is gone, so nothing more can come of them.
async fn settle(keys: &Keys, connection: &Connection, member: &Member) -> Result<(), NotLevel> {
    let (hsm, user) = (member.node.hsm(), connection.user());
    for record in keys.0.records.creating_keys(&user).await? {
        let version = KeyVersion::FIRST;
        let on = || record.versions.iter().flat_map(|version| &version.on).map(|on| &on.hsm);
        let here = on().any(|on| on == hsm);
        // What these may hold of it is destroyed by nobody; should they come back with it, it is found without a record.
        let gone: Vec<_> = on().filter(|on| is_removed(keys, connection, on)).collect();
        if (!here && gone.is_empty()) || keys.lock_creating().contains(&record.id) {
            continue;
        }
        // It may have been acknowledged since the list was read. Only its maker could do that, and was
        // just seen to be gone: what the record says now, it goes on saying.
        let now = keys.0.records.key(record.id).await?;
        if now.is_none_or(|now| now.state != KeyState::Creating) {
            continue;
        }
        for hsm in gone {
            let left = keys.0.records.clear_creating(record.id, hsm).await?;
            tracing::info!(key = %record.id, %hsm, nodes_left = left.hsms, "a key that was never acknowledged may be on an HSM that was removed");
        }
        if here {
            let cka = CkaId::of(record.id, version);
            connection.destroy_key(member, cka, Instant::now() + STEP).await.map_err(NotLevel::Unsettled)?;
            let left = keys.0.records.clear_creating(record.id, hsm).await?;
            tracing::info!(key = %record.id, %hsm, nodes_left = left.hsms, "settled a key that was never acknowledged");
        }
    }
    if let Some(cluster) = keys.0.clusters.get(&connection.cluster) {
        // What is left on an HSM that was removed is destroyed by nobody; should it come back with it, it is found there.
        let named: Vec<_> = cluster.nodes.keys().collect();
        keys.0.records.forget_destroyed_elsewhere(&user, &named).await?;
    }
    // Here alone are they told to be gone: no copy of one is on its way to this node meanwhile.
    let mut unsettled = None;
    for key in keys.0.records.destroyed_keys(&user, hsm).await? {
        if let Err(failure) = connection.destroy_key(member, key, Instant::now() + STEP).await {
            tracing::warn!(?key, %hsm, error = %failure, "a key that was destroyed is still here");
            unsettled = Some(failure);
            continue;
        }
        keys.0.records.destroyed_on(&user, hsm, &key).await?;
        tracing::info!(?key, %hsm, "nothing is left here of a key that was destroyed");
    }
    unsettled.map_or(Ok(()), |failure| Err(NotLevel::Unsettled(failure)))
}

/// Whether the HSM takes no part in its cluster any more, which is declared all the same.
fn is_removed(keys: &Keys, connection: &Connection, hsm: &HsmId) -> bool {
    let settings = keys.0.stores.declared().get(&connection.cluster);
    settings.is_some_and(|settings| !settings.nodes.contains_key(hsm)) && connection.member(hsm).is_none()
}

/// One pass over what a node lacks.
struct Levelling<'a> {
    keys: &'a Keys,
    connection: &'a Connection,
    member: &'a Member,
    /// Not here, or not this key: nobody asks for them here.
    lacking: HashSet<CkaId>,
    /// Of these, those that a later pass may find or bring.
    failed: usize,
    done: usize,
    total: usize,
    told: Instant,
}

impl<'a> Levelling<'a> {
    fn new(keys: &'a Keys, connection: &'a Connection, member: &'a Member) -> Self {
        let (total, told) = (member.keys_missing(), Instant::now());
        Self { keys, connection, member, lacking: HashSet::new(), failed: 0, done: 0, total, told }
    }

    async fn run(mut self, inventory: Option<&Inventory>) -> Result<(), NotLevel> {
        let thought_missing = self.member.missing();
        let mut after = None;
        loop {
            let (records, hsm) = (&self.keys.0.records, self.member.node.hsm());
            let page = records.keys_lacking(&self.connection.user(), hsm, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.key, last.version));
            self.give_page(&page, inventory).await?;
        }
        self.forget_what_is_here(&thought_missing);
        if self.failed > 0 { Err(NotLevel::Missing(self.failed)) } else { Ok(()) }
    }

    async fn give_page(&mut self, page: &[ProvableKey], inventory: Option<&Inventory>) -> Result<(), Unavailable> {
        // Their makers are still copying these, and say so when they leave anything undone.
        let being_made = self.keys.lock_creating().clone();
        let (connection, member) = (self.connection, self.member);
        let mut errands = Vec::new();
        for key in page.iter().filter(|key| !being_made.contains(&key.key)) {
            errands.push(async move { (key, give(connection, member, key, inventory).await) });
        }
        let mut given = stream::iter(errands).buffer_unordered(IN_FLIGHT);
        let mut learnt = Vec::new();
        while let Some((key, proof)) = given.next().await {
            self.note(key, proof);
            learnt.extend(proof.map(|proof| NewProof {
                key: key.key,
                version: key.version,
                hsm: self.member.node.hsm().clone(),
                proof,
            }));
        }
        self.keys.0.records.set_presences(&self.connection.cluster, &learnt, clock::now()).await
    }

    fn note(&mut self, key: &ProvableKey, proof: Option<Proof>) {
        let id = CkaId::of(key.key, key.version);
        match proof {
            Some(Proof::Used) => self.member.has_now(&id),
            Some(Proof::Different) => {
                tracing::error!(hsm = %self.member.node.hsm(), key = ?id, "another key stands under this key's id; left alone, and not used");
                self.member.lacks([id]);
                self.lacking.insert(id);
            }
            Some(Proof::Missing | Proof::Unknown) | None => {
                self.member.lacks([id]);
                self.lacking.insert(id);
                // One that another program made need not be everywhere.
                let may_be_missing = proof == Some(Proof::Missing) && key.found.is_some();
                self.failed += usize::from(!may_be_missing);
            }
        }
        self.done += 1;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let (done, total) = (thousands(self.done), thousands(self.total.max(self.done)));
            let login = self.member.node.status().borrow().login;
            self.member.node.getting_level(login, &format!("{done} of {total} keys copied"));
        }
    }

    /// What was thought to be missing before the records were read, and is not lacking, is here or is no key.
    fn forget_what_is_here(&self, thought_missing: &[CkaId]) {
        for key in thought_missing.iter().filter(|key| !self.lacking.contains(*key)) {
            let being_made =
                CkaId::parse(key.as_bytes()).is_some_and(|(id, _)| self.keys.lock_creating().contains(&id));
            if !being_made {
                self.member.has_unless_doubted(key);
            }
        }
    }
}

/// Looks for the key, unless the token's listing has just not shown it, and copies it from a sibling.
async fn give(
    connection: &Connection,
    member: &Member,
    key: &ProvableKey,
    inventory: Option<&Inventory>,
) -> Option<Proof> {
    let errand = Errand::from(key);
    if key.found.is_some() {
        // It is where it is.
        return errand.look(connection, member).await;
    }
    let hidden = inventory.is_some_and(|inventory| !inventory.shows(&errand.key.id));
    if !hidden {
        match errand.look(connection, member).await? {
            Proof::Missing => {}
            known @ (Proof::Used | Proof::Different | Proof::Unknown) => return Some(known),
        }
    }
    errand.copy(connection, member).await.or(Some(Proof::Missing))
}
