//! Where a command that works for long writes: under another name until all of it is there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::super::bytes::Secrecy;

/// An output in the making. What is dropped unfinished leaves no file.
pub(super) enum Target {
    Stdout(io::Stdout),
    /// A device or a pipe, which is not ours to replace.
    Device(File),
    File {
        file: File,
        partial: Partial,
        path: PathBuf,
    },
}

/// A file under a name that is not its last. Goes when it is dropped.
pub(super) struct Partial(PathBuf);

impl Target {
    /// Makes nothing under the path itself yet.
    pub(super) fn new(path: Option<&Path>, secrecy: Secrecy) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::Stdout(io::stdout())) };
        // What a link points at is replaced, and not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if !metadata.is_file() => {
                return Ok(Self::Device(OpenOptions::new().write(true).open(path)?));
            }
            Ok(_) | Err(_) => {}
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{:016x}.partial", random()?));
        let partial = path.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if secrecy == Secrecy::Plaintext {
            options.mode(0o600);
        }
        let file = options.open(&partial)?;
        Ok(Self::File { file, partial: Partial(partial), path })
    }

    /// For who does not have the target itself any more, and ends before it is finished: the name goes when this is dropped.
    pub(super) fn partial(&self) -> Option<Partial> {
        match self {
            Self::File { partial, .. } => Some(Partial(partial.0.clone())),
            Self::Stdout(_) | Self::Device(_) => None,
        }
    }

    /// All of it is written: it gets its name, over whatever had it, and is on the disk when this returns.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Stdout(mut stdout) => stdout.flush(),
            Self::Device(mut device) => device.flush(),
            Self::File { file, partial, path } => {
                file.sync_all()?;
                std::fs::rename(&partial.0, &path)?;
                // Its name, too.
                let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
                File::open(above)?.sync_all()
            }
        }
    }
}

/// A name that nobody can have made before, nor a process that had the same id.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::Device(file) | Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::Device(file) | Self::File { file, .. } => file.flush(),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // it has its last name, or is gone already
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_only_once_all_of_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letter");
        let mut target = Target::new(Some(&path), Secrecy::Plaintext).unwrap();
        target.write_all(b"attack at dawn").unwrap();
        assert!(!path.exists());
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["letter"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"attack at dawn");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_given_up_leaves_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("letter"), folder.path().join("link"));
        std::fs::write(&path, b"before").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut target = Target::new(Some(&link), Secrecy::Ciphertext).unwrap();
        target.write_all(b"half").unwrap();
        drop(target);
        assert_eq!((std::fs::read(&path).unwrap(), names(folder.path()).len()), (b"before".to_vec(), 2));
        let mut target = Target::new(Some(&link), Secrecy::Ciphertext).unwrap();
        target.write_all(b"after").unwrap();
        target.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!((std::fs::read(&path).unwrap(), names(folder.path()).len()), (b"after".to_vec(), 2));
    }

    #[test]
    fn two_who_make_the_same_file_are_not_in_each_others_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letter");
        let [mut one, mut other] = [(); 2].map(|()| Target::new(Some(&path), Secrecy::Plaintext).unwrap());
        one.write_all(b"one").unwrap();
        other.write_all(b"other").unwrap();
        one.finish().unwrap();
        other.finish().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names(folder.path()).len()), (b"other".to_vec(), 1));
    }

    #[test]
    fn a_device_is_written_to_and_a_directory_is_not() {
        let mut target = Target::new(Some(Path::new("/dev/null")), Secrecy::Plaintext).unwrap();
        target.write_all(b"x").unwrap();
        assert!(target.partial().is_none());
        target.finish().unwrap();
        assert!(Path::new("/dev/null").metadata().unwrap().permissions().mode() & 0o666 == 0o666);
        assert!(Target::new(Some(Path::new("/")), Secrecy::Plaintext).is_err());
    }
}
