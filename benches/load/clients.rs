//! The clients: each sends its next request when its last is answered.
//!
//! They share the machine with what they measure, so they are made like it: one single-threaded runtime
//! per core. Many clients share a few connections, as the tasks of an application do.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use keyway::proto::v1 as pb;
use pb::crypto_service_client::CryptoServiceClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::shared::connect::{Target, connect};
use crate::shared::machine;
use crate::window::{Latencies, Measured, Phase, Window};
use crate::{Error, PLAINTEXT};

const MOST_CONNECTIONS: usize = 16;
/// Beyond the measured time, answers are waited for this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How they ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Each client a call at a time.
    Calls,
    /// The clients of a connection on one stream.
    Pipeline,
}

/// Has `clients` encrypt with `key` for this long. `spent` is the CPU time of whoever serves them.
pub fn measure(
    target: &Target,
    way: Way,
    key: &str,
    clients: usize,
    length: Duration,
    spent: impl Fn() -> Duration,
) -> Result<Measured, Error> {
    let window = Arc::new(Window::new());
    let cores = machine::cores();
    let threads = cores.min(clients);
    let (report, reports) = sync_channel(threads);
    for thread in 0..threads {
        let share = |whole: usize| whole / threads + usize::from(thread < whole % threads);
        let (connections, clients) = (share(clients.min(MOST_CONNECTIONS)), share(clients));
        let (target, key, window, report) = (target.clone(), key.to_owned(), window.clone(), report.clone());
        std::thread::Builder::new().name(format!("clients-{thread}")).spawn(move || {
            let worked = run(&target, way, &key, connections, clients, &window);
            if worked.is_err() {
                window.close();
            }
            // There is room for one report of each thread.
            let _ = report.send(worked);
        })?;
    }
    let passed = window.pass(length, spent);
    let mut latencies = Latencies::default();
    for _ in 0..threads {
        let worked = reports.recv_timeout(PATIENCE).map_err(|_| "answers did not come in time")?;
        latencies.join(worked?);
    }
    Ok(latencies.sum_up(passed))
}

/// One thread's clients on its connections.
fn run(
    target: &Target,
    way: Way,
    key: &str,
    connections: usize,
    clients: usize,
    window: &Arc<Window>,
) -> Result<Latencies, Error> {
    let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: PLAINTEXT.to_vec(), ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut channels = Vec::new();
        for _ in 0..connections {
            channels.push(connect(target).await?);
        }
        let mut working = JoinSet::new();
        match way {
            Way::Calls => {
                for channel in channels.iter().cycle().take(clients) {
                    working.spawn(work(channel.clone(), request.clone(), window.clone()));
                }
            }
            Way::Pipeline => {
                for (number, channel) in channels.iter().enumerate() {
                    let items = clients / connections + usize::from(number < clients % connections);
                    working.spawn(pipeline(channel.clone(), request.clone(), items, window.clone()));
                }
            }
        }
        let mut latencies = Latencies::default();
        while let Some(worked) = working.join_next().await {
            latencies.join(worked??);
        }
        Ok(latencies)
    })
}

async fn work(channel: Channel, request: pb::EncryptRequest, window: Arc<Window>) -> Result<Latencies, tonic::Status> {
    let mut crypto = CryptoServiceClient::new(channel);
    let mut latencies = Latencies::default();
    loop {
        let phase = window.phase();
        if phase == Phase::Over {
            return Ok(latencies);
        }
        let began = Instant::now();
        crypto.encrypt(request.clone()).await?;
        if phase == Phase::Counting {
            latencies.note(began.elapsed());
        }
    }
}

/// Keeps so many items of one stream unanswered.
async fn pipeline(
    channel: Channel,
    request: pb::EncryptRequest,
    items: usize,
    window: Arc<Window>,
) -> Result<Latencies, tonic::Status> {
    use pb::{pipeline_request::Request as Asked, pipeline_response::Response as Told};
    let item = |id| pb::PipelineRequest { id, timeout: None, request: Some(Asked::Encrypt(request.clone())) };
    let (asking, asked) = mpsc::channel(items);
    let mut answers = CryptoServiceClient::new(channel).pipeline(ReceiverStream::new(asked)).await?.into_inner();
    // There is room for each: as many as may be unanswered.
    let ask = |asking: &mpsc::Sender<_>, id| {
        let began = (Instant::now(), window.phase());
        let _ = asking.try_send(item(id));
        began
    };
    let ids = 0..u32::try_from(items).expect("a few hundred");
    let mut began: Vec<_> = ids.map(|id| ask(&asking, id)).collect();
    let (mut asking, mut latencies) = (Some(asking), Latencies::default());
    while let Some(answer) = answers.message().await? {
        if let Some(Told::Error(error)) = answer.response {
            return Err(tonic::Status::new(error.code.into(), error.message));
        }
        let of_item = &mut began[answer.id as usize];
        if of_item.1 == Phase::Counting {
            latencies.note(of_item.0.elapsed());
        }
        if window.phase() == Phase::Over {
            asking = None;
        }
        if let Some(asking) = &asking {
            *of_item = ask(asking, answer.id);
        }
    }
    Ok(latencies)
}
