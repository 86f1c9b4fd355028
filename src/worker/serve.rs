//! The pool: one thread, one session; the threads take turns reading the link.
//!
//! ```text
//!            ┌────────────── the reader's lock ──────────────┐
//! thread ──▶ │ take a request (more, if nobody else is idle) │ ──▶ work ──▶ write the answers ──┐
//!   ▲        └───────────────────────────────────────────────┘                                  │
//!   └───────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A thread that is stuck in the library holds no lock: the next one reads on. A thread whose
//! session cannot be opened again steps aside while others serve. What was handed over before the
//! link's end is still done, as its end is read last; then the process leaves, once the running
//! requests have returned or their patience is over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::link::v1::Request;
use crate::link::v1::request::Verb;
use crate::link::v1::response::Outcome;
use crate::link::{Pace, Patience};

use super::opening::LoggedIn;
use super::pkcs11::{Fault, Session, Token, leave};
use super::running::Board;
use super::verbs;
use super::wire::{Answers, Incoming, Outgoing};
use super::{ENDED, PANICKED, late, log, log_end};

/// How often a thread that stepped aside tries to open a session.
const PAUSE_ASIDE: Duration = Duration::from_millis(250);
/// A session that was not used for longer may have expired, and is looked at before it is used. Some HSMs close theirs after 30 s.
const IDLE: Duration = Duration::from_secs(20);

struct Pool {
    reader: Mutex<Reader>,
    outgoing: Outgoing,
    board: Board,
    /// Threads at the reader's lock or behind it: those with nothing to do.
    idle: AtomicUsize,
    /// Threads that have a session.
    seated: AtomicUsize,
    /// Whether a thread refuses requests because none has a session. One does: each may refuse a request more than it must
    /// once sessions are to be had again.
    refusing: AtomicBool,
    /// Whether the link has ended, for those who stepped aside.
    aside: (Mutex<bool>, Condvar),
    token: Token,
}

struct Reader {
    incoming: Incoming,
    ended: bool,
}

/// How a thread of the pool came to its end.
enum Left {
    LinkEnded,
    Panicked,
}

/// Serves until the link ends, and then leaves the process.
pub fn serve(ready: LoggedIn, incoming: Incoming, outgoing: Outgoing) -> ! {
    let LoggedIn { token, anchor: _anchor, sessions, patience } = ready;
    let threads = sessions.len();
    let pool = Pool {
        reader: Mutex::new(Reader { incoming, ended: false }),
        outgoing,
        board: Board::new(threads),
        idle: AtomicUsize::new(0),
        seated: AtomicUsize::new(threads),
        refusing: AtomicBool::new(false),
        aside: Default::default(),
        token,
    };
    let (leaving, left) = sync_channel(threads);
    std::thread::scope(|scope| {
        for (seat, session) in sessions.into_iter().enumerate() {
            let (pool, leaving) = (&pool, leaving.clone());
            let thread = std::thread::Builder::new().name(format!("session-{seat}"));
            let started = thread.spawn_scoped(scope, move || run(pool, seat, session, &leaving));
            if let Err(error) = started {
                log(format_args!("a thread could not be started: {error}"));
                leave(PANICKED);
            }
        }
        wait_for_the_end(&left, &pool, threads, patience)
    })
}

fn run(pool: &Pool, seat: usize, session: Session, leaving: &SyncSender<Left>) {
    let session = session.timed_by(pool.board.stopwatch(seat));
    let mut thread = Thread { pool, seat, session: Some(session), used: Instant::now(), refusal: None };
    let finished = catch_unwind(AssertUnwindSafe(|| thread.work()));
    // There is room for one word of each thread, and the receiver never goes.
    let _ = leaving.send(finished.map_or(Left::Panicked, |()| Left::LinkEnded));
    // The process is about to be left: closing the session would only give the vendor's code one more chance to hang.
    std::mem::forget(thread);
}

/// The first thread to notice the end starts the clock; the others have until then to come back, each as long as its call
/// may take.
fn wait_for_the_end(left: &Receiver<Left>, pool: &Pool, threads: usize, patience: Patience) -> ! {
    let heed = |word: Left| match word {
        Left::LinkEnded => {}
        Left::Panicked => leave(PANICKED),
    };
    match left.recv() {
        Ok(word) => heed(word),
        Err(_) => leave(PANICKED),
    }
    pool.send_home();
    let (ended, mut missing) = (Instant::now(), threads - 1);
    while missing > 0 {
        let longest = pool.board.running().map(|pace| patience.with(pace)).max().unwrap_or(patience.quick);
        let rest = (ended + longest).saturating_duration_since(Instant::now());
        match left.recv_timeout(rest) {
            Ok(word) => {
                heed(word);
                missing -= 1;
            }
            // A thread may have gone on to slower work meanwhile.
            Err(RecvTimeoutError::Timeout) if !rest.is_zero() => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                log(format_args!("leaving with calls still running after {longest:?}"));
                break;
            }
        }
    }
    leave(ENDED)
}

impl Pool {
    /// Waits for its turn, then for requests, and puts them into `batch`. `None` when there will be none.
    fn take(&self, batch: &mut Vec<Request>) -> Option<Instant> {
        self.idle.fetch_add(1, Relaxed);
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = reader.take(batch, || self.nobody_else_is_idle().then(|| self.board.batch()));
        self.idle.fetch_sub(1, Relaxed);
        taken
    }

    fn nobody_else_is_idle(&self) -> bool {
        self.idle.load(Relaxed) <= 1
    }

    /// Waits a while; returns early, and at once from then on, when the link has ended.
    fn step_aside(&self) {
        let (ended, changed) = &self.aside;
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(ended, PAUSE_ASIDE, |ended| !*ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn has_ended(&self) -> bool {
        *self.aside.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who stepped aside, for good.
    fn send_home(&self) {
        *self.aside.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.aside.1.notify_all();
    }
}

impl Reader {
    /// `most` tells how many may be taken at once, `None` that one must do.
    fn take(&mut self, batch: &mut Vec<Request>, most: impl Fn() -> Option<usize>) -> Option<Instant> {
        if self.ended {
            return None;
        }
        loop {
            match self.incoming.next() {
                Ok(request) => batch.push(request),
                Err(why) => {
                    self.ended = true;
                    log_end(&why);
                    // Requests that came whole before the end were taken: they are done, though nobody may hear the answer.
                    return (!batch.is_empty()).then(|| self.incoming.read_at());
                }
            }
            let slow = batch.last().is_some_and(is_slow);
            if slow || !self.incoming.has_next() || batch.len() >= most().unwrap_or(1) {
                return Some(self.incoming.read_at());
            }
        }
    }
}

/// One thread with its session. A spoiled session is dropped at once, and replaced before the thread takes its turn again.
struct Thread<'pool> {
    pool: &'pool Pool,
    seat: usize,
    session: Option<Session>,
    /// When the session was last used.
    used: Instant,
    /// Why there is no session, and when that was found out: this thread refuses requests until another has one.
    refusal: Option<(Instant, Fault)>,
}

impl Thread<'_> {
    fn work(&mut self) {
        let mut batch = Vec::new();
        let mut answers = Answers::default();
        while let Some(read_at) = self.take(&mut batch) {
            for request in batch.drain(..) {
                // A slow request is the last of its batch, and the quick ones' answers do not wait for it.
                if is_slow(&request) && self.pool.outgoing.send(&mut answers).is_err() {
                    return;
                }
                self.answer(request, read_at, &mut answers);
            }
            if self.pool.outgoing.send(&mut answers).is_err() {
                return;
            }
        }
    }

    /// Takes requests when it has a session. Without one it leaves them to the others, and only if nobody has one does it
    /// take some, to refuse them at once.
    fn take(&mut self, batch: &mut Vec<Request>) -> Option<Instant> {
        if self.session.is_none() {
            self.wait_for_a_session();
        }
        self.pool.take(batch)
    }

    fn wait_for_a_session(&mut self) {
        if self.refusal.take().is_some() {
            self.pool.refusing.store(false, Relaxed);
        }
        while !self.pool.has_ended() {
            // No request, but a call that may get stuck.
            let now = self.pool.board.begin(self.seat, 0, Pace::Quick);
            let opened = self.open();
            self.pool.board.end(self.seat);
            match opened {
                Ok(()) => return,
                Err(fault) if self.pool.seated.load(Relaxed) == 0 && !self.pool.refusing.swap(true, Relaxed) => {
                    self.refusal = Some((now, fault));
                    return;
                }
                Err(_) => self.pool.step_aside(),
            }
        }
    }

    fn answer(&mut self, request: Request, read_at: Instant, answers: &mut Answers) {
        let Request { id, remaining_ms, verb } = request;
        match verb {
            None => answers.push(id, Err(Fault::protocol("the request has no verb"))),
            Some(Verb::Ping(_)) => answers.push(id, Ok(Outcome::Pong(self.pool.board.pong()))),
            Some(verb) => {
                let pace = Pace::of(&verb);
                let began = self.pool.board.begin(self.seat, id, pace);
                let is_late = began - read_at >= Duration::from_millis(remaining_ms.into());
                let result = if is_late { Err(late()) } else { self.perform(verb, began) };
                self.pool.board.end(self.seat);
                if pace == Pace::Quick {
                    self.pool.board.measured(began.elapsed());
                }
                answers.push(id, result);
            }
        }
    }

    fn perform(&mut self, verb: Verb, now: Instant) -> Result<Outcome, Fault> {
        let session = self.fit_session(now)?;
        let result = verbs::perform(session, verb);
        if let Err(fault) = &result {
            session.suffer(fault);
        }
        if !session.is_fit() {
            if let Err(fault) = &result {
                log(format_args!("replacing a session: {fault}"));
            }
            self.close();
        }
        result
    }

    /// The session, or another in its place if it may not or cannot be used any more.
    fn fit_session(&mut self, now: Instant) -> Result<&mut Session, Fault> {
        let is_idle = now.saturating_duration_since(self.used) > IDLE;
        self.used = now;
        if let Some(session) = &mut self.session
            && (!session.is_fit() || (is_idle && !is_alive(session)))
        {
            self.close();
        }
        if self.session.is_none() {
            match &self.refusal {
                Some((at, fault)) if now.saturating_duration_since(*at) < PAUSE_ASIDE => return Err(fault.clone()),
                _ => self.open()?,
            }
        }
        Ok(self.session.as_mut().expect("opened just now, if it was not there"))
    }

    fn open(&mut self) -> Result<(), Fault> {
        self.session = Some(self.pool.token.open_session()?.timed_by(self.pool.board.stopwatch(self.seat)));
        if self.refusal.take().is_some() {
            self.pool.refusing.store(false, Relaxed);
        }
        self.pool.seated.fetch_add(1, Relaxed);
        self.used = Instant::now();
        Ok(())
    }

    fn close(&mut self) {
        if self.session.take().is_some() {
            self.pool.seated.fetch_sub(1, Relaxed);
        }
    }
}

fn is_alive(session: &mut Session) -> bool {
    match session.is_logged_in() {
        Ok(()) => true,
        Err(fault) => {
            log(format_args!("replacing a session that was idle: {fault}"));
            session.suffer(&fault);
            false
        }
    }
}

fn is_slow(request: &Request) -> bool {
    request.verb.as_ref().is_some_and(|verb| Pace::of(verb) != Pace::Quick)
}
