//! Requests that do harm are held back for a while, so that nobody else suffers for them.
//!
//! What is held back is a caller's operation on a key, never the caller as a whole. Two things lead here:
//! workers that died under such a request, on one HSM after the other; and a flood of ciphertexts that
//! are none of the key's, each of which costs an HSM two decryptions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::KeyId;

/// After two workers died under it, a request is not let through for this long.
const AFTER_DEATHS: Duration = Duration::from_secs(60);
/// So many bad ciphertexts in a window are a mistake; more are held back until its end.
const BAD_IN_A_WINDOW: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);
/// Suspects remembered. Beyond that, those are forgotten that are held back no longer, and then any.
const MOST: usize = 4_096;

/// Who does what with which key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Suspect {
    pub(super) caller: String,
    pub(super) key: KeyId,
    /// The rpc's name.
    pub(super) operation: &'static str,
}

#[derive(Debug)]
struct Record {
    window: Instant,
    bad: u32,
    held_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Holdback {
    suspects: Mutex<HashMap<Suspect, Record>>,
    /// Their number, so that nobody takes the lock while there are none.
    count: AtomicUsize,
}

impl Holdback {
    /// `Err` tells how much longer it is held back.
    pub(super) fn check(&self, suspect: impl FnOnce() -> Suspect, now: Instant) -> Result<(), Duration> {
        if self.count.load(Relaxed) == 0 {
            return Ok(());
        }
        let suspects = self.lock();
        let held = suspects.get(&suspect()).and_then(|record| record.held_until).filter(|until| *until > now);
        held.map_or(Ok(()), |until| Err(until - now))
    }

    /// Two workers died under it.
    pub(super) fn deadly(&self, suspect: Suspect, now: Instant) {
        let mut suspects = self.lock();
        self.record(&mut suspects, suspect, now).held_until = Some(now + AFTER_DEATHS);
    }

    /// Its ciphertext was none of the key's.
    pub(super) fn bad_ciphertext(&self, suspect: Suspect, now: Instant) {
        let mut suspects = self.lock();
        let record = self.record(&mut suspects, suspect, now);
        if now >= record.window + WINDOW {
            (record.window, record.bad) = (now, 0);
        }
        record.bad += 1;
        if record.bad > BAD_IN_A_WINDOW {
            record.held_until = record.held_until.max(Some(record.window + WINDOW));
        }
    }

    fn record<'a>(&self, suspects: &'a mut HashMap<Suspect, Record>, suspect: Suspect, now: Instant) -> &'a mut Record {
        if suspects.len() >= MOST && !suspects.contains_key(&suspect) {
            suspects.retain(|_, record| record.held_until.is_some_and(|until| until > now));
            if suspects.len() >= MOST {
                suspects.clear();
            }
        }
        let fresh = Record { window: now, bad: 0, held_until: None };
        if !suspects.contains_key(&suspect) {
            self.count.store(suspects.len() + 1, Relaxed);
        }
        suspects.entry(suspect).or_insert(fresh)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Suspect, Record>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(caller: &str, operation: &'static str) -> Suspect {
        Suspect { caller: caller.to_owned(), key: KeyId::from_bytes([7; 16]), operation }
    }

    #[test]
    fn a_deadly_request_is_held_back_for_a_minute_and_no_other_is() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        let check = |caller, operation, at| holdback.check(|| suspect(caller, operation), at);
        holdback.deadly(suspect("app", "Decrypt"), now);
        assert_eq!(check("app", "Decrypt", now + Duration::from_secs(1)), Err(Duration::from_secs(59)));
        assert_eq!(check("app", "Encrypt", now), Ok(()));
        assert_eq!(check("other", "Decrypt", now), Ok(()));
        assert_eq!(check("app", "Decrypt", now + AFTER_DEATHS), Ok(()));
    }

    #[test]
    fn bad_ciphertexts_are_held_back_only_in_a_flood_and_only_until_the_windows_end() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        let check = |at| holdback.check(|| suspect("app", "Decrypt"), at);
        (0..BAD_IN_A_WINDOW).for_each(|_| holdback.bad_ciphertext(suspect("app", "Decrypt"), now));
        assert_eq!(check(now), Ok(()));
        holdback.bad_ciphertext(suspect("app", "Decrypt"), now);
        assert_eq!(check(now), Err(WINDOW));
        assert_eq!(check(now + WINDOW), Ok(()));
        holdback.bad_ciphertext(suspect("app", "Decrypt"), now + WINDOW);
        assert_eq!(check(now + WINDOW), Ok(()), "a new window begins with none");
    }

    #[test]
    fn no_number_of_suspects_grows_it_beyond_its_bound() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        for number in 0..3 * MOST {
            holdback.bad_ciphertext(suspect(&number.to_string(), "Decrypt"), now);
        }
        assert!(holdback.lock().len() <= MOST);
    }
}
