//! One key store as this daemon knows it: its record, and its Connection while it has one.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Connection;
use crate::model::{ConnectionState, KeyStoreId};
use crate::records::KeyStoreRecord;

use super::connect::{self, Progress};
use super::lifecycle::{self, Event};

/// One key store as this daemon knows it.
#[derive(Debug)]
pub struct Store {
    pub(super) record: watch::Sender<KeyStoreRecord>,
    pub(super) connection: watch::Sender<Option<Arc<Connection>>>,
    /// Held from the look at the record until what came of it is in the records and here: changes come one after the
    /// other, and each sees what the one before has left.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// The attempt to connect that was begun last. Another begins only when this one has ended.
    attempt: Mutex<Option<JoinHandle<()>>>,
    /// How far each node had come when the last attempt failed, for whoever looks later.
    left_at: Mutex<Option<Vec<Progress>>>,
}

/// A store's place among all of them: the oldest comes first. It stays the same whatever is made or deleted beside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    created_ms: u64,
    id: KeyStoreId,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.created_ms, self.id)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (created_ms, id) = text.split_once('/').ok_or(())?;
        Ok(Self { created_ms: created_ms.parse().map_err(drop)?, id: id.parse().map_err(drop)? })
    }
}

impl Store {
    pub(super) fn new(record: KeyStoreRecord) -> Arc<Self> {
        Arc::new(Self {
            record: watch::Sender::new(record),
            connection: watch::Sender::new(None),
            turn: tokio::sync::Mutex::default(),
            attempt: Mutex::default(),
            left_at: Mutex::default(),
        })
    }

    pub(super) fn attempts(&self, attempt: JoinHandle<()>) {
        self.leave_at(None);
        *self.lock_attempt() = Some(attempt);
    }

    /// Keeps how far each node has come, of an attempt that fails.
    pub(super) fn leave_at(&self, progress: Option<Vec<Progress>>) {
        *self.left_at.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// Waits for the end of an attempt to connect: it sees by itself that the store is not CONNECTING any more.
    pub(super) async fn attempt_ended(&self) {
        let attempt = self.lock_attempt().take();
        if let Some(attempt) = attempt {
            let _ = attempt.await;
        }
    }

    fn lock_attempt(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn place(&self) -> Place {
        let record = self.record.borrow();
        let since = record.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        Place { created_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), id: record.id.clone() }
    }

    pub fn id(&self) -> KeyStoreId {
        self.record.borrow().id.clone()
    }

    pub fn record(&self) -> KeyStoreRecord {
        self.record.borrow().clone()
    }

    pub fn state(&self) -> ConnectionState {
        self.record.borrow().state
    }

    /// Tells each change of the record.
    pub fn record_changes(&self) -> watch::Receiver<KeyStoreRecord> {
        self.record.subscribe()
    }

    /// The nodes behind the store, while it is connecting or connected.
    pub fn nodes(&self) -> watch::Receiver<Option<Arc<Connection>>> {
        self.connection.subscribe()
    }

    /// How far each node has come, or had when the last attempt failed. `None`: none was looked at.
    pub fn progress(&self) -> Option<Vec<Progress>> {
        let left_at = || self.left_at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.connection.borrow().as_deref().map(connect::progress).or_else(left_at)
    }

    /// The Connection to make or use keys through, when the store's state allows that. `None`: it does, and the cluster
    /// cannot be used from here.
    pub fn connection_for(&self, what: Event) -> Result<Option<Arc<Connection>>, ConnectionState> {
        lifecycle::next(self.state(), what).map_err(|refused| refused.state)?;
        Ok(self.connection.borrow().clone())
    }
}
