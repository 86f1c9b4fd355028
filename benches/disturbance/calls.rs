//! Calls on the daemon: as many as it can take, or at a rate of their own, whatever becomes of the ones before.
//!
//! In an open loop a call that is late delays none that come after it, and what it took counts from when it was due: a
//! daemon that stalls is not spared the calls that would have come meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keyway::proto::v1 as pb;
use pb::crypto_service_client::CryptoServiceClient;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::shared::connect::{Target, connect};
use crate::shared::machine;
use crate::{Error, PLAINTEXT};

/// More calls than this are not under way at once: beyond, they count as not sent.
const MOST_AT_ONCE: usize = 20_000;
/// Beyond their deadline, calls are waited for this long.
const GRACE: Duration = Duration::from_secs(30);

/// One call, to be made over and over.
#[derive(Clone)]
pub enum Ask {
    Encrypt(pb::EncryptRequest),
    Decrypt(pb::DecryptRequest),
}

impl Ask {
    pub fn encrypt(key: &str) -> Self {
        Self::Encrypt(pb::EncryptRequest {
            key_id: key.to_owned(),
            plaintext: PLAINTEXT.to_vec(),
            ..Default::default()
        })
    }

    pub fn decrypt(ciphertext: Vec<u8>) -> Self {
        Self::Decrypt(pb::DecryptRequest { ciphertext, ..Default::default() })
    }

    /// The answer's bytes.
    async fn send(self, channel: Channel, deadline: Duration) -> Result<Vec<u8>, Status> {
        let mut crypto = CryptoServiceClient::new(channel);
        match self {
            Self::Encrypt(ask) => Ok(crypto.encrypt(within(ask, deadline)).await?.into_inner().ciphertext),
            Self::Decrypt(ask) => match crypto.decrypt(within(ask, deadline)).await?.into_inner().plaintext {
                right if right == PLAINTEXT => Ok(right),
                _ => Err(Status::data_loss("a wrong plaintext")),
            },
        }
    }
}

fn within<T>(ask: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(ask);
    request.set_timeout(deadline);
    request
}

/// Somebody with connections of their own, served by as many threads as there are cores.
pub struct Caller {
    lines: Vec<(Handle, Channel)>,
    deadline: Duration,
    /// The threads end when these are dropped.
    _threads: Vec<oneshot::Sender<()>>,
}

impl Caller {
    pub fn connect(target: &Target, connections: usize, deadline: Duration) -> Result<Self, Error> {
        let (mut lines, mut threads) = (Vec::new(), Vec::new());
        let count = machine::cores().min(connections);
        for thread in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            for _ in (thread..connections).step_by(count) {
                lines.push((runtime.handle().clone(), runtime.block_on(connect(target))?));
            }
            let (stay, left) = oneshot::channel::<()>();
            threads.push(stay);
            std::thread::Builder::new().name(format!("caller-{thread}")).spawn(move || {
                let _ = runtime.block_on(left);
            })?;
        }
        Ok(Self { lines, deadline, _threads: threads })
    }

    pub fn once(&self, ask: Ask) -> Result<Vec<u8>, Error> {
        let (handle, channel) = &self.lines[0];
        let (tell, told) = oneshot::channel();
        let (channel, deadline) = (channel.clone(), self.deadline);
        handle.spawn(async move { tell.send(ask.send(channel, deadline).await) });
        Ok(told.blocking_recv()??)
    }

    /// How many calls a second are answered when each of so many clients sends its next when its last is answered.
    pub fn capacity(&self, asks: &[Ask], clients: usize, length: Duration) -> Result<f64, Error> {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut working = Vec::new();
        for client in 0..clients {
            let (handle, channel) = &self.lines[client % self.lines.len()];
            let (channel, deadline, asks) = (channel.clone(), self.deadline, asks.to_vec());
            let (stop, answered) = (stop.clone(), answered.clone());
            let (tell, told) = oneshot::channel();
            handle.spawn(async move {
                let mut turn = client;
                let mut outcome = Ok(());
                while outcome.is_ok() && !stop.load(Relaxed) {
                    outcome = asks[turn % asks.len()].clone().send(channel.clone(), deadline).await.map(|_| ());
                    turn += 1;
                    answered.fetch_add(1, Relaxed);
                }
                tell.send(outcome)
            });
            working.push(told);
        }
        std::thread::sleep(length / 4);
        let (before, began) = (answered.load(Relaxed), Instant::now());
        std::thread::sleep(length);
        let (after, took) = (answered.load(Relaxed), began.elapsed());
        stop.store(true, Relaxed);
        for told in working {
            told.blocking_recv()??;
        }
        #[expect(clippy::cast_precision_loss, reason = "a measurement has few digits")]
        Ok((after - before) as f64 / took.as_secs_f64())
    }

    /// Begins to send so many calls a second, these in turn.
    pub fn start(&self, asks: Vec<Ask>, per_second: f64) -> Result<OpenLoop, Error> {
        let shared = Arc::new(Shared::default());
        let (lines, deadline, of_loop) = (self.lines.clone(), self.deadline, shared.clone());
        let pace = std::thread::Builder::new().name("pace".to_owned());
        let pace = pace.spawn(move || keep_pace(&lines, &asks, per_second, deadline, &of_loop))?;
        Ok(OpenLoop { shared, pace, deadline })
    }
}

/// Calls under way.
pub struct OpenLoop {
    shared: Arc<Shared>,
    pace: JoinHandle<()>,
    deadline: Duration,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    under_way: AtomicUsize,
    done: Mutex<Vec<Done>>,
}

/// A call that came to an end.
#[derive(Debug, Clone)]
pub struct Done {
    pub due: Instant,
    pub took: Duration,
    /// Why it was refused.
    pub refused: Option<(Code, String)>,
}

impl OpenLoop {
    /// Stops sending, waits for the answers, and tells of every call.
    pub fn stop(self) -> Result<Vec<Done>, Error> {
        self.shared.stop.store(true, Relaxed);
        self.pace.join().map_err(|_| "a thread of the bench panicked")?;
        let begun = Instant::now();
        while self.shared.under_way.load(Relaxed) > 0 {
            if begun.elapsed() > self.deadline + GRACE {
                return Err("calls did not end by their deadline".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(std::mem::take(&mut *self.shared.done()))
    }
}

impl Shared {
    fn done(&self) -> std::sync::MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends each call when it is due. A thread of its own, since a runtime's timers have steps of a millisecond.
fn keep_pace(lines: &[(Handle, Channel)], asks: &[Ask], per_second: f64, deadline: Duration, shared: &Arc<Shared>) {
    let (began, mut number) = (Instant::now(), 0_u32);
    while !shared.stop.load(Relaxed) {
        let due = began + Duration::from_secs_f64(f64::from(number) / per_second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let place = number as usize;
        number += 1;
        if shared.under_way.fetch_add(1, Relaxed) >= MOST_AT_ONCE {
            shared.under_way.fetch_sub(1, Relaxed);
            let refused = Some((Code::ResourceExhausted, "not sent".to_owned()));
            shared.done().push(Done { due, took: Duration::ZERO, refused });
            continue;
        }
        let (handle, channel) = &lines[place % lines.len()];
        let (ask, channel, shared) = (asks[place % asks.len()].clone(), channel.clone(), shared.clone());
        handle.spawn(async move {
            let refused = ask.send(channel, deadline).await.err();
            let refused = refused.map(|status| (status.code(), why(&status)));
            shared.done().push(Done { due, took: due.elapsed(), refused });
            shared.under_way.fetch_sub(1, Relaxed);
        });
    }
}

/// The reason that keyway gives for a refusal, or the words of whoever else refused it.
fn why(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().map_or_else(|| status.message().to_owned(), |info| info.reason.clone())
}

/// What calls took, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Latency {
    pub median: f64,
    /// One in a hundred took longer.
    pub slowest_percent: f64,
    pub longest: f64,
}

impl Latency {
    pub fn of<'a>(calls: impl Iterator<Item = &'a Done>) -> Self {
        let mut took: Vec<f64> = calls.map(|call| call.took.as_secs_f64() * 1e3).collect();
        took.sort_by(f64::total_cmp);
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        Self { median: at(50), slowest_percent: at(99), longest: took.last().copied().unwrap_or_default() }
    }
}

/// How many were refused, for each reason.
pub fn refusals<'a>(calls: impl Iterator<Item = &'a Done>) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for (code, message) in calls.filter_map(|call| call.refused.as_ref()) {
        *counted.entry(format!("{code:?}: {message}")).or_default() += 1;
    }
    counted
}
