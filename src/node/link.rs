//! The daemon's end of a session link while its pool serves: requests out, answers in, and what is outstanding.
//!
//! Bounded three ways: requests handed over but not answered (`depth`), requests waiting for
//! such a place (`queue_limit`), and each one's deadline. A caller that leaves frees its place in
//! the queue at once; a request already handed over keeps its place until the worker answers.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;

use crate::host::{End, Tally, WorkerLink, WorkerProcess};
use crate::link::v1::{Ping, Pong, Request, Response, request::Verb, response::Outcome};
use crate::link::{self as frames, Frames, Pace, Patience};

use super::CallError;
use super::latency::{Latencies, Latency};

/// Requests handed over per session: enough that a worker's next frame is there when its last is done.
const DEPTH_PER_SESSION: u32 = 16;
/// Below this many in flight a request is written at once by its caller; above, writes are gathered.
const WRITE_AT_ONCE: usize = 3;
/// How often a worker is asked what it is doing.
const PING_EVERY: Duration = Duration::from_millis(250);
/// A worker that has not answered a ping for this long gets no new work while others can take it.
const PING_PATIENCE: Duration = Duration::from_millis(300);
/// A link that is given up gets this long for what was handed over: it is mostly answered, if only by a fault.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What is outstanding on a link, for whoever chooses a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Which login of the node this is, counted from 1.
    pub login: u64,
    pub sessions: u32,
    /// Handed over and not answered yet.
    pub in_flight: u32,
    /// Waiting in the daemon.
    pub waiting: u32,
    pub answers_pings: bool,
}

impl Load {
    /// How many sessions have a request.
    pub fn sessions_busy(self) -> u32 {
        self.in_flight.min(self.sessions)
    }
}

/// What a worker may take before it is replaced.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    pub patience: Patience,
    /// Resident memory, in bytes.
    pub memory: u64,
}

/// A worker's link, serving.
#[derive(Debug)]
pub struct Link {
    login: u64,
    sessions: u32,
    depth: u32,
    queue_limit: u32,
    places: Arc<Semaphore>,
    /// One request at a time looks for primes: it may have its token to itself for a minute.
    primes: Arc<Semaphore>,
    waiting: AtomicU32,
    next_id: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    out: Mutex<Outbound>,
    wake_writer: Notify,
    stream: UnixStream,
    answers_pings: AtomicBool,
    began: Instant,
    /// When the worker last answered anything, in milliseconds since `began`.
    last_answer_ms: AtomicU64,
    patience: Patience,
    memory_limit: u64,
    latencies: Latencies,
    tally: Arc<Tally>,
    process: Arc<WorkerProcess>,
    /// Why the worker is to be replaced, once somebody knows.
    given_up: watch::Sender<Option<GivenUp>>,
    ended: watch::Sender<bool>,
}

/// Why a worker that still runs is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Its token is gone, its login is lost, its key answers wrongly: nothing more can come of it.
    Useless(String),
    /// Its memory is beyond the limit. It serves as well as ever: the replacement can choose its moment.
    Outgrown(u64),
}

#[derive(Debug)]
struct Pending {
    /// `None` when its caller was told already that there will be no answer.
    reply: Option<oneshot::Sender<Outcome>>,
    pace: Pace,
    _held: Held,
}

/// What a request keeps until it is answered, whether or not its caller waits for that.
#[derive(Debug, Default)]
struct Held {
    _place: Option<OwnedSemaphorePermit>,
    _primes: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, Default)]
struct Outbound {
    bytes: Vec<u8>,
    closed: bool,
}

impl Link {
    pub(super) fn start(
        worker: WorkerLink,
        login: u64,
        queue_limit: NonZeroU32,
        limits: WorkerLimits,
        tally: Arc<Tally>,
    ) -> Arc<Self> {
        let sessions = worker.opened().sessions.max(1);
        let (stream, process) = worker.into_parts();
        let depth = sessions * DEPTH_PER_SESSION;
        let link = Arc::new(Self {
            login,
            sessions,
            depth,
            queue_limit: queue_limit.get(),
            places: Arc::new(Semaphore::new(depth as usize)),
            primes: Arc::new(Semaphore::new(1)),
            waiting: AtomicU32::new(0),
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            out: Mutex::default(),
            wake_writer: Notify::new(),
            stream,
            answers_pings: AtomicBool::new(true),
            began: Instant::now(),
            last_answer_ms: AtomicU64::new(0),
            patience: limits.patience,
            memory_limit: limits.memory,
            latencies: Latencies::default(),
            tally,
            process,
            given_up: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        });
        tokio::spawn(link.clone().read());
        tokio::spawn(link.clone().write());
        tokio::spawn(link.clone().watch_over());
        link
    }

    pub(super) fn load(&self) -> Load {
        let free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
        Load {
            login: self.login,
            sessions: self.sessions,
            in_flight: self.depth.saturating_sub(free),
            waiting: self.waiting.load(Relaxed),
            answers_pings: self.answers_pings.load(Relaxed),
        }
    }

    /// What recent quick operations took, from when they were handed over.
    pub(super) fn latency(&self) -> Option<Latency> {
        self.latencies.recent(Instant::now())
    }

    /// Waits for a place, hands the request over, and waits for its answer.
    pub(super) async fn call(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let counting = self.tally.begin(request.verb.as_ref());
        let mut took = None;
        let called = self.call_in_turn(request, deadline, &mut took).await;
        if let Some(counting) = counting {
            counting.ended(end(&called), took);
        }
        called
    }

    /// `took`: how long it was with the worker, if it came so far. The clock is looked at twice, whoever wants to know.
    async fn call_in_turn(
        &self,
        request: &mut Request,
        deadline: Instant,
        took: &mut Option<Duration>,
    ) -> Result<Outcome, CallError> {
        let pace = pace(request);
        // Before the place, which others can use meanwhile.
        let primes = match pace {
            Pace::Primes => Some(self.one_of(&self.primes, deadline).await?),
            Pace::Quick | Pace::Slow => None,
        };
        let place = self.one_of(&self.places, deadline).await?;
        let began = Instant::now();
        if deadline <= began {
            return Err(CallError::LateBefore);
        }
        let held = Held { _place: Some(place), _primes: primes };
        let answer = self.hand_over(request, held, deadline)?;
        let called = self.answered(answer, deadline).await;
        let now = Instant::now();
        *took = Some(now - began);
        if pace == Pace::Quick && called.is_ok() {
            self.latencies.note(now - began, now);
        }
        called
    }

    /// As [`Link::call`], without waiting for a place: for looking after the worker, which must get through when every
    /// place is taken. Whoever calls this calls it one at a time.
    pub(super) async fn call_beside(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let counting = self.tally.begin(request.verb.as_ref());
        let handed_over = self.hand_over(request, Held::default(), deadline);
        let began = handed_over.is_ok().then(Instant::now);
        let called = match handed_over {
            Ok(answer) => self.answered(answer, deadline).await,
            Err(error) => Err(error),
        };
        if let Some(counting) = counting {
            counting.ended(end(&called), began.map(|began| began.elapsed()));
        }
        called
    }

    /// This worker is to be replaced. Nothing is taken back: the first reason stands, unless a better worker was only to be smaller.
    pub(super) fn give_up(&self, why: GivenUp) {
        self.given_up.send_if_modified(|reason| {
            let replaces = match (&reason, &why) {
                (None, _) | (Some(GivenUp::Outgrown(_)), GivenUp::Useless(_)) => true,
                (Some(_), GivenUp::Outgrown(_)) | (Some(GivenUp::Useless(_)), GivenUp::Useless(_)) => false,
            };
            if replaces {
                *reason = Some(why);
            }
            replaces
        });
    }

    /// Resolves when the worker is to be replaced: `Useless` always, `Outgrown` only unless that is known already.
    pub(super) async fn given_up(&self, known: Option<&GivenUp>) -> GivenUp {
        let mut given_up = self.given_up.subscribe();
        loop {
            let reason = given_up.borrow_and_update().clone();
            if let Some(reason) = reason.filter(|reason| Some(reason) != known) {
                return reason;
            }
            if given_up.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes no further requests, and waits until those handed over are answered: at most `limit`.
    pub(super) async fn finish(&self, limit: Duration) {
        self.take_no_more();
        let nothing_left = async {
            while !self.lock_pending().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(limit, nothing_left).await;
    }

    /// How long the answers of a link that is given up are waited for.
    pub(super) fn last_answers(&self) -> Duration {
        LAST_ANSWERS.min(self.patience.quick)
    }

    /// How long the slowest of what is handed over may take.
    pub(super) fn patience(&self) -> Duration {
        let slowest = self.lock_pending().values().map(|pending| pending.pace).max();
        self.patience.with(slowest.unwrap_or(Pace::Quick))
    }

    /// Whether some of what is handed over may keep a thread for long.
    pub(super) fn is_at_slow_work(&self) -> bool {
        self.lock_pending().values().any(|pending| pending.pace != Pace::Quick)
    }

    /// Takes no further requests; the worker sees the link's end, lets its running calls return, and leaves.
    pub fn close(&self) {
        self.lock_out().closed = true;
        self.wake_writer.notify_one();
    }

    /// Closes the link, and whoever waits learns now that there will be no answer. What was handed over is still done.
    pub fn cut_off(&self) {
        self.close();
        self.take_no_more();
        for pending in self.lock_pending().values_mut() {
            pending.reply = None;
        }
    }

    /// For a worker that does not see its link's end.
    pub(super) fn kill(&self) {
        tracing::warn!(worker = %self.process, "a worker does not leave; killing it");
        self.process.kill();
    }

    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Why it ended, for people.
    pub(super) fn why_it_ended(&self) -> String {
        self.process.cut().map_or_else(|| "its worker ended".to_owned(), |cut| cut.to_string())
    }

    fn take_no_more(&self) {
        self.places.close();
        self.primes.close();
    }

    async fn one_of(&self, places: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waiting = Waiting::enter(&self.waiting, self.queue_limit)?;
        match tokio::time::timeout_at(deadline, places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(CallError::NotServing),
            Err(_) => Err(CallError::LateBefore),
        }
    }

    fn hand_over(
        &self,
        request: &mut Request,
        held: Held,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Outcome>, CallError> {
        let remaining = deadline.saturating_duration_since(Instant::now()).as_millis();
        request.id = self.next_id.fetch_add(1, Relaxed);
        request.remaining_ms = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
        let (reply, answer) = oneshot::channel();
        let mut out = self.lock_out();
        if out.closed {
            return Err(CallError::NotServing);
        }
        frames::push(request, &mut out.bytes).map_err(|_| CallError::TooLong)?;
        // Before the first byte leaves: an answer must find whom it is for.
        let in_flight = {
            let mut pending = self.lock_pending();
            pending.insert(request.id, Pending { reply: Some(reply), pace: pace(request), _held: held });
            pending.len()
        };
        if in_flight <= WRITE_AT_ONCE {
            write_some(&self.stream, &mut out.bytes);
        }
        if !out.bytes.is_empty() {
            self.wake_writer.notify_one();
        }
        Ok(answer)
    }

    async fn answered(&self, answer: oneshot::Receiver<Outcome>, deadline: Instant) -> Result<Outcome, CallError> {
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) if self.process.has_died() => Err(CallError::Died),
            Ok(Err(_)) => Err(CallError::Cut),
            Err(_) => Err(CallError::LateAfter),
        }
    }

    /// Writes what gathered, as long as the link lives.
    async fn write(self: Arc<Self>) {
        loop {
            self.wake_writer.notified().await;
            loop {
                let closed = {
                    let mut out = self.lock_out();
                    write_some(&self.stream, &mut out.bytes);
                    if out.bytes.is_empty() {
                        if !out.closed {
                            break;
                        }
                        true
                    } else {
                        false
                    }
                };
                if closed {
                    let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
                    return;
                }
                if self.stream.writable().await.is_err() || *self.ended.borrow() {
                    return;
                }
            }
        }
    }

    /// Reads answers until the link ends; then whoever still waits learns that the outcome is unknown.
    async fn read(self: Arc<Self>) {
        let mut inbound = Frames::default();
        let mut chunk = zeroize::Zeroizing::new(vec![0; 64 * 1024]);
        while let Ok(read @ 1..) = read_some(&self.stream, &mut chunk).await {
            inbound.feed(&chunk[..read]);
            if !self.deliver(&mut inbound) {
                break;
            }
        }
        self.lock_out().closed = true;
        self.wake_writer.notify_one();
        self.take_no_more();
        self.lock_pending().clear();
        self.ended.send_replace(true);
    }

    /// Hands out whole answers; `false` when the stream makes no sense any more.
    fn deliver(&self, inbound: &mut Frames) -> bool {
        loop {
            match inbound.take::<Response>() {
                Ok(None) => return true,
                Ok(Some(Response { id, outcome: Some(outcome) })) => {
                    let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.last_answer_ms.store(since, Relaxed);
                    let waiting = self.lock_pending().remove(&id);
                    if let Some(reply) = waiting.and_then(|pending| pending.reply) {
                        let _ = reply.send(outcome);
                    }
                }
                Ok(Some(Response { outcome: None, .. })) | Err(_) => {
                    tracing::error!(worker = %self.process, "a worker's answer cannot be read; its link is given up");
                    return false;
                }
            }
        }
    }

    /// Asks the worker what it is doing, and kills it when a call is past its patience: nothing else takes such a call back.
    async fn watch_over(self: Arc<Self>) {
        let mut ended = self.ended.subscribe();
        loop {
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep(PING_EVERY) => {}
            }
            let Some(pong) = self.ping().await else {
                // A closed link takes no pings; whoever closed it waits for the worker, and kills it in the end.
                if !self.lock_out().closed {
                    tracing::warn!(worker = %self.process, "a worker does not answer; killing it");
                    self.process.kill();
                }
                return;
            };
            if self.is_stuck(&pong) {
                tracing::warn!(worker = %self.process, "a call is past its patience; killing its worker");
                self.process.kill();
                return;
            }
            if pong.resident_bytes > self.memory_limit {
                self.give_up(GivenUp::Outgrown(pong.resident_bytes));
            }
        }
    }

    /// `None` when the worker did not answer within the patience for what it is at: every thread may be at a slow call.
    async fn ping(&self) -> Option<Pong> {
        let asked = Instant::now();
        let ping = &mut Request { verb: Some(Verb::Ping(Ping {})), ..Request::default() };
        let mut answer = self.hand_over(ping, Held::default(), asked + self.patience.longest()).ok()?;
        if let Ok(pong) = tokio::time::timeout(PING_PATIENCE, &mut answer).await {
            return self.heed(pong);
        }
        self.answers_pings.store(false, Relaxed);
        loop {
            let patience = self.patience();
            match tokio::time::timeout_at(self.last_sign(asked) + patience, &mut answer).await {
                Ok(pong) => return self.heed(pong),
                // Something slow may have been handed over meanwhile, or something was answered: it is busy, not stuck.
                Err(_) if self.patience() > patience || self.last_sign(asked) + patience > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }

    /// When the worker last answered anything, or `asked` if that is later.
    pub(super) fn last_sign(&self, asked: Instant) -> Instant {
        asked.max(self.began + Duration::from_millis(self.last_answer_ms.load(Relaxed)))
    }

    /// Since when it has answered nothing at all.
    pub(super) fn silent_for(&self) -> Duration {
        self.last_sign(self.began).elapsed()
    }

    fn heed(&self, answer: Result<Outcome, oneshot::error::RecvError>) -> Option<Pong> {
        match answer {
            Ok(Outcome::Pong(pong)) => {
                self.answers_pings.store(true, Relaxed);
                Some(pong)
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Whether a call has run longer than its kind may.
    fn is_stuck(&self, pong: &Pong) -> bool {
        let pending = self.lock_pending();
        pong.running.iter().any(|running| {
            let age = Duration::from_millis(running.age_ms.into());
            match pending.get(&running.id) {
                Some(pending) => age > self.patience.with(pending.pace),
                // No request: a thread that opens a session in place of a spoiled one.
                None => running.id == 0 && age > self.patience.quick,
            }
        })
    }

    fn lock_out(&self) -> MutexGuard<'_, Outbound> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pending(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, given back when its holder leaves for whatever reason.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicU32, limit: u32) -> Result<Self, CallError> {
        if count.fetch_add(1, Relaxed) >= limit {
            count.fetch_sub(1, Relaxed);
            return Err(CallError::Full);
        }
        Ok(Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn end(called: &Result<Outcome, CallError>) -> End {
    match called {
        Ok(Outcome::Fault(fault)) | Err(CallError::Fault(fault)) => End::of(fault),
        Ok(_) => End::Done,
        Err(CallError::Full) => End::QueueFull,
        Err(CallError::NotServing) => End::NotServing,
        Err(CallError::LateBefore) => End::LateInQueue,
        Err(CallError::LateAfter) => End::Late,
        Err(CallError::Died) => End::Died,
        Err(CallError::Cut) => End::Lost,
        Err(CallError::TooLong) => End::BadInput,
    }
}

fn pace(request: &Request) -> Pace {
    request.verb.as_ref().map_or(Pace::Quick, Pace::of)
}

/// Writes as much as the socket takes without waiting. An error shows at the reading side as the link's end.
fn write_some(stream: &UnixStream, bytes: &mut Vec<u8>) {
    let mut written = 0;
    while written < bytes.len() {
        match stream.try_write(&bytes[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(_) => written = bytes.len(),
        }
    }
    bytes.drain(..written);
}

async fn read_some(stream: &UnixStream, chunk: &mut [u8]) -> std::io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}
