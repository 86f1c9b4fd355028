//! Plaintext and ciphertext on their way in and out: files, stdin and stdout, raw or as base64.
//!
//! Never writes bytes to a terminal that would take them for commands, and never leaves a plaintext file readable by others.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{IsTerminal as _, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use crate::model::Plaintext;

use super::failure::Failure;
use super::output::{self, Output};

/// More than any call takes; what a daemon takes is its own business.
const MAX_INPUT: usize = 1024 * 1024;
const OWNER_ONLY: u32 = 0o600;

/// How bytes are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Raw,
    Base64,
}

impl Form {
    pub(super) fn base64_if(asked: bool) -> Self {
        if asked { Self::Base64 } else { Self::Raw }
    }

    fn encode(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Raw => bytes.to_vec(),
            Self::Base64 => format!("{}\n", BASE64.encode(bytes)).into_bytes(),
        })
    }

    fn decode(self, bytes: Plaintext) -> Result<Plaintext, String> {
        match self {
            Self::Raw => Ok(bytes),
            Self::Base64 => {
                let text = bytes.expose().iter().copied().filter(|byte| !byte.is_ascii_whitespace());
                let text: Zeroizing<Vec<u8>> = Zeroizing::new(text.collect());
                BASE64.decode(&*text).map(Plaintext::new).map_err(|error| format!("not base64: {error}"))
            }
        }
    }
}

/// Whom a written file may be read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    Plaintext,
    Ciphertext,
}

/// True for a path that means stdin or stdout.
pub(super) fn is_standard(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path == Path::new("-"))
}

/// In JSON, stdout belongs to the JSON.
pub(super) fn to_write(path: Option<&Path>, output: Output) -> Option<&Path> {
    path.filter(|path| output == Output::Table || !is_standard(Some(path)))
}

/// The text of a certificate's file; what it holds is for the daemon to judge.
pub(super) fn certificate(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(Some(path), Form::Raw)?.into_exposed())
        .map_err(|_| Failure::usage(format!("{}: not a PEM certificate", path.display())))
}

/// Reads all of a file, or of stdin.
pub(super) fn read(from: Option<&Path>, form: Form) -> Result<Plaintext, Failure> {
    let name = from.filter(|_| !is_standard(from)).map_or("stdin".into(), Path::to_string_lossy);
    let bytes = match from.filter(|_| !is_standard(from)) {
        Some(path) => File::open(path).and_then(read_bounded),
        None => read_bounded(std::io::stdin().lock()),
    };
    let bytes = bytes.map_err(|error| Failure::usage(format!("{name}: {error}")))?;
    if bytes.len() > MAX_INPUT {
        return Err(Failure::usage(format!("{name}: more than {MAX_INPUT} bytes"))
            .advise("encrypt it yourself under a data key: keyway generate-data-key"));
    }
    form.decode(bytes).map_err(|why| Failure::usage(format!("{name}: {why}")))
}

/// At most one byte more than the bound; the buffer never grows, which would leave copies behind.
fn read_bounded(from: impl Read) -> std::io::Result<Plaintext> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_INPUT + 64));
    from.take(MAX_INPUT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Plaintext::new(std::mem::take(&mut *bytes)))
}

/// Writes to a file, or to stdout.
pub(super) fn write(to: Option<&Path>, bytes: &[u8], form: Form, secrecy: Secrecy) -> Result<(), Failure> {
    let encoded = form.encode(bytes);
    match to.filter(|_| !is_standard(to)) {
        Some(path) => {
            write_file(path, &encoded, secrecy).map_err(|error| Failure::local(format!("{}: {error}", path.display())))
        }
        None if std::io::stdout().is_terminal() && !is_text(&encoded) => {
            Err(Failure::usage("these bytes are not text, so they are not written to a terminal")
                .advise("add --base64, name a file, or pipe them into a program"))
        }
        None => output::stdout(&encoded),
    }
}

fn write_file(path: &Path, bytes: &[u8], secrecy: Secrecy) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if secrecy == Secrecy::Plaintext {
        options.mode(OWNER_ONLY);
    }
    let mut file = options.open(path)?;
    // A file that was there keeps its mode unless told; a device or a pipe is not ours to change.
    if secrecy == Secrecy::Plaintext && file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
    }
    file.write_all(bytes)
}

fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_ok_and(|text| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_plaintext_file_is_readable_by_its_owner_alone_even_when_it_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "longer than what comes").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write(Some(&path), b"secret", Form::Raw, Secrecy::Plaintext).unwrap();
        assert_eq!((mode(&path), std::fs::read(&path).unwrap()), (0o600, b"secret".to_vec()));
    }

    #[test]
    fn base64_may_be_broken_into_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in");
        std::fs::write(&path, "aGVs\r\nbG8=\n").unwrap();
        assert_eq!(read(Some(&path), Form::Base64).unwrap().expose(), b"hello");
        assert!(read(Some(&path), Form::Raw).is_ok());
    }

    #[test]
    fn input_is_bounded_and_what_is_wrong_with_it_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in");
        std::fs::write(&path, vec![b'!'; MAX_INPUT]).unwrap();
        assert_eq!(read(Some(&path), Form::Raw).unwrap().len(), MAX_INPUT);
        assert!(read(Some(&path), Form::Base64).unwrap_err().message().contains("in: not base64"));
        std::fs::write(&path, vec![b'!'; MAX_INPUT + 1]).unwrap();
        assert!(read(Some(&path), Form::Raw).unwrap_err().message().ends_with("in: more than 1048576 bytes"));
        assert!(read(Some(&folder.path().join("none")), Form::Raw).unwrap_err().message().contains("none: "));
    }

    #[test]
    fn what_could_command_a_terminal_is_not_text() {
        assert!(is_text("grüße\n\t".as_bytes()));
        assert!(!is_text(b"\x1b[2J"));
        assert!(!is_text(&[0xff]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for form in [Form::Raw, Form::Base64] {
                let written = Plaintext::new(form.encode(&bytes).to_vec());
                let read = form.decode(written).unwrap();
                prop_assert_eq!(read.expose(), &bytes[..]);
            }
        }
    }
}
