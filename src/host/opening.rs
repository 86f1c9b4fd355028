//! The first frames on a worker's link, one at a time: opening the library, logging in, admin jobs.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::link::v1::{self, Fault, request::Verb, response::Outcome};
use crate::link::{self, BadFrame, Frames};
use crate::model::Password;

use super::WorkerProcess;

/// How long a library may take to load and open its sessions, or a login to be answered.
const OPENING_PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker may take to leave once its link has ended, before it is killed.
const LEAVING_PATIENCE: Duration = Duration::from_secs(2);

/// Why a worker did not get as far as it should.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    #[error("a file of the host could not be used: {path}")]
    Files {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the worker process could not be started")]
    Spawn(#[source] std::io::Error),
    #[error("the former worker of {0} will not end")]
    SlotTaken(String),
    #[error("no slot has this token")]
    NoToken,
    #[error("the worker ended before it answered")]
    Ended,
    #[error("the worker did not answer within {0:?}")]
    Silent(Duration),
    #[error("the worker answered out of turn")]
    OutOfTurn,
    #[error("the worker's answer cannot be read")]
    Frame(#[source] BadFrame),
    #[error("{} answered 0x{:x} ({})", .0.function, .0.ckr, .0.detail)]
    Fault(Fault),
}

/// A worker and our end of its link, before its pool serves.
#[derive(Debug)]
pub struct WorkerLink {
    stream: UnixStream,
    frames: FramesBox,
    process: WorkerProcess,
    opened: v1::Opened,
    next_id: u64,
}

impl WorkerLink {
    pub(super) fn new(stream: UnixStream, process: WorkerProcess) -> Self {
        Self { stream, frames: FramesBox::default(), process, opened: v1::Opened::default(), next_id: 1 }
    }

    /// What the token said of itself.
    pub fn opened(&self) -> &v1::Opened {
        &self.opened
    }

    /// For the pool's time: our end of the link, and the process behind it.
    pub fn into_parts(self) -> (UnixStream, WorkerProcess) {
        (self.stream, self.process)
    }

    pub(super) fn kill(&self) {
        self.process.kill();
    }

    /// Ends the link and waits until the worker is gone; one that does not leave is killed. Nothing may be running.
    pub(super) async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
        if tokio::time::timeout(LEAVING_PATIENCE, self.gone()).await.is_err() {
            self.process.kill();
            let _ = tokio::time::timeout(LEAVING_PATIENCE, self.gone()).await;
        }
    }

    /// The kernel closes the other end when the process is gone.
    async fn gone(&mut self) {
        let mut rest = zeroize::Zeroizing::new([0; 1024]);
        while self.stream.read(&mut *rest).await.is_ok_and(|read| read > 0) {}
    }

    /// Whether the token is still there. Nobody needs to be logged in.
    pub async fn check(&mut self) -> Result<(), OpeningError> {
        match self.ask(Verb::CheckToken(v1::CheckToken::default())).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn open(&mut self, open: v1::Open) -> Result<(), OpeningError> {
        match self.ask(Verb::Open(open)).await? {
            Outcome::Opened(opened) => {
                self.opened = opened;
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    pub(super) async fn log_in(&mut self, pin: &Password) -> Result<(), OpeningError> {
        match self.ask(Verb::LogIn(v1::LogIn { pin: pin.expose().as_bytes().to_vec() })).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// One request, one answer. A worker that does not answer in time is killed: what it is doing cannot be taken back otherwise.
    pub(super) async fn ask(&mut self, verb: Verb) -> Result<Outcome, OpeningError> {
        match tokio::time::timeout(OPENING_PATIENCE, self.exchange(verb)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.process.kill();
                Err(OpeningError::Silent(OPENING_PATIENCE))
            }
        }
    }

    async fn exchange(&mut self, verb: Verb) -> Result<Outcome, OpeningError> {
        let id = self.next_id;
        self.next_id += 1;
        let remaining_ms = u32::try_from(OPENING_PATIENCE.as_millis()).expect("seconds");
        let mut bytes = zeroize::Zeroizing::new(Vec::new());
        link::push(&v1::Request { id, remaining_ms, verb: Some(verb) }, &mut bytes).map_err(OpeningError::Frame)?;
        self.stream.write_all(&bytes).await.map_err(|_| OpeningError::Ended)?;
        // Not within the future: a job of several requests would not fit on a thread's stack.
        let mut chunk = zeroize::Zeroizing::new(vec![0; 16 * 1024]);
        loop {
            if let Some(response) = self.frames.0.take::<v1::Response>().map_err(OpeningError::Frame)? {
                return match response {
                    v1::Response { id: answered, outcome: Some(outcome) } if answered == id => Ok(outcome),
                    v1::Response { .. } => Err(OpeningError::OutOfTurn),
                };
            }
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return Err(OpeningError::Ended),
                Ok(read) => self.frames.0.feed(&chunk[..read]),
            }
        }
    }
}

/// An answer of the wrong kind is a fault when it is one, and otherwise a worker out of step.
pub(super) fn unexpected(outcome: Outcome) -> OpeningError {
    match outcome {
        Outcome::Fault(fault) => OpeningError::Fault(fault),
        _ => OpeningError::OutOfTurn,
    }
}

#[derive(Default)]
struct FramesBox(Frames);

impl std::fmt::Debug for FramesBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Frames(…)")
    }
}
