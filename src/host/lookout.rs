//! A worker that looks whether a token is there, and can go on looking. It has no session and is never logged in.
//!
//! So it can be killed at any moment, and is as soon as nobody needs it: a library that blocks would keep it for long.

use super::{Host, OpeningError, Purpose, WorkerLink, WorkerSpec};

/// A worker that looks. Gone when it is dropped.
#[derive(Debug)]
pub struct Lookout(WorkerLink);

impl Host {
    /// Starts a worker that looks for the token.
    pub async fn look(&self, spec: &WorkerSpec) -> Result<Lookout, OpeningError> {
        let lookout = Lookout(self.open(spec, Purpose::Look).await?);
        if lookout.0.opened().serial.is_empty() { Err(OpeningError::NoToken) } else { Ok(lookout) }
    }
}

impl Lookout {
    pub fn link(&self) -> &WorkerLink {
        &self.0
    }

    /// Whether the token is still there.
    pub async fn check(&mut self) -> Result<(), OpeningError> {
        self.0.check().await
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.kill();
    }
}
