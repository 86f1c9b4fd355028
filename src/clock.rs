//! The wall clock, read here and nowhere else, so that a test can shift it.
//!
//! For what is written down and shown to people. Waiting is measured with monotonic time, which no shift touches.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The present time, to the millisecond: so the records keep it, and what was told once is told so again. In debug
/// builds, shifted by the seconds in the seams' `clock-offset` file.
pub fn now() -> SystemTime {
    let now = shifted(SystemTime::now());
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now - Duration::from_nanos(u64::from(since.subsec_nanos() % 1_000_000))
}

#[cfg(debug_assertions)]
fn shifted(now: SystemTime) -> SystemTime {
    match crate::seams::clock_offset_seconds() {
        0 => now,
        ahead @ 1.. => now + Duration::from_secs(ahead.unsigned_abs()),
        behind => now - Duration::from_secs(behind.unsigned_abs()),
    }
}

#[cfg(not(debug_assertions))]
const fn shifted(now: SystemTime) -> SystemTime {
    now
}
