//! What is counted while calls run: by any thread, without a lock and without allocating.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper ends of the buckets, in nanoseconds: from what an HSM's library takes to what no caller waits for.
const BOUNDS: [u64; 17] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// Counts up, from the start of the process.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn one_more(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// For a count that goes down as well: of what is under way.
    pub fn one_less(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub fn so_far(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts durations by how long they were, from the start of the process.
#[derive(Debug, Default)]
pub struct Durations {
    /// One more than there are bounds: beyond the last one there is no end.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    pub fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS.partition_point(|bound| *bound < took)].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(took, Relaxed);
    }

    pub fn so_far(&self) -> Spread {
        Spread {
            counts: std::array::from_fn(|place| self.buckets[place].load(Relaxed)),
            nanoseconds: self.nanoseconds.load(Relaxed),
        }
    }
}

/// How durations were spread at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    counts: [u64; BOUNDS.len() + 1],
    nanoseconds: u64,
}

impl Spread {
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds).as_secs_f64()
    }

    /// Each bucket's upper end, in seconds, and what is in it alone.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let ends = BOUNDS.iter().map(|bound| *bound as f64 / 1e9).chain([f64::INFINITY]);
        ends.zip(self.counts).collect()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, more)| *sum += more);
        self.nanoseconds += other.nanoseconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_reaches_it() {
        let durations = Durations::default();
        for took in [Duration::ZERO, Duration::from_micros(100), Duration::from_micros(101), Duration::from_secs(31)] {
            durations.note(took);
        }
        let spread = durations.so_far();
        let buckets: Vec<_> = spread.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(buckets, [(0.0001, 2), (0.00025, 1), (f64::INFINITY, 1)]);
        assert_eq!((spread.count(), spread.seconds()), (4, 31.000201));
    }

    #[test]
    fn no_duration_is_too_long() {
        let durations = Durations::default();
        durations.note(Duration::MAX);
        assert_eq!(durations.so_far().count(), 1);
    }
}
