//! New passwords kept for the operator: a file for each version, which only his private key opens.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::model::{ClusterId, PasswordVersion};

use super::NotBegun;

/// On the disk, under its name, when this returns.
pub(super) async fn keep(
    directory: &Path,
    cluster: &ClusterId,
    version: PasswordVersion,
    sealed: Vec<u8>,
) -> Result<(), NotBegun> {
    let directory = directory.join(cluster.as_str());
    let path = directory.join(format!("{}.bin", version.0));
    let failed = {
        let path = path.clone();
        move |source| NotBegun::Escrow { path, source }
    };
    let writing = tokio::task::spawn_blocking(move || write(&directory, &path, &sealed));
    writing.await.map_err(std::io::Error::other).and_then(|written| written).map_err(failed)
}

/// Whole or not at all.
fn write(directory: &Path, path: &Path, sealed: &[u8]) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let fresh = path.with_extension("fresh");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(sealed)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    for parent in directory.ancestors().take(3) {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}
