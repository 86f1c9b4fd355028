//! The time in which operations count: after a warm-up, and until the end.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Connections, caches and batches settle in this time.
const WARM_UP: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    WarmUp,
    Counting,
    Over,
}

/// Shared by whoever works and whoever watches the clock.
pub struct Window(AtomicU8);

impl Window {
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    pub fn phase(&self) -> Phase {
        match self.0.load(Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Counting,
            2.. => Phase::Over,
        }
    }

    /// Lets the workers run for `length`, after the warm-up. Says how long it was in truth, and what CPU time `spent` grew by.
    pub fn pass(&self, length: Duration, spent: impl Fn() -> Duration) -> (Duration, Duration) {
        std::thread::sleep(WARM_UP);
        let (before, began) = (spent(), Instant::now());
        self.0.store(1, Relaxed);
        std::thread::sleep(length);
        self.0.store(2, Relaxed);
        (began.elapsed(), spent().saturating_sub(before))
    }

    /// Ends it early: somebody failed.
    pub fn close(&self) {
        self.0.store(2, Relaxed);
    }
}

/// Times of single operations, in nanoseconds.
#[derive(Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    pub fn note(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
    }

    pub fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// What all this comes to.
    pub fn sum_up(mut self, (elapsed, cpu): (Duration, Duration)) -> Measured {
        self.0.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "a measurement has few digits")]
        let operations = self.0.len() as f64;
        Measured {
            per_second: operations / elapsed.as_secs_f64(),
            median_us: self.at_percent(50),
            slowest_percent_us: self.at_percent(99),
            cpu_us: cpu.as_secs_f64() * 1e6 / operations.max(1.0),
        }
    }

    /// Of sorted times; 0 when there are none.
    fn at_percent(&self, percent: usize) -> f64 {
        let index = self.0.len() * percent / 100;
        self.0.get(index).map_or(0.0, |nanoseconds| f64::from(*nanoseconds) / 1e3)
    }
}

/// One cell of one round.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Measured {
    pub per_second: f64,
    /// Half of the operations took no longer.
    pub median_us: f64,
    /// One in a hundred took longer.
    pub slowest_percent_us: f64,
    /// The server's CPU time for one operation.
    pub cpu_us: f64,
}
