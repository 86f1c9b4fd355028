//! The first frames on a worker's link, one at a time: opening the library, logging in, admin jobs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use crate::link::v1::{self, Fault, request::Verb, response::Outcome};
use crate::link::{self, BadFrame, Frames};
use crate::model::{HsmId, Password};

use super::keeper::Keeper;
use super::{Turn, WorkerProcess, fault};

/// How long a library may take to load and open its sessions, or a login to be answered.
pub(super) const OPENING_PATIENCE: Duration = Duration::from_secs(30);
/// How much longer an answer of another host is waited for: a link that is cut is known to be by then.
const NETWORK_PATIENCE: Duration = Duration::from_secs(15);
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
    #[error("no so_pin_file is configured for {0}")]
    NoSoPin(HsmId),
    #[error("the SO PIN cannot be read")]
    SoPin(#[source] std::io::Error),
    /// The node could not be spoken to.
    #[error("{host} cannot be reached: {why}")]
    Unreachable { host: String, why: String },
    /// The node's word: it takes no daemon of another build.
    #[error("the node is of another build: {0}")]
    DifferentBuild(String),
    /// The node's word: it has no such HSM or user.
    #[error("the node does not serve this: {0}")]
    UnknownSlot(String),
    /// The node's word: its host could not do it, and gave no worker the request.
    #[error("the node's host failed: {0}")]
    Host(String),
    #[error("the worker ended before it answered")]
    Ended,
    #[error("the link to {host} was cut: {why}")]
    Cut { host: String, why: String },
    #[error("the worker did not answer within {0:?}")]
    Silent(Duration),
    #[error("the worker answered out of turn")]
    OutOfTurn,
    #[error("the worker's answer cannot be read")]
    Frame(#[source] BadFrame),
    #[error("{} answered 0x{:x} ({})", .0.function, .0.ckr, .0.detail)]
    Fault(Fault),
}

impl OpeningError {
    /// Whether a worker was given the request, so that its token may have been asked. Nobody may know what it said then.
    pub const fn was_handed_over(&self) -> bool {
        match self {
            Self::Files { .. }
            | Self::Spawn(_)
            | Self::SlotTaken(_)
            | Self::NoToken
            | Self::NoSoPin(_)
            | Self::SoPin(_)
            | Self::Unreachable { .. }
            | Self::DifferentBuild(_)
            | Self::UnknownSlot(_)
            | Self::Host(_) => false,
            Self::Ended | Self::Cut { .. } | Self::Silent(_) | Self::OutOfTurn | Self::Frame(_) | Self::Fault(_) => {
                true
            }
        }
    }
}

/// Who does what is to be done around a worker's requests.
#[derive(Debug)]
enum By {
    Us(Box<Keeper>),
    /// The host that the worker is on.
    ItsHost(HsmId),
}

/// A worker and our end of its link, before its pool serves.
#[derive(Debug)]
pub struct WorkerLink {
    stream: UnixStream,
    frames: FramesBox,
    process: Arc<WorkerProcess>,
    by: By,
    opened: v1::Opened,
    next_id: u64,
}

impl WorkerLink {
    /// Of a worker of this machine's.
    pub(super) fn kept(stream: UnixStream, process: WorkerProcess, keeper: Keeper) -> Self {
        Self::new(stream, process, By::Us(Box::new(keeper)))
    }

    /// Of a worker on another host, whose end of the link is carried there.
    pub(super) fn carried(stream: UnixStream, process: WorkerProcess, hsm: HsmId) -> Self {
        Self::new(stream, process, By::ItsHost(hsm))
    }

    fn new(stream: UnixStream, process: WorkerProcess, by: By) -> Self {
        let (frames, process, opened) = (FramesBox::default(), Arc::new(process), v1::Opened::default());
        Self { stream, frames, process, by, opened, next_id: 1 }
    }

    /// What the token said of itself.
    pub fn opened(&self) -> &v1::Opened {
        &self.opened
    }

    /// For the pool's time: our end of the link, and the process behind it.
    pub fn into_parts(self) -> (UnixStream, Arc<WorkerProcess>) {
        (self.stream, self.process)
    }

    pub(super) fn kill(&self) {
        self.process.kill();
    }

    pub(super) fn process(&self) -> Arc<WorkerProcess> {
        self.process.clone()
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
        let mut rest = Zeroizing::new([0; 1024]);
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
        self.opened_by(Verb::Open(open), OPENING_PATIENCE).await
    }

    /// The first request to another host, which may have to wait for a former worker.
    pub(super) async fn summon(&mut self, summon: v1::Summon, slot: Duration) -> Result<(), OpeningError> {
        self.opened_by(Verb::Summon(summon), slot + OPENING_PATIENCE).await
    }

    async fn opened_by(&mut self, verb: Verb, patience: Duration) -> Result<(), OpeningError> {
        match self.ask_within(verb, patience).await? {
            Outcome::Opened(opened) => {
                self.opened = opened;
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    /// One login attempt, which the caller has written down, in the node's turn, so that no two are begun at once.
    pub async fn log_in(&mut self, _turn: &Turn, pin: &Password) -> Result<(), OpeningError> {
        match self.ask(Verb::LogIn(v1::LogIn { pin: pin.expose().as_bytes().to_vec() })).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// One request, one answer; its PINs are wiped here. A worker that does not answer in time is killed: what it is doing cannot be taken back otherwise.
    pub(super) async fn ask(&mut self, verb: Verb) -> Result<Outcome, OpeningError> {
        self.ask_within(verb, OPENING_PATIENCE).await
    }

    async fn ask_within(&mut self, verb: Verb, patience: Duration) -> Result<Outcome, OpeningError> {
        let mut verb = Zeroizing::new(verb);
        let (patience, logins) = match &self.by {
            By::Us(keeper) => (patience, keeper.before(&mut verb)?),
            // Its host has the same patience, and is to be the one that says so.
            By::ItsHost(_) => (patience + NETWORK_PATIENCE, None),
        };
        let answer = match tokio::time::timeout(patience, self.exchange(verb)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.process.kill();
                Err(OpeningError::Silent(patience))
            }
        };
        if let (By::Us(keeper), Some(logins)) = (&self.by, logins) {
            keeper.after(logins, &answer).unwrap_or_else(|error| {
                // What the token said stands, whatever the disk says: an attempt stays counted.
                tracing::error!(%error, "what came of a login cannot be written down");
            });
        }
        match (answer, &self.by) {
            (Ok(Outcome::HostFault(fault)), By::ItsHost(hsm)) => Err(fault::heard(fault, hsm)),
            (Err(error), By::Us(keeper)) if keeper.repairs_at_its_end() => {
                self.end_and_repair().await;
                Err(error)
            }
            (Err(OpeningError::Ended), By::ItsHost(_)) => Err(self.process.cut().unwrap_or(OpeningError::Ended)),
            (answer, _) => answer,
        }
    }

    /// It may have been cut off in the middle of a login.
    async fn end_and_repair(&mut self) {
        self.end().await;
        if let By::Us(keeper) = &self.by
            && let Err(error) = keeper.repair()
        {
            tracing::error!(%error, "a token that a killed login may have damaged cannot be looked after");
        }
    }

    async fn exchange(&mut self, verb: Zeroizing<Verb>) -> Result<Outcome, OpeningError> {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = framed(id, verb)?;
        self.stream.write_all(&bytes).await.map_err(|_| OpeningError::Ended)?;
        // Not within the future: a job of several requests would not fit on a thread's stack.
        let mut chunk = Zeroizing::new(vec![0; 16 * 1024]);
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

/// A request's frame. The request itself is wiped.
fn framed(id: u64, mut verb: Zeroizing<Verb>) -> Result<Zeroizing<Vec<u8>>, OpeningError> {
    let nothing = Verb::Ping(v1::Ping::default());
    let verb = Some(std::mem::replace(&mut *verb, nothing));
    let request = Zeroizing::new(v1::Request { id, remaining_ms: super::milliseconds(OPENING_PATIENCE), verb });
    let mut bytes = Zeroizing::new(Vec::new());
    link::push(&*request, &mut bytes).map_err(OpeningError::Frame)?;
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Purpose;
    use crate::host::example;
    use crate::host::process::Carried;

    #[tokio::test]
    async fn a_login_that_the_token_has_judged_is_told_as_judged_though_the_disk_fails() {
        let home = tempfile::tempdir().unwrap();
        let token = example::token();
        let spec = example::slot(&token);
        let keeper = Keeper::new(home.path(), &spec, &token, Purpose::Serve).unwrap();
        let carried = Carried { host: String::new(), kill: Arc::default(), cut: Arc::default(), died: Arc::default() };
        let (ours, mut workers) = UnixStream::pair().unwrap();
        let mut link = WorkerLink::kept(ours, WorkerProcess::carried(carried), keeper);

        let count = home.path().join(format!("{}.failed-logins", spec.slot_name()));
        let worker = tokio::spawn(async move {
            let mut frames = Frames::default();
            let request = loop {
                if let Some(request) = frames.take::<v1::Request>().unwrap() {
                    break request;
                }
                let mut chunk = [0; 1024];
                let read = workers.read(&mut chunk).await.unwrap();
                frames.feed(&chunk[..read]);
            };
            // The count can be neither removed nor written now.
            std::fs::remove_file(&count).unwrap();
            std::fs::create_dir(&count).unwrap();
            let done = v1::Response { id: request.id, outcome: Some(Outcome::Done(v1::Done::default())) };
            let mut bytes = Vec::new();
            link::push(&done, &mut bytes).unwrap();
            workers.write_all(&bytes).await.unwrap();
        });
        let answer = link.ask(Verb::LogIn(v1::LogIn { pin: b"kmsuser:password".to_vec() })).await;
        assert!(matches!(answer, Ok(Outcome::Done(_))), "{answer:?}");
        worker.await.unwrap();
    }
}
