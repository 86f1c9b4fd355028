//! A network that fails on command: every byte between two hosts passes through here.
//!
//! There is no `tc netem` on the machines that this runs on, and none is needed: a proxy can cut a connection, refuse one,
//! or fall silent, which to either end looks like a cable that was pulled.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Nothing passes, and nobody is told: neither data nor the end of a connection. New ones are made and go nowhere.
    Silent,
    /// Every connection ends, and new ones end at once.
    Cut,
}

/// One address that leads to another.
pub struct Proxy {
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    /// An address of its own, for as long as the test lasts.
    pub fn new() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let (target, weather) = (Arc::new(Mutex::new(nowhere)), watch::Sender::new(Weather::Fair));
        network().spawn(accept(listener, target.clone(), weather.subscribe()));
        Self { address, target, weather }
    }

    pub fn leads_to(&self, target: SocketAddr) {
        *self.target.lock().expect("nobody panics") = target;
    }

    pub fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

/// One thread for the networks of all tests.
fn network() -> &'static Runtime {
    static NETWORK: OnceLock<Runtime> = OnceLock::new();
    NETWORK.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"))
}

async fn accept(
    listener: std::net::TcpListener,
    target: Arc<Mutex<SocketAddr>>,
    mut weather: watch::Receiver<Weather>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                // The test is over.
                Err(_) => return,
            },
        };
        if let Ok((near, _)) = accepted {
            let target = *target.lock().expect("nobody panics");
            tokio::spawn(connect(near, target, weather.clone()));
        }
    }
}

/// Until one of the two has ended, or the weather ends both.
async fn connect(near: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    if weather.wait_for(|weather| *weather != Weather::Silent).await.is_err() || *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let mut cut = weather.clone();
    let both_ways = async {
        tokio::join!(pass(near_read, far_write, weather.clone()), pass(far_read, near_write, weather.clone()))
    };
    tokio::select! {
        _ = both_ways => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let mut silence = weather.clone();
        let read = tokio::select! {
            biased;
            _ = silence.wait_for(|weather| *weather == Weather::Silent) => None,
            read = from.read(&mut bytes) => Some(read),
        };
        let Some(read) = read else {
            weather.wait_for(|weather| *weather != Weather::Silent).await.map_err(io::Error::other)?;
            continue;
        };
        match read {
            // The end passes as well.
            Ok(0) | Err(_) => return to.shutdown().await,
            Ok(read) => to.write_all(&bytes[..read]).await?,
        }
    }
}
