//! The commands: what `keyway <noun> <verb>` types become, and how their answers and errors are shown.
//!
//! A face on the public API and nothing more: it knows no rule the daemon has, keeps no state and opens no
//! records. It never shows a password or asks for one on the command line, and never panics on a reader that left.
//!
//! ```text
//!  args ─▶ connect ─▶ one file a noun (key_store, key, crypto …) ─▶ output ─▶ stdout
//!             │                      │
//!             └────── failure ◀──────┘ ─▶ stderr and the exit code
//! ```

mod address;
mod alias;
mod args;
mod backoff;
mod bytes;
mod ca;
mod check;
mod cluster;
mod connect;
mod crypto;
mod crypto_user;
mod data_key;
mod dev;
mod drift;
mod failure;
mod health;
mod key;
mod key_life;
mod key_store;
mod making;
mod named;
mod new_file;
mod node;
mod output;
mod paging;
mod parse;
mod password;
mod serve;
mod server;
mod settle;
mod softhsm2;
mod table;
mod wait;
mod words;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, ClientArgs, ClientCommand, Command, NodeArgs, NodeCommand};
use connect::Client;
use failure::Failure;
use output::Output;

pub use args::{DevArgs, DevRotation, Listen};

/// Does what the command line says. 0 is success, 1 an error from the daemon, 2 bad usage, 3 a daemon out of reach.
pub fn run() -> ExitCode {
    // The worker is started by the host, not by people: it must not depend on the commands' flags.
    if std::env::args_os().nth(1).is_some_and(|first| first == "worker") {
        return crate::worker::run();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // a reader that left needs no help page
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Dev(dev) => dev::run(dev),
        Command::Serve(serve) => serve::run(&serve.config),
        Command::Node(NodeArgs { command: Some(NodeCommand::Init(args)), .. }) => {
            ended(node::init::run(&args), cli.client.output)
        }
        Command::Node(NodeArgs { command: None, config }) => node::run(&config.expect("clap requires it")),
        Command::Ca(command) => ended(command.run(), cli.client.output),
        Command::Client(command) => run_client(&cli.client, command),
    }
}

fn run_client(args: &ClientArgs, command: ClientCommand) -> ExitCode {
    ended(on_a_runtime(args, command), args.output)
}

fn ended(result: Result<(), Failure>, output: Output) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure, output);
            failure.exit_code()
        }
    }
}

fn on_a_runtime(args: &ClientArgs, command: ClientCommand) -> Result<(), Failure> {
    let client = Client::new(args, |name| std::env::var(name).ok())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("the async runtime does not start: {error}")))?
        .block_on(command.run(&client))
        .map_err(|failure| client.explain(failure))
}

impl ClientCommand {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        match self {
            Self::KeyStore(command) => command.run(client).await,
            Self::Cluster(command) => command.run(client).await,
            Self::CryptoUser(command) => command.run(client).await,
            Self::Key(command) => command.run(client).await,
            Self::Alias(command) => command.run(client).await,
            Self::Encrypt(args) => crypto::encrypt(client, args).await,
            Self::Decrypt(args) => crypto::decrypt(client, args).await,
            Self::GenerateDataKey(args) => data_key::generate(client, args).await,
            Self::Random(args) => crypto::random(client, args).await,
            Self::Whoami => server::who_am_i(client).await,
            Self::ServerInfo => server::info(client).await,
            Self::Health(args) => health::check(client, args).await,
            Self::Wait(args) => wait::wait(client, args).await,
        }
    }
}
