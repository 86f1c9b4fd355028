//! `keyway encrypt`, `decrypt` and `random`: bytes in, bytes out, each way with a checksum.

use std::path::PathBuf;

use clap::Args;

use crate::model::Plaintext;
use crate::proto::v1::{DecryptRequest, EncryptRequest, EncryptionAlgorithm, GenerateRandomRequest};

use super::bytes::{self, Form, Secrecy, is_standard};
use super::connect::{CALL, Client};
use super::failure::Failure;
use super::output::Output;
use super::{key_store, parse};

/// Encrypt a file or stdin, at most 4,096 bytes
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway encrypt --key alias/orders --context order=1234 letter.txt letter.enc
  echo attack at dawn | keyway encrypt --key alias/orders --base64

More than 4,096 bytes: see keyway file encrypt.")]
pub(super) struct EncryptArgs {
    /// The key: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    /// How, by AWS's name; needed for RSA keys
    #[arg(long, value_name = "ALGORITHM", value_parser = parse::encryption_algorithm)]
    algorithm: Option<EncryptionAlgorithm>,
    #[command(flatten)]
    context: ContextArgs,
    /// Write the ciphertext as base64
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    files: FileArgs,
}

/// Decrypt a file or stdin
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway decrypt --context order=1234 letter.enc letter.txt
  echo attack at dawn | keyway encrypt --key alias/orders --base64 | keyway decrypt --base64")]
pub(super) struct DecryptArgs {
    /// The key it must have been encrypted with; left out, the one the ciphertext names
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// How it was encrypted, by AWS's name; needed for RSA keys, as their --key is
    #[arg(long, value_name = "ALGORITHM", value_parser = parse::encryption_algorithm)]
    algorithm: Option<EncryptionAlgorithm>,
    #[command(flatten)]
    context: ContextArgs,
    /// Read the ciphertext as base64
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    files: FileArgs,
}

/// Get random bytes from an HSM
#[derive(Debug, Args)]
pub(super) struct RandomArgs {
    /// How many bytes, 1 to 1,024
    #[arg(value_name = "N")]
    number_of_bytes: i32,
    /// From the HSMs of this key store; left out, of any connected one
    #[arg(long, value_name = "ID|NAME")]
    key_store: Option<String>,
    /// Write them as base64
    #[arg(long)]
    base64: bool,
    /// Where to write; absent or `-` is stdout
    #[arg(value_name = "OUT")]
    to: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// A pair of the encryption context, not secret; may be repeated. Decrypting needs the same pairs
    #[arg(long = "context", value_name = "NAME=VALUE", value_parser = parse::pair)]
    pub(super) pairs: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// What to read; absent or `-` is stdin
    #[arg(value_name = "IN")]
    pub(super) from: Option<PathBuf>,
    /// Where to write; absent or `-` is stdout
    #[arg(value_name = "OUT")]
    pub(super) to: Option<PathBuf>,
}

pub(super) async fn encrypt(client: &Client, args: EncryptArgs) -> Result<(), Failure> {
    let encryption_context = parse::distinct("--context", args.context.pairs)?;
    let plaintext = bytes::read(args.files.from.as_deref(), Form::Raw)?;
    let daemon = client.connect(CALL).await?;
    let request = EncryptRequest {
        key_id: args.key,
        encryption_context,
        encryption_algorithm: args.algorithm.map_or(0, Into::into),
        plaintext_crc32c: Some(crc32c::crc32c(plaintext.expose())),
        plaintext: plaintext.into_exposed(),
        ..Default::default()
    };
    let mut response = daemon.crypto().encrypt(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_plaintext_crc32c)?;
    checksum_fits(&response.ciphertext, response.ciphertext_crc32c)?;
    let to = args.files.to.as_deref();
    if client.output == Output::Table || !is_standard(to) {
        bytes::write(to, &response.ciphertext, Form::base64_if(args.base64), Secrecy::Ciphertext)?;
        response.ciphertext.clear(); // what went to a file is not repeated in JSON
    }
    client.output.show(&response, |_, _| String::new())
}

pub(super) async fn decrypt(client: &Client, args: DecryptArgs) -> Result<(), Failure> {
    let encryption_context = parse::distinct("--context", args.context.pairs)?;
    let ciphertext = bytes::read(args.files.from.as_deref(), Form::base64_if(args.base64))?;
    let daemon = client.connect(CALL).await?;
    let request = DecryptRequest {
        key_id: args.key,
        encryption_context,
        encryption_algorithm: args.algorithm.map_or(0, Into::into),
        ciphertext_crc32c: Some(crc32c::crc32c(ciphertext.expose())),
        ciphertext: ciphertext.into_exposed(),
        ..Default::default()
    };
    let mut response = daemon.crypto().decrypt(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_ciphertext_crc32c)?;
    checksum_fits(&response.plaintext, response.plaintext_crc32c)?;
    let to = args.files.to.as_deref();
    if client.output == Output::Table || !is_standard(to) {
        let plaintext = Plaintext::new(std::mem::take(&mut response.plaintext));
        bytes::write(to, plaintext.expose(), Form::Raw, Secrecy::Plaintext)?;
    }
    client.output.show(&response, |_, _| String::new())
}

pub(super) async fn random(client: &Client, args: RandomArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let key_store_id = match args.key_store {
        Some(key_store) => key_store::resolve(&daemon, key_store).await?,
        None => String::new(),
    };
    let request = GenerateRandomRequest { number_of_bytes: args.number_of_bytes, key_store_id };
    let mut response = daemon.crypto().generate_random(daemon.request(request)).await?.into_inner();
    checksum_fits(&response.plaintext, response.plaintext_crc32c)?;
    if client.output == Output::Table || !is_standard(args.to.as_deref()) {
        let random = Plaintext::new(std::mem::take(&mut response.plaintext));
        bytes::write(args.to.as_deref(), random.expose(), Form::base64_if(args.base64), Secrecy::Plaintext)?;
    }
    client.output.show(&response, |_, _| String::new())
}

/// The daemon says whether it saw our checksum; if not, it may have worked on other bytes.
pub(super) fn checksum_was_used(verified: bool) -> Result<(), Failure> {
    if verified { Ok(()) } else { Err(damaged("the daemon did not get the checksum of what was sent")) }
}

pub(super) fn checksum_fits(bytes: &[u8], expected: u32) -> Result<(), Failure> {
    if crc32c::crc32c(bytes) == expected { Ok(()) } else { Err(damaged("the answer does not fit its checksum")) }
}

fn damaged(message: &str) -> Failure {
    Failure::refused("DATA_LOSS", "CHECKSUM_MISMATCH", message)
        .advise("repeat the command: something changed on the way")
}
