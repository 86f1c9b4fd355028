//! What keyway costs: load on a running daemon, beside the two things it is made of.
//!
//! One run measures, in interleaved rounds and on the same machine:
//!
//! - **PKCS#11 alone** ([`pkcs11`]): AES-GCM in a process of its own, with nothing in front of it;
//! - **a bare echo** ([`shared::echo`]): the same gRPC messages and the same kind of threads, with nothing behind them;
//! - **keyway** ([`shared::daemon`]): `Encrypt` on a development cluster, through the daemon and its workers; by single calls, and
//!   over `Pipeline`, with as many items unanswered as there are clients otherwise.
//!
//! The last two get the same [`clients`], over TCP and over a Unix socket. [`report`] sets them side by side.
//! Numbers of different runs, let alone machines, say little about each other; the ratios of one run do.
//!
//! ```text
//! cargo bench --bench load
//! cargo bench --bench load -- --quick
//! ```

mod arguments;
mod clients;
mod pkcs11;
mod plan;
mod report;
#[path = "../shared/mod.rs"]
mod shared;
mod window;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{Arguments, Role};
use shared::{Error, echo, machine};

/// What is encrypted, or echoed, by every operation.
const PLAINTEXT: [u8; 1024] = [0x5a; 1024];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.role {
        Some(Role::Echo { unix_socket }) => echo::serve(unix_socket),
        Some(Role::Pkcs11 { module }) => pkcs11::serve(module),
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
    let rounds = plan::Rounds::of(arguments);
    let home = tempfile::Builder::new().prefix("keyway-bench-").tempdir()?;
    let mut systems = plan::Systems::start(arguments, home.path())?;
    let cells = plan::run(&mut systems, &rounds)?;
    let machine = machine::describe(systems.pkcs11.library());
    drop(systems);
    println!("{}", report::markdown(&cells, arguments, &rounds, &machine));
    Ok(())
}
