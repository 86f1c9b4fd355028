//! New passwords kept for the operator: a file for each version, which only his private key opens.
//!
//! A file is never overwritten. Version numbers come again when records are restored or made anew, and what the file holds
//! may be all that is left of a password that is in force.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::model::{ClusterId, EscrowKey, PasswordVersion};

use super::NotBegun;

/// What a kept password is found by.
pub(super) struct Kept<'a> {
    pub(super) cluster: &'a ClusterId,
    pub(super) version: PasswordVersion,
    pub(super) time: SystemTime,
    pub(super) key: &'a EscrowKey,
}

impl Kept<'_> {
    fn path(&self, escrow: &Path) -> PathBuf {
        let seconds = self.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = format!("{}-{seconds}-{}.bin", self.version.0, self.key.fingerprint());
        escrow.join(self.cluster.as_str()).join(name)
    }
}

/// On the disk, under its name, when this returns.
pub(super) async fn keep(escrow: &Path, kept: &Kept<'_>, sealed: Vec<u8>) -> Result<(), NotBegun> {
    let path = kept.path(escrow);
    let failed = {
        let path = path.clone();
        move |source| NotBegun::Escrow { path, source }
    };
    let writing = tokio::task::spawn_blocking(move || write(&path, &sealed));
    writing.await.map_err(std::io::Error::other).and_then(|written| written).map_err(failed)
}

/// Whole or not at all, and in nobody's place.
fn write(path: &Path, sealed: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let fresh = path.with_extension("fresh");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(sealed)?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&fresh, path);
    std::fs::remove_file(&fresh)?;
    linked?;
    for parent in directory.ancestors().take(3) {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("escrow/cluster-2abcdefghij/3.bin");
        write(&path, b"in force").unwrap();
        let again = write(&path, b"another one").unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"in force");
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
