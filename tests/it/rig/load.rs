//! Callers who encrypt and decrypt, without pause or at their leisure, and remember every refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::{Clients, PATIENCE, pb, reason, wait_async};

/// Who is refused asks again after this long.
const BEFORE_REPEATING: Duration = Duration::from_millis(100);
/// What the client's library says when a call was not answered in time.
const OUR_OWN_DEADLINE: &str = "Timeout expired";

/// Callers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Vec<Status>>>,
}

/// How callers go about it.
#[derive(Debug, Clone, Copy, Default)]
struct Manner {
    /// From one round trip's beginning to the next one's.
    pace: Option<Duration>,
    /// Each call's own.
    deadline: Option<Duration>,
    /// How long a round trip is begun anew when it may be.
    persistence: Duration,
}

impl Load {
    /// Without pause.
    pub fn start(clients: &Clients, key: &str, callers: u8) -> Self {
        Self::of(clients, key, callers, Manner::default())
    }

    /// Who leave the HSMs time to spare, and have little themselves: each call is refused after `deadline`.
    pub fn in_a_hurry(clients: &Clients, key: &str, callers: u8, pace: Duration, deadline: Duration) -> Self {
        let (pace, deadline) = (Some(pace), Some(deadline));
        Self::of(clients, key, callers, Manner { pace, deadline, ..Manner::default() })
    }

    /// The same, and whoever is asked to repeat a call does so.
    pub fn persistent(clients: &Clients, key: &str, callers: u8, pace: Duration, deadline: Duration) -> Self {
        let (pace, deadline) = (Some(pace), Some(deadline));
        Self::of(clients, key, callers, Manner { pace, deadline, persistence: PATIENCE })
    }

    fn of(clients: &Clients, key: &str, callers: u8, manner: Manner) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let callers = (0..callers)
            .map(|caller| {
                let (clients, key) = (clients.clone(), key.to_owned());
                tokio::spawn(work(clients, key, caller, manner, stop.clone(), done.clone()))
            })
            .collect();
        Self { stop, done, callers }
    }

    /// How many round trips of encryption and decryption were done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Waits until so many more are done.
    pub async fn more(&self, count: u64) {
        let wanted = self.done() + count;
        wait_async(|| async { (self.done() >= wanted).then_some(()) }).await;
    }

    /// How many are done in a second, as seen for so long.
    pub async fn rate(&self, moment: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.done());
        tokio::time::sleep(moment).await;
        let done = u32::try_from(self.done() - before).expect("a moment is short");
        f64::from(done) / begun.elapsed().as_secs_f64()
    }

    /// Ends the load: what was refused.
    pub async fn refusals(self) -> Vec<Status> {
        self.stop.store(true, Relaxed);
        let mut refused = Vec::new();
        for caller in self.callers {
            refused.extend(caller.await.expect("what comes back is what was sent"));
        }
        refused
    }

    /// Ends the load, which must have met no refusal at all.
    #[track_caller]
    pub fn unharmed(self) -> impl Future<Output = u64> {
        let done = self.done.clone();
        async move {
            let refused = self.refusals().await;
            assert!(refused.is_empty(), "{} callers were refused, the first: {:?}", refused.len(), refused[0]);
            done.load(Relaxed)
        }
    }
}

async fn work(
    mut clients: Clients,
    key: String,
    caller: u8,
    manner: Manner,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Vec<Status> {
    let mut refused = Vec::new();
    let mut round = 0_u64;
    let mut pace = manner.pace.map(tokio::time::interval);
    while !stop.load(Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        round += 1;
        let plaintext = [&[caller][..], &round.to_be_bytes()].concat();
        let begun = Instant::now();
        let ended = loop {
            match round_trip(&mut clients, &key, &plaintext, manner.deadline).await {
                Err(refused) if asks_to_be_repeated(&refused) && begun.elapsed() < manner.persistence => {
                    tokio::time::sleep(BEFORE_REPEATING).await;
                }
                ended => break ended,
            }
        };
        match ended {
            Ok(back) => assert_eq!(back, plaintext, "a wrong plaintext"),
            Err(status) => refused.push(status),
        }
        done.fetch_add(1, Relaxed);
    }
    refused
}

/// UNAVAILABLE, by keyway's word or because nobody listens; or the connection ended under the call, for which this client's
/// library has several codes and no reason.
pub fn asks_to_be_repeated(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled => reason(status).1.is_empty() && status.message() != OUR_OWN_DEADLINE,
        _ => false,
    }
}

async fn round_trip(
    clients: &mut Clients,
    key: &str,
    plaintext: &[u8],
    deadline: Option<Duration>,
) -> Result<Vec<u8>, Status> {
    let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: plaintext.to_vec(), ..Default::default() };
    let ciphertext = clients.crypto.encrypt(within(deadline, request)).await?.into_inner().ciphertext;
    let request = pb::DecryptRequest { ciphertext, ..Default::default() };
    Ok(clients.crypto.decrypt(within(deadline, request)).await?.into_inner().plaintext)
}

fn within<T>(deadline: Option<Duration>, request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    request
}
