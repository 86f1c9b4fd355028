//! Listeners: they bind, accept, and deal their connections out to the lanes.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::telemetry::{Count, Page, catalogue};
use crate::tls::{Acceptor, TlsError};

use super::greet::{Arrival, Plaintext, Socket, TcpRules};
use super::lanes::Lanes;
use super::{Protection, Settings};

/// What is spoken within TLS.
const PROTOCOL: &[u8] = b"h2";
/// The pause after `accept` failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why nobody can come in.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}")]
    Bind {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the TLS material cannot be used")]
    Tls(#[from] TlsError),
}

/// Where callers come in, now that ports are known.
#[derive(Debug, Clone)]
pub struct Bound {
    pub tcp: Option<SocketAddr>,
    pub unix: Option<PathBuf>,
    /// What the TCP listener shows and whom it believes.
    pub tls: Option<Acceptor>,
    pub places: Places,
}

/// The connections that there may be, on all of these listeners together.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    most: usize,
    open: Arc<Count>,
}

/// One of them, given back when its connection ends.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    open: Arc<Count>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.one_less();
    }
}

impl Places {
    fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), most, open: Arc::default() }
    }

    /// Beyond `max_connections` nobody is accepted: the kernel's backlog holds the next ones. `None` once the daemon drains.
    async fn take(&self, draining: &mut watch::Receiver<bool>) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            _ = draining.wait_for(|draining| *draining) => None,
            place = self.free.clone().acquire_owned() => place.ok(),
        }
    }

    /// Somebody has come for whom one was taken.
    fn occupied(&self, permit: OwnedSemaphorePermit) -> Place {
        self.open.one_more();
        Place { _permit: permit, open: self.open.clone() }
    }

    pub(super) fn tell(&self, page: &mut Page) {
        page.level(&catalogue::CONNECTIONS, [], self.open.so_far() as f64);
        page.level(&catalogue::CONNECTIONS_LIMIT, [], self.most as f64);
    }
}

/// Binds every listener and deals its connections out to the lanes until `draining`.
pub async fn listen(settings: &Settings, lanes: Lanes, draining: watch::Receiver<bool>) -> Result<Bound, ListenError> {
    let places = Places::new(settings.max_connections);
    let mut bound = Bound { tcp: None, unix: None, tls: None, places: places.clone() };
    if let Some(path) = &settings.unix_socket {
        let listener =
            bind_unix(path).map_err(|source| ListenError::Bind { address: path.display().to_string(), source })?;
        bound.unix = Some(path.clone());
        tokio::spawn(accept_unix(listener, lanes.clone(), places.clone(), draining.clone()));
    }
    if let Some(tcp) = &settings.tcp {
        let (files, plaintext) = match &tcp.protection {
            Protection::MutualTls(files) => (files, Plaintext::Refused),
            Protection::DevLoopback(files) => (files, Plaintext::FromLoopback),
        };
        let acceptor = Acceptor::new(files.clone(), PROTOCOL)?;
        bound.tls = Some(acceptor.clone());
        let rules = TcpRules { acceptor, plaintext };
        let bind = |source| ListenError::Bind { address: tcp.listen.to_string(), source };
        let listener = TcpListener::bind(tcp.listen).await.map_err(bind)?;
        bound.tcp = Some(listener.local_addr().map_err(bind)?);
        tokio::spawn(accept_tcp(listener, rules, lanes, places, draining));
    }
    Ok(bound)
}

async fn accept_tcp(
    listener: TcpListener,
    rules: TcpRules,
    lanes: Lanes,
    places: Places,
    mut draining: watch::Receiver<bool>,
) {
    loop {
        let Some(place) = places.take(&mut draining).await else {
            return;
        };
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => return,
            accepted = listener.accept() => accepted,
        };
        let socket = accepted.and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            Ok(Socket::Tcp(stream.into_std()?, rules.clone()))
        });
        pass_on(socket, place, &places, &lanes).await;
    }
}

async fn accept_unix(listener: UnixListener, lanes: Lanes, places: Places, mut draining: watch::Receiver<bool>) {
    loop {
        let Some(place) = places.take(&mut draining).await else {
            return;
        };
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => return,
            accepted = listener.accept() => accepted,
        };
        let socket = accepted.and_then(|(stream, _)| Ok(Socket::Unix(stream.into_std()?)));
        pass_on(socket, place, &places, &lanes).await;
    }
}

async fn pass_on(socket: io::Result<Socket>, place: OwnedSemaphorePermit, places: &Places, lanes: &Lanes) {
    match socket {
        Ok(socket) => lanes.deal(Arrival { socket, place: places.occupied(place) }).await,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// A socket file that nobody listens on any more is taken over; one that is in use is an error.
fn bind_unix(path: &PathBuf) -> io::Result<UnixListener> {
    if path.exists() {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
