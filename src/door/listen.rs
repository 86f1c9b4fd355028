//! Listeners, and one connection from its acceptance to a caller who is known.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authz::Caller;

use super::lanes::Lanes;
use super::{Protection, Settings, TlsError, tls};

/// The first byte of a TLS handshake; HTTP/2 in plaintext begins with a `P`.
const TLS_HANDSHAKE: u8 = 0x16;
/// A connection says who it is within this time, or is closed.
const GREETING: Duration = Duration::from_secs(10);
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
}

/// An accepted socket on its way to the lane that will serve it.
pub(super) struct Arrival {
    socket: Socket,
    place: OwnedSemaphorePermit,
}

enum Socket {
    Tcp(std::net::TcpStream, TcpRules),
    Unix(std::os::unix::net::UnixStream),
}

#[derive(Clone)]
struct TcpRules {
    acceptor: TlsAcceptor,
    plaintext: Plaintext,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plaintext {
    /// `keyway dev`: from loopback only.
    FromLoopback,
    Refused,
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
        let rules = TcpRules { acceptor: tls::acceptor(files)?, plaintext };
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

/// Finds out who is there. Runs on the lane that will serve the connection.
pub(super) async fn greet(arrival: Arrival) -> io::Result<Io> {
    match tokio::time::timeout(GREETING, identify(arrival.socket)).await {
        Ok(identified) => {
            let (stream, caller) = identified?;
            Ok(Io { stream, caller, _place: arrival.place })
        }
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn identify(socket: Socket) -> io::Result<(Stream, Caller)> {
    match socket {
        Socket::Unix(stream) => {
            let stream = UnixStream::from_std(stream)?;
            let caller = Caller::unix_socket(stream.peer_cred()?.uid());
            Ok((Stream::Unix(stream), caller))
        }
        Socket::Tcp(stream, rules) => {
            let stream = TcpStream::from_std(stream)?;
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first[0] == TLS_HANDSHAKE {
                let stream = rules.acceptor.accept(stream).await?;
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let caller = certificate.and_then(tls::caller);
                let caller = caller.ok_or_else(|| io::Error::other("the client certificate names nobody"))?;
                return Ok((Stream::Tls(Box::new(stream)), caller));
            }
            let from_loopback = stream.peer_addr()?.ip().is_loopback();
            if rules.plaintext == Plaintext::FromLoopback && from_loopback {
                Ok((Stream::Plain(stream), Caller::loopback()))
            } else {
                Err(io::Error::other("plaintext is not served here; connect with TLS"))
            }
        }
    }
}

/// A connection whose caller is known.
pub(super) struct Io {
    stream: Stream,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connected for Io {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
