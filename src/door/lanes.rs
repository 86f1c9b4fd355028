//! Lanes: threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on its lane. On few cores, runtimes that share nothing serve gRPC markedly
//! faster, and with steadier latency, than one runtime that moves tasks between its threads.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::telemetry::Page;

use super::greet::{Arrival, greet};
use super::grpc::{Faces, Tally, serve};

/// Connections on their way to a lane.
const BACKLOG: usize = 64;
/// A lane that does not go round once in this time is stuck: nothing on it may block.
const ROUND: Duration = Duration::from_secs(2);

/// Every lane's way in. Cheap to clone.
#[derive(Clone)]
pub struct Lanes {
    all: Arc<[Lane]>,
    turn: Arc<AtomicUsize>,
}

struct Lane {
    way_in: mpsc::Sender<Arrival>,
    runtime: Handle,
    tally: Arc<Tally>,
}

/// The lanes' threads, to be waited for at the end.
pub struct LaneThreads(Vec<std::thread::JoinHandle<()>>);

impl Lanes {
    /// Starts one lane per core, at most `most`. Each serves until `draining`, and then what is in flight for `drain_timeout`.
    pub fn start(
        faces: &Faces,
        most: NonZeroUsize,
        draining: &watch::Receiver<bool>,
        drain_timeout: Duration,
    ) -> std::io::Result<(Self, LaneThreads)> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (mut all, mut threads) = (Vec::new(), Vec::new());
        for lane in 0..cores.min(most.get()) {
            let (way_in, arrivals) = mpsc::channel(BACKLOG);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let tally = Arc::new(Tally::default());
            all.push(Lane { way_in, runtime: runtime.handle().clone(), tally: tally.clone() });
            let (faces, draining) = (faces.clone(), draining.clone());
            let serving = run(faces, tally, arrivals, draining, drain_timeout);
            let thread = std::thread::Builder::new().name(format!("lane-{lane}"));
            threads.push(thread.spawn(move || runtime.block_on(serving))?);
        }
        Ok((Self { all: all.into(), turn: Arc::default() }, LaneThreads(threads)))
    }

    /// The next lane takes the connection.
    pub(super) async fn deal(&self, arrival: Arrival) {
        let lane = self.turn.fetch_add(1, Relaxed) % self.all.len();
        // A lane that has ended is draining: the connection closes with the arrival.
        let _ = self.all[lane].way_in.send(arrival).await;
    }

    /// Whether each lane still serves: it is given something to do that is nothing.
    ///
    /// # Errors
    /// Which one does not, in words.
    pub(super) async fn go_round(&self) -> Result<(), String> {
        let rounds: Vec<_> = self.all.iter().map(|lane| lane.runtime.spawn(async {})).collect();
        let until = Instant::now() + ROUND;
        for (number, round) in rounds.into_iter().enumerate() {
            match tokio::time::timeout_at(until, round).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(format!("lane {number} has ended")),
                Err(_) => return Err(format!("lane {number} is stuck")),
            }
        }
        Ok(())
    }

    /// Puts what the lanes have served on the page.
    pub(super) fn tell(&self, page: &mut Page) {
        self.all.iter().for_each(|lane| lane.tally.tell(page));
    }
}

impl LaneThreads {
    /// Waits until every lane has drained.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a lane panicked");
            }
        }
    }
}

async fn run(
    faces: Faces,
    tally: Arc<Tally>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut draining: watch::Receiver<bool>,
    drain_timeout: Duration,
) {
    let (greeted, incoming) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        while let Some(arrival) = arrivals.recv().await {
            let greeted = greeted.clone();
            tokio::spawn(async move {
                match greet(arrival).await {
                    Ok(io) => {
                        let _ = greeted.send(Ok::<_, std::io::Error>(io)).await;
                    }
                    Err(error) => tracing::debug!(%error, "a connection was closed before it said who it is"),
                }
            });
        }
    });
    let mut until_drained = draining.clone();
    let drained = async move {
        let _ = until_drained.wait_for(|draining| *draining).await;
    };
    let serving = serve(faces, tally, ReceiverStream::new(incoming), drained);
    let too_late = async {
        let _ = draining.wait_for(|draining| *draining).await;
        tokio::time::sleep(drain_timeout).await;
    };
    tokio::select! {
        result = serving => {
            if let Err(error) = result {
                tracing::error!(%error, "a lane stopped serving");
            }
        }
        () = too_late => tracing::warn!(?drain_timeout, "connections were still open at the end of the drain"),
    }
}
