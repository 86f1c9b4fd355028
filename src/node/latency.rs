//! How long a node's recent operations took, in a fixed number of counters: nothing here grows with traffic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Latencies are told of the last one to two windows.
const WINDOW: Duration = Duration::from_secs(10);
/// Four buckets for each doubling, from 1 µs to beyond a minute.
const BUCKETS: usize = 4 * 27;

/// What recent operations took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
}

/// Counts operations by how long they took. Written by many, without locks.
#[derive(Debug)]
pub(super) struct Latencies {
    began: Instant,
    /// The window's number that `counts[number % 2]` belongs to.
    numbers: [AtomicU64; 2],
    counts: [[AtomicU32; BUCKETS]; 2],
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            numbers: [const { AtomicU64::new(0) }; 2],
            counts: [const { [const { AtomicU32::new(0) }; BUCKETS] }; 2],
        }
    }
}

impl Latencies {
    pub(super) fn note(&self, took: Duration, now: Instant) {
        let number = self.window(now);
        let side = usize::from(number % 2 == 1);
        if self.numbers[side].swap(number, Relaxed) != number {
            // A few operations counted by others at this very moment may be lost: an estimate survives that.
            self.counts[side].iter().for_each(|count| count.store(0, Relaxed));
        }
        self.counts[side][bucket(took)].fetch_add(1, Relaxed);
    }

    /// `None` without recent operations.
    pub(super) fn recent(&self, now: Instant) -> Option<Latency> {
        let number = self.window(now);
        let mut counts = [0_u64; BUCKETS];
        for side in 0..2 {
            if number - self.numbers[side].load(Relaxed).min(number) <= 1 {
                for (sum, count) in counts.iter_mut().zip(&self.counts[side]) {
                    *sum += u64::from(count.load(Relaxed));
                }
            }
        }
        let all: u64 = counts.iter().sum();
        let below = |share: u64| {
            let mut seen = 0;
            let found = counts.iter().position(|count| {
                seen += count;
                seen * 100 >= all * share
            });
            upper_end(found.unwrap_or(BUCKETS - 1))
        };
        (all > 0).then(|| Latency { p50: below(50), p99: below(99) })
    }

    fn window(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began).as_millis();
        // From 2, so that a side that was never written is of no window that counts.
        2 + u64::try_from(since / WINDOW.as_millis()).unwrap_or(u64::MAX - 2)
    }
}

fn bucket(took: Duration) -> usize {
    let micros = took.as_micros().max(1) as f64;
    ((micros.log2() * 4.0) as usize).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    Duration::from_secs_f64(2_f64.powf((bucket + 1) as f64 / 4.0) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_recent_operations_alone() {
        let latencies = Latencies::default();
        let now = latencies.began;
        assert_eq!(latencies.recent(now), None);
        (0..98).for_each(|_| latencies.note(Duration::from_micros(100), now));
        (0..2).for_each(|_| latencies.note(Duration::from_millis(50), now));
        let recent = latencies.recent(now).unwrap();
        assert!((100..125).contains(&recent.p50.as_micros()), "{recent:?}");
        assert!((50..63).contains(&recent.p99.as_millis()), "{recent:?}");
        assert_eq!(latencies.recent(now + WINDOW), Some(recent), "one window on, they still count");
        assert_eq!(latencies.recent(now + 2 * WINDOW), None, "two windows on, they do not");
    }

    #[test]
    fn every_duration_has_a_bucket_that_reaches_just_beyond_it() {
        for micros in [0, 1, 7, 1_000, 123_456, 60_000_000] {
            let took = Duration::from_micros(micros);
            let end = upper_end(bucket(took));
            assert!(end >= took && end <= took.max(Duration::from_micros(1)) * 5 / 4, "{took:?} {end:?}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }
}
