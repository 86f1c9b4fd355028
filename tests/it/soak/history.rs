//! What callers were told: what was acknowledged, and what was refused, each judged by what the API promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::schedule::Phase;

/// A request that was the death of two workers is held back for so long.
const HELD_BACK: Duration = Duration::from_secs(61);
/// How far apart a thing and our seeing it may be.
const SLACK: Duration = Duration::from_millis(1_000);

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Encrypt,
    Decrypt,
    /// Of a ciphertext that was changed, or in another context.
    DecryptBad,
    GenerateDataKey,
    GenerateRandom,
    DescribeKey,
    CreateKey,
}

/// A ciphertext that was acknowledged, and what it must always open to.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub key: String,
    pub context: String,
    pub plaintext: Vec<u8>,
    pub ciphertext: Vec<u8>,
}

/// When a call began, and in which phase.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    began: Instant,
    phase: (u64, Phase),
}

#[derive(Debug)]
struct Refusal {
    operation: Operation,
    key: String,
    began: Instant,
    ended: Instant,
    /// Anything went at some time while it was under way.
    wild: bool,
    code: Code,
    reason: String,
    message: String,
}

/// Everything that callers and watchers have to say. Shared by all.
#[derive(Debug)]
pub struct History(Mutex<Told>);

#[derive(Debug)]
struct Told {
    phase: (u64, Phase),
    /// By the request that made it.
    keys: BTreeMap<String, String>,
    /// Requests whose answer is not known.
    unknown: BTreeSet<String>,
    sealed: Vec<Sealed>,
    done: BTreeMap<Operation, u64>,
    refusals: Vec<Refusal>,
    /// When the daemon was down.
    down: Vec<(Instant, Option<Instant>)>,
    /// Which HSM's worker was seen to be gone, and when.
    deaths: Vec<(Instant, String)>,
    violations: Vec<String>,
}

impl History {
    pub fn new() -> Self {
        Self(Mutex::new(Told {
            phase: (0, Phase::OneAtATime),
            keys: BTreeMap::new(),
            unknown: BTreeSet::new(),
            sealed: Vec::new(),
            done: BTreeMap::new(),
            refusals: Vec::new(),
            down: Vec::new(),
            deaths: Vec::new(),
            violations: Vec::new(),
        }))
    }

    pub fn enter(&self, phase: Phase) {
        let mut told = self.lock();
        told.phase = (told.phase.0 + 1, phase);
    }

    pub fn daemon_goes_down(&self) {
        self.lock().down.push((Instant::now(), None));
    }

    pub fn daemon_is_up(&self) {
        if let Some((_, up)) = self.lock().down.last_mut() {
            *up = Some(Instant::now());
        }
    }

    pub fn worker_gone(&self, hsm: &str) {
        self.lock().deaths.push((Instant::now(), hsm.to_owned()));
    }

    pub fn ask(&self) -> Asked {
        Asked { began: Instant::now(), phase: self.lock().phase }
    }

    pub fn done(&self, operation: Operation) {
        *self.lock().done.entry(operation).or_default() += 1;
    }

    pub fn refused(&self, asked: Asked, operation: Operation, key: &str, status: &Status) {
        let reason = status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
        let mut told = self.lock();
        let wild = told.phase != asked.phase || asked.phase.1 == Phase::AnythingGoes;
        told.refusals.push(Refusal {
            operation,
            key: key.to_owned(),
            began: asked.began,
            ended: Instant::now(),
            wild,
            code: status.code(),
            reason,
            message: status.message().to_owned(),
        });
    }

    /// Something happened that must never happen.
    pub fn violated(&self, what: String) {
        self.lock().violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub fn sealed(&self, sealed: Sealed) {
        self.lock().sealed.push(sealed);
    }

    /// One of the ciphertexts, chosen by `number`.
    pub fn any_sealed(&self, number: u64) -> Option<Sealed> {
        let told = self.lock();
        let count = told.sealed.len() as u64;
        (count > 0).then(|| told.sealed[usize::try_from(number % count).expect("an index")].clone())
    }

    pub fn all_sealed(&self) -> Vec<Sealed> {
        self.lock().sealed.clone()
    }

    pub fn creation_asked(&self, request: &str) {
        self.lock().unknown.insert(request.to_owned());
    }

    /// A request must always give the same key, and no key may come from two.
    pub fn created(&self, request: &str, key: String) {
        let mut told = self.lock();
        told.unknown.remove(request);
        let other = told.keys.iter().find(|(other, made)| *other != request && **made == key).map(|it| it.0.clone());
        if let Some(other) = other {
            told.violations.push(format!("requests {request} and {other} were both told of key {key}"));
        }
        match told.keys.insert(request.to_owned(), key.clone()) {
            Some(before) if before != key => {
                told.violations.push(format!("request {request} was told of key {before} and then of {key}"));
            }
            Some(_) | None => {}
        }
    }

    pub fn unknown_creations(&self) -> Vec<String> {
        self.lock().unknown.iter().cloned().collect()
    }

    /// The request, and the key that it made.
    pub fn creations(&self) -> Vec<(String, String)> {
        self.lock().keys.iter().map(|(request, key)| (request.clone(), key.clone())).collect()
    }

    pub fn keys(&self) -> Vec<String> {
        self.lock().keys.values().cloned().collect()
    }

    /// The refusals that the API does not promise.
    pub fn unpromised(&self) -> Vec<String> {
        self.unpromised_before(Instant::now())
    }

    /// The same, but for those so young that what explains them may not have been seen yet.
    pub fn unpromised_for_certain(&self) -> Vec<String> {
        self.unpromised_before(Instant::now() - 3 * SLACK)
    }

    fn unpromised_before(&self, then: Instant) -> Vec<String> {
        let told = self.lock();
        let unpromised = told.refusals.iter().filter(|refusal| refusal.ended <= then).filter_map(|refusal| {
            let why = told.judge(refusal).err()?;
            let phase = if refusal.wild { "when anything went" } else { "when one HSM at a time was in trouble" };
            let took = refusal.ended - refusal.began;
            let Refusal { operation, code, reason, message, key, ended, .. } = refusal;
            let ago = ended.elapsed();
            Some(format!(
                "{operation:?} under {key}, {phase}: {code:?} {reason} ({message}), {ago:.1?} ago, after {took:.1?}: {why}"
            ))
        });
        unpromised.collect()
    }

    /// What was done and what was refused, in numbers.
    pub fn summary(&self) -> String {
        let told = self.lock();
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (operation, count) in &told.done {
            counts.insert(format!("{operation:?} done"), *count);
        }
        for Refusal { operation, code, reason, wild, .. } in &told.refusals {
            let phase = if *wild { "anything goes" } else { "one at a time" };
            let reason = if reason.is_empty() { "(transport)" } else { reason };
            *counts.entry(format!("{operation:?} refused, {phase}: {code:?} {reason}")).or_default() += 1;
        }
        let lines: Vec<_> = counts.into_iter().map(|(what, count)| format!("{count:8} {what}")).collect();
        format!("{}\n{:8} keys\n{:8} ciphertexts", lines.join("\n"), told.keys.len(), told.sealed.len())
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Told {
    /// Whether the API promises a refusal of this kind, at this time.
    fn judge(&self, refusal: &Refusal) -> Result<(), &'static str> {
        let creates = refusal.operation == Operation::CreateKey;
        match (refusal.code, refusal.reason.as_str()) {
            (Code::InvalidArgument, "INVALID_CIPHERTEXT") if refusal.operation == Operation::DecryptBad => Ok(()),
            // What carries no details, the daemon did not say.
            (_, "" | "DRAINING" | "CANCELLED") => {
                self.was_down(refusal).ok_or("the daemon was there, and not on its way down")
            }
            (Code::ResourceExhausted, "THROTTLING") => self.was_deadly(refusal).ok_or("it had done no harm"),
            (Code::Aborted, "OUTCOME_UNKNOWN" | "CONFLICT") => creates.then_some(()).ok_or("it makes nothing"),
            (Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded, _) => {
                (refusal.wild || creates).then_some(()).ok_or("the other HSMs were well")
            }
            (Code::Internal, _) => self.saw_two_deaths(refusal).ok_or("no two workers died under it"),
            _ => Err("nothing was wrong with the request"),
        }
    }

    fn was_down(&self, refusal: &Refusal) -> Option<()> {
        let overlaps = |(down, up): &(Instant, Option<Instant>)| {
            refusal.ended >= *down && up.is_none_or(|up| refusal.began <= up + SLACK)
        };
        self.down.iter().any(overlaps).then_some(())
    }

    /// Two workers had died under a request like this one.
    fn was_deadly(&self, refusal: &Refusal) -> Option<()> {
        let like_it = |other: &&Refusal| other.code == Code::Internal && other.key == refusal.key;
        self.refusals
            .iter()
            .filter(like_it)
            .any(|other| other.ended <= refusal.ended + SLACK && refusal.began <= other.ended + HELD_BACK)
            .then_some(())
    }

    fn saw_two_deaths(&self, refusal: &Refusal) -> Option<()> {
        let during = |at: Instant| at + SLACK >= refusal.began && at <= refusal.ended + SLACK;
        let died: BTreeSet<&str> =
            self.deaths.iter().filter(|(at, _)| during(*at)).map(|(_, hsm)| hsm.as_str()).collect();
        (refusal.wild && died.len() >= 2).then_some(())
    }
}
