//! Callers who ask when it is time to, whatever became of the calls before: a stall is not spared the calls that would
//! have come meanwhile, and what a call takes counts from when it was due.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

use super::plan::Callers;
use super::recording::{Call, Kept, Operation};
use crate::rig::{Clients, Load, asks_to_be_repeated, pb, reason, wait_async};

/// No caller waits longer for an answer.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Callers who ask again do so for this long in all.
pub const PERSISTENCE: Duration = Duration::from_secs(20);
/// What they wait before, twice as long each time up to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(800)];
/// So many keys are there from the beginning.
const FIRST_KEYS: usize = 4;
/// In the end, what is refused for the moment is asked for again for this long: longer than anything is held back.
const HEARING: Duration = Duration::from_secs(90);
/// Of the ciphertexts so many are remembered, the latest, and decrypted again.
const REMEMBERED: usize = 1_000;
/// Callers without pause who find out what the cluster can do, and for how long.
const TO_MEASURE: (u8, Duration) = (8, Duration::from_secs(1));

pub struct Traffic {
    asking: JoinHandle<()>,
    work: Arc<Work>,
}

struct Work {
    began: Instant,
    connections: Vec<Clients>,
    store: String,
    callers: Callers,
    stop: AtomicBool,
    under_way: AtomicUsize,
    calls: Mutex<Vec<Call>>,
    keys: Mutex<Vec<String>>,
    ciphertexts: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// How many encryptions and decryptions a second callers get when they do not pause.
pub async fn capacity(clients: &Clients, key: &str) -> f64 {
    let (callers, length) = TO_MEASURE;
    let load = Load::start(clients, key, callers);
    load.more(50).await;
    let (before, begun) = (load.done(), Instant::now());
    tokio::time::sleep(length).await;
    let (calls, took) = ((load.done() - before) * 2, begun.elapsed());
    load.unharmed().await;
    calls as f64 / took.as_secs_f64()
}

/// What calls are for.
pub const MIX: &str = "45 % decryptions, 35 % encryptions, 19 % data keys, 1 % new keys";

/// What the call of this number is for, so that it comes to [`MIX`].
fn operation(number: u64) -> Operation {
    // In no order that could be in step with anything.
    match number * 37 % 100 {
        0..45 => Operation::Decrypt,
        45..80 => Operation::Encrypt,
        80..99 => Operation::GenerateDataKey,
        _ => Operation::CreateKey,
    }
}

impl Traffic {
    /// Makes the first keys, and begins when there is something to decrypt.
    pub async fn start(mut connections: Vec<Clients>, store: &str, callers: Callers, per_second: f64) -> Self {
        let first = &mut connections[0];
        let (mut keys, mut ciphertexts) = (Vec::new(), Vec::new());
        for _ in 0..FIRST_KEYS {
            let key = first.key(store).await.key_id;
            ciphertexts.push((first.encrypt(&key, key.as_bytes()).await, key.clone().into_bytes()));
            keys.push(key);
        }
        let work = Arc::new(Work {
            began: Instant::now(),
            connections,
            store: store.to_owned(),
            callers,
            stop: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            calls: Mutex::default(),
            keys: Mutex::new(keys),
            ciphertexts: Mutex::new(ciphertexts),
        });
        let asking = tokio::spawn(ask_when_due(work.clone(), per_second));
        Self { asking, work }
    }

    /// From when everything counts.
    pub fn began(&self) -> Instant {
        self.work.began
    }

    /// Asks for nothing more, and waits until everybody has an answer.
    pub async fn stop(&self) {
        self.work.stop.store(true, Relaxed);
        wait_async(|| async { self.asking.is_finished().then_some(()) }).await;
        wait_async(|| async { (self.work.under_way.load(Relaxed) == 0).then_some(()) }).await;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.work.calls.lock().unwrap().clone()
    }

    /// Whether every key that was ever acknowledged encrypts and decrypts.
    pub async fn keys_that_work(&self) -> Kept {
        let keys = self.work.keys.lock().unwrap().clone();
        let (mut working, begun) = (0, Instant::now());
        for key in &keys {
            let ask = pb::EncryptRequest { key_id: key.clone(), plaintext: b"x".to_vec(), ..Default::default() };
            let made = heard_out(begun, async || self.examiner().crypto.encrypt(ask.clone()).await).await;
            let Ok(made) = made else { continue };
            working += usize::from(self.opens(&made.into_inner().ciphertext, b"x", begun).await);
        }
        Kept { acknowledged: keys.len(), working }
    }

    /// Whether every ciphertext that is remembered can be read.
    pub async fn ciphertexts_that_open(&self) -> Kept {
        let ciphertexts = self.work.ciphertexts.lock().unwrap().clone();
        let (mut working, begun) = (0, Instant::now());
        for (ciphertext, plaintext) in &ciphertexts {
            working += usize::from(self.opens(ciphertext, plaintext, begun).await);
        }
        Kept { acknowledged: ciphertexts.len(), working }
    }

    async fn opens(&self, ciphertext: &[u8], plaintext: &[u8], begun: Instant) -> bool {
        heard_out(begun, async || self.examiner().decrypt(ciphertext).await).await.is_ok_and(|back| back == plaintext)
    }

    fn examiner(&self) -> Clients {
        self.work.connections[0].clone()
    }
}

/// Asks until there is another answer than "later": what is held back is not lost.
async fn heard_out<T>(begun: Instant, ask: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    loop {
        match ask().await {
            Err(status) if later(&status) && begun.elapsed() < HEARING => tokio::time::sleep(PAUSES[1]).await,
            answer => return answer,
        }
    }
}

fn later(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

async fn ask_when_due(work: Arc<Work>, per_second: f64) {
    for number in 0.. {
        let due = Duration::from_secs_f64(number as f64 / per_second);
        tokio::time::sleep_until((work.began + due).into()).await;
        if work.stop.load(Relaxed) {
            return;
        }
        work.under_way.fetch_add(1, Relaxed);
        let work = work.clone();
        tokio::spawn(async move {
            let (answered, refusals) = work.call(number).await;
            let (operation, ended) = (operation(number), work.began.elapsed());
            work.calls.lock().unwrap().push(Call { operation, due, ended, refusals, answered });
            work.under_way.fetch_sub(1, Relaxed);
        });
    }
}

impl Work {
    /// Until it is answered or given up: whether it was, and what was said before.
    async fn call(&self, number: u64) -> (bool, Vec<String>) {
        let (begun, mut refusals) = (Instant::now(), Vec::new());
        let [mut pause, longest] = PAUSES;
        loop {
            let Err(status) = self.ask(number).await else { return (true, refusals) };
            refusals.push(told(&status));
            let again = match self.callers {
                Callers::GiveUp => false,
                Callers::AskAgain => asks_to_be_repeated(&status) && begun.elapsed() < PERSISTENCE,
            };
            if !again {
                return (false, refusals);
            }
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
    }

    async fn ask(&self, number: u64) -> Result<(), Status> {
        let turn = usize::try_from(number).expect("64 bits");
        let mut clients = self.connections[turn % self.connections.len()].clone();
        let key = pick(&self.keys.lock().unwrap(), turn);
        match operation(number) {
            Operation::Encrypt => {
                let plaintext = format!("call {number}").into_bytes();
                let ask = pb::EncryptRequest { key_id: key, plaintext: plaintext.clone(), ..Default::default() };
                let made = clients.crypto.encrypt(in_time(ask)).await?.into_inner();
                self.remember(made.ciphertext, plaintext);
            }
            Operation::Decrypt => {
                let (ciphertext, plaintext) = pick(&self.ciphertexts.lock().unwrap(), turn);
                let ask = pb::DecryptRequest { ciphertext, ..Default::default() };
                let back = clients.crypto.decrypt(in_time(ask)).await?.into_inner().plaintext;
                if back != plaintext {
                    return Err(Status::data_loss("a wrong plaintext"));
                }
            }
            Operation::GenerateDataKey => {
                let length = Some(pb::generate_data_key_request::Length::NumberOfBytes(32));
                let ask = pb::GenerateDataKeyRequest { key_id: key, length, ..Default::default() };
                let made = clients.crypto.generate_data_key(in_time(ask)).await?.into_inner();
                self.remember(made.ciphertext, made.plaintext);
            }
            Operation::CreateKey => {
                let (key_store_id, request_id) = (self.store.clone(), format!("call-{number}"));
                let ask = pb::CreateKeyRequest { key_store_id, request_id, ..Default::default() };
                let made = clients.keys.create_key(in_time(ask)).await?.into_inner();
                self.keys.lock().unwrap().push(made.key.expect("it is told").key_id);
            }
        }
        Ok(())
    }

    fn remember(&self, ciphertext: Vec<u8>, plaintext: Vec<u8>) {
        let mut ciphertexts = self.ciphertexts.lock().unwrap();
        if ciphertexts.len() == REMEMBERED {
            ciphertexts.remove(0);
        }
        ciphertexts.push((ciphertext, plaintext));
    }
}

fn pick<T: Clone>(of: &[T], turn: usize) -> T {
    of[turn % of.len()].clone()
}

fn in_time<T>(ask: T) -> Request<T> {
    let mut request = Request::new(ask);
    request.set_timeout(DEADLINE);
    request
}

/// The reason that keyway gave, or what the client's own library makes of its silence.
fn told(status: &Status) -> String {
    let (code, reason) = reason(status);
    match (reason.as_str(), asks_to_be_repeated(status)) {
        ("", true) => "connection lost".to_owned(),
        ("", false) if code == Code::Cancelled => "no answer by the deadline".to_owned(),
        ("", false) => format!("{code:?}: {}", status.message()),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_calls_each_kind_has_its_share() {
        let count = |wanted| (0..100).filter(|number| operation(*number) == wanted).count();
        let kinds = [Operation::Decrypt, Operation::Encrypt, Operation::GenerateDataKey, Operation::CreateKey];
        assert_eq!(kinds.map(count), [45, 35, 19, 1]);
    }
}
