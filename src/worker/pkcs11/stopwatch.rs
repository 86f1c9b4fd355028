//! How long a session's thread has been at a request: it tells a call that is stuck from a thread that waits for others.
//!
//! A thread that waits until another has done with the token's objects is in no call of the library. Its time begins
//! anew when its turn has come: it may wait longer than its own call may take.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const STOPPED: u64 = 0;
const WAITING: u64 = u64::MAX;

/// Written by its session's thread alone, read by whoever answers a ping.
#[derive(Debug)]
pub struct Stopwatch {
    since: Instant,
    /// Nanoseconds after `since`, [`STOPPED`] or [`WAITING`].
    began: AtomicU64,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self { since: Instant::now(), began: AtomicU64::new(STOPPED) }
    }
}

impl Stopwatch {
    pub fn start(&self) -> Instant {
        let now = Instant::now();
        let after = u64::try_from((now - self.since).as_nanos()).unwrap_or(u64::MAX);
        self.began.store(after.clamp(STOPPED + 1, WAITING - 1), Relaxed);
        now
    }

    pub fn stop(&self) {
        self.began.store(STOPPED, Relaxed);
    }

    /// Whether the thread is at a request, or waits to be.
    pub fn is_busy(&self) -> bool {
        self.began.load(Relaxed) != STOPPED
    }

    /// `None` while the thread has nothing to do, or waits for another.
    pub fn runs_for(&self) -> Option<Duration> {
        match self.began.load(Relaxed) {
            STOPPED | WAITING => None,
            began => Some(self.since.elapsed().saturating_sub(Duration::from_nanos(began))),
        }
    }

    /// Waits for another thread, and counts from there.
    pub(super) fn pause<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.began.store(WAITING, Relaxed);
        let waited = wait();
        self.start();
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_another_is_busy_and_in_no_call() {
        let stopwatch = Stopwatch::default();
        assert!(!stopwatch.is_busy() && stopwatch.runs_for().is_none());
        stopwatch.start();
        std::thread::sleep(Duration::from_millis(20));
        assert!(stopwatch.runs_for().unwrap() >= Duration::from_millis(20));
        let waited = Instant::now();
        stopwatch.pause(|| assert!(stopwatch.is_busy() && stopwatch.runs_for().is_none()));
        assert!(stopwatch.runs_for().unwrap() <= waited.elapsed(), "it counts from the beginning again");
        stopwatch.stop();
        assert!(!stopwatch.is_busy() && stopwatch.runs_for().is_none());
    }
}
