//! What each thread is doing, and how long quick requests take: for the daemon's ping, and for the size of batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::link::Pace;
use crate::link::v1::{Pong, pong::Running};

use super::pkcs11::Stopwatch;

/// A batch takes about this long at most, so that no request waits longer behind others of its batch.
const LONGEST_BATCH: Duration = Duration::from_micros(200);
const MOST_IN_A_BATCH: u64 = 16;

/// A seat for each thread. Written by its thread alone, read by whoever answers a ping.
pub struct Board {
    seats: Box<[Seat]>,
    mean_ns: AtomicU64,
}

#[derive(Default)]
struct Seat {
    id: AtomicU64,
    is_slow: AtomicBool,
    stopwatch: Arc<Stopwatch>,
}

impl Board {
    pub fn new(seats: usize) -> Self {
        Self {
            seats: (0..seats).map(|_| Seat::default()).collect(),
            // No batches until something was measured.
            mean_ns: AtomicU64::new(nanoseconds(LONGEST_BATCH)),
        }
    }

    /// Notes on its seat that a thread begins a request.
    pub fn begin(&self, seat: usize, id: u64, pace: Pace) -> Instant {
        self.seats[seat].id.store(id, Relaxed);
        self.seats[seat].is_slow.store(pace != Pace::Quick, Relaxed);
        self.seats[seat].stopwatch.start()
    }

    /// Notes that the thread is done with it.
    pub fn end(&self, seat: usize) {
        self.seats[seat].stopwatch.stop();
    }

    /// For the session of the thread in this seat.
    pub fn stopwatch(&self, seat: usize) -> Arc<Stopwatch> {
        self.seats[seat].stopwatch.clone()
    }

    /// Counts a quick request into the mean.
    pub fn measured(&self, took: Duration) {
        let mean = self.mean_ns.load(Relaxed);
        // Threads may overwrite each other here; an estimate survives that.
        self.mean_ns.store(mean - mean / 8 + nanoseconds(took) / 8, Relaxed);
    }

    /// How many quick requests a thread may take at once.
    pub fn batch(&self) -> usize {
        let mean = self.mean_ns.load(Relaxed).max(1);
        let fitting = (nanoseconds(LONGEST_BATCH) / mean).clamp(1, MOST_IN_A_BATCH);
        usize::try_from(fitting).expect("at most 16")
    }

    /// How slow each request is that runs at this moment, or waits for another to let it.
    pub fn running(&self) -> impl Iterator<Item = Pace> {
        let busy = self.seats.iter().filter(|seat| seat.stopwatch.is_busy());
        busy.map(|seat| if seat.is_slow.load(Relaxed) { Pace::Slow } else { Pace::Quick })
    }

    /// What runs at this moment, beside the ping itself. Who waits for another thread is in no call that could be stuck.
    pub fn pong(&self) -> Pong {
        let running = self.seats.iter().filter_map(|seat| {
            let age_ms = u32::try_from(seat.stopwatch.runs_for()?.as_millis()).unwrap_or(u32::MAX);
            Some(Running { id: seat.id.load(Relaxed), age_ms })
        });
        Pong { running: running.collect(), resident_bytes: resident_bytes() }
    }
}

/// Memory of this process that is in RAM; 0 when the kernel does not tell.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.unwrap_or(0_u64) * 1024
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_sees_who_is_busy_and_only_them() {
        let board = Board::new(3);
        board.begin(0, 11, Pace::Quick);
        board.begin(2, 13, Pace::Slow);
        board.end(0);
        assert_eq!(board.running().collect::<Vec<_>>(), [Pace::Slow]);
        let pong = board.pong();
        assert_eq!(pong.running.iter().map(|running| running.id).collect::<Vec<_>>(), [13]);
        assert!(pong.resident_bytes > 0);
    }

    #[test]
    fn batches_grow_only_while_requests_are_quick() {
        let board = Board::new(1);
        assert_eq!(board.batch(), 1);
        (0..100).for_each(|_| board.measured(Duration::from_micros(20)));
        assert!((9..=10).contains(&board.batch()), "{}", board.batch());
        (0..100).for_each(|_| board.measured(Duration::from_nanos(10)));
        assert_eq!(board.batch(), 16);
        (0..100).for_each(|_| board.measured(Duration::from_millis(5)));
        assert_eq!(board.batch(), 1);
    }
}
