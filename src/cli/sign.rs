//! `keyway sign`, `verify`, `mac`, `verify-mac` and `key public-key`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;

use crate::proto::v1::{
    GenerateMacRequest, GetPublicKeyRequest, MacAlgorithm, MessageType, SignRequest, SigningAlgorithm,
    VerifyMacRequest, VerifyRequest,
};

use super::bytes::{self, Form, Secrecy, is_standard};
use super::connect::{CALL, Client};
use super::crypto::{checksum_fits, checksum_was_used};
use super::failure::Failure;
use super::output::Output;
use super::parse;

/// Sign a file or stdin, at most 4,096 bytes, or a digest
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway sign --key alias/releases --algorithm ECDSA_SHA_256 notes.txt notes.sig
  openssl dgst -sha256 -binary big.iso | keyway sign --key alias/releases --algorithm ECDSA_SHA_256 --digest --base64")]
pub(super) struct SignArgs {
    #[command(flatten)]
    how: SigningArgs,
    /// Write the signature as base64
    #[arg(long)]
    base64: bool,
    /// What to sign; absent or `-` is stdin
    #[arg(value_name = "IN")]
    from: Option<PathBuf>,
    /// Where to write the signature; absent or `-` is stdout
    #[arg(value_name = "OUT")]
    to: Option<PathBuf>,
}

/// Check a signature: exit code 0 if it is right, 1 if not
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway verify --key alias/releases --algorithm ECDSA_SHA_256 --signature notes.sig notes.txt")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    how: SigningArgs,
    /// The file with the signature
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// Read the signature as base64
    #[arg(long)]
    base64: bool,
    /// What was signed; absent or `-` is stdin
    #[arg(value_name = "IN")]
    from: Option<PathBuf>,
}

/// Make a MAC of a file or stdin, at most 4,096 bytes
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway mac --key alias/webhooks --algorithm HMAC_SHA_256 --base64 body.json")]
pub(super) struct MacArgs {
    #[command(flatten)]
    how: MacHow,
    /// Write the MAC as base64
    #[arg(long)]
    base64: bool,
    /// What to make it of; absent or `-` is stdin
    #[arg(value_name = "IN")]
    from: Option<PathBuf>,
    /// Where to write the MAC; absent or `-` is stdout
    #[arg(value_name = "OUT")]
    to: Option<PathBuf>,
}

/// Check a MAC: exit code 0 if it is right, 1 if not
#[derive(Debug, Args)]
pub(super) struct VerifyMacArgs {
    #[command(flatten)]
    how: MacHow,
    /// The file with the MAC
    #[arg(long, value_name = "FILE")]
    mac: PathBuf,
    /// Read the MAC as base64
    #[arg(long)]
    base64: bool,
    /// What it was made of; absent or `-` is stdin
    #[arg(value_name = "IN")]
    from: Option<PathBuf>,
}

/// Write the public half of an asymmetric key, as PEM
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  keyway key public-key alias/releases releases.pem")]
pub(super) struct PublicKeyArgs {
    /// Its id, its ARN, alias/NAME or an alias ARN; with --login-file also hsm:CLUSTER/LABEL
    #[arg(value_name = "KEY")]
    key_id: String,
    /// Where to write; absent or `-` is stdout
    #[arg(value_name = "OUT")]
    to: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SigningArgs {
    /// The key: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    /// How, by AWS's name, for instance ECDSA_SHA_256 or RSASSA_PSS_SHA_256
    #[arg(long, value_name = "ALGORITHM", value_parser = parse::signing_algorithm)]
    algorithm: SigningAlgorithm,
    /// What is read is a digest, made with the algorithm's hash
    #[arg(long)]
    digest: bool,
}

#[derive(Debug, Args)]
struct MacHow {
    /// The key: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    /// How, by AWS's name, for instance HMAC_SHA_256
    #[arg(long, value_name = "ALGORITHM", value_parser = parse::mac_algorithm)]
    algorithm: MacAlgorithm,
}

impl SigningArgs {
    fn message_type(&self) -> i32 {
        if self.digest { MessageType::Digest.into() } else { MessageType::Raw.into() }
    }
}

pub(super) async fn sign(client: &Client, args: SignArgs) -> Result<(), Failure> {
    let message = public_bytes(args.from.as_deref(), Form::Raw)?;
    let daemon = client.connect(CALL).await?;
    let request = SignRequest {
        message_type: args.how.message_type(),
        key_id: args.how.key,
        signing_algorithm: args.how.algorithm.into(),
        message_crc32c: Some(crc32c::crc32c(&message)),
        message,
        ..Default::default()
    };
    let mut response = daemon.crypto().sign(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_message_crc32c)?;
    checksum_fits(&response.signature, response.signature_crc32c)?;
    if write(client, args.to.as_deref(), &response.signature, args.base64)? {
        response.signature.clear();
    }
    client.output.show(&response, |_, _| String::new())
}

pub(super) async fn verify(client: &Client, args: VerifyArgs) -> Result<(), Failure> {
    let message = public_bytes(args.from.as_deref(), Form::Raw)?;
    let signature = public_bytes(Some(&args.signature), Form::base64_if(args.base64))?;
    let daemon = client.connect(CALL).await?;
    let request = VerifyRequest {
        message_type: args.how.message_type(),
        key_id: args.how.key,
        signing_algorithm: args.how.algorithm.into(),
        message_crc32c: Some(crc32c::crc32c(&message)),
        signature_crc32c: Some(crc32c::crc32c(&signature)),
        message,
        signature,
        ..Default::default()
    };
    let response = daemon.crypto().verify(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_message_crc32c && response.verified_signature_crc32c)?;
    must_be_valid(response.signature_valid, "signature")?;
    client.output.show(&response, |_, _| "the signature is right\n".to_owned())
}

pub(super) async fn mac(client: &Client, args: MacArgs) -> Result<(), Failure> {
    let message = public_bytes(args.from.as_deref(), Form::Raw)?;
    let daemon = client.connect(CALL).await?;
    let request = GenerateMacRequest {
        key_id: args.how.key,
        mac_algorithm: args.how.algorithm.into(),
        message_crc32c: Some(crc32c::crc32c(&message)),
        message,
        ..Default::default()
    };
    let mut response = daemon.crypto().generate_mac(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_message_crc32c)?;
    checksum_fits(&response.mac, response.mac_crc32c)?;
    if write(client, args.to.as_deref(), &response.mac, args.base64)? {
        response.mac.clear();
    }
    client.output.show(&response, |_, _| String::new())
}

pub(super) async fn verify_mac(client: &Client, args: VerifyMacArgs) -> Result<(), Failure> {
    let message = public_bytes(args.from.as_deref(), Form::Raw)?;
    let mac = public_bytes(Some(&args.mac), Form::base64_if(args.base64))?;
    let daemon = client.connect(CALL).await?;
    let request = VerifyMacRequest {
        key_id: args.how.key,
        mac_algorithm: args.how.algorithm.into(),
        message_crc32c: Some(crc32c::crc32c(&message)),
        mac_crc32c: Some(crc32c::crc32c(&mac)),
        message,
        mac,
        ..Default::default()
    };
    let response = daemon.crypto().verify_mac(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_message_crc32c && response.verified_mac_crc32c)?;
    must_be_valid(response.mac_valid, "MAC")?;
    client.output.show(&response, |_, _| "the MAC is right\n".to_owned())
}

pub(super) async fn public_key(client: &Client, args: PublicKeyArgs) -> Result<(), Failure> {
    let daemon = client.connect(CALL).await?;
    let request = GetPublicKeyRequest { key_id: args.key_id, grant_tokens: Vec::new() };
    let mut response = daemon.keys().get_public_key(daemon.request(request)).await?.into_inner();
    checksum_fits(&response.public_key, response.public_key_crc32c)?;
    let to = args.to.as_deref();
    if client.output == Output::Table || !is_standard(to) {
        bytes::write(to, pem(&response.public_key).as_bytes(), Form::Raw, Secrecy::Ciphertext)?;
        response.public_key.clear();
    }
    client.output.show(&response, |_, _| String::new())
}

/// The daemon answers a wrong one with an error; an answer that does not say that it is right is no proof either.
fn must_be_valid(is_valid: bool, what: &str) -> Result<(), Failure> {
    let unsaid =
        || Failure::refused("DATA_LOSS", "NOT_VALID", format!("the daemon does not say that the {what} is valid"));
    if is_valid { Ok(()) } else { Err(unsaid()) }
}

/// Whether it was written; otherwise it stands in the JSON.
fn write(client: &Client, to: Option<&Path>, told: &[u8], base64: bool) -> Result<bool, Failure> {
    if client.output == Output::Json && is_standard(to) {
        return Ok(false);
    }
    bytes::write(to, told, Form::base64_if(base64), Secrecy::Ciphertext)?;
    Ok(true)
}

/// What is signed, or signs, is no secret.
fn public_bytes(from: Option<&Path>, form: Form) -> Result<Vec<u8>, Failure> {
    Ok(bytes::read(from, form)?.into_exposed())
}

/// RFC 7468: base64 in lines of 64.
fn pem(der: &[u8]) -> String {
    let base64 = BASE64.encode(der);
    let mut text = "-----BEGIN PUBLIC KEY-----\n".to_owned();
    for line in base64.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text + "-----END PUBLIC KEY-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_says_so_makes_a_signature_valid() {
        assert!(must_be_valid(true, "MAC").is_ok() && must_be_valid(false, "MAC").is_err());
    }

    #[test]
    fn a_public_key_is_written_in_lines_of_64() {
        let text = pem(&[7; 91]);
        let lines: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lines, [26, 64, 60, 24]);
    }
}
