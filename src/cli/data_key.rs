//! `keyway generate-data-key`: a key to encrypt large things with, in the clear and encrypted.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::model::Plaintext;
use crate::proto::v1::{
    DataKeySpec, GenerateDataKeyRequest, GenerateDataKeyWithoutPlaintextRequest, generate_data_key_request,
    generate_data_key_without_plaintext_request,
};

use super::bytes::{self, Form, Secrecy, is_standard, to_write};
use super::connect::{CALL, Client, Daemon};
use super::crypto::{ContextArgs, checksum_fits};
use super::failure::Failure;
use super::output::Output;
use super::parse;

/// Make a data key: encrypt large things with it yourself
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway generate-data-key --key alias/orders --ciphertext-out data.key.enc --plaintext-out data.key
  keyway generate-data-key --key alias/orders --ciphertext-out data.key.enc --without-plaintext
  keyway decrypt data.key.enc data.key          gives the data key back

With --output json, what is not written to a file stands in the JSON.")]
pub(super) struct DataKeyArgs {
    /// The key to encrypt it under: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    /// As long as a key of this kind
    #[arg(long, value_enum, default_value_t = Spec::Aes256, conflicts_with = "number_of_bytes")]
    spec: Spec,
    /// This many bytes, 1 to 1,024
    #[arg(long = "bytes", value_name = "N")]
    number_of_bytes: Option<i32>,
    #[command(flatten)]
    context: ContextArgs,
    /// Where to write the encrypted data key
    #[arg(long, value_name = "FILE")]
    ciphertext_out: Option<PathBuf>,
    /// Where to write the data key in the clear (mode 0600); `-` for stdout
    #[arg(long, value_name = "FILE", conflicts_with = "without_plaintext")]
    plaintext_out: Option<PathBuf>,
    /// Only make the encrypted data key; the clear one never leaves the HSM's daemon
    #[arg(long)]
    without_plaintext: bool,
    /// Write both as base64
    #[arg(long)]
    base64: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Spec {
    #[value(name = "AES_256")]
    Aes256,
    #[value(name = "AES_128")]
    Aes128,
}

impl From<Spec> for DataKeySpec {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::Aes256 => Self::Aes256,
            Spec::Aes128 => Self::Aes128,
        }
    }
}

pub(super) async fn generate(client: &Client, args: DataKeyArgs) -> Result<(), Failure> {
    args.check(client.output)?;
    let daemon = client.connect(CALL).await?;
    if args.without_plaintext { encrypted_only(client, &daemon, args).await } else { both(client, &daemon, args).await }
}

impl DataKeyArgs {
    /// A data key that is not written anywhere is lost, so that is asked before one is made.
    fn check(&self, output: Output) -> Result<(), Failure> {
        if output == Output::Json {
            return Ok(());
        }
        if self.ciphertext_out.is_none() {
            return Err(Failure::usage("say where the encrypted data key goes").advise("give --ciphertext-out FILE"));
        }
        if self.plaintext_out.is_none() && !self.without_plaintext {
            return Err(Failure::usage("say where the data key goes")
                .advise("give --plaintext-out FILE, --plaintext-out - for stdout, or --without-plaintext"));
        }
        if is_standard(self.ciphertext_out.as_deref())
            && is_standard(self.plaintext_out.as_deref())
            && !self.without_plaintext
        {
            return Err(Failure::usage("the data key and its ciphertext cannot both go to stdout"));
        }
        Ok(())
    }

    fn form(&self) -> Form {
        Form::base64_if(self.base64)
    }
}

async fn both(client: &Client, daemon: &Daemon, args: DataKeyArgs) -> Result<(), Failure> {
    use generate_data_key_request::Length;
    let form = args.form();
    let spec = Length::DataKeySpec(DataKeySpec::from(args.spec).into());
    let request = GenerateDataKeyRequest {
        key_id: args.key,
        encryption_context: parse::distinct("--context", args.context.pairs)?,
        length: Some(args.number_of_bytes.map_or(spec, Length::NumberOfBytes)),
        ..Default::default()
    };
    let mut response = daemon.crypto().generate_data_key(daemon.request(request)).await?.into_inner();
    checksum_fits(&response.ciphertext, response.ciphertext_crc32c)?;
    checksum_fits(&response.plaintext, response.plaintext_crc32c)?;
    // The encrypted one first: without it, the clear one is of no use tomorrow.
    if let Some(path) = to_write(args.ciphertext_out.as_deref(), client.output) {
        let ciphertext = std::mem::take(&mut response.ciphertext);
        bytes::write(Some(path), &ciphertext, form, Secrecy::Ciphertext)?;
    }
    if let Some(path) = to_write(args.plaintext_out.as_deref(), client.output) {
        let plaintext = Plaintext::new(std::mem::take(&mut response.plaintext));
        bytes::write(Some(path), plaintext.expose(), form, Secrecy::Plaintext)?;
    }
    client.output.show(&response, |_, _| String::new())
}

async fn encrypted_only(client: &Client, daemon: &Daemon, args: DataKeyArgs) -> Result<(), Failure> {
    use generate_data_key_without_plaintext_request::Length;
    let form = args.form();
    let spec = Length::DataKeySpec(DataKeySpec::from(args.spec).into());
    let request = GenerateDataKeyWithoutPlaintextRequest {
        key_id: args.key,
        encryption_context: parse::distinct("--context", args.context.pairs)?,
        length: Some(args.number_of_bytes.map_or(spec, Length::NumberOfBytes)),
        ..Default::default()
    };
    let mut stub = daemon.crypto();
    let mut response = stub.generate_data_key_without_plaintext(daemon.request(request)).await?.into_inner();
    checksum_fits(&response.ciphertext, response.ciphertext_crc32c)?;
    if let Some(path) = to_write(args.ciphertext_out.as_deref(), client.output) {
        let ciphertext = std::mem::take(&mut response.ciphertext);
        bytes::write(Some(path), &ciphertext, form, Secrecy::Ciphertext)?;
    }
    client.output.show(&response, |_, _| String::new())
}
