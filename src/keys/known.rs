//! What is remembered of the records, so that using a key asks them nothing. What changes there is forgotten here; and who has
//! read it before that remembers it no more.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

/// Values by their names.
#[derive(Debug)]
pub(super) struct Known<K, V>(RwLock<Remembered<K, V>>);

#[derive(Debug)]
struct Remembered<K, V> {
    values: HashMap<K, V>,
    /// How often something was forgotten.
    forgettings: u64,
}

/// That nothing has been forgotten since it was taken; before the records are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since(u64);

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self(RwLock::new(Remembered { values: HashMap::new(), forgettings: 0 }))
    }
}

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    pub(super) fn get(&self, name: &K) -> Result<V, Since> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.values.get(name).cloned().ok_or(Since(known.forgettings))
    }

    /// Remembers what was read after `since`, unless something was forgotten meanwhile. Beyond `most`, all is forgotten first.
    pub(super) fn remember(&self, since: Since, name: K, value: V, most: usize) -> V {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.forgettings != since.0 {
            return value;
        }
        if known.values.len() >= most {
            known.values.clear();
        }
        known.values.entry(name).or_insert(value).clone()
    }

    /// After it has changed in the records.
    pub(super) fn forget(&self, name: &K) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.values.remove(name);
        known.forgettings += 1;
    }
}

impl<K, V: PartialEq> Known<K, V> {
    /// The same for all names of a value.
    pub(super) fn forget_all(&self, value: &V) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.values.retain(|_, known| known != value);
        known.forgettings += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_it_changed_is_not_remembered() {
        let known: Known<&str, u8> = Known::default();
        let since = known.get(&"key").unwrap_err();
        known.forget(&"key");
        assert_eq!(known.remember(since, "key", 1, 10), 1, "whoever has read it goes by it");
        let since = known.get(&"key").expect_err("and nobody else");
        known.remember(since, "key", 2, 10);
        assert_eq!(known.get(&"key").unwrap(), 2);
        let since = known.get(&"other").unwrap_err();
        known.remember(since, "other", 3, 1);
        assert!(known.get(&"key").is_err(), "it is bounded");
    }
}
