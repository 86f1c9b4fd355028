//! What the operator decides about a `keyway node`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::host::LocalToken;
use crate::model::{ClusterId, HsmId, Ports};
use crate::tls::TlsFiles;

/// A node, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Slot locks, pid files and token copies.
    pub data_dir: PathBuf,
    pub listen: IpAddr,
    pub ports: Ports,
    pub tls: TlsFiles,
    /// The names on the certificates of the daemons that it serves.
    pub daemons: Vec<String>,
    /// Session links at once.
    pub max_links: usize,
    pub hsms: BTreeMap<(ClusterId, HsmId), LocalToken>,
}
