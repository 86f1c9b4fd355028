//! Callers at work: what each asks for is thrown with its own dice, and everything that it is told goes into the history.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::Status;

use super::history::{History, Operation, Sealed};
use crate::rig::{Clients, Dice, pb};

/// So many callers use keys; one more makes them.
const CALLERS: u64 = 8;
/// Those of them that do not pause: whatever befalls a node meets some call of theirs.
const HASTY: u64 = 3;
/// The daemon bounds each call by itself; a call that takes longer has no answer.
const NO_ANSWER: Duration = Duration::from_secs(100);
/// Keys are made so far apart, and no more of them than a token lists in a moment.
const CREATE_EVERY: Duration = Duration::from_millis(1_500);
const MOST_KEYS: usize = 300;

pub struct Callers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// The first keys must be there.
    pub fn start(clients: &Clients, store: &str, history: &Arc<History>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |number: u64| Caller {
            clients: clients.clone(),
            history: history.clone(),
            store: store.to_owned(),
            dice: Dice::new(seed ^ (number + 1) << 32),
            name: format!("caller-{number}"),
            haste: if number < HASTY { Haste::NoPause } else { Haste::Pauses },
        };
        let users = (0..CALLERS).map(|number| tokio::spawn(use_keys(caller(number), stop.clone())));
        let mut tasks: Vec<_> = users.collect();
        tasks.push(tokio::spawn(make_keys(caller(CALLERS), stop.clone())));
        Self { stop, tasks }
    }

    /// Ends the callers, each after its present call.
    pub async fn stop(self) {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.expect("callers do not panic");
        }
    }
}

async fn use_keys(mut caller: Caller, stop: Arc<AtomicBool>) {
    while !stop.load(Relaxed) {
        let pause = match caller.once().await {
            Ok(()) if caller.haste == Haste::NoPause => continue,
            Ok(()) => caller.dice.millis(10, 60),
            Err(Refused) => caller.dice.millis(100, 200),
        };
        tokio::time::sleep(pause).await;
    }
}

async fn make_keys(mut caller: Caller, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(Relaxed) {
        number += 1;
        if caller.history.keys().len() < MOST_KEYS {
            let request = format!("request-{number}");
            // Until it is known, or the soak ends.
            while caller.create(&request).await.is_err() && !stop.load(Relaxed) {
                tokio::time::sleep(caller.dice.millis(100, 400)).await;
            }
        }
        // And now and then one that was answered long ago.
        let known = caller.history.creations();
        if !known.is_empty() && caller.dice.one_in(3) {
            let _ = caller.create(&caller.dice.clone().pick(&known).0).await;
        }
        tokio::time::sleep(CREATE_EVERY).await;
    }
}

/// It is in the history already.
#[derive(Debug)]
pub struct Refused;

pub struct Caller {
    pub clients: Clients,
    pub history: Arc<History>,
    pub store: String,
    pub dice: Dice,
    pub name: String,
    pub haste: Haste,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    Pauses,
    /// And mostly decrypts, so that there is not too much to look at in the end.
    NoPause,
}

impl Caller {
    async fn once(&mut self) -> Result<(), Refused> {
        let sealed = self.history.any_sealed(self.dice.throw());
        let usual = if self.haste == Haste::NoPause && !self.dice.one_in(5) { 7 } else { 0 };
        match (self.dice.below(20).max(usual), sealed) {
            (0..=6, _) | (_, None) => self.encrypt().await,
            (7..=13, Some(sealed)) => self.decrypt(&sealed).await,
            (14..=15, Some(_)) => self.generate_data_key().await,
            (16, Some(_)) => self.generate_random().await,
            (17..=18, Some(sealed)) => self.decrypt_bad(&sealed).await,
            (_, Some(sealed)) => self.describe(&sealed.key).await,
        }
    }

    async fn encrypt(&mut self) -> Result<(), Refused> {
        let (key, context) = (self.any_key(), self.any_context());
        let length = if self.dice.one_in(50) { 4_096 } else { 1 + self.dice.below(200) };
        let plaintext = self.dice.bytes(length);
        let request = pb::EncryptRequest {
            key_id: key.clone(),
            plaintext: plaintext.clone(),
            encryption_context: in_a_map(&context),
            ..Default::default()
        };
        let mut crypto = self.clients.crypto.clone();
        let ciphertext = self.ask(Operation::Encrypt, &key, crypto.encrypt(request)).await?.into_inner().ciphertext;
        self.history.sealed(Sealed { key, context, plaintext, ciphertext });
        Ok(())
    }

    /// What was sealed must open, to what it was: now and at any time.
    pub async fn decrypt(&mut self, sealed: &Sealed) -> Result<(), Refused> {
        let request = pb::DecryptRequest {
            ciphertext: sealed.ciphertext.clone(),
            encryption_context: in_a_map(&sealed.context),
            ..Default::default()
        };
        let mut crypto = self.clients.crypto.clone();
        let plaintext =
            self.ask(Operation::Decrypt, &sealed.key, crypto.decrypt(request)).await?.into_inner().plaintext;
        if plaintext != sealed.plaintext {
            self.history.violated(format!("a ciphertext under {} opened to something else", sealed.key));
        }
        Ok(())
    }

    async fn decrypt_bad(&mut self, sealed: &Sealed) -> Result<(), Refused> {
        let (mut ciphertext, mut context) = (sealed.ciphertext.clone(), sealed.context.clone());
        if self.dice.one_in(2) {
            // Behind the header, which names the key.
            let at = ciphertext.len() - 1 - self.dice.below(16);
            ciphertext[at] ^= 1 << self.dice.below(8);
        } else {
            context.push('x');
        }
        let request = pb::DecryptRequest { ciphertext, encryption_context: in_a_map(&context), ..Default::default() };
        let mut crypto = self.clients.crypto.clone();
        if self.ask(Operation::DecryptBad, &sealed.key, crypto.decrypt(request)).await.is_ok() {
            self.history.violated(format!("a ciphertext under {} opened though it was changed", sealed.key));
        }
        Ok(())
    }

    async fn generate_data_key(&mut self) -> Result<(), Refused> {
        let (key, context) = (self.any_key(), self.any_context());
        let request = pb::GenerateDataKeyRequest {
            key_id: key.clone(),
            encryption_context: in_a_map(&context),
            length: Some(pb::generate_data_key_request::Length::NumberOfBytes(32)),
            ..Default::default()
        };
        let mut crypto = self.clients.crypto.clone();
        let made = self.ask(Operation::GenerateDataKey, &key, crypto.generate_data_key(request)).await?.into_inner();
        let pb::GenerateDataKeyResponse { plaintext, ciphertext, .. } = made;
        self.history.sealed(Sealed { key, context, plaintext, ciphertext });
        Ok(())
    }

    async fn generate_random(&mut self) -> Result<(), Refused> {
        let request = pb::GenerateRandomRequest { number_of_bytes: 24, ..Default::default() };
        let mut crypto = self.clients.crypto.clone();
        let random = self.ask(Operation::GenerateRandom, "none", crypto.generate_random(request)).await?.into_inner();
        if random.plaintext.len() != 24 || random.plaintext.iter().all(|byte| *byte == 0) {
            self.history.violated("random bytes that are none".to_owned());
        }
        Ok(())
    }

    async fn describe(&mut self, key: &str) -> Result<(), Refused> {
        let request = pb::DescribeKeyRequest { key_id: key.to_owned(), ..Default::default() };
        let mut keys = self.clients.keys.clone();
        let told = self.ask(Operation::DescribeKey, key, keys.describe_key(request)).await?.into_inner();
        let state = told.key.map(|key| key.state());
        if state != Some(pb::KeyState::Enabled) {
            self.history.violated(format!("acknowledged key {key} is {state:?}"));
        }
        Ok(())
    }

    /// Asks for a key; the same request may be sent over and over.
    pub async fn create(&mut self, request: &str) -> Result<(), Refused> {
        self.history.creation_asked(request);
        let message = pb::CreateKeyRequest {
            key_store_id: self.store.clone(),
            request_id: request.to_owned(),
            ..Default::default()
        };
        let mut keys = self.clients.keys.clone();
        let made = self.ask(Operation::CreateKey, request, keys.create_key(message)).await?.into_inner();
        let key = made.key.expect("it is told").key_id;
        self.history.created(request, key);
        Ok(())
    }

    async fn ask<T>(
        &self,
        operation: Operation,
        key: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Refused> {
        let asked = self.history.ask();
        match tokio::time::timeout(NO_ANSWER, call).await {
            Ok(Ok(answer)) => {
                self.history.done(operation);
                Ok(answer)
            }
            Ok(Err(status)) => {
                self.history.refused(asked, operation, key, &status);
                Err(Refused)
            }
            Err(_) => {
                self.history.violated(format!("{operation:?} under {key} was not answered within {NO_ANSWER:?}"));
                Err(Refused)
            }
        }
    }

    fn any_key(&mut self) -> String {
        let keys = self.history.keys();
        self.dice.pick(&keys)
    }

    fn any_context(&mut self) -> String {
        if self.dice.one_in(4) { String::new() } else { format!("{} {}", self.name, self.dice.throw()) }
    }
}

fn in_a_map(context: &str) -> HashMap<String, String> {
    if context.is_empty() { HashMap::new() } else { HashMap::from([("made by".to_owned(), context.to_owned())]) }
}
