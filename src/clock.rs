//! The wall clock, read here and nowhere else, so that a test can shift it.
//!
//! For what is written down and shown to people. Waiting is measured with monotonic time, which no shift touches.

use std::time::SystemTime;

/// The present time. In debug builds, shifted by the seconds in the seams' `clock-offset` file.
pub fn now() -> SystemTime {
    shifted(SystemTime::now())
}

#[cfg(debug_assertions)]
fn shifted(now: SystemTime) -> SystemTime {
    use std::time::Duration;
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
