//! The worker's end of the link: a socket on standard input, read by one thread at a time and written by any.
//!
//! Reads only when no whole request is left over, so what is buffered is bounded and all of it came with the latest read.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::link::v1::response::Outcome;
use crate::link::v1::{Request, Response};
use crate::link::{self, BadFrame, Frames};

use super::pkcs11::{Bucket, Fault, Kind};

const CHUNK: usize = 64 * 1024;
/// A frame's length comes first, in this many bytes.
const PREFIX: usize = 4;

/// Why no more requests will come.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the daemon closed the link")]
    Closed,
    #[error("the link failed")]
    Failed(#[source] io::Error),
    #[error("the daemon sent what is not a request")]
    Garbled(#[source] BadFrame),
}

/// Takes standard input for the link; the third end is for watching it.
///
/// # Errors
/// When it is not a socket: somebody started a worker by hand.
pub fn link() -> io::Result<(Incoming, Outgoing, OwnedFd)> {
    let stdin = io::stdin();
    rustix::net::sockopt::socket_type(stdin.as_fd())?;
    let stream = UnixStream::from(stdin.as_fd().try_clone_to_owned()?);
    let watched = stream.as_fd().try_clone_to_owned()?;
    Ok((Incoming::new(stream.try_clone()?), Outgoing(Mutex::new(stream)), watched))
}

/// Requests as they come.
pub struct Incoming {
    stream: UnixStream,
    frames: Frames,
    chunk: Zeroizing<Vec<u8>>,
    read_at: Instant,
}

impl Incoming {
    fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default(), chunk: Zeroizing::new(vec![0; CHUNK]), read_at: Instant::now() }
    }

    /// The next request. Waits for it.
    pub fn next(&mut self) -> Result<Request, Ended> {
        loop {
            if let Some(request) = self.frames.take().map_err(Ended::Garbled)? {
                return Ok(request);
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(Ended::Closed),
                Ok(read) => {
                    self.read_at = Instant::now();
                    self.frames.feed(&self.chunk[..read]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Ended::Failed(error)),
            }
        }
    }

    /// Whether [`Incoming::next`] would not wait.
    pub fn has_next(&self) -> bool {
        self.frames.has_next()
    }

    /// When the requests that are taken now came in.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// The next request, with nothing read beyond it and nothing of it left behind: for those that bring PINs.
    /// Not to be mixed with [`Incoming::next`] once that has read ahead.
    pub fn next_alone(&mut self) -> Result<Request, Ended> {
        let mut bytes = Zeroizing::new(vec![0; PREFIX]);
        self.fill(&mut bytes)?;
        let length = u32::from_be_bytes(bytes[..].try_into().expect("as long as the prefix"));
        let length = usize::try_from(length).expect("usize holds a u32");
        if length > link::MAX_FRAME {
            return Err(Ended::Garbled(BadFrame::TooLong(length)));
        }
        let mut body = Zeroizing::new(vec![0; length]);
        self.fill(&mut body)?;
        Request::decode(body.as_slice()).map_err(|error| Ended::Garbled(error.into()))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Ended> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Ended::Closed,
            _ => Ended::Failed(error),
        })
    }
}

/// Answers on their way out; whole ones, whoever writes.
pub struct Outgoing(Mutex<UnixStream>);

impl Outgoing {
    /// Writes what was pushed to `answers` at once, and empties it.
    pub fn send(&self, answers: &mut Answers) -> io::Result<()> {
        if answers.0.is_empty() {
            return Ok(());
        }
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&answers.0);
        answers.wipe();
        sent
    }
}

/// Encoded answers, waiting to be written together. Wiped once they are.
#[derive(Default)]
pub struct Answers(Zeroizing<Vec<u8>>);

impl Answers {
    pub fn push(&mut self, id: u64, result: Result<Outcome, Fault>) {
        let outcome = result.unwrap_or_else(|fault| Outcome::Fault(fault.into()));
        let mut response = Response { id, outcome: Some(outcome) };
        if link::push(&response, &mut self.0).is_err() {
            let fault = Fault::refused(Bucket::Node, Kind::Capacity, "the answer is too long for the link");
            let refused = Response { id, outcome: Some(Outcome::Fault(fault.into())) };
            link::push(&refused, &mut self.0).expect("a fault of ours is short");
        }
        wipe(&mut response);
    }

    fn wipe(&mut self) {
        // The part in use only: wiping spare capacity would cost every small answer what the largest one took.
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }
}

fn wipe(response: &mut Response) {
    match &mut response.outcome {
        Some(Outcome::Opaque(opaque)) => opaque.bytes.zeroize(),
        Some(Outcome::DataKey(key)) => key.plaintext.zeroize(),
        Some(
            Outcome::Fault(_)
            | Outcome::Done(_)
            | Outcome::Opened(_)
            | Outcome::Pong(_)
            | Outcome::Sealed(_)
            | Outcome::NewKey(_)
            | Outcome::Presence(_)
            | Outcome::Objects(_)
            | Outcome::JoinOffer(_)
            | Outcome::Checked(_)
            | Outcome::HostFault(_)
            | Outcome::Abilities(_),
        )
        | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v1::{Opaque, Ping, request::Verb};

    fn pair() -> (UnixStream, Incoming, Outgoing) {
        let (daemon, worker) = UnixStream::pair().unwrap();
        (daemon, Incoming::new(worker.try_clone().unwrap()), Outgoing(Mutex::new(worker)))
    }

    #[test]
    fn requests_that_came_together_are_taken_without_another_read() {
        let (mut daemon, mut incoming, _) = pair();
        let mut bytes = Vec::new();
        for id in [7, 8] {
            link::push(&Request { id, remaining_ms: 1, verb: Some(Verb::Ping(Ping {})) }, &mut bytes).unwrap();
        }
        daemon.write_all(&bytes).unwrap();
        drop(daemon);

        assert_eq!(incoming.next().unwrap().id, 7);
        assert!(incoming.has_next());
        assert_eq!(incoming.next().unwrap().id, 8);
        assert!(!incoming.has_next());
        assert!(matches!(incoming.next(), Err(Ended::Closed)));
    }

    #[test]
    fn a_request_read_alone_leaves_the_rest_of_the_stream_alone() {
        let (mut daemon, mut incoming, _) = pair();
        let mut bytes = Vec::new();
        for id in [7, 8] {
            link::push(&Request { id, remaining_ms: 1, verb: Some(Verb::Ping(Ping {})) }, &mut bytes).unwrap();
        }
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        daemon.write_all(&bytes).unwrap();

        assert_eq!(incoming.next_alone().unwrap().id, 7);
        assert_eq!(incoming.next_alone().unwrap().id, 8);
        assert!(matches!(incoming.next_alone(), Err(Ended::Garbled(BadFrame::TooLong(_)))));
        drop(daemon);
        assert!(matches!(incoming.next_alone(), Err(Ended::Closed)));
    }

    #[test]
    fn an_answer_too_long_for_the_link_becomes_a_fault() {
        let (mut daemon, _, outgoing) = pair();
        let mut answers = Answers::default();
        answers.push(9, Ok(Outcome::Opaque(Opaque { bytes: vec![0; link::MAX_FRAME + 1] })));
        outgoing.send(&mut answers).unwrap();

        let mut bytes = [0; 512];
        let read = daemon.read(&mut bytes).unwrap();
        let mut frames = Frames::default();
        frames.feed(&bytes[..read]);
        let response: Response = frames.take().unwrap().unwrap();
        assert_eq!(response.id, 9);
        assert!(matches!(response.outcome, Some(Outcome::Fault(fault)) if fault.kind == i32::from(Kind::Capacity)));
    }
}
