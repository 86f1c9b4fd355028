//! A caller at a modest rate, beside another one who sends what is refused.
//!
//! What the other one sends costs the machine something whatever becomes of it. So there are two to compare with, as many
//! calls with as many bytes:
//!
//! - *elsewhere*: calls to a bare echo in a process of its own, which does not know them. What the victim notices of
//!   these is the price of sharing cores with client and server of so many gRPC calls;
//! - *control*: calls that the daemon refuses before any HSM is asked, with the very words of the flood. What the victim
//!   notices beyond that is what bad ciphertexts cost the HSMs, and through them everybody else.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use keyway::proto::v1 as pb;

use crate::calls::{Ask, Caller, Latency, refusals};
use crate::cluster::Cluster;
use crate::shared::child::{Own, cpu_time};
use crate::shared::connect::Target;
use crate::shared::machine::Watch;
use crate::{Arguments, Error};

const CONNECTIONS: usize = 4;
const CAPACITY_CONNECTIONS: usize = 16;
const WARM_UP: Duration = Duration::from_millis(500);
/// What is held back after a flood is held back no longer than this.
const PAUSE: Duration = Duration::from_millis(1_500);
/// The victim's share of what the cluster can do.
pub const SHARE: f64 = 0.2;

/// What is sent beside the victim's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    /// To another server.
    Elsewhere,
    /// Refused by the daemon alone.
    Control,
    /// Refused by an HSM, or held back.
    Flood,
}

impl Beside {
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Elsewhere, Self::Control, Self::Flood];
}

pub struct Cell {
    pub beside: Beside,
    pub victim: Latency,
    pub victim_refused: BTreeMap<String, usize>,
    /// The share of the machine that others took meanwhile.
    pub others: f64,
    /// Cores that the daemon and its workers kept busy.
    pub cores: f64,
    /// What the other one got to hear, calls a second for each answer.
    pub told: BTreeMap<String, f64>,
}

pub struct Measured {
    pub capacity: f64,
    /// One of each kind in each.
    pub rounds: Vec<Vec<Cell>>,
    /// Workers that were replaced meanwhile.
    pub replaced: i32,
}

pub fn run(arguments: &Arguments, home: &Path) -> Result<Measured, Error> {
    let cluster = Cluster::start(home, arguments.pool_size, None)?;
    // The daemon knows the one by its user id, the other by its way over the loopback: two callers.
    let victim = Caller::connect(&cluster.daemon.unix, CONNECTIONS, arguments.deadline())?;
    let other = Caller::connect(&cluster.daemon.tcp, CONNECTIONS, arguments.deadline())?;
    let socket = home.join("echo.sock");
    let mut echo = Own::start(|command| {
        command.arg("echo").arg(socket);
    })?;
    let echo_tcp = Target::Tcp(format!("http://{}", echo.hear()?));
    let elsewhere = Caller::connect(&echo_tcp, CONNECTIONS, arguments.deadline())?;
    let work = cluster.work(&victim)?;
    let crowd = Caller::connect(&cluster.daemon.unix, CAPACITY_CONNECTIONS, arguments.deadline())?;
    let capacity = crowd.capacity(&work, arguments.clients.into(), arguments.length())?;
    drop(crowd);
    eprintln!("flood: three HSMs answer {capacity:.0} calls a second");
    let restarts = |store: &pb::KeyStore| store.nodes.iter().map(|node| node.worker_restarts).sum::<i32>();
    let before = restarts(&cluster.until_healthy()?);
    let (control, flood) = refused_ones(&work)?;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds() as usize {
        let mut cells = Vec::new();
        for turn in 0..Beside::ALL.len() {
            // Each comes first in turn.
            let beside = Beside::ALL[(round + turn) % Beside::ALL.len()];
            let noise = match beside {
                Beside::Nothing => None,
                Beside::Elsewhere => Some((&elsewhere, flood.clone())),
                Beside::Control => Some((&other, control.clone())),
                Beside::Flood => Some((&other, flood.clone())),
            };
            let rates = (capacity * SHARE, arguments.flood.into());
            let watch = Watch::start(cluster.cpu_time() + cpu_time(echo.pid()));
            let busy = || cluster.daemon.cpu_time();
            let mut cell = measure(beside, (&victim, &work), noise, rates, arguments.length(), busy)?;
            cell.others = watch.others(cluster.cpu_time() + cpu_time(echo.pid()));
            cells.push(cell);
        }
        eprintln!("flood, round {}", round + 1);
        rounds.push(cells);
    }
    let after = restarts(&cluster.until_healthy()?);
    Ok(Measured { capacity, rounds, replaced: after - before })
}

/// A ciphertext that is none of keyway's, and one that is none of its key's.
fn refused_ones(work: &[Ask]) -> Result<(Ask, Ask), Error> {
    let good = work.iter().find_map(|ask| match ask {
        Ask::Decrypt(request) => Some(request.ciphertext.clone()),
        Ask::Encrypt(_) => None,
    });
    let good = good.ok_or("nothing is decrypted")?;
    let (mut nobodys, mut bad) = (good.clone(), good);
    *nobodys.first_mut().ok_or("a ciphertext is not empty")? ^= 1;
    *bad.last_mut().ok_or("a ciphertext is not empty")? ^= 1;
    Ok((Ask::decrypt(nobodys), Ask::decrypt(bad)))
}

fn measure(
    beside: Beside,
    (victim, work): (&Caller, &[Ask]),
    noise: Option<(&Caller, Ask)>,
    (rate, noise_rate): (f64, f64),
    length: Duration,
    cpu_time: impl Fn() -> Duration,
) -> Result<Cell, Error> {
    let noise = noise.map(|(other, ask)| other.start(vec![ask], noise_rate)).transpose()?;
    let load = victim.start(work.to_vec(), rate)?;
    std::thread::sleep(WARM_UP);
    let (began, busy) = (Instant::now(), cpu_time());
    std::thread::sleep(length);
    let cores = (cpu_time() - busy).div_duration_f64(began.elapsed());
    let calls = load.stop()?;
    let took = began.elapsed();
    let noise = noise.map(|noise| noise.stop()).transpose()?.unwrap_or_default();
    std::thread::sleep(PAUSE);
    let told = refusals(noise.iter().filter(|call| call.due >= began));
    #[expect(clippy::cast_precision_loss, reason = "a measurement has few digits")]
    let told = told.into_iter().map(|(words, count)| (words, count as f64 / took.as_secs_f64())).collect();
    Ok(Cell {
        beside,
        victim: Latency::of(calls.iter().filter(|call| call.due >= began)),
        victim_refused: refusals(calls.iter()),
        others: 0.0,
        cores,
        told,
    })
}
