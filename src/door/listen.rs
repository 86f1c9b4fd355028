//! Listeners: they bind, accept, and deal their connections out to the lanes.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

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
#[derive(Debug, Clone, Default)]
pub struct Bound {
    pub tcp: Option<SocketAddr>,
    pub unix: Option<PathBuf>,
    /// What the TCP listener shows and whom it believes.
    pub tls: Option<Acceptor>,
}

/// Binds every listener and deals its connections out to the lanes until `draining`.
pub async fn listen(settings: &Settings, lanes: Lanes, draining: watch::Receiver<bool>) -> Result<Bound, ListenError> {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let mut bound = Bound::default();
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
    places: Arc<Semaphore>,
    mut draining: watch::Receiver<bool>,
) {
    loop {
        let Some(place) = place(&places, &mut draining).await else {
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
        pass_on(socket, place, &lanes).await;
    }
}

async fn accept_unix(
    listener: UnixListener,
    lanes: Lanes,
    places: Arc<Semaphore>,
    mut draining: watch::Receiver<bool>,
) {
    loop {
        let Some(place) = place(&places, &mut draining).await else {
            return;
        };
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => return,
            accepted = listener.accept() => accepted,
        };
        let socket = accepted.and_then(|(stream, _)| Ok(Socket::Unix(stream.into_std()?)));
        pass_on(socket, place, &lanes).await;
    }
}

/// Beyond `max_connections` nobody is accepted: the kernel's backlog holds the next ones.
async fn place(places: &Arc<Semaphore>, draining: &mut watch::Receiver<bool>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        _ = draining.wait_for(|draining| *draining) => None,
        place = places.clone().acquire_owned() => place.ok(),
    }
}

async fn pass_on(socket: io::Result<Socket>, place: OwnedSemaphorePermit, lanes: &Lanes) {
    match socket {
        Ok(socket) => lanes.deal(Arrival { socket, place }).await,
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
