//! Requests that do harm are held back for a while, so that nobody else suffers for them.
//!
//! What is held back is a caller's operation on a key, or on every key when it is flooded over many; never the
//! caller as a whole. Two things lead here: workers that died under such a request, on one HSM after the other;
//! and a flood of ciphertexts that are none of the key's, each of which costs an HSM two decryptions.
//!
//! ```text
//!   bad ciphertext ─▶ floods: counted for a second ─too many─▶ held ◀── two workers died
//!                                                               ▲
//!   every request ─▶ is anybody held back now? ─yes─▶ is it this one?
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::KeyId;
use crate::telemetry::Count;

/// After two workers died under it, a request is not let through for this long.
const AFTER_DEATHS: Duration = Duration::from_secs(60);
/// So many bad ciphertexts under one key in a window are a mistake; more are held back until its end.
const BAD_OF_A_KEY: u32 = 100;
/// The same under all keys together, so that nobody gets by with taking turns among keys.
const BAD_OF_ALL: u32 = 400;
const WINDOW: Duration = Duration::from_secs(1);
/// So many are counted or held back at once. Beyond that, newcomers are not counted, and who would be free first is.
const MOST: usize = 4_096;

/// Who does what with which key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Suspect {
    pub(super) caller: String,
    pub(super) key: KeyId,
    /// The rpc's name.
    pub(super) operation: &'static str,
}

/// Who does what, whatever the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    caller: String,
    operation: &'static str,
}

/// What is held back: one key's, or with `None` every key's.
type Held = (Source, Option<KeyId>);

/// The bad ciphertexts of a source in one window.
#[derive(Debug)]
struct Flood {
    until: Instant,
    /// Without what a key had beyond its own measure: a flood under one key alone is not held against the others.
    of_all: u32,
    /// No more than may be bad in all, and what was on its way when that was reached.
    of_key: HashMap<KeyId, u32>,
}

#[derive(Debug)]
pub(super) struct Holdback {
    began: Instant,
    /// When the last of them is free, in microseconds since it began: after that nobody takes a lock to look.
    all_free: AtomicU64,
    held: RwLock<HashMap<Held, Instant>>,
    floods: Mutex<HashMap<Source, Flood>>,
    refused: Count,
}

impl Default for Holdback {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            all_free: AtomicU64::new(0),
            held: RwLock::default(),
            floods: Mutex::default(),
            refused: Count::default(),
        }
    }
}

impl Holdback {
    /// `Err` tells how much longer it is held back.
    pub(super) fn check(&self, suspect: impl FnOnce() -> Suspect, now: Instant) -> Result<(), Duration> {
        if self.all_are_free(now) {
            return Ok(());
        }
        let (source, key) = suspect().split();
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut what = (source, Some(key));
        let of_key = held.get(&what).copied();
        what.1 = None;
        let until = of_key.max(held.get(&what).copied()).filter(|until| *until > now);
        match until {
            None => Ok(()),
            Some(until) => {
                self.refused.one_more();
                Err(until - now)
            }
        }
    }

    /// How many requests were held back so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.so_far()
    }

    /// How many of whatever may be held back are, at the moment.
    pub(super) fn held(&self, now: Instant) -> usize {
        self.held.read().unwrap_or_else(PoisonError::into_inner).values().filter(|until| **until > now).count()
    }

    /// Two workers died under it.
    pub(super) fn deadly(&self, suspect: Suspect, now: Instant) {
        let (source, key) = suspect.split();
        self.hold((source, Some(key)), now + AFTER_DEATHS, now);
    }

    /// Its ciphertext was none of the key's.
    pub(super) fn bad_ciphertext(&self, suspect: Suspect, now: Instant) {
        if let Some((what, until)) = self.count(suspect, now) {
            self.hold(what, until, now);
        }
    }

    /// What there were too many of with this one, and when its window ends.
    fn count(&self, suspect: Suspect, now: Instant) -> Option<(Held, Instant)> {
        let (source, key) = suspect.split();
        let mut floods = self.floods.lock().unwrap_or_else(PoisonError::into_inner);
        if floods.len() >= MOST && !floods.contains_key(&source) {
            floods.retain(|_, flood| flood.until > now);
            if floods.len() >= MOST {
                return None;
            }
        }
        let flood = floods.entry(source.clone()).or_insert_with(|| Flood::new(now));
        if flood.until <= now {
            *flood = Flood::new(now);
        }
        let (of_key, of_all) = flood.add(key);
        let what = if of_all > BAD_OF_ALL {
            None
        } else if of_key > BAD_OF_A_KEY {
            Some(key)
        } else {
            return None;
        };
        Some(((source, what), flood.until))
    }

    fn hold(&self, what: Held, until: Instant, now: Instant) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let longest = held.entry(what).or_insert(until);
        *longest = until.max(*longest);
        if held.len() > MOST {
            held.retain(|_, until| *until > now);
        }
        // A flood is over within its second: what is deadly stays longest.
        if held.len() > MOST
            && let Some(first) = held.iter().min_by_key(|(_, until)| **until).map(|(what, _)| what.clone())
        {
            held.remove(&first);
        }
        self.all_free.fetch_max(self.micros(until), Relaxed);
    }

    fn all_are_free(&self, now: Instant) -> bool {
        self.micros(now) > self.all_free.load(Relaxed)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Suspect {
    fn split(self) -> (Source, KeyId) {
        (Source { caller: self.caller, operation: self.operation }, self.key)
    }
}

impl Flood {
    fn new(now: Instant) -> Self {
        Self { until: now + WINDOW, of_all: 0, of_key: HashMap::new() }
    }

    /// Counts one more; how many there were under this key, and under all.
    fn add(&mut self, key: KeyId) -> (u32, u32) {
        let of_key = self.of_key.entry(key).or_default();
        *of_key += 1;
        if *of_key <= BAD_OF_A_KEY {
            self.of_all += 1;
        }
        (*of_key, self.of_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> KeyId {
        KeyId::from_bytes([number; 16])
    }

    fn suspect(caller: &str, operation: &'static str) -> Suspect {
        Suspect { caller: caller.to_owned(), key: key(7), operation }
    }

    fn under(caller: &str, number: u8) -> Suspect {
        Suspect { key: key(number), ..suspect(caller, "Decrypt") }
    }

    #[test]
    fn a_deadly_request_is_held_back_for_a_minute_and_no_other_is() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        let check = |caller, operation, at| holdback.check(|| suspect(caller, operation), at);
        holdback.deadly(suspect("app", "Decrypt"), now);
        assert_eq!(check("app", "Decrypt", now + Duration::from_secs(1)), Err(Duration::from_secs(59)));
        assert_eq!(check("app", "Encrypt", now), Ok(()));
        assert_eq!(check("other", "Decrypt", now), Ok(()));
        assert_eq!(holdback.check(|| under("app", 8), now), Ok(()));
        assert_eq!(check("app", "Decrypt", now + AFTER_DEATHS), Ok(()));
    }

    #[test]
    fn bad_ciphertexts_are_held_back_only_in_a_flood_and_only_until_the_windows_end() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        let check = |at| holdback.check(|| suspect("app", "Decrypt"), at);
        (0..BAD_OF_A_KEY).for_each(|_| holdback.bad_ciphertext(suspect("app", "Decrypt"), now));
        assert_eq!(check(now), Ok(()));
        holdback.bad_ciphertext(suspect("app", "Decrypt"), now);
        assert_eq!(check(now), Err(WINDOW));
        (0..2 * BAD_OF_ALL).for_each(|_| holdback.bad_ciphertext(suspect("app", "Decrypt"), now));
        assert_eq!(holdback.check(|| under("app", 8), now), Ok(()), "only this key was flooded, however much");
        assert_eq!(check(now + WINDOW), Ok(()));
        holdback.bad_ciphertext(suspect("app", "Decrypt"), now + WINDOW);
        assert_eq!(check(now + WINDOW), Ok(()), "a new window begins with none");
    }

    #[test]
    fn a_flood_that_takes_turns_among_keys_is_held_back_under_every_key() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        let numbers = || (0..=u8::MAX).cycle();
        numbers().take(BAD_OF_ALL as usize).for_each(|number| holdback.bad_ciphertext(under("app", number), now));
        assert!((0..=u8::MAX).all(|number| holdback.check(|| under("app", number), now).is_ok()));
        holdback.bad_ciphertext(under("app", 9), now);
        assert!((0..=u8::MAX).all(|number| holdback.check(|| under("app", number), now) == Err(WINDOW)));
        assert_eq!(holdback.check(|| suspect("app", "Encrypt"), now), Ok(()));
        assert_eq!(holdback.check(|| under("other", 9), now), Ok(()));
        assert_eq!(holdback.check(|| under("app", 9), now + WINDOW), Ok(()));
    }

    #[test]
    fn nobody_is_even_looked_up_unless_somebody_is_held_back_at_the_moment() {
        let (holdback, now) = (Holdback::default(), Instant::now() + Duration::from_millis(1));
        let unasked = |at| holdback.check(|| panic!("nobody is held back"), at);
        assert_eq!(unasked(now), Ok(()));
        holdback.bad_ciphertext(suspect("app", "Decrypt"), now);
        assert_eq!(unasked(now), Ok(()), "one bad ciphertext is no flood");
        holdback.deadly(suspect("app", "Decrypt"), now);
        assert_eq!(unasked(now + AFTER_DEATHS + Duration::from_millis(1)), Ok(()), "it is over");
    }

    #[test]
    fn no_number_of_suspects_grows_it_beyond_its_bound_or_frees_a_deadly_request() {
        let (holdback, now) = (Holdback::default(), Instant::now());
        holdback.deadly(suspect("app", "Decrypt"), now);
        let later = now + Duration::from_millis(1);
        for number in 0..MOST + 300 {
            let source = Source { caller: number.to_string(), operation: "Decrypt" };
            holdback.bad_ciphertext(suspect(&source.caller, "Decrypt"), later);
            holdback.hold((source, None), later + WINDOW, later);
        }
        assert_eq!(holdback.floods.lock().unwrap().len(), MOST);
        assert_eq!(holdback.held.read().unwrap().len(), MOST);
        assert!(holdback.check(|| suspect("app", "Decrypt"), later).is_err());

        // Windows that are over make room again.
        holdback.bad_ciphertext(suspect("late", "Decrypt"), later + WINDOW);
        assert_eq!(holdback.floods.lock().unwrap().len(), 1);
        holdback.deadly(suspect("late", "Decrypt"), later + WINDOW);
        assert_eq!(holdback.held.read().unwrap().len(), 2);
    }
}
