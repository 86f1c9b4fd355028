//! What bringing an HSM level costs: one of three nodes comes back empty, and gets every key from its siblings.
//!
//! A development cluster is filled with keys ([`cluster`]), through CreateKey as anybody would; with `--fixture` it is
//! kept for the next run. Then one token is emptied and its worker killed, and the clock runs until the node is level
//! again. Afterwards every key is proved on every node by a SyncCluster that only tells, which is measured, too.
//! Memory is what Linux says of the processes ([`process`]): resident before, and at its peak meanwhile.
//!
//! ```text
//! cargo bench --bench reconcile -- --keys 10000 --fixture /var/tmp/keyway-fixture
//! ```
//!
//! It stands outside of continuous integration: SoftHSM2 searches all its objects for each key that is made.

mod cluster;
mod process;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;

use cluster::Cluster;
use process::{Memory, cpu_time};

/// Why a measurement could not be made. Nobody catches it: it is told, and the run ends.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// The node that comes back empty.
const EMPTIED: &str = "hsm-3";

#[derive(clap::Parser)]
#[command(name = "reconcile", about = "Measures bringing an HSM level that came back empty")]
struct Arguments {
    /// How many keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,

    /// How many keys are made at once, while there are too few
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    makers: u8,

    /// Where the cluster is kept between runs; made when it is not there
    #[arg(long, value_name = "DIR")]
    fixture: Option<PathBuf>,

    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing is measured without --bench, which `cargo bench` gives");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime.map_err(Error::from).and_then(|runtime| runtime.block_on(measure(&arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<(), Error> {
    let temporary = tempfile::Builder::new().prefix("keyway-bench-").tempdir()?;
    let home = arguments.fixture.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut cluster = Cluster::start(&home).await?;
    let begun = Instant::now();
    let made = cluster.fill(arguments.keys, arguments.makers).await?;
    if made > 0 {
        let each = begun.elapsed().as_secs_f64() * 1e3 / f64::from(made);
        eprintln!("made {made} keys, {each:.1} ms each");
    }
    let keys = arguments.keys.max(cluster.keys);

    // A fresh daemon, so that its memory is not that of having made the keys.
    cluster.restart().await?;
    let before = Memory::of(cluster.daemon());
    process::forget_peak(cluster.daemon());
    let siblings = [cluster.worker("hsm-1")?, cluster.worker("hsm-2")?];
    let busy = |pids: &[u32]| pids.iter().map(|pid| cpu_time(*pid).as_secs_f64()).sum::<f64>();
    let used = [busy(&[cluster.daemon()]), busy(&siblings)];
    let begun = Instant::now();
    cluster.empty(EMPTIED)?;
    cluster.level_again(EMPTIED).await?;
    let took = begun.elapsed().as_secs_f64();
    let emptied = cluster.worker(EMPTIED)?;
    let each = |seconds: f64| format!("{:.2} ms", seconds * 1e3 / f64::from(keys));
    let after = Memory::of(cluster.daemon());
    println!("| keys | time to level | each | CPU each: its worker | its siblings | the daemon |");
    println!("| --- | --- | --- | --- | --- | --- |");
    println!(
        "| {keys} | {took:.1} s | {} | {} | {} | {} |",
        each(took),
        each(busy(&[emptied])),
        each(busy(&siblings) - used[1]),
        each(busy(&[cluster.daemon()]) - used[0]),
    );
    println!();
    println!("| daemon before | daemon at its peak | worker of {EMPTIED} | a sibling's |");
    println!("| --- | --- | --- | --- |");
    let [worker, sibling] = [emptied, siblings[0]].map(|pid| Memory::of(pid).peak);
    println!("| {} | {} | {worker} | {sibling} |", before.resident, after.peak);

    process::forget_peak(cluster.daemon());
    let begun = Instant::now();
    let differences = cluster.compare().await?;
    let took = begun.elapsed().as_secs_f64();
    println!();
    println!(
        "Every key proved on every node: {took:.1} s, {} a key, {differences} differences; the daemon's peak {}.",
        each(took),
        Memory::of(cluster.daemon()).peak,
    );
    Ok(())
}
