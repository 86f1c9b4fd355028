//! How far a command has come, on a terminal, for a person who waits. A line that is written over; nothing more is wanted of
//! it, and so no library.

use std::io::Write as _;
use std::time::{Duration, Instant};

const REDRAWN_EVERY: Duration = Duration::from_millis(100);
/// What is done sooner needs no bar.
const FIRST_AFTER: Duration = Duration::from_millis(500);
const WIDTH: u64 = 30;

pub(super) struct Progress {
    /// Nobody watches.
    silent: bool,
    total: Option<u64>,
    done: u64,
    began: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    pub(super) fn new(total: Option<u64>, watched: bool) -> Self {
        Self { silent: !watched, total, done: 0, began: Instant::now(), drawn: None }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.silent {
            return;
        }
        let now = Instant::now();
        let due = self.drawn.map_or(self.began + FIRST_AFTER, |drawn| drawn + REDRAWN_EVERY);
        if now >= due {
            self.drawn = Some(now);
            // That nobody reads it is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(self.done, self.total, now - self.began));
        }
    }
}

impl Drop for Progress {
    /// The line goes, so that what follows stands alone.
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(done: u64, total: Option<u64>, taken: Duration) -> String {
    let rate = (done as f64 / taken.as_secs_f64().max(0.001)) as u64;
    let told = format!("{} at {}/s", size(done), size(rate));
    let Some(total) = total.filter(|total| *total > 0) else { return told };
    // A file that grows meanwhile is read to its end.
    let done = done.min(total);
    let full = (done * WIDTH / total) as usize;
    let bar = format!("{}{}", "#".repeat(full), "-".repeat(WIDTH as usize - full));
    format!("[{bar}] {:3} %  {told} of {}", done * 100 / total, size(total))
}

/// For people: three digits or so.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut number = bytes as f64;
    while number >= 1_024.0 && unit + 1 < UNITS.len() {
        number /= 1_024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{number:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_much_is_done_and_how_fast() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line(512 << 20, Some(1 << 30), second),
            "[###############---------------]  50 %  512.0 MiB at 512.0 MiB/s of 1.0 GiB"
        );
        assert_eq!(line(1_000, None, second), "1000 bytes at 1000 bytes/s");
        assert!(line(7, Some(5), second).contains("100 %"), "a file that grew");
        assert_eq!(line(0, Some(0), Duration::ZERO), "0 bytes at 0 bytes/s");
    }
}
