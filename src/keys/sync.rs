//! `SyncCluster`: every key of the key store on a cluster, asked for on every HSM, and copied where it is missing.
//!
//! ```text
//!   inventory of each node ─▶ page of keys ─▶ each key on each node: its probe ─▶ missing ─▶ copied from a sibling
//!                                  ▲                                                            │
//!                                  └────────────── written down, a page at a time ◀─────────────┘
//!   and at the end what the inventories found
//! ```
//!
//! Callers use the keys meanwhile. Nothing is ever destroyed by it. When its reader leaves, it ends after the keys it is at.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, future, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{Connection, Failure, Member};
use crate::keystore::lifecycle::Event;
use crate::model::{CkaId, ClusterId, HsmId};
use crate::records::{Difference, DriftRecord, NewProof, PresenceRecord, Proof, ProvableKey};

use super::copy::Errand;
use super::inventory::{self, Unshown};
use super::{Error, Keys};

/// Keys are read, and what became of them is written, so many at a time.
const PAGE: u32 = 256;
/// So many keys are looked at at once.
const IN_FLIGHT: usize = 4;
/// Messages that wait for a slow reader, who slows the work itself.
const DEPTH: usize = 16;
/// Without a difference, progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// What is to be done about what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Tell it.
    Tell,
    /// Copy it from a sibling.
    Copy,
}

/// How far it has come.
#[derive(Debug, Clone)]
pub struct Synced {
    pub total: u32,
    pub done: u32,
    /// Of those done, how many could not be brought level.
    pub failed: u32,
    /// One just found.
    pub drift: Option<DriftRecord>,
}

/// A cluster has one at a time; the next may begin when this is dropped.
struct Turn {
    keys: Keys,
    cluster: ClusterId,
}

struct Work {
    keys: Keys,
    connection: Arc<Connection>,
    repair: Repair,
    told: mpsc::Sender<Result<Synced, Error>>,
    progress: Synced,
    last_told: Instant,
}

/// What one key's round brought.
#[derive(Default)]
struct Round {
    proofs: Vec<NewProof>,
    drifts: Vec<DriftRecord>,
    failed: bool,
}

impl Keys {
    /// Begins to compare, and tells how it goes until all is done, somebody has to hear why not, or nobody listens.
    pub async fn sync_cluster(
        &self,
        _permit: Permit<action::SyncCluster>,
        cluster: &ClusterId,
        repair: Repair,
    ) -> Result<mpsc::Receiver<Result<Synced, Error>>, Error> {
        let store = self.0.stores.on_cluster(cluster).ok_or_else(|| Error::NobodyLoggedIn(cluster.clone()))?;
        let connection = self.connection_of_store(&store, Event::Use)?;
        if !connection.any_proved() {
            return Err(Error::Hsm(Failure::NoNode));
        }
        let turn = Turn::take(self, cluster)?;
        let total = self.0.records.count_provable_keys(&connection.user()).await?;
        let (told, news) = mpsc::channel(DEPTH);
        let progress = Synced { total, done: 0, failed: 0, drift: None };
        let mut work = Work { keys: self.clone(), connection, repair, told, progress, last_told: Instant::now() };
        // In a task of its own: a key that is being copied is copied, whoever leaves.
        self.0.runtime.spawn(async move {
            let _turn = turn;
            if let Err(error) = work.run().await {
                let _ = work.told.send(Err(error)).await;
            }
            // However it ended: what was found missing and not copied is brought by whoever keeps the nodes level.
            if work.repair == Repair::Copy || work.progress.failed > 0 {
                work.keys.0.unsettled.notify_waiters();
            }
        });
        Ok(news)
    }
}

impl Turn {
    fn take(keys: &Keys, cluster: &ClusterId) -> Result<Self, Error> {
        if keys.lock_syncing().insert(cluster.clone()) {
            Ok(Self { keys: keys.clone(), cluster: cluster.clone() })
        } else {
            Err(Error::Syncing(cluster.clone()))
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.keys.lock_syncing().remove(&self.cluster);
    }
}

impl Keys {
    fn lock_syncing(&self) -> MutexGuard<'_, HashSet<ClusterId>> {
        self.0.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// Whoever holds it copies keys of the cluster that he has read, or destroys one of them: not both at once.
    pub(super) fn copying(&self, cluster: &ClusterId) -> Arc<tokio::sync::Mutex<()>> {
        let mut copying = self.0.copying.lock().unwrap_or_else(PoisonError::into_inner);
        copying.entry(cluster.clone()).or_default().clone()
    }
}

impl Work {
    async fn run(&mut self) -> Result<(), Error> {
        self.tell(None).await;
        let listed = self.take_inventories().await?;
        let mut after = None;
        while !self.told.is_closed() {
            // Not while it is told: a reader who does not read holds up no deletion.
            let copying = self.keys.copying(&self.connection.cluster);
            let nothing_is_destroyed = copying.lock().await;
            let page = self.keys.0.records.provable_keys(&self.connection.user(), after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.key, last.version));
            let (compared, ended) = self.compare_page(&page).await?;
            drop(nothing_is_destroyed);
            for round in compared {
                self.count(round).await;
            }
            ended?;
        }
        // Whether a key of odd attributes is the right one at all is known by now.
        self.tell_oddities(&listed).await?;
        self.tell(None).await;
        Ok(())
    }

    /// Lists the tokens: their workers know afterwards where each key is. A node that cannot be listed is looked at key by key all the same.
    async fn take_inventories(&mut self) -> Result<Vec<HsmId>, Error> {
        let connection = self.connection.clone();
        let members = connection.members();
        let mut taking = Vec::new();
        let unshown = match self.repair {
            Repair::Copy => Unshown::Avoid,
            Repair::Tell => Unshown::AskOn,
        };
        for member in members.iter().filter(|member| member.is_proved()) {
            let (keys, connection) = (&self.keys, &connection);
            taking.push(async move { (member, inventory::take(keys, connection, member, unshown).await) });
        }
        let mut listed = Vec::new();
        for (member, taken) in future::join_all(taking).await {
            let hsm = member.node.hsm();
            match taken {
                Ok(_) => listed.push(hsm.clone()),
                Err(inventory::Error::Records(error)) => return Err(error.into()),
                Err(inventory::Error::Unlisted(error)) => tracing::warn!(%hsm, %error, "its objects cannot be listed"),
            }
        }
        Ok(listed)
    }

    /// With the time each was first seen, which the records know.
    async fn tell_oddities(&mut self, hsms: &[HsmId]) -> Result<(), Error> {
        let mut after = None;
        while !self.told.is_closed() {
            let (records, cluster) = (&self.keys.0.records, &self.connection.cluster);
            let page = records.list_oddities(cluster, hsms, after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (_, drift) in page {
                self.tell(Some(drift)).await;
            }
        }
        Ok(())
    }

    /// What was learnt, and whether anything went wrong on the way.
    async fn compare_page(&self, page: &[ProvableKey]) -> Result<(Vec<Round>, Result<(), Error>), Error> {
        let (keys, connection, told, repair) =
            (self.keys.clone(), self.connection.clone(), self.told.clone(), self.repair);
        let mut rounds = Vec::new();
        for key in page {
            let (keys, connection, told) = (&keys, &connection, &told);
            rounds.push(async move {
                // Nobody listens any more: this key is not begun.
                if told.is_closed() { None } else { Some(compare(keys, connection, key, repair).await) }
            });
        }
        let mut rounds = stream::iter(rounds).buffer_unordered(IN_FLIGHT);
        let (mut proofs, mut compared, mut ended) = (Vec::new(), Vec::new(), Ok(()));
        while let Some(round) = rounds.next().await {
            match round {
                Some(Ok(round)) => {
                    proofs.extend(round.proofs.iter().cloned());
                    compared.push(round);
                }
                Some(Err(error)) => ended = Err(error),
                None => {}
            }
        }
        // What was learnt is written down, however it ended; and before it is told, since a slow reader would make it old.
        self.keys.0.records.set_presences(&self.connection.cluster, &proofs, clock::now()).await?;
        Ok((compared, ended))
    }

    async fn count(&mut self, round: Round) {
        self.progress.done += 1;
        self.progress.total = self.progress.total.max(self.progress.done);
        self.progress.failed += u32::from(round.failed);
        for drift in round.drifts {
            self.tell(Some(drift)).await;
        }
        if self.last_told.elapsed() >= TELL_EVERY {
            self.tell(None).await;
        }
    }

    async fn tell(&mut self, drift: Option<DriftRecord>) {
        self.last_told = Instant::now();
        // A reader who left is noticed before the next key.
        let _ = self.told.send(Ok(Synced { drift, ..self.progress.clone() })).await;
    }
}

/// What a node said of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Found(Proof),
    /// It was asked and did not say.
    Silent,
    /// It could not be asked.
    Away,
}

/// One key on all nodes: looked for on each at once, then copied where it is missing.
async fn compare(keys: &Keys, connection: &Connection, key: &ProvableKey, repair: Repair) -> Result<Round, Error> {
    if keys.lock_creating().contains(&key.key) {
        // Its maker is still copying it.
        return Ok(Round::default());
    }
    if !connection.any_proved() {
        return Err(Error::Hsm(Failure::NoNode));
    }
    let errand = Errand::from(key);
    let members = connection.members();
    let looking: Vec<_> = members.iter().map(|member| look(connection, member, &errand)).collect();
    let looks = future::join_all(looking).await;
    for (member, look) in members.iter().zip(&looks) {
        heed(member, &errand.key.id, *look, repair);
    }
    let held = looks.contains(&Look::Found(Proof::Used));
    let mut round = Round::default();
    for (member, look) in members.iter().zip(looks) {
        let after = match (look, repair) {
            (Look::Found(Proof::Missing), Repair::Copy) => {
                errand.copy(connection, member).await.map_or(look, Look::Found)
            }
            (look, Repair::Copy | Repair::Tell) => look,
        };
        heed(member, &errand.key.id, after, repair);
        let place = (&connection.cluster, member.node.hsm());
        let known = keys.0.records.presence(key.key, key.version, place).await?;
        let known = known.filter(|known| known.proof != Proof::Used);
        round.failed |= is_failed(after, held, repair, known.is_some());
        round.add(key, member.node.hsm(), (look, after), known);
    }
    Ok(round)
}

async fn look(connection: &Connection, member: &Member, errand: &Errand) -> Look {
    if !member.is_proved() {
        return Look::Away;
    }
    errand.look(connection, member).await.map_or(Look::Silent, Look::Found)
}

/// Whom to ask for the key from now on. What is told only, and copied by nobody, is still asked for: the node that is
/// met without it is then brought level as ever.
fn heed(member: &Member, key: &CkaId, look: Look, repair: Repair) {
    match (look, repair) {
        (Look::Found(Proof::Used), _) => member.has_unless_doubted(key),
        (Look::Found(Proof::Different), _) | (Look::Found(Proof::Missing), Repair::Copy) => member.lacks([*key]),
        (Look::Found(Proof::Missing | Proof::Unknown) | Look::Silent | Look::Away, _) => {}
    }
}

/// Whether a key could not be brought level on a node; or, if it is only told, could not be.
fn is_failed(after: Look, held: bool, repair: Repair, unproven_before: bool) -> bool {
    match (after, repair) {
        (Look::Found(Proof::Used), _) => false,
        (Look::Found(Proof::Missing), Repair::Tell) => !held,
        (Look::Found(Proof::Missing), Repair::Copy) => true,
        (Look::Found(Proof::Different | Proof::Unknown) | Look::Silent, _) => true,
        // The records may know that it is there; nobody can tell more now.
        (Look::Away, _) => unproven_before,
    }
}

impl Round {
    fn add(&mut self, key: &ProvableKey, hsm: &HsmId, (look, after): (Look, Look), known: Option<PresenceRecord>) {
        let found_proof = match look {
            Look::Found(Proof::Used) => None,
            Look::Found(proof) => Some(proof),
            // What was last known of it.
            Look::Silent | Look::Away => known.as_ref().map(|known| known.proof),
        };
        if let Some(proof) = found_proof {
            let difference = Difference::Unproven { key: key.key, version: key.version, proof };
            let found = known.map_or_else(clock::now, |known| known.time);
            self.drifts.push(DriftRecord { hsm: hsm.clone(), difference, found });
        }
        if let Look::Found(proof) = after {
            self.proofs.push(NewProof { key: key.key, version: key.version, hsm: hsm.clone(), proof });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_failed_on_a_node_when_it_is_not_there_or_nobody_can_tell() {
        use Look::{Away, Found, Silent};
        assert!(!is_failed(Found(Proof::Used), true, Repair::Copy, true));
        assert!(is_failed(Found(Proof::Missing), true, Repair::Copy, false));
        assert!(!is_failed(Found(Proof::Missing), true, Repair::Tell, false), "a sibling could give it");
        assert!(is_failed(Found(Proof::Missing), false, Repair::Tell, false));
        assert!(is_failed(Found(Proof::Different), true, Repair::Tell, false));
        assert!(is_failed(Silent, true, Repair::Copy, false));
        assert!(!is_failed(Away, true, Repair::Copy, false), "it was proven there when it was last asked");
        assert!(is_failed(Away, true, Repair::Copy, true));
    }
}
