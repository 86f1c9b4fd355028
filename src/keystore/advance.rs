//! A store's steps from state to state: as the table says, in the records first, and one after the other.

use std::time::Duration;

use crate::clock;
use crate::model::KeyStoreId;
use crate::records::{KeyStoreChange, KeyStoreRecord};

use super::lifecycle::{self, Event, Step};
use super::{Error, KeyStores, Store};

/// A state that cannot be written down is written again after this long.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

impl KeyStores {
    /// As [`KeyStores::advance`], for what has happened already: tried until it can be written down, since nobody else would.
    pub(super) async fn advance_in_the_end(
        &self,
        store: &Store,
        event: Event,
        also: impl Fn(&mut KeyStoreRecord),
    ) -> Result<(), Error> {
        loop {
            match self.advance(store, event, &also).await {
                Err(Error::Records(error)) => {
                    tracing::error!(key_store = %store.id(), %error, "a state cannot be written down; trying again");
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
                decided => return decided,
            }
        }
    }

    /// Moves the store as the table says.
    pub(super) async fn advance(
        &self,
        store: &Store,
        event: Event,
        also: impl FnOnce(&mut KeyStoreRecord),
    ) -> Result<(), Error> {
        let _turn = store.turn.lock().await;
        self.advance_in_turn(store, event, also).await
    }

    /// The same, for who holds the store's turn: in the records first, and here when it stands there.
    pub(super) async fn advance_in_turn(
        &self,
        store: &Store,
        event: Event,
        also: impl FnOnce(&mut KeyStoreRecord),
    ) -> Result<(), Error> {
        let before = store.record();
        let Step::Move(to) = lifecycle::next(before.state, event)? else {
            return Ok(());
        };
        let mut after = before.clone();
        also(&mut after);
        (after.state, after.state_changed) = (to, clock::now());
        let change = KeyStoreChange {
            to,
            at: after.state_changed,
            connect_attempt: after.connect_attempt,
            last_error: after.last_error.clone(),
        };
        if !self.0.records.move_key_store(&before.id, before.state, &change).await? {
            return Err(self.lost(&before.id));
        }
        tracing::info!(key_store = %before.id, from = %before.state, %to, "key store moved");
        store.record.send_replace(after);
        Ok(())
    }

    /// Why a record is not as it was a moment ago: the store was deleted, or another request came first.
    pub(super) fn lost(&self, id: &KeyStoreId) -> Error {
        self.get(id).err().unwrap_or(Error::Conflict)
    }
}
