//! Decrypts a keyway ciphertext with nothing of keyway's: the way out.
//!
//! Your keys live in your HSMs, so your data must never depend on this project. All it takes is the
//! HSM's own PKCS#11 library, the crypto user's PIN, and this page. It uses two crates: `cryptoki`, which
//! speaks PKCS#11, and `aws-lc-rs`, here for SHA-256 alone. No daemon runs, and no records are read.
//!
//! ```text
//! decrypt_without_keyway --module /usr/lib/softhsm/libsofthsm2.so --token-label kmsuser \
//!     --pin-file FILE [--context NAME=VALUE]... < ciphertext > plaintext
//! ```
//!
//! The PIN file holds what the token wants to hear: `kmsuser:PASSWORD` on SoftHSM2 tokens that keyway made.
//! Give the encryption context that the data was encrypted with, pair by pair, in any order. The
//! library's own settings come from the environment, as always: SoftHSM2 wants `SOFTHSM2_CONF`.
//!
//! With a cluster that `keyway dev` made, once its daemon is stopped:
//!
//! ```text
//! export SOFTHSM2_CONF=$PWD/keyway-dev/hsms/hsm-1/kmsuser/softhsm2.conf
//! (umask 077; printf 'kmsuser:%s' "$(cat keyway-dev/kmsuser.password)" > pin)
//! cargo run --example decrypt_without_keyway -- --module /usr/lib/softhsm/libsofthsm2.so \
//!     --token-label kmsuser --pin-file pin --context purpose=demo < secret.bin
//! ```
//!
//! `docs/formats.md` says the same as this code in words, byte by byte.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;

use aws_lc_rs::digest::{SHA256, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

const USAGE: &str = "usage: decrypt_without_keyway --module LIBRARY --token-label LABEL --pin-file FILE \
                     [--context NAME=VALUE]... < ciphertext > plaintext";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let ask = Ask::from_command_line(std::env::args().skip(1))?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let ciphertext = Ciphertext::parse(&bytes)?;

    let session = ask.log_in()?;
    let plaintext = decrypt(&session, &ciphertext, &ask.context)?;
    std::io::stdout().write_all(&plaintext)?;
    Ok(())
}

// ---- the format ---------------------------------------------------------------------------

/// A ciphertext taken apart.
///
/// ```text
///  0        2        3           4              20             24        36            n-16      n
///  ├─ "KW" ─┼─ 0x01 ─┼─── 0x01 ──┼─── key id ───┼─── version ──┼── IV ───┼─ ciphertext ─┼─ tag ─┤
///   magic    format   algorithm    UUID, 16       u32, big-      12        as long as     16
///                     AES-256-GCM  bytes          endian                   the plaintext
/// ```
struct Ciphertext<'a> {
    /// Everything before the IV.
    header: &'a [u8],
    /// The key's name in the HSM, its `CKA_ID`: the key id and the version just as they stand in the header.
    cka_id: &'a [u8],
    iv: [u8; 12],
    /// What the HSM made: as long as the plaintext, and the tag.
    sealed: &'a [u8],
}

impl<'a> Ciphertext<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Box<dyn Error>> {
        if bytes.len() <= 24 + 12 + 16 || !bytes.starts_with(b"KW") {
            return Err("this is no ciphertext of keyway's".into());
        }
        if bytes[2..4] != [1, 1] {
            return Err(format!("format {}, algorithm {}: this program knows 1 and 1", bytes[2], bytes[3]).into());
        }
        Ok(Self { header: &bytes[..24], cka_id: &bytes[4..24], iv: bytes[24..36].try_into()?, sealed: &bytes[36..] })
    }
}

/// The encryption context as the ciphertext is bound to it: the number of pairs; then, sorted by the
/// bytes of their names, each name and value with its length before it. Every number is a big-endian `u32`.
fn canonical(context: &BTreeMap<String, String>) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = u32::try_from(context.len())?.to_be_bytes().to_vec();
    for part in context.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend(u32::try_from(part.len())?.to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    Ok(bytes)
}

/// AES-256-GCM. The additional data is the header, then the SHA-256 of the canonical context.
fn decrypt(
    session: &Session,
    ciphertext: &Ciphertext<'_>,
    context: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let found = session.find_objects(&[
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Id(ciphertext.cka_id.to_vec()),
    ])?;
    let [key] = found[..] else {
        let id: String = ciphertext.cka_id.iter().map(|byte| format!("{byte:02x}")).collect();
        return Err(format!("the token has {} AES keys with CKA_ID {id}, not one", found.len()).into());
    };

    let context = canonical(context)?;
    let additional_data = [ciphertext.header, digest(&SHA256, &context).as_ref()].concat();
    let mut iv = ciphertext.iv;
    let gcm = Mechanism::AesGcm(GcmParams::new(&mut iv, &additional_data, 128.into())?);
    session.decrypt(&gcm, key, ciphertext.sealed).map_err(|error| {
        format!("the HSM did not decrypt it; is the encryption context right, and the ciphertext whole? ({error})")
            .into()
    })
}

// ---- the HSM ------------------------------------------------------------------------------

/// What the command line asks for.
#[derive(Default)]
struct Ask {
    module: String,
    token_label: String,
    pin_file: String,
    context: BTreeMap<String, String>,
}

impl Ask {
    fn from_command_line(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut ask = Self::default();
        while let Some(flag) = words.next() {
            let value = words.next().ok_or(USAGE)?;
            match flag.as_str() {
                "--module" => ask.module = value,
                "--token-label" => ask.token_label = value,
                "--pin-file" => ask.pin_file = value,
                "--context" => {
                    let (name, value) = value.split_once('=').ok_or("--context is NAME=VALUE")?;
                    ask.context.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(USAGE.into()),
            }
        }
        if ask.module.is_empty() || ask.token_label.is_empty() || ask.pin_file.is_empty() {
            return Err(USAGE.into());
        }
        Ok(ask)
    }

    /// A session on the token, with the crypto user logged in. A PIN that is refused is not tried again:
    /// HSMs lock a user after a few failures.
    fn log_in(&self) -> Result<Session, Box<dyn Error>> {
        let library = Pkcs11::new(&self.module)?;
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        for slot in library.get_slots_with_token()? {
            if library.get_token_info(slot)?.label() == self.token_label {
                let pin = std::fs::read_to_string(&self.pin_file)
                    .map_err(|error| format!("cannot read {}: {error}", self.pin_file))?;
                let session = library.open_rw_session(slot)?;
                session.login(UserType::User, Some(&AuthPin::new(pin.trim_end_matches(['\r', '\n']).into())))?;
                return Ok(session);
            }
        }
        Err(format!("no token is labelled {}", self.token_label).into())
    }
}
