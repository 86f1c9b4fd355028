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

use crate::host::{WorkerLink, WorkerProcess};
use crate::link::v1::{Ping, Pong, Request, Response, request::Verb, response::Outcome};
use crate::link::{self as frames, Frames, Patience};

use super::CallError;

/// Requests handed over per session: enough that a worker's next frame is there when its last is done.
const DEPTH_PER_SESSION: u32 = 16;
/// Below this many in flight a request is written at once by its caller; above, writes are gathered.
const WRITE_AT_ONCE: usize = 3;
/// How often a worker is asked what it is doing.
const PING_EVERY: Duration = Duration::from_millis(500);
/// A worker that has not answered a ping for this long gets no new work while others can take it.
const PING_PATIENCE: Duration = Duration::from_millis(300);

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

/// A worker's link, serving.
#[derive(Debug)]
pub struct Link {
    login: u64,
    sessions: u32,
    depth: u32,
    queue_limit: u32,
    places: Arc<Semaphore>,
    waiting: AtomicU32,
    next_id: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    out: Mutex<Outbound>,
    wake_writer: Notify,
    stream: UnixStream,
    answers_pings: AtomicBool,
    process: WorkerProcess,
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct Pending {
    reply: oneshot::Sender<Outcome>,
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, Default)]
struct Outbound {
    bytes: Vec<u8>,
    closed: bool,
}

impl Link {
    pub(super) fn start(worker: WorkerLink, login: u64, queue_limit: NonZeroU32, patience: Patience) -> Arc<Self> {
        let sessions = worker.opened().sessions.max(1);
        let (stream, process) = worker.into_parts();
        let depth = sessions * DEPTH_PER_SESSION;
        let link = Arc::new(Self {
            login,
            sessions,
            depth,
            queue_limit: queue_limit.get(),
            places: Arc::new(Semaphore::new(depth as usize)),
            waiting: AtomicU32::new(0),
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            out: Mutex::default(),
            wake_writer: Notify::new(),
            stream,
            answers_pings: AtomicBool::new(true),
            process,
            ended: watch::Sender::new(false),
        });
        tokio::spawn(link.clone().read());
        tokio::spawn(link.clone().write());
        tokio::spawn(link.clone().watch_over(patience.longest()));
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

    /// Waits for a place, hands the request over, and waits for its answer.
    pub(super) async fn call(&self, request: &mut Request, deadline: Instant) -> Result<Outcome, CallError> {
        let place = self.place(deadline).await?;
        if deadline <= Instant::now() {
            return Err(CallError::LateBefore);
        }
        let answer = self.hand_over(request, Some(place), deadline)?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(CallError::Lost),
            Err(_) => Err(CallError::LateAfter),
        }
    }

    /// Takes no further requests; the worker sees the link's end, lets its running calls return, and leaves.
    pub(super) fn close(&self) {
        self.lock_out().closed = true;
        self.wake_writer.notify_one();
    }

    /// For a worker that does not see its link's end.
    pub(super) fn kill(&self) {
        tracing::warn!(pid = self.process.pid, "a worker does not leave; killing it");
        self.process.kill();
    }

    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    async fn place(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, CallError> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waiting = Waiting::enter(&self.waiting, self.queue_limit)?;
        match tokio::time::timeout_at(deadline, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(CallError::NotServing),
            Err(_) => Err(CallError::LateBefore),
        }
    }

    fn hand_over(
        &self,
        request: &mut Request,
        place: Option<OwnedSemaphorePermit>,
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
            pending.insert(request.id, Pending { reply, _place: place });
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
        self.places.close();
        self.lock_pending().clear();
        self.ended.send_replace(true);
    }

    /// Hands out whole answers; `false` when the stream makes no sense any more.
    fn deliver(&self, inbound: &mut Frames) -> bool {
        loop {
            match inbound.take::<Response>() {
                Ok(None) => return true,
                Ok(Some(Response { id, outcome: Some(outcome) })) => {
                    let waiting = self.lock_pending().remove(&id);
                    if let Some(pending) = waiting {
                        let _ = pending.reply.send(outcome);
                    }
                }
                Ok(Some(Response { outcome: None, .. })) | Err(_) => {
                    tracing::error!(pid = self.process.pid, "a worker's answer cannot be read; its link is given up");
                    return false;
                }
            }
        }
    }

    /// Asks the worker what it is doing, and kills it when a call is past its patience: nothing else takes such a call back.
    async fn watch_over(self: Arc<Self>, patience: Duration) {
        let mut ended = self.ended.subscribe();
        loop {
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep(PING_EVERY) => {}
            }
            let asked = Instant::now();
            let ping = &mut Request { verb: Some(Verb::Ping(Ping {})), ..Request::default() };
            // A ping takes no place: it must get through when every place is taken.
            let Ok(mut answer) = self.hand_over(ping, None, asked + patience) else {
                return;
            };
            let pong = match tokio::time::timeout(PING_PATIENCE, &mut answer).await {
                Ok(pong) => pong,
                Err(_) => {
                    self.answers_pings.store(false, Relaxed);
                    match tokio::time::timeout(patience, answer).await {
                        Ok(pong) => pong,
                        Err(_) => {
                            tracing::warn!(pid = self.process.pid, ?patience, "a worker does not answer; killing it");
                            self.process.kill();
                            return;
                        }
                    }
                }
            };
            self.answers_pings.store(true, Relaxed);
            if let Ok(Outcome::Pong(pong)) = pong
                && past(&pong, patience)
            {
                tracing::warn!(pid = self.process.pid, ?patience, "a call is past its patience; killing its worker");
                self.process.kill();
                return;
            }
        }
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

fn past(pong: &Pong, patience: Duration) -> bool {
    pong.running.iter().any(|running| Duration::from_millis(running.age_ms.into()) > patience)
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
