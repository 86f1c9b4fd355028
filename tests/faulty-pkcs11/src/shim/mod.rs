//! The shared library: every call of the program, its faults, and the real module's answer.
//!
//! ```text
//! exports ──▶ call: look at the control file ─▶ faults before ─▶ the real function, or calls::* ─▶ faults after ─▶ journal
//!                   └─ what has just happened (epoch, logout, reassign, idle) is done to sessions and objects first
//! ```
//!
//! A call that waits for ever, in the real module or by a rule, holds no lock.

mod calls;
mod exports;
mod objects;
mod pins;
mod real;
mod sessions;
mod strike;
mod watch;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cryptoki_sys::*;

use crate::faults::journal_of;
use crate::rule::Moment;
use crate::{Entry, Function, Outcome};

use objects::{Named, Objects};
use real::{Identity, Real};
use sessions::{Entered, Sessions};
use watch::{Armed, Events, Watch};

/// The module in this process.
struct Shim {
    real: Real,
    /// Held by a call that begins, and while what has just happened is done: whoever comes then waits for its end.
    watch: Mutex<Watch>,
    sessions: Mutex<Sessions>,
    objects: Mutex<Objects>,
}

/// A call under way.
struct Call<'a> {
    shim: &'a Shim,
    armed: Arc<Armed>,
    /// All zero where the function takes no session.
    session: Entered,
}

/// Set when the real module is loaded; the first to ask for the functions does that.
static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();

fn shim() -> Option<&'static Shim> {
    let loaded = SHIM.get_or_init(|| Real::load().map(Shim::new).inspect_err(|why| eprintln!("faulty-pkcs11: {why}")));
    loaded.as_ref().ok()
}

/// One call of the program. A panic must not pass through its frames.
fn call(function: Function, session: Option<CK_SESSION_HANDLE>, work: impl FnOnce(&Call<'_>) -> CK_RV) -> CK_RV {
    let answer = || shim().map_or(CKR_GENERAL_ERROR, |shim| shim.call(function, session, work));
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or(CKR_GENERAL_ERROR)
}

impl Shim {
    fn new(real: Real) -> Self {
        Self { real, watch: Mutex::new(Watch::new()), sessions: Mutex::default(), objects: Mutex::default() }
    }

    fn call(
        &self,
        function: Function,
        session: Option<CK_SESSION_HANDLE>,
        work: impl FnOnce(&Call<'_>) -> CK_RV,
    ) -> CK_RV {
        let armed = self.look();
        if armed.unreadable {
            return CKR_GENERAL_ERROR;
        }
        let entered = session.map(|number| lock(&self.sessions).enter(number));
        let fired = armed.fired(function);
        let journal = journal(&armed, function, &fired);
        // A call that blocked is written down when it does, and not again when it is let go.
        let blocked = Cell::new(false);
        let strike = |moment| {
            strike::strike(&fired, moment, |outcome| {
                blocked.set(true);
                journal(outcome);
            })
        };
        let answer = match strike(Moment::Before) {
            Some(ckr) => ckr,
            None => self.answer(&armed, function, entered, work),
        };
        let answer = strike(Moment::After).unwrap_or(answer);
        if let Some(Some(entered)) = entered {
            let gone = lock(&self.sessions).leave(entered.number);
            gone.into_iter().for_each(|real| self.real.close(real));
        }
        if !blocked.get() {
            journal(Outcome::Answered(answer));
        }
        answer
    }

    /// The answer without a fault in the call itself.
    fn answer(
        &self,
        armed: &Arc<Armed>,
        function: Function,
        entered: Option<Option<Entered>>,
        work: impl FnOnce(&Call<'_>) -> CK_RV,
    ) -> CK_RV {
        let session = match entered {
            None => Entered { number: 0, real: 0, slot: 0 },
            Some(Some(entered)) if lock(&self.sessions).is_open(entered.number) => entered,
            Some(_) => return CKR_SESSION_HANDLE_INVALID,
        };
        if function.needs_login() && function != Function::C_Logout && lock(&self.sessions).login_is_lost(session.slot)
        {
            return CKR_USER_NOT_LOGGED_IN;
        }
        work(&Call { shim: self, armed: armed.clone(), session })
    }

    /// The rules that stand. What has happened since the last call is done first.
    fn look(&self) -> Arc<Armed> {
        let mut watch = lock(&self.watch);
        let (armed, events) = watch.look();
        self.happen(events);
        if let Some(limit) = armed.idle() {
            let ended = lock(&self.sessions).end_idle(limit);
            ended.into_iter().for_each(|real| self.real.close(real));
        }
        armed
    }

    fn happen(&self, Events { epoch, logout, reassign }: Events) {
        if reassign {
            self.reassign();
        }
        if epoch {
            let ended = lock(&self.sessions).end_all();
            // Even where a call under way keeps its session open for a moment, the login is gone.
            ended.log_out.into_iter().for_each(|real| self.real.log_out(real));
            ended.close.into_iter().for_each(|real| self.real.close(real));
            lock(&self.objects).forget_handles();
        }
        if logout {
            lock(&self.sessions).lose_logins();
        }
    }

    /// Looks at every object of the tokens in use, in a session of the shim's own.
    fn reassign(&self) {
        let mut slots = lock(&self.sessions).slots();
        slots.extend(lock(&self.objects).slots());
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            let Some(session) = self.real.open(slot) else { continue };
            let all = self.real.search(session, &mut []).into_iter();
            let seen = all.filter_map(|object| Some((object, self.real.identity(session, object)?))).collect();
            self.real.close(session);
            lock(&self.objects).reassign(slot, seen);
        }
    }
}

/// Writes a call of this function down, if it is to be.
fn journal(armed: &Armed, function: Function, fired: &[watch::Fired]) -> impl Fn(Outcome) {
    let told = function.is_rare() || strike::is_journalled(fired);
    let control = armed.control().filter(|_| told).map(journal_of);
    move |outcome| {
        if let Some(journal) = &control {
            Entry::now(function, outcome).append(journal);
        }
    }
}

impl Call<'_> {
    /// The real module's number of a slot.
    fn slot(&self, number: CK_SLOT_ID) -> CK_SLOT_ID {
        number.wrapping_sub(self.armed.slot_offset())
    }

    /// The caller's number of a slot.
    fn slot_number(&self, slot: CK_SLOT_ID) -> CK_SLOT_ID {
        slot.wrapping_add(self.armed.slot_offset())
    }

    /// The real module's handle of an object; of an unknown one 0, which is never valid.
    fn object(&self, number: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        let named = lock(&self.shim.objects).named(number);
        match named {
            None => 0,
            Some(Named::Handle { handle, .. }) => handle,
            Some(Named::Object { slot, identity }) => self.look_up(number, slot, &identity).unwrap_or(0),
        }
    }

    /// A number that waits for its object gets it.
    fn look_up(&self, number: CK_OBJECT_HANDLE, slot: CK_SLOT_ID, identity: &Identity) -> Option<CK_OBJECT_HANDLE> {
        let real = &self.shim.real;
        let session = real.open(slot)?;
        let handle = real.handle_of(session, identity);
        real.close(session);
        handle.inspect(|handle| lock(&self.shim.objects).bind(number, slot, *handle))
    }

    /// The caller's number of an object.
    fn object_number(&self, handle: CK_OBJECT_HANDLE) -> CK_OBJECT_HANDLE {
        let Entered { real: session, slot, .. } = self.session;
        let (known, waiting) = {
            let objects = lock(&self.shim.objects);
            (objects.number(handle), objects.has_waiting(slot))
        };
        known.unwrap_or_else(|| {
            let identity = if waiting { self.shim.real.identity(session, handle) } else { None };
            lock(&self.shim.objects).give_number(slot, handle, identity.as_ref())
        })
    }
}

/// What a thread that panicked left is as good as any: each change is made in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
