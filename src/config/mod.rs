//! The configuration: read once, checked whole, then carried.
//!
//! A TOML file, then environment variables over it, make one tree; the tree becomes a [`Config`]
//! whose every value has been checked, or else the list of everything that is wrong with it. Each
//! room declares its own `Settings`, and no room imports this one: only `app` and `cli` see all of
//! it. It looks at files that the configuration names, but makes none.
//!
//! ```text
//!   file ──┐
//!          ├─ source ─▶ tree ─ section, value ─▶ daemon, clusters ─▶ Config, or node ─▶ NodeConfig
//!   env ───┘                        └─────────▶ report ─▶ Problems
//! ```

mod clusters;
mod daemon;
mod file;
mod made;
mod node;
mod problem;
mod report;
mod rotation;
mod section;
mod source;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::ClusterId;
use crate::tls::ClientFiles;
use crate::{authz, cluster, door, keys, keystore, telemetry, users};

pub use node::NodeConfig;
pub use problem::{Origin, Problems};

use report::Report;

/// What the operator decided, checked. Every path is absolute and nothing is left to a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Records and locks.
    pub data_dir: PathBuf,
    /// The key that seals passwords in the records; outside `data_dir` unless the operator allowed it. May not be there yet.
    pub sealing_key_file: PathBuf,
    pub log: telemetry::Settings,
    pub grpc: door::Settings,
    /// `None`: there is no operations listener.
    pub http: Option<door::http::Settings>,
    pub authz: authz::Settings,
    pub key_stores: keystore::Settings,
    pub keys: keys::Settings,
    /// What the daemon shows to `keyway node`s; there when a cluster has one.
    pub node_client: Option<ClientFiles>,
    pub crypto_users: users::Settings,
    /// `None`: keyway makes no clusters here.
    pub made_clusters: Option<cluster::MadeSettings>,
    pub clusters: BTreeMap<ClusterId, cluster::Settings>,
}

impl Config {
    /// The sections, beside the clusters, that say something else in the other one.
    pub fn differs_beside_clusters(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            data_dir,
            sealing_key_file,
            log,
            grpc,
            http,
            authz,
            key_stores,
            keys,
            node_client,
            crypto_users,
            made_clusters,
            clusters: _,
        } = self;
        let compared = [
            ("data_dir", *data_dir != other.data_dir),
            ("sealing_key_file", *sealing_key_file != other.sealing_key_file),
            ("log", *log != other.log),
            ("grpc", *grpc != other.grpc),
            ("http", *http != other.http),
            ("authz", *authz != other.authz),
            ("zone", key_stores.zone != other.key_stores.zone),
            (
                "key_stores",
                keystore::Settings { zone: other.key_stores.zone.clone(), ..key_stores.clone() } != other.key_stores,
            ),
            ("keys", *keys != other.keys),
            ("node_client", *node_client != other.node_client),
            ("crypto_users", *crypto_users != other.crypto_users),
            ("made_clusters", *made_clusters != other.made_clusters),
        ];
        compared.into_iter().filter(|(_, differs)| *differs).map(|(section, _)| section).collect()
    }
}

/// Reads `file`, lays those variables of `environment` that start with `KEYWAY__` over it, and
/// checks the whole. Relative paths start from the file's directory, wherever they were written.
///
/// # Errors
/// Everything that is wrong.
pub fn load(file: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Problems> {
    let (mut report, tree) = read(file, environment);
    let config = tree.and_then(|tree| section::read(&mut report, tree, daemon::config));
    report.conclude(config)
}

/// The same for `keyway node`.
///
/// # Errors
/// Everything that is wrong.
pub fn load_node(file: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<NodeConfig, Problems> {
    let (mut report, tree) = read(file, environment);
    let config = tree.and_then(|tree| section::read(&mut report, tree, node::config));
    report.conclude(config)
}

/// The tree, unless there is no sense in looking further.
fn read(file: &Path, environment: impl Iterator<Item = (String, String)>) -> (Report, Option<source::Table>) {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let base = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    let mut report = Report::new(file, base);
    let mut tree = match source::read(file) {
        Ok(tree) => tree,
        Err(complaint) => {
            report.note(Origin::File(file.to_owned()), None, complaint);
            return (report, None);
        }
    };
    for (variable, text) in source::variables(environment) {
        if let Err(misplaced) = source::overlay(&mut tree, &variable, text) {
            report.note(Origin::Variable(variable), Some(misplaced.key), misplaced.complaint);
        }
    }
    (report, Some(tree))
}

#[cfg(test)]
mod tests;
