//! What SoftHSM2's token directories need from us: their layout, and a copy of `token.object` from before each login and PIN change.
//!
//! SoftHSM2 2.6.1 truncates and rewrites `token.object` on every login and PIN change; a process
//! killed in between leaves the file empty and the token gone. So a copy is kept from before the
//! call, and put back when the file is found empty and nobody uses the token.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{LocalToken, OpeningError, WorkerSpec};

/// Where distributions keep the library.
const USUAL: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// SoftHSM2's library, if it is where distributions keep it.
pub fn usual_softhsm2() -> Option<PathBuf> {
    USUAL.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The directory of one node's and user's token, and the configuration that leads SoftHSM2 to it.
#[derive(Debug, Clone)]
pub struct TokenDirectory {
    root: PathBuf,
}

impl TokenDirectory {
    /// Makes the directory and its `softhsm2.conf`, or finds them: on the disk when this returns.
    pub fn make(root: PathBuf) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let tokens = root.join("tokens");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&tokens)?;
        let text =
            format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
        let configuration = root.join("softhsm2.conf");
        // A worker may be reading it: never half of it.
        if std::fs::read(&configuration).ok().as_deref() != Some(text.as_bytes()) {
            let fresh = root.join("softhsm2.conf.fresh");
            let mut file = std::fs::File::create(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &configuration)?;
        }
        std::fs::File::open(&root)?.sync_all()?;
        Ok(Self { root })
    }

    /// The same, there or not.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The value of `SOFTHSM2_CONF` for workers on this token.
    pub fn configuration(&self) -> PathBuf {
        self.root.join("softhsm2.conf")
    }
}

/// Removes what is there, if anything is.
pub(super) fn rid(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The system may forget a directory's name, or a change of it, until the directory above is on the disk: what counts as
/// made or removed must still be so after a power cut.
pub(super) fn sync_above(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |above| std::fs::File::open(above)?.sync_all())
}

/// Keeps copies of the slot's `token.object` files, unless they are already damaged.
pub(super) fn save(directory: &Path, spec: &WorkerSpec, token: &LocalToken) -> Result<(), OpeningError> {
    for token in token_objects(token) {
        let copy = copy_of(directory, spec, &token);
        let result = whole(&token).and_then(|bytes| if bytes.is_empty() { Ok(()) } else { replace(&copy, &bytes) });
        result.map_err(|source| OpeningError::Files { path: token, source })?;
    }
    Ok(())
}

/// Puts back what a killed login emptied. Only while no worker uses the token.
pub(super) fn repair(directory: &Path, spec: &WorkerSpec, token: &LocalToken) -> Result<(), OpeningError> {
    for token in token_objects(token) {
        let copy = copy_of(directory, spec, &token);
        let Ok(saved) = std::fs::read(&copy) else { continue };
        let damaged = std::fs::metadata(&token).is_ok_and(|now| now.len() < saved.len() as u64);
        if damaged {
            tracing::warn!(hsm = %spec.hsm, file = %token.display(), "token.object was damaged by a killed login; restoring its copy");
            replace(&token, &saved).map_err(|source| OpeningError::Files { path: token, source })?;
        }
    }
    Ok(())
}

/// Every `token.object` under the slot's token directory; none for modules other than SoftHSM2.
pub(super) fn token_objects(token: &LocalToken) -> Vec<PathBuf> {
    let Some(configuration) = token.environment.get("SOFTHSM2_CONF") else {
        return Vec::new();
    };
    let Ok(text) = std::fs::read_to_string(configuration) else {
        return Vec::new();
    };
    tokens_directory(&text).map_or_else(Vec::new, token_objects_in)
}

/// Where the tokens are, as a `softhsm2.conf` says it.
pub(super) fn tokens_directory(configuration: &str) -> Option<&Path> {
    let mut settings = configuration.lines().filter_map(|line| line.split_once('='));
    let (_, directory) = settings.find(|(key, _)| key.trim() == "directories.tokendir")?;
    Some(Path::new(directory.trim()))
}

/// Every `token.object` of this directory's tokens.
pub(super) fn token_objects_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path().join("token.object")).filter(|path| path.is_file()).collect()
}

fn copy_of(directory: &Path, spec: &WorkerSpec, token: &Path) -> PathBuf {
    let serial = token.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    directory.join(format!("{}.{serial}.token.object", spec.slot_name()))
}

/// What stands in the file, and from now on on its disk as well: SoftHSM2 leaves that to the system.
fn whole(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    file.sync_all()?;
    Ok(bytes)
}

/// Whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let fresh = path.with_extension("fresh");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::example;

    fn slot(root: &TokenDirectory) -> (WorkerSpec, LocalToken) {
        let environment = [("SOFTHSM2_CONF".to_owned(), root.configuration().display().to_string())].into();
        let token = LocalToken { environment, ..example::token() };
        (example::slot(&token), token)
    }

    #[test]
    fn a_token_emptied_by_a_killed_login_is_restored_from_before_it() {
        let home = tempfile::tempdir().unwrap();
        let root = TokenDirectory::make(home.path().join("node")).unwrap();
        let object = home.path().join("node/tokens/serial/token.object");
        std::fs::create_dir_all(object.parent().unwrap()).unwrap();
        std::fs::write(&object, b"a whole token").unwrap();

        let (spec, token) = slot(&root);
        save(home.path(), &spec, &token).unwrap();
        std::fs::write(&object, b"").unwrap();
        save(home.path(), &spec, &token).unwrap();
        repair(home.path(), &spec, &token).unwrap();

        assert_eq!(std::fs::read(&object).unwrap(), b"a whole token");
    }
}
