//! A network that fails on command: every byte between two hosts passes through here.
//!
//! There is no `tc netem` on the machines that this runs on, and none is needed: a proxy can cut a connection, refuse one,
//! fall silent, which to either end looks like a cable that was pulled, and let bytes arrive late, which is all that TCP
//! shows of a long way and of packets that were lost.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::dice::Dice;

/// Linux waits at least this long before it sends again what was lost, and twice as long each further time.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// A chunk is not lost more often than this.
const LOST_AT_MOST: usize = 4;
/// So many chunks are on their way at once, in each direction of a connection.
const UNDER_WAY: usize = 1024;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Every chunk arrives so much later than it was sent, in each direction. As much passes as ever.
    Late(Duration),
    /// Some chunks arrive as late as if they had been lost and sent again, and all that were sent after them wait for them.
    Lossy(Loss),
    /// Nothing passes, and nobody is told: neither data nor the end of a connection. New ones are made and go nowhere.
    Silent,
    /// Every connection ends, and new ones end at once.
    Cut,
}

/// How many of a hundred chunks are lost, and which: the same seed loses the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    pub percent: usize,
    pub seed: u64,
}

impl Loss {
    fn late_by(self, dice: &mut Dice) -> Duration {
        let lost = (0..LOST_AT_MOST).take_while(|_| dice.below(100) < self.percent).count();
        RETRANSMISSION * ((1 << lost) - 1)
    }
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
    let mut connections = 0;
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
            tokio::spawn(connect(near, target, connections, weather.clone()));
            connections += 1;
        }
    }
}

/// Until one of the two has ended, or the weather ends both.
async fn connect(near: TcpStream, target: SocketAddr, number: u64, mut weather: watch::Receiver<Weather>) {
    let Ok(now) = weather.wait_for(|weather| *weather != Weather::Silent).await.map(|weather| *weather) else { return };
    match now {
        Weather::Cut => return,
        // A connection takes a way there and a way back, before there are bytes.
        Weather::Late(by) => sleep(by * 2).await,
        Weather::Fair | Weather::Lossy(_) | Weather::Silent => {}
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let mut cut = weather.clone();
    let there = pass(near_read, far_write, 2 * number, weather.clone());
    let back = pass(far_read, near_write, 2 * number + 1, weather.clone());
    tokio::select! {
        _ = async { tokio::join!(there, back) } => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

/// One direction of a connection, which has a number of its own.
async fn pass(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    number: u64,
    weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let (send, sent) = mpsc::channel(UNDER_WAY);
    let taking = async {
        let _ = take(from, send, number, weather.clone()).await;
        // What was taken is still to be given.
        std::future::pending().await
    };
    tokio::select! {
        given = give(sent, to, weather.clone()) => given,
        never = taking => never,
    }
}

/// Sends off what comes, with the time at which it is to arrive.
async fn take(
    mut from: OwnedReadHalf,
    send: mpsc::Sender<(Instant, Vec<u8>)>,
    number: u64,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 << 10];
    let mut dice = None;
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
        // The end passes as well.
        let (Ok(read @ 1..), now) = (read, *weather.borrow()) else { return Ok(()) };
        let late_by = match now {
            Weather::Late(by) => by,
            Weather::Lossy(loss) => loss.late_by(dice.get_or_insert_with(|| Dice::new(loss.seed ^ number))),
            Weather::Fair | Weather::Silent | Weather::Cut => Duration::ZERO,
        };
        send.send((Instant::now() + late_by, bytes[..read].to_vec())).await.map_err(io::Error::other)?;
    }
}

/// Lets arrive what was sent, in order.
async fn give(
    mut sent: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    while let Some((due, bytes)) = sent.recv().await {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        weather.wait_for(|weather| *weather != Weather::Silent).await.map_err(io::Error::other)?;
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Duration = Duration::from_millis(100);
    /// Far more than a connection with a window of a chunk would get over in this time.
    const MUCH: usize = 16 << 20;

    /// Both ends of a connection through a proxy.
    async fn connected(weather: Weather) -> (Proxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::new();
        proxy.leads_to(listener.local_addr().unwrap());
        proxy.turn(weather);
        let near = TcpStream::connect(proxy.address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (proxy, near, far)
    }

    #[tokio::test]
    async fn what_is_late_is_late_both_ways_and_all_of_it_arrives_in_order_no_slower_than_it_was_sent() {
        let (_proxy, mut near, mut far) = connected(Weather::Late(WAY)).await;
        let sent: Vec<u8> = (0..MUCH).map(|at| (at % 251) as u8).collect();
        let begun = Instant::now();
        let (mut back, answered) = (vec![0; MUCH], async {
            let mut received = vec![0; MUCH];
            far.read_exact(&mut received).await.unwrap();
            far.write_all(&received).await.unwrap();
        });
        let (mut near_read, mut near_write) = near.split();
        let (written, read, ()) = tokio::join!(near_write.write_all(&sent), near_read.read_exact(&mut back), answered);
        written.unwrap();
        read.unwrap();
        assert!(back == sent, "other bytes came than were sent");
        let took = begun.elapsed();
        assert!(took >= WAY * 2, "{took:?}");
        // Chunk by chunk, each waiting for the one before, it would have been 256 times the way at least.
        assert!(took < WAY * 50, "{took:?}");
    }

    #[tokio::test]
    async fn what_is_lost_arrives_late_and_what_was_sent_after_it_waits_for_it() {
        let all = Loss { percent: 100, seed: 7 };
        let (proxy, mut near, mut far) = connected(Weather::Lossy(all)).await;
        let begun = Instant::now();
        near.write_all(b"lost").await.unwrap();
        // Taken before the weather clears.
        sleep(RETRANSMISSION / 4).await;
        proxy.turn(Weather::Fair);
        near.write_all(b" and found").await.unwrap();
        let mut received = [0; 14];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"lost and found");
        assert!(begun.elapsed() >= all.late_by(&mut Dice::new(0)), "{:?}", begun.elapsed());
    }

    #[test]
    fn the_same_seed_loses_the_same_chunks_and_no_more_than_was_said() {
        let lost = |seed| {
            let (loss, mut dice) = (Loss { percent: 5, seed }, Dice::new(seed));
            (0..10_000).map(|_| loss.late_by(&mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
        let late = lost(1).into_iter().filter(|late| *late > Duration::ZERO).count();
        assert!((400..600).contains(&late), "{late}");
        assert!(lost(1).contains(&RETRANSMISSION) && lost(1).contains(&(RETRANSMISSION * 3)), "sent again, and again");
    }
}
