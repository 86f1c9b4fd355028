//! One node's part in a Connection: the node, what was proved of it, and which keys it lacks.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::model::CkaId;
use crate::node::{Health, Load, Node};

use super::abilities::{Abilities, Learnt};
use super::pace::Pace;

/// The members of a Connection, as of some moment.
pub type Members = Arc<[Arc<Member>]>;

/// One node's part in a Connection.
#[derive(Debug)]
pub struct Member {
    pub node: Arc<Node>,
    /// The login whose worker was proved to hold this cluster's keys; 0 = none.
    proved: AtomicU64,
    /// Counts the proofs of this node, so that whoever brings it level knows for which one he has.
    proofs: AtomicU64,
    /// Keys known to be missing here. Everything else is taken to be there.
    lacks: RwLock<HashSet<CkaId>>,
    lacks_any: AtomicBool,
    /// Keys that ought to be here and were not found: the node is to be proved again.
    doubts: Mutex<Vec<CkaId>>,
    pub(super) doubted: Notify,
    /// A call met a fault that may be the device's: it is to be looked at now.
    pub(super) suspected: Notify,
    slow: AtomicBool,
    /// Why the worker of this login is not going to be proved as things are.
    stuck: Mutex<Option<(u64, Stuck)>>,
    /// When the canary last answered, and how it has answered lately.
    checks: Mutex<Checks>,
    /// What kinds of keys its HSM can do, for all Connections.
    pub(super) abilities: Arc<Abilities>,
    /// Held while its objects are listed.
    pub(super) listing: tokio::sync::Mutex<()>,
    supervision: Mutex<Option<Supervision>>,
}

/// Why a node that is logged in is not going to be proved as things are. It is tried again all the same. What says most of
/// what is to be mended comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stuck {
    /// Nothing comes of it before somebody has mended something.
    NeedsOperator,
    /// It has failed again and again.
    KeepsFailing,
    /// It needs another node to be proved first.
    NeedsAnother,
}

/// So many canaries in a row without room: the worker is replaced, which frees what a library lost.
const WITHOUT_ROOM: u32 = 10;

/// What looking after a node has shown.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) last_proof: Option<SystemTime>,
    /// How often in a row there was no room for the canary.
    pub(super) without_room: u32,
    pub(super) pace: Pace,
    /// Whose worker's pace it is.
    pub(super) paced: u64,
}

#[derive(Debug)]
pub(super) struct Supervision {
    pub(super) stop: watch::Sender<bool>,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

impl Checks {
    /// Counts a canary that found no room; whether there was none for too long.
    pub(super) fn is_full_for_good(&mut self) -> bool {
        self.without_room += 1;
        self.without_room >= WITHOUT_ROOM
    }
}

impl Member {
    pub(super) fn new(node: Arc<Node>, learnt: &Learnt) -> Self {
        Self {
            abilities: learnt.of(&node),
            node,
            proved: AtomicU64::new(0),
            proofs: AtomicU64::new(0),
            lacks: RwLock::default(),
            lacks_any: AtomicBool::new(false),
            doubts: Mutex::default(),
            doubted: Notify::new(),
            suspected: Notify::new(),
            slow: AtomicBool::new(false),
            stuck: Mutex::default(),
            checks: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            supervision: Mutex::default(),
        }
    }

    /// Whether the worker that serves now was proved to hold this cluster's keys.
    pub fn is_proved(&self) -> bool {
        self.proved_load().is_some()
    }

    /// Whether its worker says that it is alive. One that hangs does not.
    pub fn answers_pings(&self) -> bool {
        self.node.load().is_some_and(|load| load.answers_pings)
    }

    /// What is outstanding on the worker that serves now, if that one was proved.
    pub(super) fn proved_load(&self) -> Option<Load> {
        self.node.load().filter(|load| load.login == self.proved.load(Relaxed))
    }

    pub(super) fn set_proved(&self, login: u64) {
        self.proved.store(login, Relaxed);
        self.proofs.fetch_add(1, Relaxed);
    }

    /// Whether the worker that serves now is stuck on its way to be proved.
    pub fn stuck(&self) -> Option<Stuck> {
        let (login, stuck) = (*self.stuck.lock().unwrap_or_else(PoisonError::into_inner))?;
        self.node.load().filter(|load| load.login == login).map(|_| stuck)
    }

    pub(super) fn set_stuck(&self, login: u64, stuck: Option<Stuck>) {
        *self.stuck.lock().unwrap_or_else(PoisonError::into_inner) = stuck.map(|stuck| (login, stuck));
    }

    /// Whether nobody is logged in, and nobody is about to be.
    pub fn is_out(&self) -> bool {
        match self.node.status().borrow().health {
            Health::Unreachable | Health::LoginRefused | Health::Drained | Health::WrongIdentity => true,
            Health::NotProbed | Health::Syncing | Health::Healthy | Health::Slow => false,
        }
    }

    /// Whether it stays out until somebody has mended something. One that is unreachable is tried again by itself.
    pub fn is_lost(&self) -> bool {
        match self.node.status().borrow().health {
            Health::LoginRefused | Health::Drained | Health::WrongIdentity => true,
            Health::Unreachable | Health::NotProbed | Health::Syncing | Health::Healthy | Health::Slow => false,
        }
    }

    /// Whether it is out of service without a chance to come back by itself.
    pub fn is_hopeless(&self) -> bool {
        self.is_lost() || self.stuck().is_some()
    }

    /// Whether it serves what it has, and is brought to serve all there is.
    pub fn is_level(&self) -> bool {
        match self.node.status().borrow().health {
            Health::Healthy | Health::Slow => true,
            Health::Syncing
            | Health::NotProbed
            | Health::Unreachable
            | Health::LoginRefused
            | Health::Drained
            | Health::WrongIdentity => false,
        }
    }

    /// Which proof stands, if one does. Another number means another login, or that the node was doubted and proved again.
    pub fn proof(&self) -> Option<u64> {
        self.is_proved().then(|| self.proofs.load(Relaxed))
    }

    /// Whether the node said of a key that it is not there, and was not proved since.
    pub fn is_doubted(&self) -> bool {
        !self.doubts.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether the key is taken to be here.
    pub fn has(&self, key: &CkaId) -> bool {
        !self.lacks_any.load(Relaxed) || !self.lacks.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// How many keys are known to be missing here.
    pub fn keys_missing(&self) -> usize {
        self.lacks.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// These keys are not here.
    pub fn lacks(&self, keys: impl IntoIterator<Item = CkaId>) {
        let mut lacks = self.lacks.write().unwrap_or_else(PoisonError::into_inner);
        lacks.extend(keys);
        self.lacks_any.store(!lacks.is_empty(), Relaxed);
    }

    /// The node said that it does not have a key it should. Nothing is forgotten, but it is not asked for this key until it was proved again.
    pub(super) fn doubt(&self, key: CkaId) {
        self.lacks([key]);
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if !doubts.contains(&key) {
            doubts.push(key);
        }
        self.doubted.notify_one();
    }

    pub(super) fn take_doubts(&self) -> Vec<CkaId> {
        std::mem::take(&mut *self.doubts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys known to be missing here.
    pub fn missing(&self) -> Vec<CkaId> {
        self.lacks.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// This key is here, unless the node itself has just said otherwise.
    pub fn has_unless_doubted(&self, key: &CkaId) {
        if !self.doubts.lock().unwrap_or_else(PoisonError::into_inner).contains(key) {
            self.has_now(key);
        }
    }

    /// This key is here after all.
    pub fn has_now(&self, key: &CkaId) {
        let mut lacks = self.lacks.write().unwrap_or_else(PoisonError::into_inner);
        lacks.remove(key);
        self.lacks_any.store(!lacks.is_empty(), Relaxed);
    }

    /// Whether it is asked only when every other node is as slow.
    pub fn is_slow(&self) -> bool {
        self.slow.load(Relaxed)
    }

    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Relaxed);
    }

    /// When its token last proved to be the one it should be.
    pub fn last_proof(&self) -> Option<SystemTime> {
        self.lock_checks().last_proof
    }

    pub(super) fn lock_checks(&self) -> MutexGuard<'_, Checks> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the node out and stops its worker, after its running calls; and waits for workers that were on their way out before.
    pub async fn take_down(&self) {
        let supervision = self.lock_supervision().take();
        if let Some(Supervision { stop, tasks }) = supervision {
            stop.send_replace(true);
            for task in tasks {
                let _ = task.await;
            }
        }
        self.node.vacated().await;
    }

    pub(super) fn lock_supervision(&self) -> MutexGuard<'_, Option<Supervision>> {
        self.supervision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
