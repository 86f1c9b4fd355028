//! What a process holds in memory and has used of the processor, as Linux tells it.

use std::fmt;
use std::time::Duration;

/// Clock ticks of `/proc/<pid>/stat` in a second: part of Linux's ABI, whatever the kernel's own tick is.
const TICKS: u64 = 100;

/// Resident memory of a process, now and at its peak.
pub struct Memory {
    pub resident: Kibibytes,
    pub peak: Kibibytes,
}

pub struct Kibibytes(u64);

impl Memory {
    /// Zero when the process is gone.
    pub fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            Kibibytes(number.unwrap_or(0))
        };
        Self { resident: field("VmRSS"), peak: field("VmHWM") }
    }
}

/// CPU time of a process so far, in user and in kernel mode; none when it is gone.
pub fn cpu_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The fields after the name, which may hold anything.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// From here on the peak is that of what comes.
pub fn forget_peak(pid: u32) {
    // 5 means: reset the peak. A kernel without it leaves a peak that is too high, never one that is too low.
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

impl fmt::Display for Kibibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / 1024.0)
    }
}
