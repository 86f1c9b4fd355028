//! The command line, and the commands against daemons of a few lines.

mod check;
mod crypto;
mod key;
mod key_store;
mod tls;

use std::path::Path;

use clap::{CommandFactory as _, Parser as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Router, Server};

use super::args::{Cli, Command};
use super::connect::Client;
use super::failure::Failure;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn every_command_of_the_manual_is_understood() {
    for line in [
        "keyway dev --nodes 4 --zones 2 --grpc-addr off --data-dir d --reset --insecure --pool-size 3",
        "keyway serve --config keyway.toml",
        "keyway key-store create --name n --cluster-id c --trust-anchor-certificate f --password-file -",
        "keyway key-store list --output json",
        "keyway key-store describe --name orders",
        "keyway key-store describe --id cks-1",
        "keyway key-store update orders --name n --password-file - --cluster c",
        "keyway key-store update cks-1 --cluster-id c",
        "keyway key-store connect cks-1 --wait --timeout 5m",
        "keyway key-store connect --name orders",
        "keyway key-store disconnect orders --wait --drain-timeout 0",
        "keyway key-store delete orders",
        "keyway cluster list",
        "keyway cluster watch cluster-2abcdefghij",
        "keyway cluster create --subnet subnet-1=us-east-1a --subnet subnet-2=us-east-1b --request-id r",
        "keyway cluster init cluster-2abcdefghij --out customer --days 365",
        "keyway cluster init cluster-2abcdefghij --signed-certificate s.crt --trust-anchor customerCA.crt",
        "keyway cluster add-hsm cluster-2abcdefghij --zone us-east-1a --hsm-id hsm-1",
        "keyway cluster add-hsm cluster-2abcdefghij --subnet subnet-1 --address node.example.org --session-port 2223",
        "keyway cluster remove-hsm cluster-2abcdefghij hsm-1",
        "keyway key create --key-store s --description d --alias alias/x --tag a=b --tag c=d --request-id r",
        "keyway key create --cluster c --label l --login-file f",
        "keyway key list --key-store s",
        "keyway key list --cluster c --login-file f --login-file g",
        "keyway key destroy hsm:c/l --login-file f",
        "keyway crypto-user login c alice --password-file - --out f --ttl 1h",
        "keyway --login-file f crypto-user logout",
        "keyway key describe alias/x",
        "keyway alias create alias/x k",
        "keyway alias list --key k",
        "keyway encrypt --key k --context a=b --context c=d in out",
        "keyway --key tls.key --cert tls.crt encrypt --key k --base64 - -",
        "keyway decrypt --base64",
        "keyway generate-data-key --key k --spec AES_128 --ciphertext-out f --plaintext-out -",
        "keyway generate-data-key --key k --bytes 64 --ciphertext-out f --without-plaintext",
        "keyway random 32 --key-store s out",
        "keyway --addr unix:/s whoami",
        "keyway server-info --addr unix:/s --cacert ca",
        "keyway health keyway.v1.KeyService",
        "keyway wait --connected s --timeout 60s",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    for line in [
        "keyway",
        "keyway key",
        "keyway dev --nodes 0",
        "keyway dev --nodes 17",
        "keyway dev --grpc-addr here",
        "keyway key-store describe",
        "keyway key-store describe a --name b",
        "keyway key-store update orders",
        "keyway key-store update --name n",
        "keyway key create --key-store s --tag novalue",
        "keyway encrypt --key k --context =b",
        "keyway generate-data-key --key k --bytes 64 --spec AES_128 --ciphertext-out f",
        "keyway generate-data-key --key k --plaintext-out f --without-plaintext --ciphertext-out g",
        "keyway --timeout 0 key list",
        "keyway --output xml key list",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

fn client(line: &str, environment: &[(&str, &str)]) -> Result<Client, Failure> {
    let variable =
        |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Client::new(&parse(line).unwrap().client, variable)
}

#[test]
fn a_tls_mistake_is_bad_usage_that_says_what_is_missing() {
    let why = |line, environment| client(line, environment).err().expect("refused").text();
    assert!(why("keyway --addr https://h:1 whoami", &[]).contains("--cacert"));
    assert!(why("keyway --addr http://h:1 --cacert ca whoami", &[]).contains("does not speak TLS"));
    assert!(why("keyway whoami", &[("KEYWAY_CACERT", "no-such-file")]).contains("no-such-file"));
    assert!(client("keyway --addr unix:/s whoami", &[("KEYWAY_CACERT", "no-such-file")]).is_ok());
    assert!(client("keyway whoami", &[("KEYWAY_ADDR", "")]).is_ok());
    assert!(why("keyway whoami", &[("KEYWAY_ADDR", "ftp://h")]).contains("ftp://h"));
}

/// Types a command at a daemon that serves `services` on a Unix socket.
async fn typed(services: Router, command: &str) -> Result<(), Failure> {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("keyway.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let server = tokio::spawn(services.serve_with_incoming(listener));
    let done = typed_at(&socket, command).await;
    server.abort();
    done
}

async fn typed_at(socket: &Path, command: &str) -> Result<(), Failure> {
    let cli = parse(&format!("keyway --addr unix:{} {command}", socket.display())).unwrap();
    let client = Client::new(&cli.client, |_| None)?;
    match cli.command {
        Command::Client(command) => command.run(&client).await,
        Command::Dev(_) | Command::Serve(_) | Command::Node(_) | Command::Ca(_) => {
            panic!("{command} is not a client command")
        }
    }
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let failure = typed_at(&folder.path().join("none.sock"), "key list").await.unwrap_err();
    assert!(failure.is_unreachable());
    assert!(failure.message().contains("No such file"), "{}", failure.message());
}
