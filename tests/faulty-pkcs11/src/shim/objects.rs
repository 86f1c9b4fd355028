//! Object handles: the caller has numbers of the shim's own, which can be made to name other objects.

use std::collections::{BTreeMap, HashMap};

use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SLOT_ID};

use super::real::Identity;

/// The numbers that were given out.
#[derive(Default)]
pub(super) struct Objects {
    named: BTreeMap<CK_OBJECT_HANDLE, Named>,
    numbers: HashMap<CK_OBJECT_HANDLE, CK_OBJECT_HANDLE>,
    last: CK_OBJECT_HANDLE,
}

/// What a number names.
#[derive(Clone)]
pub(super) enum Named {
    /// An object that has this handle in the real module.
    Handle { slot: CK_SLOT_ID, handle: CK_OBJECT_HANDLE },
    /// An object whose handle is to be looked up: the one it had is gone.
    Object { slot: CK_SLOT_ID, identity: Identity },
}

impl Objects {
    pub(super) fn named(&self, number: CK_OBJECT_HANDLE) -> Option<Named> {
        self.named.get(&number).cloned()
    }

    /// The number of a real handle, if it has one.
    pub(super) fn number(&self, handle: CK_OBJECT_HANDLE) -> Option<CK_OBJECT_HANDLE> {
        self.numbers.get(&handle).copied()
    }

    /// Whether numbers of this slot wait for their objects.
    pub(super) fn has_waiting(&self, slot: CK_SLOT_ID) -> bool {
        self.named.values().any(|named| matches!(named, Named::Object { slot: waiting, .. } if *waiting == slot))
    }

    /// Gives a real handle its number: the one that waits for this object, or a new one.
    pub(super) fn give_number(
        &mut self,
        slot: CK_SLOT_ID,
        handle: CK_OBJECT_HANDLE,
        identity: Option<&Identity>,
    ) -> CK_OBJECT_HANDLE {
        let waiting = identity.and_then(|identity| self.waiting_for(slot, identity));
        let number = self.number(handle).or(waiting).unwrap_or_else(|| self.next());
        self.bind(number, slot, handle);
        number
    }

    pub(super) fn bind(&mut self, number: CK_OBJECT_HANDLE, slot: CK_SLOT_ID, handle: CK_OBJECT_HANDLE) {
        self.named.insert(number, Named::Handle { slot, handle });
        self.numbers.insert(handle, number);
    }

    fn waiting_for(&self, slot: CK_SLOT_ID, identity: &Identity) -> Option<CK_OBJECT_HANDLE> {
        let is_it = |named: &Named| match named {
            Named::Object { slot: waiting, identity: wanted } => *waiting == slot && wanted == identity,
            Named::Handle { .. } => false,
        };
        self.named.iter().find(|(_, named)| is_it(named)).map(|(number, _)| *number)
    }

    fn next(&mut self) -> CK_OBJECT_HANDLE {
        self.last += 1;
        self.last
    }

    /// The object is no more.
    pub(super) fn forget(&mut self, number: CK_OBJECT_HANDLE) {
        if let Some(Named::Handle { handle, .. }) = self.named.remove(&number) {
            self.numbers.remove(&handle);
        }
    }

    /// No number names anything.
    pub(super) fn forget_all(&mut self) {
        self.named.clear();
        self.numbers.clear();
    }

    pub(super) fn slots(&self) -> Vec<CK_SLOT_ID> {
        let slot = |named: &Named| match named {
            Named::Handle { slot, .. } | Named::Object { slot, .. } => *slot,
        };
        self.named.values().map(slot).collect()
    }

    /// Deals a slot's numbers out anew. In the order of class and label, short labels first, each object
    /// gets the number that the next one of its class had. The handles are looked up again when they are needed.
    pub(super) fn reassign(&mut self, slot: CK_SLOT_ID, mut seen: Vec<(CK_OBJECT_HANDLE, Identity)>) {
        seen.sort_by_key(|(_, it)| (it.class, it.label.len(), it.label.clone(), it.id.clone()));
        for class in seen.chunk_by(|(_, one), (_, other)| one.class == other.class) {
            let mut numbers: Vec<_> = class.iter().map(|(handle, it)| self.number_or_new(slot, *handle, it)).collect();
            numbers.rotate_left(1);
            for (number, (_, identity)) in numbers.into_iter().zip(class) {
                self.named.insert(number, Named::Object { slot, identity: identity.clone() });
            }
        }
        for (handle, _) in seen {
            self.numbers.remove(&handle);
        }
    }

    fn number_or_new(&mut self, slot: CK_SLOT_ID, handle: CK_OBJECT_HANDLE, it: &Identity) -> CK_OBJECT_HANDLE {
        self.number(handle).or_else(|| self.waiting_for(slot, it)).unwrap_or_else(|| self.next())
    }

    /// Every handle of the real module is gone. Numbers that wait for their objects go on waiting.
    pub(super) fn forget_handles(&mut self) {
        self.named.retain(|_, named| matches!(named, Named::Object { .. }));
        self.numbers.clear();
    }
}
