//! Which object handle a key has, remembered: a search of the token costs milliseconds once it holds many objects.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use cryptoki::object::ObjectHandle;

/// More keys than this are not remembered at once.
const MOST: usize = 100_000;

/// Handles by `CKA_ID`, shared by a token's sessions. A remembered handle may be stale at any time.
#[derive(Debug, Default)]
pub(super) struct Handles(RwLock<HashMap<Box<[u8]>, ObjectHandle>>);

impl Handles {
    pub(super) fn recall(&self, cka_id: &[u8]) -> Option<ObjectHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(cka_id).copied()
    }

    pub(super) fn remember(&self, cka_id: &[u8], handle: ObjectHandle) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            // Rare enough that finding the keys in use again costs less than keeping their order of use.
            known.clear();
        }
        known.insert(cka_id.into(), handle);
    }

    pub(super) fn forget(&self, cka_id: &[u8]) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(cka_id);
    }
}
