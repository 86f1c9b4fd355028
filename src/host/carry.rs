//! Carries a link's bytes to another host and back: parcels over TLS, alike at both ends.
//!
//! At either end of the connection stands a local socket, so that whoever has the link's end reads and writes as if the
//! worker were here. What is added is what a network takes away: both ends say that they are there and believe the other
//! gone after [`SILENCE`]; the order to kill the worker overtakes what waits for it; a worker's death is told, which a lost
//! connection is not; and neither end reads more than [`WINDOW`] ahead of what its local socket took, so that a worker that is
//! stuck hides nothing that comes behind.
//!
//! ```text
//!   parcel: kind (1 byte) ‖ number (big-endian u32) ‖ for BYTES, so many bytes
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::LONGEST_PATIENCE;

/// An end that has heard nothing for so long believes the other gone.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// How often an end says that it is there.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// Bytes on their way that the other end has not passed on yet.
const WINDOW: usize = 256 << 10;
/// So many bytes that were passed on are told of.
const TELL_AT: usize = WINDOW / 4;
/// The longest parcel.
const LONGEST: usize = 16 << 10;
/// Beyond so much that the connection has not taken, nothing more is read here.
const BACKLOG: usize = 64 << 10;
/// An end whose local socket has ended waits so long for the other's: a worker lets running calls return first.
const LINGERING: Duration = LONGEST_PATIENCE.saturating_add(Duration::from_secs(15));
/// The last bytes get this long to leave.
const FAREWELL: Duration = Duration::from_secs(1);

const HEADER: usize = 5;

/// What a parcel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alive = 0,
    Bytes = 1,
    /// So many bytes were passed on.
    Taken = 2,
    /// No more bytes will come.
    End = 3,
    /// The worker is to be killed.
    Kill = 4,
    /// The worker died: it did not leave. Comes before the end.
    Died = 5,
}

/// Whose end this is, and what goes past the bytes: the order to kill one way, the word of a death the other.
#[derive(Debug)]
pub(super) enum Side {
    Daemons {
        /// The order to kill is sent when this is notified.
        kill: Arc<Notify>,
        /// Told before the local socket ends.
        died: Arc<AtomicBool>,
    },
    Nodes {
        /// The order to kill is told here.
        killed: watch::Sender<bool>,
        /// Sent if it is set when the local socket ends.
        died: Arc<AtomicBool>,
    },
}

/// Why a connection ended before both sides had said all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("nothing was heard of the other end for {SILENCE:?}")]
    Silence,
    #[error("the other end did not end the link within {LINGERING:?} of this one")]
    Lingering,
    #[error("the other end closed the connection")]
    Closed,
    #[error("the connection failed")]
    Failed(#[from] io::Error),
    #[error("the other end sent what is not a parcel")]
    Garbled,
}

/// Carries until both sides have said all, or the connection is cut: why, is told before the local socket is closed.
pub(super) async fn carry<S: AsyncRead + AsyncWrite>(
    connection: S,
    local: UnixStream,
    side: Side,
    was_cut: impl FnOnce(Cut),
) {
    let (far_read, far_write) = tokio::io::split(connection);
    let (near_read, near_write) = local.into_split();
    let mut carrier = Carrier {
        far_read,
        far_write,
        near_read,
        near_write,
        side,
        received: Zeroizing::default(),
        for_near: Zeroizing::default(),
        for_far: Zeroizing::default(),
        unflushed: false,
        credit: WINDOW,
        untold: 0,
        near_ended: None,
        far_ended: false,
        far_closed: false,
        near_is_shut: false,
        heard: Instant::now(),
    };
    if let Err(cut) = carrier.run().await {
        was_cut(cut);
    }
}

struct Carrier<S> {
    far_read: ReadHalf<S>,
    far_write: WriteHalf<S>,
    near_read: OwnedReadHalf,
    near_write: OwnedWriteHalf,
    side: Side,
    /// From the far end, not made out yet.
    received: Zeroizing<Vec<u8>>,
    /// From the far end, for the local socket.
    for_near: Zeroizing<Vec<u8>>,
    /// Whole parcels for the far end.
    for_far: Zeroizing<Vec<u8>>,
    unflushed: bool,
    /// How many bytes more the far end takes.
    credit: usize,
    /// Passed on here, and not told yet.
    untold: usize,
    near_ended: Option<Instant>,
    far_ended: bool,
    far_closed: bool,
    near_is_shut: bool,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite> Carrier<S> {
    async fn run(&mut self) -> Result<(), Cut> {
        let mut from_far = Zeroizing::new(vec![0; LONGEST + HEADER]);
        let mut from_near = Zeroizing::new(vec![0; LONGEST]);
        let mut beat = tokio::time::interval(ALIVE_EVERY);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.is_over() {
            let room =
                if self.near_ended.is_some() || self.for_far.len() >= BACKLOG { 0 } else { self.credit.min(LONGEST) };
            tokio::select! {
                // In this order: what has come in is heard before the silence is judged, and no flood of it keeps an order
                // or an end waiting.
                biased;
                () = ordered(&self.side) => self.post(Kind::Kill, 0),
                () = lingered(self.near_ended) => return Err(Cut::Lingering),
                read = self.far_read.read(&mut from_far), if !self.far_closed => {
                    match read? {
                        // A daemon that has left hears no answers: its worker is not to work off what it has not taken.
                        0 if self.far_ended && matches!(self.side, Side::Nodes { .. }) => return Ok(()),
                        // It has said all; what came of it is still passed on.
                        0 if self.far_ended => self.far_closed = true,
                        0 => return Err(Cut::Closed),
                        read => {
                            self.received.extend_from_slice(&from_far[..read]);
                            self.heard = Instant::now();
                            self.make_out()?;
                        }
                    }
                }
                written = self.near_write.write(&self.for_near), if !self.for_near.is_empty() => {
                    // Nobody there any more: what comes for them is dropped, and taken all the same.
                    self.passed_on(written.unwrap_or(self.for_near.len()));
                }
                written = write_or_flush(&mut self.far_write, &self.for_far), if self.has_something_to_send() => {
                    self.unflushed = !self.for_far.is_empty();
                    remove(&mut self.for_far, written?);
                }
                read = self.near_read.read(&mut from_near[..room]), if room > 0 => {
                    match read.unwrap_or(0) {
                        0 => {
                            self.near_ended = Some(Instant::now());
                            if matches!(&self.side, Side::Nodes { died, .. } if died.load(Relaxed)) {
                                self.post(Kind::Died, 0);
                            }
                            self.post(Kind::End, 0);
                        }
                        read => {
                            self.credit -= read;
                            self.post(Kind::Bytes, read);
                            self.for_far.extend_from_slice(&from_near[..read]);
                        }
                    }
                }
                _ = beat.tick(), if self.for_far.is_empty() && !self.far_closed => self.post(Kind::Alive, 0),
                () = tokio::time::sleep_until(self.heard + SILENCE), if !self.far_closed => return Err(Cut::Silence),
            }
            if self.far_ended && self.for_near.is_empty() && !self.near_is_shut {
                self.near_is_shut = true;
                let _ = self.near_write.shutdown().await;
            }
        }
        let _ = tokio::time::timeout(FAREWELL, self.far_write.shutdown()).await;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.near_is_shut && (self.far_closed || (self.near_ended.is_some() && !self.has_something_to_send()))
    }

    fn has_something_to_send(&self) -> bool {
        !self.far_closed && (self.unflushed || !self.for_far.is_empty())
    }

    /// Takes whole parcels out of what came.
    fn make_out(&mut self) -> Result<(), Cut> {
        let received = std::mem::take(&mut self.received);
        let mut rest = received.as_slice();
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
            let [kind, number @ ..] = *header;
            let number = usize::try_from(u32::from_be_bytes(number)).map_err(|_| Cut::Garbled)?;
            match Kind::of(kind).ok_or(Cut::Garbled)? {
                Kind::Bytes => {
                    if number > LONGEST || self.for_near.len() + self.untold + number > WINDOW || self.far_ended {
                        return Err(Cut::Garbled);
                    }
                    let Some((bytes, behind)) = behind.split_at_checked(number) else { break };
                    self.for_near.extend_from_slice(bytes);
                    rest = behind;
                    continue;
                }
                Kind::Alive => {}
                Kind::Taken => {
                    self.credit = self.credit.saturating_add(number);
                    if self.credit > WINDOW {
                        return Err(Cut::Garbled);
                    }
                }
                Kind::End => self.far_ended = true,
                Kind::Kill => match &self.side {
                    Side::Nodes { killed, .. } => drop(killed.send_replace(true)),
                    Side::Daemons { .. } => return Err(Cut::Garbled),
                },
                Kind::Died => match &self.side {
                    Side::Daemons { died, .. } => died.store(true, Relaxed),
                    Side::Nodes { .. } => return Err(Cut::Garbled),
                },
            }
            rest = behind;
        }
        self.received.extend_from_slice(rest);
        Ok(())
    }

    fn passed_on(&mut self, bytes: usize) {
        remove(&mut self.for_near, bytes);
        self.untold += bytes;
        if self.untold >= TELL_AT {
            self.post(Kind::Taken, self.untold);
            self.untold = 0;
        }
    }

    fn post(&mut self, kind: Kind, number: usize) {
        let number = u32::try_from(number).expect("nothing here is larger than the window");
        self.for_far.push(kind as u8);
        self.for_far.extend_from_slice(&number.to_be_bytes());
    }
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Alive,
            1 => Self::Bytes,
            2 => Self::Taken,
            3 => Self::End,
            4 => Self::Kill,
            5 => Self::Died,
            _ => return None,
        })
    }
}

/// Some of the bytes, or with none left those that TLS still holds back.
async fn write_or_flush(far: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() { far.flush().await.map(|()| 0) } else { far.write(bytes).await }
}

/// Resolves when the other end should have ended too.
async fn lingered(near_ended: Option<Instant>) {
    match near_ended {
        Some(ended) => tokio::time::sleep_until(ended + LINGERING).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the other end is to kill its worker.
async fn ordered(side: &Side) {
    match side {
        Side::Daemons { kill, .. } => kill.notified().await,
        Side::Nodes { .. } => std::future::pending().await,
    }
}

/// What is left is moved to the front; what was behind it is wiped with the whole.
fn remove(bytes: &mut Vec<u8>, first: usize) {
    bytes.drain(..first);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends over a pipe that holds little.
    struct Carried {
        /// The daemon's, and the node's session's.
        daemon: UnixStream,
        session: UnixStream,
        kill: Arc<Notify>,
        killed: watch::Receiver<bool>,
        /// What the node knows of its worker, and what the daemon was told.
        died: Arc<AtomicBool>,
        told: Arc<AtomicBool>,
    }

    fn carried() -> Carried {
        let (daemons, nodes) = tokio::io::duplex(1000);
        let (daemon, near) = UnixStream::pair().unwrap();
        let (session, far) = UnixStream::pair().unwrap();
        let (kill, (killed, hears)) = (Arc::new(Notify::new()), watch::channel(false));
        let (died, told) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        tokio::spawn(carry(daemons, near, Side::Daemons { kill: kill.clone(), died: told.clone() }, |_| ()));
        tokio::spawn(carry(nodes, far, Side::Nodes { killed, died: died.clone() }, |_| ()));
        Carried { daemon, session, kill, killed: hears, died, told }
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_each_side_ends_by_itself() {
        let Carried { mut daemon, session, told, .. } = carried();
        let sent: Vec<u8> = (0..3 * WINDOW).map(|at| (at % 251) as u8).collect();
        let (mut session_read, mut session_write) = session.into_split();
        let echo = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut session_read, &mut session_write).await;
        });
        let (mut read, mut write) = daemon.split();
        let mut got = Vec::new();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
        assert_eq!((read.unwrap(), got == sent), (sent.len(), true));
        assert!(!told.load(Relaxed), "nobody died");
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_workers_death_is_told_before_the_links_end_and_a_cut_tells_of_none() {
        let Carried { mut daemon, mut session, died, told, .. } = carried();
        session.write_all(b"its last words").await.unwrap();
        died.store(true, Relaxed);
        drop(session);
        let mut words = Vec::new();
        daemon.read_to_end(&mut words).await.unwrap();
        assert_eq!((words.as_slice(), told.load(Relaxed)), (&b"its last words"[..], true));

        let (connection, far) = tokio::io::duplex(1000);
        let (mut daemon, local) = UnixStream::pair().unwrap();
        let told = Arc::<AtomicBool>::default();
        let carrying =
            tokio::spawn(carry(connection, local, Side::Daemons { kill: Arc::default(), died: told.clone() }, |_| ()));
        drop(far);
        carrying.await.unwrap();
        assert_eq!((daemon.read(&mut [0]).await.unwrap(), told.load(Relaxed)), (0, false));
    }

    #[tokio::test]
    async fn the_order_to_kill_overtakes_what_a_stuck_worker_does_not_read() {
        let Carried { mut daemon, session: _session, kill, mut killed, .. } = carried();
        let much = vec![7; 4 * WINDOW];
        let stuck = tokio::time::timeout(Duration::from_millis(300), daemon.write_all(&much)).await;
        assert!(stuck.is_err(), "nobody reads, so that not all of it is taken");
        kill.notify_one();
        tokio::time::timeout(SILENCE, killed.wait_for(|killed| *killed)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_parcel_ends_the_connection() {
        let daemons = || Side::Daemons { kill: Arc::default(), died: Arc::default() };
        let nodes = || Side::Nodes { killed: watch::channel(false).0, died: Arc::default() };
        let too_long = [&[1][..], &u32::MAX.to_be_bytes()].concat();
        let unasked = [&[2][..], &1_u32.to_be_bytes()].concat();
        let a_kill_for_the_daemon = [&[4][..], &0_u32.to_be_bytes()].concat();
        let a_death_for_the_node = [&[5][..], &0_u32.to_be_bytes()].concat();
        for (side, bytes) in [
            (daemons(), vec![9; HEADER]),
            (daemons(), too_long),
            (daemons(), unasked),
            (daemons(), a_kill_for_the_daemon),
            (nodes(), a_death_for_the_node),
        ] {
            let (connection, mut far) = tokio::io::duplex(1 << 20);
            let (_session, local) = UnixStream::pair().unwrap();
            far.write_all(&bytes).await.unwrap();
            let mut cut = None;
            carry(connection, local, side, |why| cut = Some(why)).await;
            assert!(matches!(cut, Some(Cut::Garbled)), "{bytes:?}: {cut:?}");
        }
    }
}
