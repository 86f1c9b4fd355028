//! Whether this daemon takes calls: one answer, told by `grpc.health.v1` and by `/readyz` alike.
//!
//! HSMs have no part in it: with all of them down the daemon is ready, and says so to whoever calls.

use std::time::Duration;

use tokio::sync::watch;

use crate::records::Records;

/// How often the records are asked whether they answer.
const EVERY: Duration = Duration::from_secs(1);
/// As long as SQLite itself waits for its file.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The rooms are being joined.
    Starting,
    /// Calls are accepted, and the records answer.
    Ready,
    /// Calls are accepted, and the records do not answer.
    WithoutRecords,
    /// No further calls are accepted.
    Draining,
}

impl Readiness {
    pub const fn is_ready(self) -> bool {
        match self {
            Self::Ready => true,
            Self::Starting | Self::WithoutRecords | Self::Draining => false,
        }
    }

    /// In a word or two, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::WithoutRecords => "the records do not answer",
            Self::Draining => "draining",
        }
    }
}

/// Keeps the answer true from when calls are accepted until the daemon drains.
pub async fn keep_ready(readiness: watch::Sender<Readiness>, records: Records, mut draining: watch::Receiver<bool>) {
    let ask = async {
        loop {
            let answer = tokio::time::timeout(PATIENCE, records.answer()).await;
            let now = if matches!(answer, Ok(Ok(()))) { Readiness::Ready } else { Readiness::WithoutRecords };
            let news = readiness.send_if_modified(|readiness| std::mem::replace(readiness, now) != now);
            if news && now == Readiness::WithoutRecords {
                tracing::error!("the records do not answer: not ready");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        () = ask => {}
        _ = draining.wait_for(|draining| *draining) => {}
    }
    readiness.send_replace(Readiness::Draining);
}
