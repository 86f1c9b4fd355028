//! Which cells are measured, in which order, how often.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::Error;
use crate::arguments::Arguments;
use crate::clients::{self, Way};
use crate::pkcs11::Alone;
use crate::shared::child::{Own, cpu_time};
use crate::shared::connect::Target;
use crate::shared::daemon::{Daemon, Shape};
use crate::shared::machine::Watch;
use crate::window::Measured;

/// A share of the machine that others may take without disturbing a measurement.
const QUIET: f64 = 0.05;

/// How often and how long each cell is measured.
pub struct Rounds {
    pub count: u32,
    pub length: Duration,
    /// A measurement that others disturbed is repeated up to this often, and the least disturbed one counts.
    pub attempts: u32,
}

impl Rounds {
    pub fn of(arguments: &Arguments) -> Self {
        let (count, seconds, attempts) =
            if arguments.quick { (1, 1, 1) } else { (arguments.rounds, arguments.seconds, arguments.attempts) };
        Self { count, length: Duration::from_secs(seconds), attempts }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Unix,
}

/// What one cell measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Pkcs11 {
        threads: usize,
    },
    Echo(Transport, usize),
    /// The daemon of this number; the first is the one that was built with the bench.
    Keyway(usize, Transport, usize),
    /// The same, with as many items unanswered as there would be clients, on streams over as many connections.
    Pipeline(usize, Transport, usize),
}

/// A cell, with one measurement of each round.
pub struct Cell {
    pub what: What,
    pub measured: Vec<Measured>,
    /// The share of the machine's CPU time that went to processes which are none of ours, for each of them.
    pub disturbed: Vec<f64>,
}

/// Everything that is measured, running.
pub struct Systems {
    pub pkcs11: Alone,
    echo: Own,
    echo_tcp: Target,
    echo_unix: Target,
    daemons: Vec<Daemon>,
    clients: Vec<usize>,
    stop: Arc<AtomicBool>,
}

impl Systems {
    pub fn start(arguments: &Arguments, home: &Path) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let pkcs11 = Alone::start(&home.join("pkcs11"), arguments.softhsm2.as_deref())?;
        let socket = home.join("echo.sock");
        let mut echo = Own::start(|command: &mut Command| {
            command.arg("echo").arg(&socket);
        })?;
        let echo_tcp = Target::Tcp(format!("http://{}", echo.hear()?));

        let shape = Shape { nodes: arguments.nodes, pool_size: arguments.pool_size, library: None };
        let built = PathBuf::from(env!("CARGO_BIN_EXE_keyway"));
        let mut daemons = Vec::new();
        for (number, binary) in [&built].into_iter().chain(&arguments.beside).enumerate() {
            eprintln!("starting {}", binary.display());
            daemons.push(Daemon::start(binary, &home.join(format!("keyway-{number}")), shape)?);
        }
        Ok(Self {
            pkcs11,
            echo,
            echo_tcp,
            echo_unix: Target::Unix(socket),
            daemons,
            clients: arguments.clients.iter().copied().map(usize::from).collect(),
            stop,
        })
    }

    fn cells(&self) -> Vec<What> {
        let mut cells = vec![What::Pkcs11 { threads: 1 }, What::Pkcs11 { threads: 2 }];
        for transport in [Transport::Tcp, Transport::Unix] {
            for clients in self.clients.iter().copied() {
                cells.push(What::Echo(transport, clients));
                for daemon in 0..self.daemons.len() {
                    cells.push(What::Keyway(daemon, transport, clients));
                    cells.push(What::Pipeline(daemon, transport, clients));
                }
            }
        }
        cells
    }

    /// CPU time so far, of everything here and of the clients.
    fn cpu_time(&self) -> Duration {
        let own = [self.echo.pid(), self.pkcs11.pid(), std::process::id()];
        let daemons = self.daemons.iter().map(Daemon::cpu_time);
        own.into_iter().map(cpu_time).chain(daemons).sum()
    }

    fn measure(&mut self, what: What, length: Duration) -> Result<Measured, Error> {
        match what {
            What::Pkcs11 { threads } => self.pkcs11.measure(threads, length),
            What::Echo(transport, clients) => {
                let target = match transport {
                    Transport::Tcp => &self.echo_tcp,
                    Transport::Unix => &self.echo_unix,
                };
                let pid = self.echo.pid();
                // A key's id, so that the messages are as long as keyway's.
                clients::measure(target, Way::Calls, &self.daemons[0].key, clients, length, || cpu_time(pid))
            }
            What::Keyway(daemon, transport, clients) => self.daemon(daemon, transport, Way::Calls, clients, length),
            What::Pipeline(daemon, transport, items) => self.daemon(daemon, transport, Way::Pipeline, items, length),
        }
    }

    fn daemon(
        &self,
        daemon: usize,
        transport: Transport,
        way: Way,
        clients: usize,
        length: Duration,
    ) -> Result<Measured, Error> {
        let daemon = &self.daemons[daemon];
        let target = match transport {
            Transport::Tcp => &daemon.tcp,
            Transport::Unix => &daemon.unix,
        };
        clients::measure(target, way, &daemon.key, clients, length, || daemon.cpu_time())
    }
}

/// Measures every cell once in each round: what disturbs the machine for a while disturbs them all.
pub fn run(systems: &mut Systems, rounds: &Rounds) -> Result<Vec<Cell>, Error> {
    let whats = systems.cells();
    let mut cells: Vec<Cell> =
        whats.into_iter().map(|what| Cell { what, measured: Vec::new(), disturbed: Vec::new() }).collect();
    for round in 1..=rounds.count {
        eprintln!("round {round} of {}", rounds.count);
        for cell in &mut cells {
            let (measured, others) = least_disturbed(systems, cell.what, rounds)?;
            cell.measured.push(measured);
            cell.disturbed.push(others);
        }
    }
    Ok(cells)
}

/// The chosen attempt, and the share of the machine that others took meanwhile. Chosen by that share alone, never by its result.
fn least_disturbed(systems: &mut Systems, what: What, rounds: &Rounds) -> Result<(Measured, f64), Error> {
    let mut best: Option<(Measured, f64)> = None;
    for _ in 0..rounds.attempts.max(1) {
        let watch = Watch::start(systems.cpu_time());
        let measured = systems.measure(what, rounds.length);
        if systems.stop.load(Relaxed) {
            return Err("stopped".into());
        }
        let (measured, others) = (measured?, watch.others(systems.cpu_time()));
        if best.is_none_or(|(_, least)| others < least) {
            best = Some((measured, others));
        }
        if others < QUIET {
            break;
        }
    }
    best.ok_or_else(|| "nothing was measured".into())
}
