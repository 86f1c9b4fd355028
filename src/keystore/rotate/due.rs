//! Whether a connect rotates the password. Pure.

use std::time::{Duration, SystemTime};

/// At most once in each transition to CONNECTED, however often a daemon is killed in it, and at most once an interval.
pub(super) fn is_due(
    rotated: Option<SystemTime>,
    connecting_since: SystemTime,
    interval: Duration,
    now: SystemTime,
) -> bool {
    match rotated {
        None => true,
        Some(rotated) => rotated < connecting_since && now.duration_since(rotated).unwrap_or_default() >= interval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_a_connect_and_once_an_interval() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let rows = [
            // Never before.
            (None, 3600, true),
            (None, 0, true),
            // In an earlier connect.
            (Some(at(90)), 0, true),
            (Some(at(90)), 15, true),
            (Some(at(90)), 16, false),
            // In this one, before a crash.
            (Some(at(101)), 0, false),
            // The clock was set back since.
            (Some(at(1000)), 0, false),
        ];
        for (rotated, interval, expected) in rows {
            let due = is_due(rotated, at(100), Duration::from_secs(interval), at(105));
            assert_eq!(due, expected, "{rotated:?}, each {interval} s");
        }
    }
}
