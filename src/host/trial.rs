//! A worker for one login and nothing else: it leaves as soon as the token has answered.

use crate::model::Password;

use super::{Host, OpeningError, Turn, WorkerLink, WorkerSpec, attempts, process, softhsm};

/// A worker with its token open. Nobody is logged in.
#[derive(Debug)]
pub struct Trial(pub(super) WorkerLink);

impl Host {
    /// Opens the token, in the node's turn. The caller writes the attempt down before it is made.
    pub async fn open_trial(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<Trial, OpeningError> {
        let mut link = process::spawn_trial(spec)?;
        match link.open(spec.open_frame(1)).await {
            Ok(()) => Ok(Trial(link)),
            Err(error) => {
                link.kill();
                Err(error)
            }
        }
    }

    /// One login attempt. When this returns the worker is gone, and its login with it.
    pub async fn try_login(
        &self,
        _turn: &Turn,
        spec: &WorkerSpec,
        trial: Trial,
        pin: &Password,
    ) -> Result<(), OpeningError> {
        let Trial(mut link) = trial;
        softhsm::save(&self.directory, spec)?;
        let answer = attempts::counted(&self.directory, spec, link.log_in(pin)).await;
        link.end().await;
        if answer.is_err() {
            softhsm::repair(&self.directory, spec)?;
        }
        answer
    }
}

impl Trial {
    /// What the token said of itself.
    pub fn serial(&self) -> &str {
        &self.0.opened().serial
    }

    /// Nobody was asked.
    pub async fn leave(mut self) {
        self.0.end().await;
    }
}
