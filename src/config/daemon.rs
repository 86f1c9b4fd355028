//! The sections that are about the daemon itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::door::{Protection, TcpSettings};
use crate::host::Location;
use crate::model::{ClusterId, Invalid};
use crate::tls::{ClientFiles, TlsFiles};
use crate::{authz, cluster, door, keys, keystore, telemetry, users};

use super::section::Section;
use super::value::{Written, address, duration, existing_file, list, number, path, private_file, text, truth};
use super::{Config, clusters, file, made};

/// The longest path that a Unix socket's address has room for.
const LONGEST_SOCKET_PATH: usize = 107;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn config(root: &mut Section<'_>) -> Option<Config> {
    let data_dir = root.required("data_dir", directory, "name the directory for records and locks");
    let sealing_key_file = sealing_key_file(root, data_dir.as_deref());
    let log = root.section("log", log);
    let grpc = root.section("grpc", grpc);
    let authz = root.section("authz", authz);
    let zone = root.optional("zone", text);
    let key_stores = root.section("key_stores", key_stores);
    let keys = root.section("keys", keys);
    let node_client = node_client(root);
    let crypto_users = root.section("crypto_users", crypto_users);
    let made_clusters = made::made_clusters(root, data_dir.as_deref());
    let clusters = clusters::clusters(root);
    refuse_to_be_nobody(root, node_client.as_ref(), clusters.as_ref());
    Some(Config {
        sealing_key_file: sealing_key_file?,
        log: log?,
        grpc: grpc?,
        authz: authz?,
        key_stores: keystore::Settings { zone: zone?, escrow: data_dir.as_ref()?.join("escrow"), ..key_stores? },
        data_dir: data_dir?,
        keys: keys?,
        node_client: node_client?,
        crypto_users: crypto_users?,
        made_clusters: made_clusters?,
        clusters: clusters?,
    })
}

/// A path where a directory is, or can be made.
pub(super) fn directory(written: &Written<'_>) -> Result<PathBuf, String> {
    let path = path(written)?;
    if path.exists() && !path.is_dir() {
        return Err(format!("{} is not a directory", path.display()));
    }
    Ok(path)
}

/// A copy of the data directory must not hold the key that opens it, unless the operator says so.
fn sealing_key_file(root: &mut Section<'_>, data_dir: Option<&Path>) -> Option<PathBuf> {
    let allowed = root.defaulted("allow_sealing_key_in_data_dir", false, truth);
    let together = |path: &Path| data_dir.is_some_and(|dir| file::resolved(path).starts_with(file::resolved(dir)));
    let apart = |written: &Written<'_>| {
        let path = path(written)?;
        if path.exists() {
            file::exists(&path)?;
        }
        if allowed == Some(false) && together(&path) {
            return Err(
                "must not be in data_dir: keep it elsewhere, or set allow_sealing_key_in_data_dir = true".into()
            );
        }
        Ok(path)
    };
    root.required("sealing_key_file", apart, "name the file with the key that seals passwords, outside data_dir")
}

/// The certificate that the daemon shows to nodes on other hosts.
fn node_client(root: &mut Section<'_>) -> Option<Option<ClientFiles>> {
    if !root.has("node_client") {
        return Some(None);
    }
    root.section("node_client", |section| {
        let certificate =
            section.required("certificate", existing_file, "name the certificate that the daemon shows to nodes (PEM)");
        let private_key = section.required("private_key", private_file, "name that certificate's private key (PEM)");
        Some(Some(ClientFiles { certificate: certificate?, private_key: private_key? }))
    })
}

/// Nodes on other hosts serve nobody who shows no certificate.
fn refuse_to_be_nobody(
    root: &mut Section<'_>,
    client: Option<&Option<ClientFiles>>,
    clusters: Option<&BTreeMap<ClusterId, cluster::Settings>>,
) {
    let remote =
        |settings: &cluster::Settings| settings.nodes.values().any(|node| matches!(node.location, Location::There(_)));
    if client == Some(&None) && clusters.is_some_and(|clusters| clusters.values().any(remote)) {
        root.complain_of("node_client", "is missing: a node with an address serves a daemon that shows a certificate");
    }
}

pub(super) fn log(log: &mut Section<'_>) -> Option<telemetry::Settings> {
    let level = log.defaulted("level", telemetry::Level::Info, text);
    let format = log.defaulted("format", telemetry::Format::Text, text);
    Some(telemetry::Settings { level: level?, format: format? })
}

fn grpc(grpc: &mut Section<'_>) -> Option<door::Settings> {
    let nobody_can_come = !grpc.has("unix_socket") && !grpc.has("listen") && !grpc.has("tls");
    let unix_socket = grpc.optional("unix_socket", socket_path);
    let tcp = tcp(grpc);
    let max_connections = grpc.defaulted("max_connections", 4096, number(1..=65_536));
    let max_message_bytes = grpc.defaulted("max_message_bytes", 1 << 20, number(16 << 10..=4 << 20));
    let drain_timeout = grpc.defaulted("drain_timeout", 10 * SECOND, duration(Duration::ZERO..=10 * MINUTE));
    if nobody_can_come {
        grpc.complain("has no listener: set unix_socket, or listen and tls, or all three");
    }
    Some(door::Settings {
        unix_socket: unix_socket?,
        tcp: tcp?,
        max_connections: max_connections?,
        max_message_bytes: max_message_bytes?,
        drain_timeout: drain_timeout?,
    })
}

fn socket_path(written: &Written<'_>) -> Result<PathBuf, String> {
    let path = path(written)?;
    if path.as_os_str().len() > LONGEST_SOCKET_PATH {
        return Err(format!("a Unix socket's path has at most {LONGEST_SOCKET_PATH} bytes, not {}", path.display()));
    }
    Ok(path)
}

/// A port without TLS, or TLS without a port, is a mistake and not a choice.
fn tcp(grpc: &mut Section<'_>) -> Option<Option<TcpSettings>> {
    if !grpc.has("listen") && !grpc.has("tls") {
        return Some(None);
    }
    let listen = grpc.required("listen", address, "tls needs an address and port, such as \"0.0.0.0:50051\"");
    let files = grpc.section("tls", tls);
    Some(Some(TcpSettings { listen: listen?, protection: Protection::MutualTls(files?) }))
}

pub(super) fn tls(tls: &mut Section<'_>) -> Option<TlsFiles> {
    let certificate = tls.required("certificate", existing_file, "name the server's certificate chain (PEM)");
    let private_key = tls.required("private_key", existing_file, "name the server's private key (PEM)");
    let client_ca = tls.required("client_ca", existing_file, "name the CA that client certificates come from (PEM)");
    Some(TlsFiles { certificate: certificate?, private_key: private_key?, client_ca: client_ca? })
}

fn authz(authz: &mut Section<'_>) -> Option<authz::Settings> {
    const FIX: &str = "name at least one client certificate's name, since nobody else may do anything yet";
    let names = |written: &Written<'_>| match list::<CallerName>(written)? {
        names if names.is_empty() => Err(format!("must not be empty: {FIX}")),
        names => Ok(names),
    };
    let admins = authz.required("admins", names, FIX)?;
    Some(authz::Settings { admins: admins.into_iter().map(|CallerName(name)| name).collect() })
}

/// A name that a client certificate can map to.
pub(super) struct CallerName(pub(super) String);

impl FromStr for CallerName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) || text.trim() != text {
            return Err(Invalid::new(
                "a caller's name has 1 to 256 bytes, no control characters and no space at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

fn key_stores(key_stores: &mut Section<'_>) -> Option<keystore::Settings> {
    let quota = key_stores.defaulted("quota", 10, number(1..=1_000));
    let connect_timeout = key_stores.defaulted("connect_timeout", 10 * MINUTE, duration(SECOND..=60 * MINUTE));
    Some(keystore::Settings { quota: quota?, connect_timeout: connect_timeout?, zone: None, escrow: PathBuf::new() })
}

fn keys(keys: &mut Section<'_>) -> Option<keys::Settings> {
    let per_key_store = keys.defaulted("per_key_store", 100_000, number(1..=10_000_000));
    // In production a day is a day.
    Some(keys::Settings { per_key_store: per_key_store?, deletion_day: keys::DAY })
}

fn crypto_users(crypto_users: &mut Section<'_>) -> Option<users::Settings> {
    let max_logins = crypto_users.defaulted("max_logins", 32, number(1..=1_024));
    Some(users::Settings { max_logins: max_logins? })
}
