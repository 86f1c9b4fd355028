//! `keyway file encrypt` and `decrypt`: files of any length, under a data key of their own that the file carries with it,
//! encrypted.
//!
//! The daemon makes or opens the data key; the file itself is read and written here, a chunk at a time.

mod format;
mod progress;
mod target;

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::model::{EncryptionContext, Plaintext};
use crate::proto::v1::generate_data_key_request::Length;
use crate::proto::v1::{DataKeySpec, DecryptRequest, GenerateDataKeyRequest};

use super::bytes::{Secrecy, is_standard};
use super::connect::{CALL, Client};
use super::crypto::{ContextArgs, checksum_fits, checksum_was_used};
use super::failure::Failure;
use super::named::Named;
use super::output::{self, Output};
use super::parse;

use format::{Broken, Header};
use progress::Progress;
use target::Target;

/// What stdout is called.
const STDOUT: &str = "stdout";

#[derive(Debug, Subcommand)]
pub(super) enum FileCommand {
    Encrypt(EncryptArgs),
    Decrypt(DecryptArgs),
}

/// Encrypt a file of any length, under a data key of its own
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway file encrypt --key alias/backups --context host=db1 dump.sql dump.sql.kwf
  pg_dump orders | keyway file encrypt --key alias/backups - orders.kwf

The file carries its data key, encrypted, and the encryption context. OUT is there only once all of it is.")]
pub(super) struct EncryptArgs {
    /// The key to encrypt the data key under: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    files: FileArgs,
}

/// Decrypt a file that `keyway file encrypt` made
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway file decrypt dump.sql.kwf dump.sql
  keyway file decrypt --key alias/backups --context host=db1 orders.kwf orders.sql && psql -f orders.sql

A file's own encryption context is in it; pairs that are given here must be among its pairs. OUT is there only once all of
it is proved. What goes to stdout was proved as well, piece by piece; when the command fails, it was not all of it.")]
pub(super) struct DecryptArgs {
    /// The key it must have been encrypted with; left out, the one the file names
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    files: FileArgs,
}

#[derive(Debug, Args)]
struct FileArgs {
    /// What to read; `-` is stdin
    #[arg(value_name = "IN")]
    from: PathBuf,
    /// Where to write; `-` is stdout
    #[arg(value_name = "OUT")]
    to: PathBuf,
}

impl FileCommand {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let interrupted = interrupted().map_err(|error| Failure::local(format!("signals: {error}")))?;
        let working = async {
            match self {
                Self::Encrypt(args) => encrypt(client, args).await,
                Self::Decrypt(args) => decrypt(client, args).await,
            }
        };
        tokio::select! {
            done = working => done,
            () = interrupted => {
                if output::stderr_is_watched() {
                    output::note(""); // a progress bar may stand in the line
                }
                Err(Failure::local("interrupted"))
            }
        }
    }
}

async fn encrypt(client: &Client, args: EncryptArgs) -> Result<(), Failure> {
    let pairs = parse::distinct("--context", args.context.pairs)?;
    let context = EncryptionContext::new(pairs.clone()).map_err(|why| Failure::usage(why.to_string()))?;
    // Both ends first: without them, no data key is needed.
    let work = Work::begin(client, &args.files, Secrecy::Ciphertext)?;
    let _goes_with_us = work.to.partial();
    let daemon = client.connect(CALL).await?;
    let request = GenerateDataKeyRequest {
        key_id: args.key,
        encryption_context: pairs,
        length: Some(Length::DataKeySpec(DataKeySpec::Aes256.into())),
        ..Default::default()
    };
    let mut made = daemon.crypto().generate_data_key(daemon.request(request)).await?.into_inner();
    checksum_fits(&made.ciphertext, made.ciphertext_crc32c)?;
    checksum_fits(&made.plaintext, made.plaintext_crc32c)?;
    let data_key = Plaintext::new(std::mem::take(&mut made.plaintext));
    made.plaintext_crc32c = 0;
    let header = Header { data_key: std::mem::take(&mut made.ciphertext), context };
    work.done_by(move |from, to, progress| format::encrypt(&header, &data_key, from, to, |bytes| progress.add(bytes)))
        .await?;
    args.files.show(client.output, &made)
}

async fn decrypt(client: &Client, args: DecryptArgs) -> Result<(), Failure> {
    let pairs = parse::distinct("--context", args.context.pairs)?;
    let mut work = Work::begin(client, &args.files, Secrecy::Plaintext)?;
    let _goes_with_us = work.to.partial();
    let (work, header) = beside(move || {
        let header = Header::read(&mut work.from);
        (work, header)
    })
    .await?;
    let header = header.map_err(|broken| told(&work.name, broken))?;
    let context = header.context.pairs();
    if let Some((name, _)) = pairs.iter().find(|(name, value)| context.get(*name) != Some(value)) {
        let message = format!("{}: its encryption context does not have this {name}", work.name);
        return Err(Failure::refused("INVALID_ARGUMENT", "INVALID_CIPHERTEXT", message)
            .advise("it is another file than the one meant; or leave --context out, to take it as it is"));
    }
    let daemon = client.connect(CALL).await?;
    let request = DecryptRequest {
        key_id: args.key,
        encryption_context: context.clone().into_iter().collect(),
        ciphertext_crc32c: Some(crc32c::crc32c(&header.data_key)),
        ciphertext: header.data_key.clone(),
        ..Default::default()
    };
    let mut opened = daemon.crypto().decrypt(daemon.request(request)).await?.into_inner();
    checksum_was_used(opened.verified_ciphertext_crc32c)?;
    checksum_fits(&opened.plaintext, opened.plaintext_crc32c)?;
    let data_key = Plaintext::new(std::mem::take(&mut opened.plaintext));
    opened.plaintext_crc32c = 0;
    work.done_by(move |from, to, progress| format::decrypt(&header, &data_key, from, to, |bytes| progress.add(bytes)))
        .await?;
    args.files.show(client.output, &opened)
}

impl FileArgs {
    /// Which key it was; of the bytes there is nothing left in the message, nor of the data key's checksum. In JSON alone, and only where stdout is free.
    fn show<M: Named>(&self, output: Output, message: &M) -> Result<(), Failure> {
        if is_standard(Some(&self.to)) { Ok(()) } else { output.show(message, |_, _| String::new()) }
    }
}

/// Both ends of a file's way, and the person who watches.
struct Work {
    /// What is read, for people.
    name: String,
    from: Box<dyn Read + Send>,
    to_name: String,
    to: Target,
    progress: Progress,
}

impl Work {
    fn begin(client: &Client, files: &FileArgs, secrecy: Secrecy) -> Result<Self, Failure> {
        let [from, to] =
            [&files.from, &files.to].map(|path| Some(path.as_path()).filter(|path| !is_standard(Some(path))));
        if to.is_none() && io::stdout().is_terminal() {
            return Err(
                Failure::usage("a file is not written to a terminal").advise("name a file, or pipe it into a program")
            );
        }
        let called =
            |path: Option<&Path>, standard: &str| path.map_or(standard.into(), Path::to_string_lossy).into_owned();
        let (name, to_name) = (called(from, "stdin"), called(to, STDOUT));
        let unreadable = |error: io::Error| Failure::usage(format!("{name}: {error}"));
        let (from, total): (Box<dyn Read + Send>, _) = match from {
            None => (Box::new(io::stdin()), None),
            Some(path) => {
                let file = File::open(path).map_err(unreadable)?;
                let metadata = file.metadata().map_err(unreadable)?;
                if metadata.is_dir() {
                    return Err(unreadable(io::ErrorKind::IsADirectory.into()));
                }
                (Box::new(BufReader::new(file)), metadata.is_file().then_some(metadata.len()))
            }
        };
        let to = Target::new(to, secrecy).map_err(|error| Failure::usage(format!("{to_name}: {error}")))?;
        let watched = client.output == Output::Table && output::stderr_is_watched();
        Ok(Self { name, from, to_name, to, progress: Progress::new(total, watched) })
    }

    async fn done_by(
        self,
        way: impl FnOnce(Box<dyn Read + Send>, &mut Target, &mut Progress) -> Result<(), Broken> + Send + 'static,
    ) -> Result<(), Failure> {
        let Self { name, from, to_name, mut to, mut progress } = self;
        let worked = beside(move || {
            way(from, &mut to, &mut progress)?;
            to.finish().map_err(Broken::Write)
        });
        worked.await?.map_err(|broken| match broken {
            Broken::Write(error) if to_name == STDOUT => Failure::output(&error),
            Broken::Write(error) => Failure::local(format!("{to_name}: {error}")),
            broken => told(&name, broken),
        })
    }
}

/// In a thread of its own, so that whoever ends the command meanwhile is heard; it ends with the command, also when it still
/// waits for input.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let (done, working) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(done.send(work())));
    working.await.map_err(|_| Failure::local("the work ended in a panic"))
}

/// Resolves at SIGINT, SIGTERM, and SIGHUP, which is a terminal that was closed.
fn interrupted() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    })
}

fn told(name: &str, broken: Broken) -> Failure {
    let message = format!("{name}: {broken}");
    match broken {
        Broken::NotOurs => Failure::refused("INVALID_ARGUMENT", "INVALID_CIPHERTEXT", message).advise(
            "name a file that `keyway file encrypt` made; what `keyway encrypt` made is opened by `keyway decrypt`",
        ),
        Broken::Damaged => Failure::refused("INVALID_ARGUMENT", "INVALID_CIPHERTEXT", message)
            .advise("take it from where it is whole; nothing that comes after the damage was given out"),
        Broken::TooLong => Failure::usage(message).advise("encrypt it in parts"),
        Broken::Read(_) | Broken::Write(_) => Failure::local(message),
    }
}
