//! `keyway generate-data-key-pair`: a key pair to use outside, its private half encrypted.

use std::path::PathBuf;

use clap::Args;

use crate::model::Plaintext;
use crate::proto::v1::{GenerateDataKeyPairRequest, GenerateDataKeyPairWithoutPlaintextRequest, KeySpec};

use super::bytes::{self, Form, Secrecy};
use super::connect::{CALL, Client};
use super::crypto::{ContextArgs, checksum_fits};
use super::failure::Failure;
use super::parse;

/// Make a key pair to use outside, its private half encrypted under a symmetric key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway generate-data-key-pair --key alias/orders --spec ECC_NIST_P256 \\
      --ciphertext-out pair.enc --public-key-out pair.der --private-key-out pair.key
  keyway decrypt pair.enc pair.key              brings the private half back, PKCS#8 as DER")]
pub(super) struct DataKeyPairArgs {
    /// The symmetric key: its id, its ARN, alias/NAME or an alias ARN
    #[arg(long)]
    key: String,
    /// What kind of pair, by AWS's name
    #[arg(long, value_name = "SPEC", value_parser = parse::key_spec)]
    spec: KeySpec,
    #[command(flatten)]
    context: ContextArgs,
    /// The file for the encrypted private half
    #[arg(long, value_name = "FILE")]
    ciphertext_out: PathBuf,
    /// The file for the public half, SubjectPublicKeyInfo as DER
    #[arg(long, value_name = "FILE")]
    public_key_out: PathBuf,
    /// The file for the private half in the clear, PKCS#8 as DER; left out, it does not leave the daemon
    #[arg(long, value_name = "FILE")]
    private_key_out: Option<PathBuf>,
}

pub(super) async fn generate(client: &Client, args: DataKeyPairArgs) -> Result<(), Failure> {
    let encryption_context = parse::distinct("--context", args.context.pairs)?;
    let (key_id, key_pair_spec) = (args.key, args.spec.into());
    let daemon = client.connect(CALL).await?;
    // The encrypted one first: without it, the clear one is of no use tomorrow.
    let write = |ciphertext: &[u8], public_key: &[u8]| {
        bytes::write(Some(&args.ciphertext_out), ciphertext, Form::Raw, Secrecy::Ciphertext)?;
        bytes::write(Some(&args.public_key_out), public_key, Form::Raw, Secrecy::Ciphertext)
    };
    let Some(private_key_out) = &args.private_key_out else {
        let request = GenerateDataKeyPairWithoutPlaintextRequest {
            key_id,
            encryption_context,
            key_pair_spec,
            ..Default::default()
        };
        let mut stub = daemon.crypto();
        let made = stub.generate_data_key_pair_without_plaintext(daemon.request(request)).await?.into_inner();
        checksum_fits(&made.private_key_ciphertext, made.private_key_ciphertext_crc32c)?;
        checksum_fits(&made.public_key, made.public_key_crc32c)?;
        write(&made.private_key_ciphertext, &made.public_key)?;
        return client.output.show(&made, |_, _| String::new());
    };
    let request = GenerateDataKeyPairRequest { key_id, encryption_context, key_pair_spec, ..Default::default() };
    let mut made = daemon.crypto().generate_data_key_pair(daemon.request(request)).await?.into_inner();
    let private_key = Plaintext::new(std::mem::take(&mut made.private_key_plaintext));
    checksum_fits(&made.private_key_ciphertext, made.private_key_ciphertext_crc32c)?;
    checksum_fits(&made.public_key, made.public_key_crc32c)?;
    checksum_fits(private_key.expose(), made.private_key_plaintext_crc32c)?;
    write(&made.private_key_ciphertext, &made.public_key)?;
    bytes::write(Some(private_key_out), private_key.expose(), Form::Raw, Secrecy::Plaintext)?;
    client.output.show(&made, |_, _| String::new())
}
