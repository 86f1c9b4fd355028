//! What a connect does about the password. Pure.

use std::time::{Duration, SystemTime};

use crate::records::Rotation;

/// What is to be done on the way to CONNECTED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Nodes that missed the last rotation get what it gave to the others.
    Stragglers,
    /// Every node gets a new password.
    Rotation,
}

/// At most once in each attempt to connect, however often a daemon is killed in it, and a rotation at most once an interval.
/// The attempts are counted, so that no clock that is set decides; one that was ahead when it last rotated is not waited for.
pub(super) fn what_is_due(last: Option<Rotation>, attempt: u32, interval: Duration, now: SystemTime) -> Due {
    match last {
        None => Due::Rotation,
        Some(last) if last.attempt == Some(attempt) => Due::Nothing,
        Some(last) if now.duration_since(last.time).is_ok_and(|since| since < interval) => Due::Stragglers,
        Some(_) => Due::Rotation,
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
            (None, 3600, Due::Rotation),
            (None, 0, Due::Rotation),
            // In an earlier connect.
            (Some((90, Some(6))), 0, Due::Rotation),
            (Some((90, Some(6))), 15, Due::Rotation),
            (Some((90, Some(6))), 16, Due::Stragglers),
            (Some((90, None)), 15, Due::Rotation),
            // In this one, before a crash.
            (Some((101, Some(7))), 0, Due::Nothing),
            // The same, and the clock was set since, ahead or back.
            (Some((50, Some(7))), 15, Due::Nothing),
            (Some((1000, Some(7))), 0, Due::Nothing),
            // In an earlier one, by a clock that was ahead.
            (Some((1000, Some(6))), 0, Due::Rotation),
            (Some((1000, Some(6))), 3600, Due::Rotation),
        ];
        for (last, interval, expected) in rows {
            let rotation = last.map(|(time, attempt)| Rotation { time: at(time), attempt });
            let due = what_is_due(rotation, 7, Duration::from_secs(interval), at(105));
            assert_eq!(due, expected, "{last:?}, each {interval} s");
        }
    }
}
