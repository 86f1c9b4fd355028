//! The data directory of `keyway dev`: what lies where, and with which rights.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The shape of the cluster that was made; its presence marks a directory as ours.
pub(super) const SHAPE: &str = "dev.json";
/// Which clusters a seed has names for, beside dev's own.
pub(super) const SEEDED: &str = "seeded-clusters.json";
/// Tells others that everything answers, and where.
pub(super) const ANNOUNCEMENT: &str = "cluster.json";
pub(super) const SOCKET: &str = "keyway.sock";
/// Where the daemon keeps the HSMs of clusters, and the name under which those of dev's own are found.
pub(super) const CLUSTERS: &str = "clusters";
const HSMS: &str = "hsms";
pub(super) const PASSWORD: &str = "kmsuser.password";

/// A file of the data directory cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub(super) struct AssetsError {
    path: PathBuf,
    why: String,
}

pub(super) struct Assets {
    root: PathBuf,
}

impl Assets {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The daemon's own data directory within.
    pub(super) fn daemon(&self) -> PathBuf {
        self.path("daemon")
    }

    pub(super) fn remove(&self) -> Result<(), AssetsError> {
        std::fs::remove_dir_all(&self.root).map_err(|error| self.error("", error))
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    pub(super) fn read(&self, name: &str) -> Result<String, AssetsError> {
        std::fs::read_to_string(self.path(name)).map_err(|error| self.error(name, error))
    }

    /// Whole or not at all, and readable by its owner alone.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AssetsError> {
        self.try_write(name, bytes).map_err(|error| self.error(name, error))
    }

    pub(super) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, AssetsError> {
        if !self.exists(name) {
            return Ok(None);
        }
        serde_json::from_str(&self.read(name)?).map(Some).map_err(|error| self.error(name, error))
    }

    pub(super) fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), AssetsError> {
        let mut text = serde_json::to_string_pretty(value).map_err(|error| self.error(name, error))?;
        text.push('\n');
        self.write(name, text.as_bytes())
    }

    /// kmsuser's first password.
    pub(super) fn password(&self) -> Result<String, AssetsError> {
        Ok(self.read(PASSWORD)?.trim_end().to_owned())
    }

    /// `hsms` leads to the HSMs of this cluster from now on.
    pub(super) fn show_hsms_of(&self, cluster: &str) -> Result<(), AssetsError> {
        let (link, target) = (self.path(HSMS), Path::new(CLUSTERS).join(cluster));
        match std::os::unix::fs::symlink(&target, &link) {
            Err(_) if std::fs::read_link(&link).is_ok_and(|leads_to| leads_to == target) => Ok(()),
            linked => linked.map_err(|error| self.error(HSMS, error)),
        }
    }

    pub(super) fn write_password(&self, password: &str) -> Result<(), AssetsError> {
        self.write(PASSWORD, format!("{password}\n").as_bytes())
    }

    pub(super) fn has_password(&self) -> bool {
        self.exists(PASSWORD)
    }

    pub(super) fn forget_announcement(&self) {
        let _ = std::fs::remove_file(self.path(ANNOUNCEMENT));
    }

    fn try_write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let path = self.path(name);
        let parent = path.parent().expect("below the root");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let fresh = path.with_extension("fresh");
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    }

    pub(super) fn error(&self, name: &str, error: impl std::fmt::Display) -> AssetsError {
        AssetsError { path: self.path(name), why: error.to_string() }
    }
}
