//! What this daemon knows of a key's use beyond the records: the uses it has reserved of each version, and when the key was
//! last used. It outlives what is remembered of the key itself, so that a change of the key spends no block of uses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock;
use crate::model::{KeyId, KeyVersion};

use super::Keys;
use super::uses::Uses;

/// When keys were last used is written down so often; what was not yet, a crash forgets.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// The times are milliseconds since the epoch; 0 for never.
#[derive(Debug, Default)]
pub(super) struct Usage {
    last: AtomicI64,
    written: AtomicI64,
    versions: Mutex<HashMap<KeyVersion, Arc<Uses>>>,
}

impl Usage {
    pub(super) fn of(&self, version: KeyVersion) -> Arc<Uses> {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.entry(version).or_insert_with(|| Arc::new(Uses::none())).clone()
    }

    pub(super) fn mark(&self) {
        let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(i64::try_from(now.as_millis()).unwrap_or(i64::MAX), Relaxed);
    }

    fn last(&self) -> Option<SystemTime> {
        let millis = u64::try_from(self.last.load(Relaxed)).ok().filter(|millis| *millis > 0)?;
        Some(UNIX_EPOCH + Duration::from_millis(millis))
    }
}

/// Writes down when keys were last used, as long as the daemon runs.
pub async fn keep_written(keys: Keys) {
    loop {
        tokio::time::sleep(WRITE_EVERY).await;
        let unwritten: Vec<(KeyId, Arc<Usage>)> = {
            let usages = keys.0.usages.lock().unwrap_or_else(PoisonError::into_inner);
            let is_unwritten = |usage: &Usage| usage.last.load(Relaxed) != usage.written.load(Relaxed);
            usages.iter().filter(|(_, usage)| is_unwritten(usage)).map(|(id, usage)| (*id, usage.clone())).collect()
        };
        let marks: Vec<_> = unwritten.iter().map(|(_, usage)| usage.last.load(Relaxed)).collect();
        let uses: Vec<_> = unwritten.iter().filter_map(|(id, usage)| Some((*id, usage.last()?))).collect();
        match keys.0.records.note_last_uses(&uses).await {
            Ok(()) => unwritten.iter().zip(marks).for_each(|((_, usage), mark)| usage.written.store(mark, Relaxed)),
            Err(error) => {
                tracing::warn!(%error, "when keys were last used could not be written down; it is tried again")
            }
        }
    }
}

impl Keys {
    pub(super) fn usage_of(&self, key: KeyId) -> Arc<Usage> {
        self.0.usages.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    /// It is gone.
    pub(super) fn forget_usage(&self, key: KeyId) {
        self.0.usages.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// When the key was last used, here or as the records have it.
    pub(super) fn last_use(&self, key: KeyId, written: Option<SystemTime>) -> Option<SystemTime> {
        let usages = self.0.usages.lock().unwrap_or_else(PoisonError::into_inner);
        usages.get(&key).and_then(|usage| usage.last()).max(written)
    }
}
