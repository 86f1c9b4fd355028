//! One key store as this daemon knows it: its record, and its Connection while it has one.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cluster::Connection;
use crate::model::{ConnectionState, KeyStoreId};
use crate::records::KeyStoreRecord;

/// One key store as this daemon knows it.
#[derive(Debug)]
pub struct Store {
    pub(super) record: watch::Sender<KeyStoreRecord>,
    pub(super) connection: watch::Sender<Option<Arc<Connection>>>,
}

impl Store {
    pub(super) fn new(record: KeyStoreRecord) -> Arc<Self> {
        Arc::new(Self { record: watch::Sender::new(record), connection: watch::Sender::new(None) })
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

    /// The Connection through which keys are used; only while CONNECTED.
    pub fn connected(&self) -> Result<Arc<Connection>, ConnectionState> {
        let state = self.state();
        if state != ConnectionState::Connected {
            return Err(state);
        }
        self.connection.borrow().clone().ok_or(state)
    }
}
