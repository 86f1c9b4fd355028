//! Lanes: threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on its lane. On few cores, runtimes that share nothing serve gRPC markedly
//! faster, and with steadier latency, than one runtime that moves tasks between its threads.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::greet::{Arrival, greet};
use super::grpc::{Faces, serve};

/// Connections on their way to a lane.
const BACKLOG: usize = 64;

/// Every lane's way in. Cheap to clone.
#[derive(Clone)]
pub struct Lanes {
    ways_in: Arc<[mpsc::Sender<Arrival>]>,
    turn: Arc<AtomicUsize>,
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
        let (mut ways_in, mut threads) = (Vec::new(), Vec::new());
        for lane in 0..cores.min(most.get()) {
            let (way_in, arrivals) = mpsc::channel(BACKLOG);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (faces, draining) = (faces.clone(), draining.clone());
            let thread = std::thread::Builder::new().name(format!("lane-{lane}"));
            threads.push(thread.spawn(move || runtime.block_on(run(faces, arrivals, draining, drain_timeout)))?);
            ways_in.push(way_in);
        }
        Ok((Self { ways_in: ways_in.into(), turn: Arc::default() }, LaneThreads(threads)))
    }

    /// The next lane takes the connection.
    pub(super) async fn deal(&self, arrival: Arrival) {
        let lane = self.turn.fetch_add(1, Relaxed) % self.ways_in.len();
        // A lane that has ended is draining: the connection closes with the arrival.
        let _ = self.ways_in[lane].send(arrival).await;
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
    let serving = serve(faces, ReceiverStream::new(incoming), drained);
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
