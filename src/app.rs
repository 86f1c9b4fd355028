//! The only joiner: makes every room from the configuration, runs, and drains.
//!
//! Start and end read as lists. Nothing here decides anything about a request.

mod node;
mod reload;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic_health::server::HealthReporter;

use crate::authz::{Loopback, Policy};
use crate::cluster::{Closing, Declared, Undeclarable};
use crate::config::Config;
use crate::door::grpc::{self, Faces, Foundation, Mode, Pages, Pipelines};
use crate::door::http::{self, Operations, Served, Url};
use crate::door::{self, Bound, LaneThreads, Lanes, ListenError, Readiness};
use crate::host::Host;
use crate::host::served::ServeError;
use crate::keys::{self, Keys};
use crate::keystore::KeyStores;
use crate::making::MadeClusters;
use crate::records::{self, OpenError, Records, Unavailable};
use crate::users::Users;

pub use node::Node;
pub use reload::Source;

use reload::Reload;

/// New Connections on their way to whoever keeps their keys level.
const OPENED_DEPTH: usize = 64;
/// At the end, workers get this long to let running calls return before the daemon leaves without waiting.
const WORKERS_END: Duration = Duration::from_secs(5);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{path} cannot be made or used")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the records cannot be opened")]
    Open(#[from] OpenError),
    #[error("the records cannot be read")]
    Records(#[from] Unavailable),
    #[error(transparent)]
    Undeclarable(#[from] Undeclarable),
    #[error("nobody can come in")]
    Listen(#[from] ListenError),
    #[error("no daemon can come in")]
    Serve(#[from] ServeError),
    #[error("the process cannot be set up")]
    Process(#[source] std::io::Error),
}

/// A daemon that serves.
pub struct App {
    pub bound: Bound,
    /// Where the operations listener stands, if there is one.
    pub http: Option<SocketAddr>,
    key_stores: KeyStores,
    lanes: LaneThreads,
    draining: watch::Sender<bool>,
    reload: Reload,
    signals: Signals,
}

/// What operators send.
struct Signals {
    term: Signal,
    int: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From here on none of them ends the process by itself.
    fn heard() -> std::io::Result<Self> {
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { term, int, hang_up: signal(SignalKind::hangup())? })
    }
}

impl App {
    /// Joins the rooms, bottom up. When this returns, callers are served. `source` is read again on SIGHUP.
    pub async fn start(config: Config, source: Option<Source>, mode: Mode) -> Result<Self, StartError> {
        private_process().map_err(StartError::Process)?;
        // Before anybody can know that there is a daemon to send them to.
        let signals = Signals::heard().map_err(StartError::Process)?;
        make_private(&config.data_dir)
            .map_err(|source| StartError::Directory { path: config.data_dir.clone(), source })?;
        #[cfg(debug_assertions)]
        crate::seams::watch(&config.data_dir);

        // First of all: whoever asks is told that it is starting.
        let (readiness, until_ready) = watch::channel(Readiness::Starting);
        let operations = Operations::starting(until_ready.clone());
        let http = match &config.http {
            Some(settings) => Some(http::listen(settings, operations.clone()).await?),
            None => None,
        };

        reload::warn_of_doubts(config.clusters.iter());
        let reload = Reload { started_with: config.clone(), source };

        let records = Records::open(&records::Settings {
            database: config.data_dir.join("records.sqlite3"),
            sealing_key: config.sealing_key_file,
        })
        .await?;
        let host_dir = config.data_dir.join("host");
        let host = Host::new(host_dir.clone(), config.node_client.clone())
            .map_err(|source| StartError::Directory { path: host_dir, source })?;
        let clusters = Declared::new(config.clusters, config.made_clusters, records.made_clusters().await?)?;

        let key_store_quota = config.key_stores.quota;
        let (opened, to_reconcile) = mpsc::channel(OPENED_DEPTH);
        let key_stores =
            KeyStores::load(config.key_stores, clusters.clone(), records.clone(), host.clone(), opened).await?;
        let users = Users::new(config.crypto_users, key_stores.clone(), records.clone(), host.clone());
        let made_clusters = MadeClusters::new(users.clone(), key_stores.clone(), records.clone(), host);
        let keys = Keys::new(config.keys, clusters.clone(), records.clone(), key_stores.clone(), users.clone());
        tokio::spawn(keys::reconcile::run(keys.clone(), to_reconcile));
        tokio::spawn(keys::deletion::run(keys.clone()));
        tokio::spawn(keys::rotation::run(keys.clone()));
        tokio::spawn(keys::usage::keep_written(keys.clone()));
        key_stores.take_up().await?;
        key_stores.look_out();
        made_clusters.take_up().await?;

        let (draining, until_draining) = watch::channel(false);
        let health = HealthReporter::new();
        tokio::spawn(grpc::report_health(health.clone(), key_stores.clone(), until_ready));
        let loopback = match mode {
            Mode::Dev => Loopback::Trusted,
            Mode::Serve => Loopback::Nobody,
        };
        let faces = Faces::new(Foundation {
            policy: Policy::new(&config.authz, rustix::process::getuid().as_raw(), loopback),
            key_stores: key_stores.clone(),
            keys,
            users,
            clusters,
            made_clusters,
            health,
            draining: until_draining.clone(),
            max_message_bytes: config.grpc.max_message_bytes,
            pipeline_in_flight: config.grpc.pipeline_in_flight,
            pipelines: Pipelines::default(),
            mode,
            key_store_quota,
            pages: pages(config.http.as_ref().and_then(|http| http.url.clone()), http, mode),
        });
        let most = NonZeroUsize::new(64).expect("64");
        let (lanes, threads) =
            Lanes::start(&faces, most, &until_draining, config.grpc.drain_timeout).map_err(StartError::Process)?;
        let bound = door::listen(&config.grpc, lanes.clone(), until_draining.clone()).await?;
        operations.serves(Served { faces, records: records.clone(), lanes, places: bound.places.clone() });
        tokio::spawn(door::keep_ready(readiness, records, until_draining));
        tracing::info!(tcp = ?bound.tcp, unix = ?bound.unix, ?http, "serving");
        Ok(Self { bound, http, key_stores, lanes: threads, draining, reload, signals })
    }

    /// Serves until SIGTERM or SIGINT, then drains. SIGHUP has the configuration read again.
    pub async fn run(mut self) {
        let Signals { term, int, hang_up } = &mut self.signals;
        // Beside the others: a reload that hangs must not keep the daemon from ending.
        let reloading = async {
            while hang_up.recv().await.is_some() {
                self.reload.reload(&self.key_stores, self.bound.tls.as_ref()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: draining"),
            _ = int.recv() => tracing::info!("SIGINT: draining"),
            () = reloading => {}
        }
        self.drain().await;
    }

    /// Takes no new calls, lets running ones end, hands the links back to the workers.
    async fn drain(self) {
        self.draining.send_replace(true);
        let lanes = self.lanes;
        if tokio::task::spawn_blocking(move || lanes.join()).await.is_err() {
            tracing::error!("the lanes could not be waited for");
        }
        self.key_stores.close_all(Closing::Drain(WORKERS_END)).await;
        tracing::info!("drained");
    }
}

/// A development daemon's callers are where it is. Of others only the operator knows how they reach it.
fn pages(url: Option<Url>, bound: Option<SocketAddr>, mode: Mode) -> Pages {
    let own = bound.filter(|_| mode == Mode::Dev).filter(|bound| bound.ip().is_loopback()).map(Url::of);
    url.or(own).map_or_else(Pages::default, |url| Pages::under(url.as_str()))
}

/// No core dumps, since they would hold passwords and plaintexts, and no reading by others of the same user. The limit alone
/// does not stop the kernel from handing a dump to a program.
fn private_process() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn make_private(directory: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}
