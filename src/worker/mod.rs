//! The worker: the other process, and the only kind with vendor code in it.
//!
//! A worker loads one PKCS#11 library, logs in once, and holds one node's session pool: one thread,
//! one session. It is started with its end of the link as standard input, and ends when the link
//! does. Plain threads; nothing here is async. Standard output is not ours to use: it may carry a lock.
//!
//! It starts with one thread (`opening`), and one that sees to it that no worker outlives its daemon (`leash`): the daemon has it open the token and log in, or an
//! administrator's job done (`admin`). From the login on the pool serves (`serve`, `verbs`).
//!
//! It decides nothing that needs to know other nodes, or whether a login may be tried: it does what
//! it is told once, and reads each answer of the library into what the daemon does next
//! (`pkcs11`). It never retries for a caller beyond looking up a stale handle or replacing a
//! spoiled session, never finalises or unloads the library, and never prints a secret.

mod admin;
mod leash;
mod opening;
mod pkcs11;
mod running;
mod serve;
mod verbs;
mod wire;

use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use leash::Leash;
use pkcs11::{Bucket, Fault, Kind, leave};

/// The link ended, and with it the worker.
const ENDED: i32 = 0;
/// Standard input is not a link (`EX_USAGE`).
const NOT_A_WORKER: u8 = 64;
/// A bug of ours (`EX_SOFTWARE`).
const PANICKED: i32 = 70;

/// Serves the link on standard input until it ends; then the process is left from here. Returns only
/// when there is no link.
pub fn run() -> ExitCode {
    keep_memory_private();
    pkcs11::ignore_stop_signals();
    let (incoming, outgoing, leash) = match wire::link().and_then(|(incoming, outgoing, link)| {
        let leash = Leash::on(link)?;
        Ok((incoming, outgoing, leash))
    }) {
        Ok(link) => link,
        Err(error) => {
            log(format_args!("a worker is started by its daemon, with their link as standard input: {error}"));
            return ExitCode::from(NOT_A_WORKER);
        }
    };
    let life = AssertUnwindSafe(|| live(incoming, outgoing, &leash));
    let Err(_panic) = catch_unwind(life);
    leave(PANICKED)
}

fn live(mut incoming: wire::Incoming, outgoing: wire::Outgoing, leash: &Leash) -> std::convert::Infallible {
    match opening::until_login(&mut incoming, &outgoing) {
        Ok(ready) => {
            leash.pool(ready.patience);
            serve::serve(ready, incoming, outgoing)
        }
        Err(why) => {
            log_end(&why);
            leave(ENDED)
        }
    }
}

/// PINs and plaintexts pass through this process: no core dumps, and no reading by others of the same user.
fn keep_memory_private() {
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, nothing) {
        log(format_args!("core dumps could not be turned off: {error}"));
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log(format_args!("the process could not be made undumpable: {error}"));
    }
}

/// One line for whoever reads the daemon's log. Lost when nobody does: the daemon may be gone.
fn log(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "keyway worker {}: {line}", std::process::id());
}

/// Why the link ended, unless it ended as it should.
fn log_end(why: &wire::Ended) {
    match why {
        wire::Ended::Closed => {}
        wire::Ended::Failed(_) | wire::Ended::Garbled(_) => log(format_args!("{why}")),
    }
}

fn late() -> Fault {
    Fault::refused(Bucket::Input, Kind::Late, "the caller no longer waits")
}
