//! What callers notice when something goes wrong beside them: an HSM that is lost, another caller who misbehaves.
//!
//! Two measurements, each of interleaved rounds:
//!
//! - [`loss`]: calls come at half of what the remaining HSMs can do, and one HSM is lost in one way after the other;
//! - [`flood`]: one caller's latency, alone, beside calls that go to a bare echo, beside another caller whose calls are
//!   refused before any HSM, and beside the same one with ciphertexts that HSMs have to refuse.
//!
//! Load, daemon, workers and HSMs share one machine. [`report`] sets the numbers side by side; ratios of one run are
//! what carries over to other machines. Calls are sent when they are due, answered or not, and what a call took counts
//! from when it was due ([`calls`]).
//!
//! ```text
//! cargo bench --bench disturbance
//! cargo bench --bench disturbance -- --quick
//! ```

mod calls;
mod cluster;
mod flood;
mod loss;
mod report;
#[path = "../shared/mod.rs"]
mod shared;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use shared::{Error, echo};

const PLAINTEXT: [u8; 1024] = [0x5a; 1024];

#[derive(clap::Parser)]
#[command(name = "disturbance", about = "Measures what callers notice of lost HSMs and of other callers")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,

    /// One short round: whether it works, not how it is
    #[arg(long)]
    quick: bool,

    /// Rounds, of which the median is told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,

    /// Seconds that each phase is measured in each round
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,

    /// The deadline of each call, in milliseconds
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    deadline_ms: u64,

    /// Calls with bad ciphertexts in each second of the flood
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    flood: u32,

    /// Clients at once while the capacity is measured
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,

    /// Sessions per node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pool_size: u16,

    /// Only one of the two
    #[arg(long)]
    only: Option<Part>,

    /// Only these ways of losing an HSM
    #[arg(long, value_delimiter = ',')]
    ways: Vec<loss::Way>,

    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a child of the bench is for.
#[derive(clap::Subcommand)]
enum Role {
    #[command(hide = true)]
    Echo { unix_socket: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Loss,
    Flood,
}

impl Arguments {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    fn length(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { self.seconds })
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.role {
        Some(Role::Echo { unix_socket }) => echo::serve(unix_socket),
        None if arguments.bench => measure(&arguments),
        None => {
            println!("nothing is measured without --bench, which `cargo bench` gives");
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Error> {
    let home = tempfile::Builder::new().prefix("keyway-bench-").tempdir()?;
    println!("{}", report::heading(arguments));
    if arguments.wants(Part::Loss) {
        let rounds = loss::run(arguments, &home.path().join("loss"))?;
        println!("{}", report::of_loss(&rounds, arguments));
    }
    if arguments.wants(Part::Flood) {
        let measured = flood::run(arguments, &home.path().join("flood"))?;
        println!("{}", report::of_flood(&measured, arguments));
    }
    Ok(())
}
