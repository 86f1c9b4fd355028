//! The echo: keyway's own `Encrypt`, which answers with what it was given. Runs as a child of the bench.
//!
//! The same messages, the same library and the same kind of threads as the daemon: one
//! single-threaded runtime per core, each connection on one of them. What is left is the price of gRPC.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use keyway::proto::v1 as pb;
use pb::crypto_service_server::{CryptoService, CryptoServiceServer};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::{Error, machine};

const BACKLOG: usize = 64;

#[derive(Clone, Copy)]
struct Echo;

#[tonic::async_trait]
impl CryptoService for Echo {
    async fn encrypt(&self, request: Request<pb::EncryptRequest>) -> Result<Response<pb::EncryptResponse>, Status> {
        let asked = request.into_inner();
        Ok(Response::new(pb::EncryptResponse {
            ciphertext: asked.plaintext,
            key_id: asked.key_id,
            encryption_algorithm: pb::EncryptionAlgorithm::SymmetricDefault.into(),
            key_version: 1,
            ..Default::default()
        }))
    }
}

/// Says its TCP address, and serves until standard input ends.
pub fn serve(unix_socket: &Path) -> Result<(), Error> {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
    let unix = UnixListener::bind(unix_socket)?;
    println!("{}", tcp.local_addr()?);
    std::io::stdout().flush()?;

    let cores = machine::cores();
    let (tcp_lanes, unix_lanes): (Vec<_>, Vec<_>) = (0..cores).map(|_| lane()).collect();
    deal(tcp_lanes, move || {
        let (stream, _) = tcp.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    deal(unix_lanes, move || {
        let (stream, _) = unix.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    for line in std::io::stdin().lock().lines() {
        line?;
    }
    Ok(())
}

type WaysIn = (mpsc::Sender<std::net::TcpStream>, mpsc::Sender<std::os::unix::net::UnixStream>);

/// One single-threaded runtime that serves what it is dealt.
fn lane() -> WaysIn {
    let (tcp, tcp_arrivals) = mpsc::channel(BACKLOG);
    let (unix, unix_arrivals) = mpsc::channel(BACKLOG);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.map(|runtime| {
            runtime.block_on(async {
                let server = || Server::builder().add_service(CryptoServiceServer::new(Echo));
                let tcp = ReceiverStream::new(tcp_arrivals).map(tokio::net::TcpStream::from_std);
                let unix = ReceiverStream::new(unix_arrivals).map(tokio::net::UnixStream::from_std);
                tokio::try_join!(server().serve_with_incoming(tcp), server().serve_with_incoming(unix))
            })
        });
        if !matches!(served, Ok(Ok(_))) {
            eprintln!("the echo stopped serving: {served:?}");
        }
    });
    (tcp, unix)
}

/// Accepts for ever, in a thread of its own, and deals the connections out in turn.
fn deal<S: Send + 'static>(lanes: Vec<mpsc::Sender<S>>, accept: impl Fn() -> std::io::Result<S> + Send + 'static) {
    std::thread::spawn(move || {
        for lane in lanes.iter().cycle() {
            let stream = match accept() {
                Ok(stream) => stream,
                Err(error) => return eprintln!("the echo accepts no more: {error}"),
            };
            if lane.blocking_send(stream).is_err() {
                return;
            }
        }
    });
}
