//! One HSM of three is lost, in each way in turn, while calls come at half of what the other two can do.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use faulty_pkcs11::{On, Rule};
use rustix::process::Signal;

use crate::calls::{Ask, Caller, Latency, refusals};
use crate::cluster::{Cluster, HSMS};
use crate::shared::machine::Watch;
use crate::{Arguments, Error};

const CONNECTIONS: usize = 16;
/// Connections and batches settle in this time.
const WARM_UP: Duration = Duration::from_millis(500);
/// What is told of the time in which callers could notice the loss.
pub const DURING: Duration = Duration::from_secs(2);

/// How an HSM is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// For comparison.
    NotAtAll,
    WorkerKilled,
    WorkerStopped,
    TokenAway,
    SessionsExpired,
    LibraryBlocks,
}

impl Way {
    pub const ALL: [Self; 6] = [
        Self::NotAtAll,
        Self::WorkerKilled,
        Self::WorkerStopped,
        Self::TokenAway,
        Self::SessionsExpired,
        Self::LibraryBlocks,
    ];

    fn strike(self, cluster: &Cluster, hsm: &str) -> Result<(), Error> {
        match self {
            Self::NotAtAll => {}
            Self::WorkerKilled => cluster.signal(hsm, Signal::KILL),
            Self::WorkerStopped => cluster.signal(hsm, Signal::STOP),
            Self::TokenAway => cluster.take_token_away(hsm)?,
            Self::SessionsExpired => cluster.faults(hsm).expire_sessions(),
            Self::LibraryBlocks => cluster.faults(hsm).set([Rule::block(On::all())]),
        }
        Ok(())
    }

    fn mend(self, cluster: &Cluster, hsm: &str) -> Result<(), Error> {
        match self {
            Self::NotAtAll | Self::WorkerKilled | Self::WorkerStopped | Self::SessionsExpired => {}
            Self::TokenAway => cluster.bring_token_back(hsm)?,
            Self::LibraryBlocks => cluster.faults(hsm).clear(),
        }
        cluster.until_healthy()?;
        Ok(())
    }
}

/// One way in one round.
pub struct Loss {
    pub way: Way,
    pub calls: usize,
    pub refused: BTreeMap<String, usize>,
    /// The share of the machine that others took meanwhile.
    pub others: f64,
    pub before: Latency,
    pub during: Latency,
    pub after: Latency,
}

pub struct Round {
    /// Calls a second that two HSMs answered.
    pub capacity: f64,
    pub losses: Vec<Loss>,
}

pub fn run(arguments: &Arguments, home: &Path) -> Result<Vec<Round>, Error> {
    // Cargo builds it beside the benches.
    let library = std::env::current_exe()?.with_file_name("libfaulty_pkcs11.so");
    let cluster = Cluster::start(home, arguments.pool_size, Some(&library))?;
    let caller = Caller::connect(&cluster.daemon.unix, CONNECTIONS, arguments.deadline())?;
    let work = cluster.work(&caller)?;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds() {
        let hsm = HSMS[round as usize % HSMS.len()];
        cluster.drain(hsm)?;
        let capacity = caller.capacity(&work, arguments.clients.into(), arguments.length())?;
        cluster.resume(hsm)?;
        eprintln!("loss, round {}: two HSMs answer {capacity:.0} calls a second", round + 1);
        let mut losses = Vec::new();
        for way in Way::ALL.into_iter().filter(|way| arguments.ways.is_empty() || arguments.ways.contains(way)) {
            let loss = lose(&cluster, &caller, &work, way, hsm, capacity / 2.0, arguments.length())?;
            let refused: usize = loss.refused.values().sum();
            eprintln!("{way:?} of {hsm}: {} calls, {refused} refused; others {:.0} %", loss.calls, loss.others * 100.0);
            losses.push(loss);
        }
        rounds.push(Round { capacity, losses });
    }
    Ok(rounds)
}

fn lose(
    cluster: &Cluster,
    caller: &Caller,
    work: &[Ask],
    way: Way,
    hsm: &str,
    rate: f64,
    length: Duration,
) -> Result<Loss, Error> {
    let watch = Watch::start(cluster.cpu_time());
    let load = caller.start(work.to_vec(), rate)?;
    std::thread::sleep(WARM_UP);
    let began = Instant::now();
    std::thread::sleep(length);
    let struck = Instant::now();
    way.strike(cluster, hsm)?;
    std::thread::sleep(DURING + length);
    let calls = load.stop()?;
    let others = watch.others(cluster.cpu_time());
    way.mend(cluster, hsm)?;
    let due = |from: Instant, until: Option<Instant>| {
        let within = move |at: Instant| at >= from && until.is_none_or(|until| at < until);
        Latency::of(calls.iter().filter(move |call| within(call.due)))
    };
    Ok(Loss {
        way,
        calls: calls.len(),
        refused: refusals(calls.iter()),
        others,
        before: due(began, Some(struck)),
        during: due(struck, Some(struck + DURING)),
        after: due(struck + DURING, None),
    })
}
