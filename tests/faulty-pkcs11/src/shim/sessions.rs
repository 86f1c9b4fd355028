//! Sessions: the caller has numbers of the shim's own, so that a session can be gone for the caller and its number never come back.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use cryptoki_sys::{CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_SLOT_ID, CK_USER_TYPE};

/// The sessions that are open, and who is logged in.
#[derive(Default)]
pub(super) struct Sessions {
    open: BTreeMap<CK_SESSION_HANDLE, Open>,
    last: CK_SESSION_HANDLE,
    opening: usize,
    logins: HashMap<CK_SLOT_ID, Login>,
}

struct Open {
    real: CK_SESSION_HANDLE,
    slot: CK_SLOT_ID,
    used: Instant,
    /// Calls under way. The real session must not be closed beneath them.
    busy: u32,
    gone: bool,
    /// What a search that goes wrong has still to deliver.
    found: Option<Vec<CK_OBJECT_HANDLE>>,
}

/// Who logged in to a token, as the caller believes.
pub(super) struct Login {
    pub(super) user: CK_USER_TYPE,
    /// Kept to tell a right PIN from a wrong one when the real module thinks that the user is still logged in.
    pub(super) pin: Vec<u8>,
    /// The module has forgotten it, and must be told again.
    pub(super) lost: bool,
}

/// A session, for the time of a call.
#[derive(Clone, Copy)]
pub(super) struct Entered {
    pub(super) number: CK_SESSION_HANDLE,
    pub(super) real: CK_SESSION_HANDLE,
    pub(super) slot: CK_SLOT_ID,
}

/// Real sessions: to be logged out one per token, and closed.
#[derive(Default)]
pub(super) struct Ended {
    pub(super) log_out: Vec<CK_SESSION_HANDLE>,
    pub(super) close: Vec<CK_SESSION_HANDLE>,
}

impl Sessions {
    /// Room for one more, until `opened`.
    pub(super) fn reserve(&mut self, most: usize) -> bool {
        let room = self.open.len() + self.opening < most;
        self.opening += usize::from(room);
        room
    }

    pub(super) fn opened(&mut self, slot: CK_SLOT_ID, real: Option<CK_SESSION_HANDLE>) -> CK_SESSION_HANDLE {
        self.opening -= 1;
        let Some(real) = real else { return 0 };
        self.last += 1;
        let session = Open { real, slot, used: Instant::now(), busy: 0, gone: false, found: None };
        self.open.insert(self.last, session);
        self.last
    }

    pub(super) fn enter(&mut self, number: CK_SESSION_HANDLE) -> Option<Entered> {
        let session = self.open.get_mut(&number).filter(|session| !session.gone)?;
        session.busy += 1;
        Some(Entered { number, real: session.real, slot: session.slot })
    }

    /// Whether the session is still there: it may have gone while its call waited.
    pub(super) fn is_open(&self, number: CK_SESSION_HANDLE) -> bool {
        self.open.get(&number).is_some_and(|session| !session.gone)
    }

    /// The end of a call. What is to be closed now, if the session went meanwhile.
    pub(super) fn leave(&mut self, number: CK_SESSION_HANDLE) -> Option<CK_SESSION_HANDLE> {
        let session = self.open.get_mut(&number)?;
        session.busy -= 1;
        session.used = Instant::now();
        let ended = session.gone && session.busy == 0;
        if ended { self.open.remove(&number).map(|session| session.real) } else { None }
    }

    pub(super) fn closed(&mut self, number: CK_SESSION_HANDLE) {
        if let Some(closed) = self.open.remove(&number)
            && !self.open.values().any(|session| session.slot == closed.slot)
        {
            self.logins.remove(&closed.slot);
        }
    }

    pub(super) fn all_closed(&mut self, slot: CK_SLOT_ID) {
        self.open.retain(|_, session| session.slot != slot);
        self.logins.remove(&slot);
    }

    /// Every session ends, and every login.
    pub(super) fn end_all(&mut self) -> Ended {
        let mut ended = Ended::default();
        let mut slots = Vec::new();
        for session in self.open.values_mut().filter(|session| !session.gone) {
            session.gone = true;
            if !slots.contains(&session.slot) {
                slots.push(session.slot);
                ended.log_out.push(session.real);
            }
        }
        self.logins.clear();
        ended.close = self.take_idle(|session| session.gone);
        ended
    }

    /// Sessions that nobody has used for so long. A login goes with its token's last one.
    pub(super) fn end_idle(&mut self, limit: Duration) -> Vec<CK_SESSION_HANDLE> {
        let closed = self.take_idle(|session| session.used.elapsed() >= limit);
        let slots: Vec<_> = self.slots();
        self.logins.retain(|slot, _| slots.contains(slot));
        closed
    }

    fn take_idle(&mut self, ends: impl Fn(&Open) -> bool) -> Vec<CK_SESSION_HANDLE> {
        let ending = self.open.extract_if(.., |_, session| session.busy == 0 && ends(session));
        ending.map(|(_, session)| session.real).collect()
    }

    pub(super) fn slots(&self) -> Vec<CK_SLOT_ID> {
        self.open.values().map(|session| session.slot).collect()
    }

    pub(super) fn login(&mut self, slot: CK_SLOT_ID) -> Option<&mut Login> {
        self.logins.get_mut(&slot)
    }

    pub(super) fn logged_in(&mut self, slot: CK_SLOT_ID, login: Login) {
        self.logins.insert(slot, login);
    }

    pub(super) fn logged_out(&mut self, slot: CK_SLOT_ID) {
        self.logins.remove(&slot);
    }

    pub(super) fn lose_logins(&mut self) {
        self.logins.values_mut().for_each(|login| login.lost = true);
    }

    pub(super) fn login_is_lost(&self, slot: CK_SLOT_ID) -> bool {
        self.logins.get(&slot).is_some_and(|login| login.lost)
    }

    /// The search that goes wrong in this session, if there is one.
    pub(super) fn found(&mut self, number: CK_SESSION_HANDLE) -> Option<&mut Option<Vec<CK_OBJECT_HANDLE>>> {
        self.open.get_mut(&number).map(|session| &mut session.found)
    }
}
