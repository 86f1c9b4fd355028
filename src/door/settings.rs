//! What the operator decides about how callers come in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsFiles;

/// The gRPC door. Whoever makes one sees to it that at least one of the two listeners is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub unix_socket: Option<PathBuf>,
    pub tcp: Option<TcpSettings>,
    /// Connections at once, on both listeners together.
    pub max_connections: usize,
    /// The longest request that is read.
    pub max_message_bytes: usize,
    /// Items of one Pipeline that are unanswered at once.
    pub pipeline_in_flight: usize,
    /// How long requests under way may take to end once the daemon is told to stop.
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSettings {
    pub listen: SocketAddr,
    pub protection: Protection,
}

/// What keeps strangers off a TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// TLS, with a client certificate required.
    MutualTls(TlsFiles),
    /// TLS and plaintext on one port of the loopback. Only `keyway dev` makes it: no configuration file can ask for it.
    DevLoopback(TlsFiles),
}
