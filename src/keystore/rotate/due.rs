//! Whether a connect rotates the password. Pure.

use std::time::{Duration, SystemTime};

use crate::records::Rotation;

/// At most once in each attempt to connect, however often a daemon is killed in it, and at most once an interval. The
/// attempts are counted, so that no clock that is set decides; one that was ahead when it last rotated is not waited for.
pub(super) fn is_due(last: Option<Rotation>, attempt: u32, interval: Duration, now: SystemTime) -> bool {
    match last {
        None => true,
        Some(last) => {
            last.attempt != Some(attempt) && now.duration_since(last.time).map_or(true, |since| since >= interval)
        }
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
            (Some((90, Some(6))), 0, true),
            (Some((90, Some(6))), 15, true),
            (Some((90, Some(6))), 16, false),
            (Some((90, None)), 15, true),
            // In this one, before a crash.
            (Some((101, Some(7))), 0, false),
            // The same, and the clock was set since, ahead or back.
            (Some((50, Some(7))), 15, false),
            (Some((1000, Some(7))), 0, false),
            // In an earlier one, by a clock that was ahead.
            (Some((1000, Some(6))), 0, true),
            (Some((1000, Some(6))), 3600, true),
        ];
        for (last, interval, expected) in rows {
            let rotation = last.map(|(time, attempt)| Rotation { time: at(time), attempt });
            let due = is_due(rotation, 7, Duration::from_secs(interval), at(105));
            assert_eq!(due, expected, "{last:?}, each {interval} s");
        }
    }
}
