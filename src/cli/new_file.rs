//! Files that a command makes and never makes twice: whole or not at all, and never over one that is there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::failure::Failure;

/// Whom a file may be read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Owner,
    Everybody,
}

/// Makes the file, on the disk when this returns. That it is there already is refused.
pub(super) fn make(path: &Path, bytes: &[u8], readers: Readers) -> Result<(), Failure> {
    try_make(path, bytes, readers).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => there_already(path),
        _ => failed(path, &error),
    })
}

/// Refuses when one of the files is there, before the first is made.
pub(super) fn refuse_any_of(paths: &[&Path]) -> Result<(), Failure> {
    paths.iter().find(|path| path.symlink_metadata().is_ok()).map_or(Ok(()), |path| Err(there_already(path)))
}

/// Makes what is missing of a directory, for its owner alone.
pub(super) fn make_directory(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed(path, &error))
}

fn there_already(path: &Path) -> Failure {
    Failure::usage(format!("{} is there already, and is not overwritten", path.display()))
        .advise("name another directory with --out, or move it away if it is no longer used")
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("{}: {error}", path.display()))
}

fn try_make(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".fresh");
    let fresh = path.with_file_name(name);
    // What an earlier command left that was killed.
    let _ = std::fs::remove_file(&fresh);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&fresh)?;
    let made = file.write_all(bytes).and_then(|()| file.sync_all());
    // A link is not made over another file, as a rename would be.
    let made = made.and_then(|()| std::fs::hard_link(&fresh, path));
    std::fs::remove_file(&fresh)?;
    made?;
    // Its name, too.
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_made_once_and_for_its_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.key");
        std::fs::write(folder.path().join("ca.key.fresh"), b"cut short").unwrap();
        make(&path, b"first", Readers::Owner).unwrap();
        let refused = make(&path, b"second", Readers::Everybody).unwrap_err();
        assert!(refused.text().contains("not overwritten"), "{}", refused.text());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
