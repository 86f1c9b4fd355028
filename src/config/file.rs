//! Files that a configuration names: are they there, and are they what they must be.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// All of a text file that is no longer than `longest` bytes.
pub(super) fn text(path: &Path, longest: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(longest + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > longest {
        return Err(format!("{} is longer than {longest} bytes", path.display()));
    }
    String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))
}

/// A file is there.
pub(super) fn exists(path: &Path) -> Result<(), String> {
    metadata_of_file(path).map(drop)
}

/// A file is there, and nobody but its owner can read or change it.
pub(super) fn is_private(path: &Path) -> Result<(), String> {
    let mode = metadata_of_file(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        let path = path.display();
        Err(format!("{path} is open to others than its owner (mode {:o}): chmod 600 {path}", mode & 0o777))
    }
}

/// The path without symbolic links, as far as it exists.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|ancestor| {
        let rest = path.strip_prefix(ancestor).ok()?;
        Some(ancestor.canonicalize().ok()?.join(rest))
    });
    real.unwrap_or_else(|| path.to_owned())
}

fn metadata_of_file(path: &Path) -> Result<fs::Metadata, String> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_file() { Ok(metadata) } else { Err(format!("{} is not a file", path.display())) }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        _ => format!("{} cannot be read: {error}", path.display()),
    }
}
