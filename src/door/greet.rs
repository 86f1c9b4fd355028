//! One connection, from its acceptance to a caller who is known.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authz::Caller;
use crate::tls::{self, Acceptor};

use super::listen::Place;

/// The first byte of a TLS handshake; HTTP/2 in plaintext begins with a `P`.
const TLS_HANDSHAKE: u8 = 0x16;
/// What every HTTP/2 connection begins with. Read here, within the greeting's time: the server behind has no limit for it.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection says who it is within this time, or is closed.
const GREETING: Duration = Duration::from_secs(10);

/// An accepted socket on its way to the lane that will serve it.
pub(super) struct Arrival {
    pub(super) socket: Socket,
    /// One of the daemon's connections, given back when this one ends.
    pub(super) place: Place,
}

pub(super) enum Socket {
    Tcp(std::net::TcpStream, TcpRules),
    Unix(std::os::unix::net::UnixStream),
}

#[derive(Clone)]
pub(super) struct TcpRules {
    pub(super) acceptor: Acceptor,
    pub(super) plaintext: Plaintext,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Plaintext {
    /// `keyway dev`: from loopback only.
    FromLoopback,
    Refused,
}

/// Finds out who is there. Runs on the lane that will serve the connection.
pub(super) async fn greet(arrival: Arrival) -> io::Result<Io> {
    let greeted = async {
        let (stream, caller) = identify(arrival.socket).await?;
        let mut io = Io { stream, caller, unread: &[], _place: arrival.place };
        let mut begun = [0; PREFACE.len()];
        io.read_exact(&mut begun).await?;
        if begun != *PREFACE {
            return Err(io::Error::other("this is not HTTP/2"));
        }
        io.unread = PREFACE;
        Ok(io)
    };
    tokio::time::timeout(GREETING, greeted).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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
                let stream = rules.acceptor.current().accept(stream).await?;
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let caller = certificate.and_then(tls::name_on).map(Caller::certificate);
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
    /// What of the preface the server has yet to read again.
    unread: &'static [u8],
    _place: Place,
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
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let (now, later) = this.unread.split_at(this.unread.len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.unread = later;
            return Poll::Ready(Ok(()));
        }
        match &mut this.stream {
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
