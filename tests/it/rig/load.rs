//! Callers who encrypt and decrypt without pause, and remember every refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::task::JoinHandle;
use tonic::Status;

use super::{Clients, pb, wait_async};

/// Callers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    callers: Vec<JoinHandle<Vec<Status>>>,
}

impl Load {
    pub fn start(clients: &Clients, key: &str, callers: u8) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let callers = (0..callers)
            .map(|caller| tokio::spawn(work(clients.clone(), key.to_owned(), caller, stop.clone(), done.clone())))
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
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Vec<Status> {
    let mut refused = Vec::new();
    let mut round = 0_u64;
    while !stop.load(Relaxed) {
        round += 1;
        let plaintext = [&[caller][..], &round.to_be_bytes()].concat();
        match round_trip(&mut clients, &key, &plaintext).await {
            Ok(back) => assert_eq!(back, plaintext, "a wrong plaintext"),
            Err(status) => refused.push(status),
        }
        done.fetch_add(1, Relaxed);
    }
    refused
}

async fn round_trip(clients: &mut Clients, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, Status> {
    let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: plaintext.to_vec(), ..Default::default() };
    let ciphertext = clients.crypto.encrypt(request).await?.into_inner().ciphertext;
    clients.decrypt(&ciphertext).await
}
