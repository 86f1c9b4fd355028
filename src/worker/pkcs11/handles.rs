//! Which object handle a key has, remembered: a search of the token costs milliseconds once it holds many objects.
//!
//! A handle is a number that the library made up, and after a reset it may be another key's.
//! Encrypting under that one loses the data and nobody is told. So it is remembered whether the key
//! has *proved* itself under its handle, and every handle belongs to an *era*: when a session dies,
//! the login is lost or the device may have been reset, the era ends, and all is forgotten for
//! every thread. What a session of an earlier era finds is not remembered any more.
//!
//! After a whole listing the memory is *complete*: every `CKA_ID` in the token is in it, so that one
//! which is not is free. That holds for as long as nobody else makes keys here, which the slot's
//! lock sees to. Completeness ends with its era.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cryptoki::object::ObjectHandle;

/// More keys than this are not remembered at once; nor are more objects listed.
pub(super) const MOST: usize = 200_000;

/// Handles by `CKA_ID`, shared by a token's sessions. A remembered handle may be stale at any time.
#[derive(Debug, Default)]
pub(super) struct Handles {
    /// The era of `known`, to be read without its lock.
    era: AtomicU64,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    era: Era,
    by_id: HashMap<Box<[u8]>, Entry>,
    completeness: Completeness,
}

/// Counts how often all handles were forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Era(u64);

#[derive(Debug, Default, PartialEq, Eq)]
enum Completeness {
    #[default]
    Partial,
    /// A listing is being read, and nothing was dropped since it began.
    Gathering,
    Complete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Key(Handle),
    /// Something has this id, or had it: only a search can tell.
    Unclear,
}

/// A key's handle, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) object: ObjectHandle,
    pub(super) proof: Proof,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    Unproven,
    /// The key has answered its probe.
    Answered,
    /// It has the marks of a key-encryption key, which has no probe.
    Marked,
}

/// What is remembered of a `CKA_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recalled {
    Handle(Handle),
    Unknown,
    /// As far as keyway knows, nothing in the token has this id.
    Free,
}

impl Handles {
    pub(super) fn era(&self) -> Era {
        Era(self.era.load(SeqCst))
    }

    /// What a session of `era` may use.
    pub(super) fn recall(&self, era: Era, cka_id: &[u8]) -> Recalled {
        let known = self.read();
        if known.era != era {
            return Recalled::Unknown;
        }
        match known.by_id.get(cka_id) {
            Some(Entry::Key(handle)) => Recalled::Handle(*handle),
            Some(Entry::Unclear) => Recalled::Unknown,
            None if known.completeness == Completeness::Complete => Recalled::Free,
            None => Recalled::Unknown,
        }
    }

    pub(super) fn is_complete(&self, era: Era) -> bool {
        let known = self.read();
        known.era == era && known.completeness == Completeness::Complete
    }

    pub(super) fn remember(&self, era: Era, cka_id: &[u8], object: ObjectHandle, proof: Proof) {
        self.put(era, cka_id, Entry::Key(Handle { object, proof }));
    }

    /// Notes that an object with this id may come into being: from now on only a search tells.
    pub(super) fn expect(&self, era: Era, cka_id: &[u8]) {
        self.put(era, cka_id, Entry::Unclear);
    }

    /// The handle is not to be used any more. That the id is free is not said by this.
    pub(super) fn forget(&self, cka_id: &[u8]) {
        if let Some(entry) = self.write().by_id.get_mut(cka_id) {
            *entry = Entry::Unclear;
        }
    }

    /// Nothing has this id: it was searched for or destroyed, and nobody else has changed the token's objects since.
    pub(super) fn vacate(&self, era: Era, cka_id: &[u8]) {
        let mut known = self.write();
        if known.era == era {
            known.by_id.remove(cka_id);
        }
    }

    /// Ends an era, unless it has ended.
    pub(super) fn forget_all(&self, era: Era) {
        let mut known = self.write();
        if known.era == era {
            let next = Era(era.0 + 1);
            *known = Known { era: next, ..Known::default() };
            self.era.store(next.0, SeqCst);
        }
    }

    /// Before a listing: what is remembered until it is finished is newer than what it says.
    pub(super) fn begin_listing(&self, era: Era) {
        let mut known = self.write();
        if known.era == era && known.completeness == Completeness::Partial {
            known.completeness = Completeness::Gathering;
        }
    }

    /// Takes in what a whole listing found: the keys, and `None` for an id that is not one key of ours.
    pub(super) fn finish_listing(&self, era: Era, listed: HashMap<Box<[u8]>, Option<ObjectHandle>>) {
        let mut known = self.write();
        if known.era != era || known.completeness == Completeness::Partial {
            return;
        }
        for (cka_id, object) in listed {
            match (known.by_id.get_mut(&cka_id), object) {
                (None, Some(object)) => {
                    known.by_id.insert(cka_id, Entry::Key(Handle { object, proof: Proof::Unproven }));
                }
                (None, None) => {
                    known.by_id.insert(cka_id, Entry::Unclear);
                }
                (Some(Entry::Key(handle)), Some(object)) if handle.object == object => {}
                (Some(entry), _) => *entry = Entry::Unclear,
            }
        }
        known.completeness = Completeness::Complete;
    }

    fn put(&self, era: Era, cka_id: &[u8], entry: Entry) {
        let mut known = self.write();
        if known.era != era {
            return;
        }
        if known.by_id.len() >= MOST && !known.by_id.contains_key(cka_id) {
            // Rare enough that finding the keys in use again costs less than keeping their order of use.
            known.by_id.clear();
            known.completeness = Completeness::Partial;
        }
        known.by_id.insert(cka_id.into(), entry);
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Proof::{Answered, Unproven};

    fn object(number: u64) -> ObjectHandle {
        super::super::raw::object(number)
    }

    fn handle(number: u64, proof: Proof) -> Recalled {
        Recalled::Handle(Handle { object: object(number), proof })
    }

    fn listing(ids: &[(&[u8], Option<u64>)]) -> HashMap<Box<[u8]>, Option<ObjectHandle>> {
        ids.iter().map(|(id, number)| ((*id).into(), number.map(object))).collect()
    }

    #[test]
    fn nothing_of_an_earlier_era_is_recalled_or_remembered() {
        let handles = Handles::default();
        let before = handles.era();
        handles.remember(before, b"k", object(1), Answered);
        assert_eq!(handles.recall(before, b"k"), handle(1, Answered));
        handles.forget_all(before);
        let after = handles.era();
        assert_eq!(handles.recall(after, b"k"), Recalled::Unknown);
        // Found by a session that is dead and does not know it.
        handles.remember(before, b"k", object(1), Answered);
        assert_eq!(handles.recall(after, b"k"), Recalled::Unknown);
        handles.remember(after, b"k", object(2), Answered);
        assert_eq!(handles.recall(before, b"k"), Recalled::Unknown);
        // A second thread meets the same reset: what was found since stays.
        handles.forget_all(before);
        assert_eq!(handles.recall(after, b"k"), handle(2, Answered));
    }

    #[test]
    fn after_a_whole_listing_an_id_that_is_not_remembered_is_free() {
        let handles = Handles::default();
        let era = handles.era();
        handles.remember(era, b"proven", object(1), Answered);
        assert_eq!(handles.recall(era, b"new"), Recalled::Unknown);
        handles.begin_listing(era);
        handles.remember(era, b"made meanwhile", object(7), Answered);
        handles.forget(b"made meanwhile");
        handles.finish_listing(era, listing(&[(b"proven", Some(1)), (b"listed", Some(2)), (b"twice", None)]));

        assert_eq!(handles.recall(era, b"proven"), handle(1, Answered));
        assert_eq!(handles.recall(era, b"listed"), handle(2, Unproven));
        assert_eq!(handles.recall(era, b"twice"), Recalled::Unknown);
        assert_eq!(handles.recall(era, b"made meanwhile"), Recalled::Unknown);
        assert_eq!(handles.recall(era, b"new"), Recalled::Free);
        handles.expect(era, b"new");
        assert_eq!(handles.recall(era, b"new"), Recalled::Unknown);
        handles.vacate(era, b"new");
        assert_eq!(handles.recall(era, b"new"), Recalled::Free);
        handles.forget_all(era);
        assert_eq!(handles.recall(handles.era(), b"new"), Recalled::Unknown);
    }

    #[test]
    fn a_listing_that_a_reset_interrupts_completes_nothing() {
        let handles = Handles::default();
        let era = handles.era();
        handles.begin_listing(era);
        handles.forget_all(era);
        handles.finish_listing(era, listing(&[(b"listed", Some(2))]));
        assert_eq!(handles.recall(handles.era(), b"new"), Recalled::Unknown);
        handles.finish_listing(handles.era(), listing(&[(b"listed", Some(2))]));
        assert_eq!(handles.recall(handles.era(), b"new"), Recalled::Unknown);
    }

    #[test]
    fn what_the_listing_and_the_memory_say_differently_is_searched() {
        let handles = Handles::default();
        let era = handles.era();
        handles.remember(era, b"k", object(1), Answered);
        handles.begin_listing(era);
        handles.finish_listing(era, listing(&[(b"k", Some(2))]));
        assert_eq!(handles.recall(era, b"k"), Recalled::Unknown);
    }
}
