//! The pool: one thread, one session; the threads take turns reading the link.
//!
//! ```text
//!            ┌────────────── the reader's lock ──────────────┐
//! thread ──▶ │ take a request (more, if nobody else is idle) │ ──▶ work ──▶ write the answers ──┐
//!   ▲        └───────────────────────────────────────────────┘                                  │
//!   └───────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A thread that is stuck in the library holds no lock: the next one reads on. When the link ends,
//! no request is begun any more, and the process leaves once the running ones have returned or
//! their patience is over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::link::Pace;
use crate::link::v1::Request;
use crate::link::v1::request::Verb;
use crate::link::v1::response::Outcome;

use super::opening::LoggedIn;
use super::pkcs11::{After, Fault, Session, Token, leave};
use super::running::Board;
use super::verbs;
use super::wire::{Answers, Incoming, Outgoing};
use super::{ENDED, PANICKED, late, log, log_end};

struct Pool {
    reader: Mutex<Reader>,
    outgoing: Outgoing,
    board: Board,
    /// Threads at the reader's lock or behind it: those with nothing to do.
    idle: AtomicUsize,
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
        wait_for_the_end(&left, threads, patience)
    })
}

fn run(pool: &Pool, seat: usize, session: Session, leaving: &SyncSender<Left>) {
    let session = Some(session);
    let mut thread = Thread { pool, seat, session };
    let finished = catch_unwind(AssertUnwindSafe(|| thread.work()));
    // There is room for one word of each thread, and the receiver never goes.
    let _ = leaving.send(finished.map_or(Left::Panicked, |()| Left::LinkEnded));
    // The process is about to be left: closing the session would only give the vendor's code one more chance to hang.
    std::mem::forget(thread);
}

/// The first thread to notice the end starts the clock; the others have until then to come back.
fn wait_for_the_end(left: &Receiver<Left>, threads: usize, patience: Duration) -> ! {
    let heed = |word: Left| match word {
        Left::LinkEnded => {}
        Left::Panicked => leave(PANICKED),
    };
    match left.recv() {
        Ok(word) => heed(word),
        Err(_) => leave(PANICKED),
    }
    let deadline = Instant::now() + patience;
    for _ in 1..threads {
        match left.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(word) => heed(word),
            Err(_) => {
                log(format_args!("leaving with calls still running after {patience:?}"));
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

/// One thread with its session. A spoiled session is dropped at once and replaced when the next request needs one.
struct Thread<'pool> {
    pool: &'pool Pool,
    seat: usize,
    session: Option<Session>,
}

impl Thread<'_> {
    fn work(&mut self) {
        let mut batch = Vec::new();
        let mut answers = Answers::default();
        while let Some(read_at) = self.pool.take(&mut batch) {
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

    fn answer(&mut self, request: Request, read_at: Instant, answers: &mut Answers) {
        let Request { id, remaining_ms, verb } = request;
        match verb {
            None => answers.push(id, Err(Fault::protocol("the request has no verb"))),
            Some(Verb::Ping(_)) => answers.push(id, Ok(Outcome::Pong(self.pool.board.pong()))),
            Some(verb) => {
                let pace = Pace::of(&verb);
                let began = self.pool.board.begin(self.seat, id);
                let is_late = began - read_at >= Duration::from_millis(remaining_ms.into());
                let result = if is_late { Err(late()) } else { self.perform(verb) };
                self.pool.board.end(self.seat);
                if pace == Pace::Quick {
                    self.pool.board.measured(began.elapsed());
                }
                answers.push(id, result);
            }
        }
    }

    fn perform(&mut self, verb: Verb) -> Result<Outcome, Fault> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.pool.token.open_session()?),
        };
        let result = verbs::perform(session, verb);
        if let Err(fault) = &result
            && fault.session == After::Reopen
        {
            log(format_args!("replacing a session: {fault}"));
            self.session = None;
        }
        result
    }
}

fn is_slow(request: &Request) -> bool {
    request.verb.as_ref().is_some_and(|verb| Pace::of(verb) == Pace::Slow)
}
