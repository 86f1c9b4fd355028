//! The records in metrics, and whether they answer.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::telemetry::{Durations, Page, catalogue};

use super::{Records, Unavailable};

/// How long changes have had the writer, of which there is one.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// When it was taken last. Nobody else wants this lock: whoever has the writer has it alone.
    since: Mutex<Option<Instant>>,
    took: Durations,
}

impl Writing {
    pub(super) fn begins(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn ends(&self) {
        if let Some(since) = self.since.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.took.note(since.elapsed());
        }
    }
}

impl Records {
    /// Asks them for nothing in particular.
    pub async fn answer(&self) -> Result<(), Unavailable> {
        sqlx::query("SELECT count(*) FROM (SELECT 1 FROM key_stores LIMIT 1)").fetch_one(&self.0.read).await?;
        Ok(())
    }

    pub fn tell(&self, page: &mut Page) {
        page.spread(&catalogue::RECORDS_WRITE_SECONDS, [], self.0.writing.took.so_far());
    }
}
