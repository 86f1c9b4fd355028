//! Deleting a key store's key: after a window in which it can be taken back, on every HSM, and later on those that are away.
//!
//! ```text
//!   ScheduleKeyDeletion ─▶ PENDING_DELETION ─▶ the window ends ─▶ record gone, every HSM that may hold it written down
//!        ▲  CancelKeyDeletion ◀──┘                                  ├▶ destroyed on each that answers
//!        └── (DISABLED)                                             └▶ reconcile: destroyed there, and crossed out
//! ```
//!
//! What is destroyed does not come back, so no clock alone may decide it. A window has ended when the wall clock is past its
//! date *and* daemons have run through all of its days but one, by their monotonic clocks: each writes down as it goes how
//! much time has passed. A wall clock that jumps, in whichever direction and whenever, takes that one day from a window at
//! most. Time that no daemon ran may make a deletion late, and nothing makes it early.
//!
//! The end is one transaction, which looks at the state once more: a cancellation that comes first wins. Whatever ends it
//! after that, the next daemon finds what is written down and does it.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::keystore::lifecycle::Event;
use crate::model::{CkaId, HsmId, KeyChange, KeyId, KeyRef};
use crate::records::{Deletion, Due, DueCursor, Unavailable};

use super::describe::Description;
use super::destroy::destroy_everywhere;
use super::lifecycle::Operation;
use super::{Error, Keys};

/// So many times a day time is written down, and keys that are due are looked for: each minute.
const LOOKS_A_DAY: u32 = 24 * 60;
/// And no more often than this, however short a day is.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// So many keys are read at once.
const PAGE: u32 = 256;
/// AWS's window when none is asked for, in days.
const DEFAULT_WINDOW: u32 = 30;

/// How long a key is kept before it is destroyed: 7 to 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletionWindow {
    days: u32,
}

impl DeletionWindow {
    /// 0 is the longest.
    pub fn of_days(days: i32) -> Option<Self> {
        match u32::try_from(days).ok()? {
            0 => Some(Self { days: DEFAULT_WINDOW }),
            days @ 7..=DEFAULT_WINDOW => Some(Self { days }),
            _ => None,
        }
    }
}

impl Keys {
    pub async fn schedule_deletion(
        &self,
        permit: Permit<action::ScheduleKeyDeletion>,
        key: &KeyRef,
        window: DeletionWindow,
    ) -> Result<Description, Error> {
        let window = self.0.settings.deletion_day * window.days;
        // What has passed already and is not written down yet was before it.
        let deletion = Deletion { due: clock::now() + window, window: window + self.uncounted() };
        let how = (Operation::ScheduleKeyDeletion, KeyChange::ScheduleDeletion);
        self.change_state(&permit, key, how, Some(deletion)).await
    }

    /// The key is disabled then.
    pub async fn cancel_deletion(
        &self,
        permit: Permit<action::CancelKeyDeletion>,
        key: &KeyRef,
    ) -> Result<Description, Error> {
        self.change_state(&permit, key, (Operation::CancelKeyDeletion, KeyChange::CancelDeletion), None).await
    }

    async fn destroy_due(&self) -> Result<(), Unavailable> {
        let due = Due { now: clock::now(), unseen: self.0.settings.deletion_day };
        let mut after = Some(DueCursor::START);
        while let Some(page_after) = after {
            let (page, next) = self.0.records.due_deletions(due, page_after, PAGE).await?;
            after = next;
            for key in page {
                // One that its maker is still copying to the last nodes has its turn later.
                if self.lock_creating().contains(&key) {
                    tracing::info!(%key, "a key whose deletion is due is still being copied to its last HSMs");
                    continue;
                }
                let destroyed = self.destroy_one(key, due).await;
                if !matches!(destroyed, Ok(false)) {
                    // Whoever keeps the nodes level crosses them out; also when whether it was written is not known.
                    self.0.unsettled.notify_waiters();
                }
                destroyed?;
            }
        }
        Ok(())
    }

    /// How much time has passed that is not written down.
    fn uncounted(&self) -> Duration {
        self.0.counted.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether it was still due, and nothing was in the way.
    async fn destroy_one(&self, key: KeyId, due: Due) -> Result<bool, Unavailable> {
        let Some(record) = self.0.records.key(key).await? else { return Ok(false) };
        // Whoever compares the cluster's keys copies what he has read: it could come back behind those who destroy it.
        let copying = self.copying(&record.cluster);
        let Ok(nobody_copies) = copying.try_lock() else {
            tracing::info!(%key, cluster = %record.cluster, "a key whose deletion is due waits: its cluster's keys are being compared");
            return Ok(false);
        };
        let store = record.home.store().and_then(|store| self.0.stores.get(store).ok());
        let connection = store.and_then(|store| self.connection_of_store(&store, Event::Use).ok());
        let declared = self.0.clusters.get(&record.cluster);
        let declared = declared.iter().flat_map(|cluster| cluster.nodes.keys().cloned());
        let members = connection.iter().flat_map(|connection| connection.members().to_vec());
        let hsms: Vec<HsmId> = declared.chain(members.map(|member| member.node.hsm().clone())).collect();
        #[cfg(debug_assertions)]
        crate::seams::stop_point("deletion-due");
        let destroyed = self.0.records.destroy_due_key(key, due, (&record.cluster, &hsms)).await;
        // Also when whether it was written is not known.
        self.forget(key);
        self.forget_aliases(key);
        drop(nobody_copies);
        if !destroyed? {
            return Ok(false);
        }
        self.forget_usage(key);
        #[cfg(debug_assertions)]
        crate::seams::stop_point("deletion-begun");
        tracing::info!(%key, versions = record.versions.len(), "a key's deletion window has ended: it is destroyed");
        if let Some(connection) = connection {
            for version in &record.versions {
                destroy_everywhere(&connection, CkaId::of(key, version.version)).await;
            }
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("deletion-done");
        Ok(true)
    }
}

/// Between two looks for what is due.
pub(super) fn pause(keys: &Keys) -> Duration {
    (keys.0.settings.deletion_day / LOOKS_A_DAY).max(SHORTEST_PAUSE)
}

/// Destroys keys whose window has ended, as long as the daemon runs.
pub async fn run(keys: Keys) {
    let pause = pause(&keys);
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = look(&keys).await {
            tracing::warn!(%error, "keys whose deletion is due have to wait");
        }
    }
}

async fn look(keys: &Keys) -> Result<(), Unavailable> {
    let (passed, now) = (keys.uncounted(), Instant::now());
    let written = keys.0.records.pass_deletion_time(passed).await;
    // Afterwards: a window that begins meanwhile is later by as much, not shorter. What could not be written down counts as not
    // passed, too: a key that is destroyed late is no harm.
    *keys.0.counted.lock().unwrap_or_else(PoisonError::into_inner) = now;
    written?;
    keys.destroy_due().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_7_to_30_days_and_30_when_none_is_asked_for() {
        let days = |days| DeletionWindow::of_days(days).map(|window| window.days);
        assert_eq!([0, 7, 30].map(days), [Some(30), Some(7), Some(30)]);
        assert_eq!([i32::MIN, -1, 1, 6, 31, i32::MAX].map(days), [None; 6]);
    }
}
