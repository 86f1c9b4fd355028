//! The directory of an HSM that keyway made on this machine: kmsuser's token, the other users' tokens, the SO PIN.
//!
//! Making one is to be repeated as often as one likes, and so is removing it: a crash leaves neither half an HSM that
//! counts as whole, nor one that cannot be removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::model::{ClusterId, HsmId};

use super::{Host, LocalToken, OpeningError, TokenDirectory, TokenName, slot, softhsm};

const SO_PIN: &str = "so-pin";
const KMSUSER: &str = "kmsuser";
const USERS: &str = "users";
const SO_PIN_BYTES: usize = 16;

/// Where one HSM has its tokens.
#[derive(Debug, Clone)]
pub struct HsmHome(PathBuf);

impl HsmHome {
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// How workers find kmsuser's token, there or not.
    pub fn token(&self, module: &Path) -> LocalToken {
        let configuration = TokenDirectory::at(self.0.join(KMSUSER)).configuration();
        LocalToken {
            module: module.to_owned(),
            name: TokenName::Label(KMSUSER.to_owned()),
            environment: [("SOFTHSM2_CONF".to_owned(), configuration.display().to_string())].into(),
            so_pin_file: Some(self.0.join(SO_PIN)),
            user_tokens: Some(self.user_tokens()),
        }
    }

    fn user_tokens(&self) -> PathBuf {
        self.0.join(USERS)
    }

    /// Makes what is missing, on the disk when this returns. Tokens are made with their users.
    pub fn make(&self) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.user_tokens())?;
        if !self.0.join(SO_PIN).exists() {
            self.write_so_pin()?;
        }
        TokenDirectory::make(self.0.join(KMSUSER))?;
        // The names of the new directories, up to the one that was there before all of them.
        for made in [Some(self.0.as_path()), self.0.parent(), self.0.parent().and_then(Path::parent)] {
            made.map_or(Ok(()), |made| File::open(made)?.sync_all())?;
        }
        Ok(())
    }

    /// Whole or not at all: a token that was made with another PIN would be nobody's any more.
    fn write_so_pin(&self) -> std::io::Result<()> {
        let fresh = self.0.join("so-pin.fresh");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(so_pin()?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, self.0.join(SO_PIN))
    }

    /// Gone as a whole before the first file of it is removed.
    fn remove(&self) -> std::io::Result<()> {
        let Some(name) = self.0.file_name() else { return Ok(()) };
        // No HSM's id has a full stop.
        let removed = self.0.with_file_name(format!(".removed.{}", name.display()));
        // What a crash left of an earlier one.
        softhsm::rid(&removed)?;
        match std::fs::rename(&self.0, &removed) {
            // Where its whole cluster is missing, the HSM may well be elsewhere, with everything in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.0.parent().is_some_and(Path::is_dir) => {
                return Ok(());
            }
            renamed => renamed?,
        }
        softhsm::sync_above(&self.0)?;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-home-moved-away");
        softhsm::rid(&removed)
    }
}

impl Host {
    /// Destroys an HSM of this machine with all that is in it, once no worker uses any of its tokens, and forgets what was
    /// kept of them. A worker gets `patience` to leave.
    pub async fn remove_hsm(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        home: HsmHome,
        patience: Duration,
    ) -> Result<(), OpeningError> {
        let directory = self.local.directory();
        let ours = format!("{cluster}.{hsm}.");
        let failed = |source| OpeningError::Files { path: directory.to_owned(), source };
        let mut vacant = Vec::new();
        for slot in slot::known(directory, &ours).map_err(failed)? {
            vacant.push(slot::take(directory, &slot, patience).await?);
        }
        let path = home.0.clone();
        let removed = tokio::task::spawn_blocking(move || home.remove()).await.map_err(std::io::Error::other);
        removed.and_then(|removed| removed).map_err(|source| OpeningError::Files { path, source })?;
        self.local.forget_files(&ours).map_err(failed)
    }
}

fn so_pin() -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; SO_PIN_BYTES]);
    rand::fill(&mut *bytes).map_err(|_| std::io::Error::other("no random bytes"))?;
    Ok(Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_home_is_made_once_whole_and_goes_whole() {
        let above = tempfile::tempdir().unwrap();
        let root = above.path().join("cluster-2abcdefghij/hsm-1");
        let home = HsmHome::new(root.clone());
        home.make().unwrap();
        let pin = std::fs::read_to_string(root.join(SO_PIN)).unwrap();
        assert_eq!(pin.len(), 2 * SO_PIN_BYTES);
        assert_eq!(std::fs::metadata(root.join(SO_PIN)).unwrap().mode() & 0o777, 0o600);
        assert!(root.join("kmsuser/softhsm2.conf").is_file() && home.user_tokens().is_dir());

        // Made again where a crash cut it short: what is there stays.
        std::fs::remove_dir_all(root.join(KMSUSER)).unwrap();
        home.make().unwrap();
        assert_eq!(std::fs::read_to_string(root.join(SO_PIN)).unwrap(), pin);

        // What a crash left of an earlier one.
        std::fs::create_dir(root.with_file_name(".removed.hsm-1")).unwrap();
        home.remove().unwrap();
        home.remove().unwrap();
        assert_eq!(std::fs::read_dir(root.parent().unwrap()).unwrap().count(), 0);

        // The operator has named another directory since: nothing of it was destroyed there.
        let elsewhere = HsmHome::new(above.path().join("cluster-2bbbbbbbbbb/hsm-1"));
        assert_eq!(elsewhere.remove().unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
