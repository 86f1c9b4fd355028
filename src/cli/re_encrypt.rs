//! `keyway re-encrypt`: a ciphertext under another key, or in another context, without its plaintext on the way.

use clap::Args;

use crate::proto::v1::ReEncryptRequest;

use super::bytes::{self, Form, Secrecy, is_standard};
use super::connect::{CALL, Client};
use super::crypto::{FileArgs, checksum_fits, checksum_was_used};
use super::failure::Failure;
use super::output::Output;
use super::parse;

/// Encrypt a ciphertext anew: under another key, or the same key's current version, or in another context
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway re-encrypt --to alias/archive letter.enc letter.archived
  keyway re-encrypt --from-context order=1234 --to alias/orders --to-context order=1234 letter.enc letter.new

The new ciphertext has the pairs of --to-context and no others: repeat those that shall stay. The plaintext is not shown,
and does not leave the daemon.")]
pub(super) struct ReEncryptArgs {
    /// The key to encrypt with: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long = "to", value_name = "KEY")]
    destination: String,
    /// A pair of the new ciphertext's encryption context; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    to_context: Vec<(String, String)>,
    /// The key it must have been encrypted with; left out, the one the ciphertext names
    #[arg(long = "from", value_name = "KEY", default_value = "", hide_default_value = true)]
    source: String,
    /// A pair of the encryption context it was encrypted with; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    from_context: Vec<(String, String)>,
    /// Read and write base64
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    files: FileArgs,
}

pub(super) async fn re_encrypt(client: &Client, args: ReEncryptArgs) -> Result<(), Failure> {
    let form = Form::base64_if(args.base64);
    let source_encryption_context = parse::distinct("--from-context", args.from_context)?;
    let destination_encryption_context = parse::distinct("--to-context", args.to_context)?;
    let ciphertext = bytes::read(args.files.from.as_deref(), form)?.into_exposed();
    let daemon = client.connect(CALL).await?;
    let request = ReEncryptRequest {
        ciphertext_crc32c: Some(crc32c::crc32c(&ciphertext)),
        ciphertext,
        source_key_id: args.source,
        source_encryption_context,
        destination_key_id: args.destination,
        destination_encryption_context,
        ..Default::default()
    };
    let mut response = daemon.crypto().re_encrypt(daemon.request(request)).await?.into_inner();
    checksum_was_used(response.verified_ciphertext_crc32c)?;
    checksum_fits(&response.ciphertext, response.ciphertext_crc32c)?;
    let to = args.files.to.as_deref();
    if client.output == Output::Table || !is_standard(to) {
        bytes::write(to, &response.ciphertext, form, Secrecy::Ciphertext)?;
        response.ciphertext.clear(); // what went to a file is not repeated in JSON
    }
    client.output.show(&response, |_, _| String::new())
}
