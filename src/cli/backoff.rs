//! Pauses between attempts: each longer than the one before, none past the deadline.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

pub(super) struct Backoff {
    next: Duration,
    deadline: Instant,
}

/// The deadline passed.
#[derive(Debug)]
pub(super) struct TimeIsUp;

impl Backoff {
    pub(super) fn until(deadline: Instant) -> Self {
        Self { next: FIRST, deadline }
    }

    /// Sleeps, at least as long as the daemon asked for.
    pub(super) async fn pause(&mut self, at_least: Option<Duration>) -> Result<(), TimeIsUp> {
        let wake = Instant::now() + at_least.unwrap_or_default().max(self.next);
        self.next = (self.next * 2).min(LONGEST);
        if wake >= self.deadline {
            tokio::time::sleep_until(self.deadline).await;
            return Err(TimeIsUp);
        }
        tokio::time::sleep_until(wake).await;
        Ok(())
    }
}
