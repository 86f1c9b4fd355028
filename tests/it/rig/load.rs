//! Callers who encrypt and decrypt, without pause or at their leisure, and remember every refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::Status;

use super::{Clients, pb, wait_async};

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
}

impl Load {
    /// Without pause.
    pub fn start(clients: &Clients, key: &str, callers: u8) -> Self {
        Self::of(clients, key, callers, Manner::default())
    }

    /// Who leave the HSMs time to spare, and have little themselves: each call is refused after `deadline`.
    pub fn in_a_hurry(clients: &Clients, key: &str, callers: u8, pace: Duration, deadline: Duration) -> Self {
        Self::of(clients, key, callers, Manner { pace: Some(pace), deadline: Some(deadline) })
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
        match round_trip(&mut clients, &key, &plaintext, manner.deadline).await {
            Ok(back) => assert_eq!(back, plaintext, "a wrong plaintext"),
            Err(status) => refused.push(status),
        }
        done.fetch_add(1, Relaxed);
    }
    refused
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
