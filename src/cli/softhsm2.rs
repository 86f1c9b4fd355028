//! Where SoftHSM2's library is: named, or in one of the places where distributions put it.

use std::path::{Path, PathBuf};

/// Where distributions keep SoftHSM2.
const USUAL: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

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
        None => USUAL.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or(NoSoftHsm2::NotInstalled),
    }
}
