//! Where SoftHSM2's library is: named, or in one of the places where distributions put it.

use std::path::{Path, PathBuf};

use crate::host::usual_softhsm2;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSoftHsm2 {
    #[error(
        "SoftHSM2 is not installed, or not in a usual place; on Debian and Ubuntu: apt install softhsm2; else: --softhsm2 PATH"
    )]
    NotInstalled,
    #[error("--softhsm2 {0} is not a file")]
    NotALibrary(PathBuf),
}

/// The library that was named, or the one that is where distributions keep it.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf, NoSoftHsm2> {
    match named {
        // Workers are to find it whatever their directory.
        Some(named) => {
            let found = named.canonicalize().ok().filter(|path| path.is_file());
            found.ok_or_else(|| NoSoftHsm2::NotALibrary(named.to_owned()))
        }
        None => usual_softhsm2().ok_or(NoSoftHsm2::NotInstalled),
    }
}
