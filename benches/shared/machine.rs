//! Which machine, when, how built, and who else was busy on it: without these a number means nothing.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Clock ticks of `/proc/<pid>/stat` in a second: part of Linux's ABI, whatever the kernel's own tick is.
pub const TICKS: u64 = 100;

/// One line about where the numbers come from.
pub fn describe(pkcs11_library: &str) -> String {
    let cores = cores();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    let now = prost_types::Timestamp::from(SystemTime::now()).to_string();
    let date = now.split('T').next().unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}; {pkcs11_library}; {date}; {}", kernel.trim(), build())
}

/// The profile that both this program and the daemon were built with, as its directory and its checks tell.
fn build() -> String {
    let directory = Path::new(env!("CARGO_BIN_EXE_keyway")).parent();
    let directory = directory.and_then(Path::file_name).unwrap_or_default();
    let checks = if cfg!(debug_assertions) { "on" } else { "off" };
    format!("built in `{}`, debug assertions {checks}", directory.display())
}

/// CPU time that all processes and the kernel have used so far, on all cores.
fn busy() -> Duration {
    let stat = read("/proc/stat");
    let ticks = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq: all but idle and iowait. What follows is stolen or counted already.
    let busy = ticks.take(7).enumerate().filter(|(field, _)| !matches!(field, 3 | 4));
    let ticks: u64 = busy.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Sees how much of the machine others take.
pub struct Watch {
    began: Instant,
    busy: Duration,
    ours: Duration,
}

impl Watch {
    /// `ours` is the CPU time so far of everything that is not others'.
    pub fn start(ours: Duration) -> Self {
        Self { began: Instant::now(), busy: busy(), ours }
    }

    /// Their share of all cores since the start.
    pub fn others(&self, ours: Duration) -> f64 {
        let busy = busy().saturating_sub(self.busy);
        let cores = u32::try_from(cores()).unwrap_or(u32::MAX);
        busy.saturating_sub(ours.saturating_sub(self.ours)).div_duration_f64(self.began.elapsed() * cores)
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
