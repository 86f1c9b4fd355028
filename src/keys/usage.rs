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

/// When keys were last used is looked at, and what has to be is written down, so often.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// And of a key that is used all the while so often: that much the end of the daemon forgets at most. While it runs, it tells
/// the last use itself.
const WRITE_AGAIN: i64 = 60 * 60 * 1000;
/// So many are written down at once: others have the writer in between.
const PAGE: usize = 256;

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

    /// Whether its last use is to be written down, and which one that is.
    fn unwritten(&self) -> Option<i64> {
        let (last, written) = (self.last.load(Relaxed), self.written.load(Relaxed));
        // Also when a clock was put back meanwhile.
        (last.abs_diff(written) >= WRITE_AGAIN.unsigned_abs()).then_some(last)
    }

    fn last(&self) -> Option<SystemTime> {
        time(self.last.load(Relaxed))
    }
}

fn time(millis: i64) -> Option<SystemTime> {
    let millis = u64::try_from(millis).ok().filter(|millis| *millis > 0)?;
    Some(UNIX_EPOCH + Duration::from_millis(millis))
}

/// Writes down when keys were last used, as long as the daemon runs.
pub async fn keep_written(keys: Keys) {
    loop {
        tokio::time::sleep(WRITE_EVERY).await;
        let unwritten: Vec<(KeyId, Arc<Usage>, i64)> = {
            let usages = keys.0.usages.lock().unwrap_or_else(PoisonError::into_inner);
            let unwritten = usages.iter().map(|(id, usage)| Some((*id, usage.clone(), usage.unwritten()?)));
            unwritten.flatten().collect()
        };
        for page in unwritten.chunks(PAGE) {
            let uses: Vec<_> = page.iter().filter_map(|(id, _, millis)| Some((*id, time(*millis)?))).collect();
            if let Err(error) = keys.0.records.note_last_uses(&uses).await {
                tracing::warn!(%error, "when keys were last used could not be written down; it is tried again");
                break;
            }
            page.iter().for_each(|(_, usage, millis)| usage.written.store(*millis, Relaxed));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_down_when_it_is_the_first_or_an_hour_after_the_one_that_was() {
        let usage = Usage::default();
        assert_eq!(usage.unwritten(), None, "it was never used");
        const NOON: i64 = 1_700_000_000_000;
        usage.last.store(NOON, Relaxed);
        assert_eq!(usage.unwritten(), Some(NOON));
        usage.written.store(NOON, Relaxed);
        usage.last.store(NOON + WRITE_AGAIN - 1, Relaxed);
        assert_eq!(usage.unwritten(), None);
        usage.last.store(NOON + WRITE_AGAIN, Relaxed);
        assert_eq!(usage.unwritten(), Some(NOON + WRITE_AGAIN));
    }
}
