//! Who is calling, as the transport proved it.

use std::fmt;
use std::sync::Arc;

/// A caller's name and how it was proved. Cheap to clone: one per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(Arc<Identity>);

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    name: String,
    source: CallerSource,
}

/// How a caller's name was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallerSource {
    /// A client certificate under the daemon's client CA.
    Certificate,
    /// The kernel's word for who is at the other end of the Unix socket.
    UnixSocket { uid: u32 },
    /// Plaintext on the loopback of `keyway dev`.
    Loopback,
}

impl Caller {
    pub fn certificate(name: String) -> Self {
        Self::new(name, CallerSource::Certificate)
    }

    pub fn unix_socket(uid: u32) -> Self {
        Self::new(format!("uid:{uid}"), CallerSource::UnixSocket { uid })
    }

    pub fn loopback() -> Self {
        Self::new("loopback".to_owned(), CallerSource::Loopback)
    }

    fn new(name: String, source: CallerSource) -> Self {
        Self(Arc::new(Identity { name, source }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn source(&self) -> &CallerSource {
        &self.0.source
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
