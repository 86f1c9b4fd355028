//! A worker for one login and nothing else: it leaves as soon as the token has answered.

use crate::model::Password;

use super::{Host, OpeningError, Purpose, Turn, WorkerLink, WorkerSpec};

/// A worker with its token open. Nobody is logged in.
#[derive(Debug)]
pub struct Trial(pub(super) WorkerLink);

impl Host {
    /// Opens the token, in the node's turn. The caller writes the attempt down before it is made.
    pub async fn open_trial(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<Trial, OpeningError> {
        Ok(Trial(self.open(spec, Purpose::Try).await?))
    }
}

impl Trial {
    /// What the token said of itself.
    pub fn serial(&self) -> &str {
        &self.0.opened().serial
    }

    /// One login attempt. When this returns the worker is gone, and its login with it.
    pub async fn log_in(mut self, turn: &Turn, pin: &Password) -> Result<(), OpeningError> {
        let answer = self.0.log_in(turn, pin).await;
        self.0.end().await;
        answer
    }

    /// Nobody was asked.
    pub async fn leave(mut self) {
        self.0.end().await;
    }
}
