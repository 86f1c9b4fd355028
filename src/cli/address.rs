//! Where a daemon is: the forms that `--addr` takes.

use std::fmt;
use std::path::PathBuf;

use http::Uri;

/// The port of an address that names none.
const DEFAULT_PORT: u16 = 50051;

/// A daemon's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp { scheme: Scheme, host: String, port: u16 },
}

/// Whether TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Address {
    /// Reads an address; `bare` is what a plain `host:port` means.
    pub(super) fn parse(text: &str, bare: Scheme) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path)
                .ok_or_else(|| format!("{text:?}: name the socket by its path, as in unix:/run/keyway.sock"));
        }
        let (scheme, rest) = if let Some(rest) = text.strip_prefix("http://") {
            (Scheme::Http, rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            (Scheme::Https, rest)
        } else {
            (bare, text)
        };
        tcp(scheme, rest)
            .ok_or_else(|| format!("{text:?}: give host:port, http://host:port, https://host:port or unix:/path"))
    }

    /// A Unix socket has no scheme: the kernel vouches for both ends.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp { scheme, .. } => Some(*scheme),
        }
    }

    /// What HTTP/2 takes for the server's name. A Unix socket has none.
    pub(super) fn uri(&self) -> String {
        match self {
            Self::Unix(_) => "http://localhost".to_owned(),
            Self::Tcp { .. } => self.to_string(),
        }
    }

    /// True when what is sent crosses a network that can be read along.
    pub(super) fn is_exposed(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Tcp { scheme: Scheme::Https, .. } => false,
            Self::Tcp { scheme: Scheme::Http, host, .. } => {
                host != "localhost" && !host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { scheme, host, port } => {
                let scheme = match scheme {
                    Scheme::Http => "http",
                    Scheme::Https => "https",
                };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

/// gRPC's own forms: `unix:relative`, `unix:/absolute`, `unix:///absolute`.
fn unix(path: &str) -> Option<Address> {
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return None,
        None => path,
    };
    (!path.is_empty()).then(|| Address::Unix(PathBuf::from(path)))
}

fn tcp(scheme: Scheme, rest: &str) -> Option<Address> {
    let uri: Uri = format!("http://{rest}").parse().ok()?;
    let authority = uri.authority()?;
    if uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
        return None;
    }
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => DEFAULT_PORT,
        _ => authority.port_u16()?,
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    (!host.is_empty() && port != 0).then_some(Address::Tcp { scheme, host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, Scheme::Http)
    }

    fn tcp(scheme: Scheme, host: &str, port: u16) -> Result<Address, String> {
        Ok(Address::Tcp { scheme, host: host.to_owned(), port })
    }

    #[test]
    fn an_address_has_a_host_and_a_port_or_a_path() {
        assert_eq!(parse("kms.example:7000"), tcp(Scheme::Http, "kms.example", 7000));
        assert_eq!(parse("kms.example"), tcp(Scheme::Http, "kms.example", 50051));
        assert_eq!(parse("http://127.0.0.1:50051/"), tcp(Scheme::Http, "127.0.0.1", 50051));
        assert_eq!(parse("https://[::1]:9"), tcp(Scheme::Https, "::1", 9));
        assert_eq!(parse("unix:/run/keyway.sock"), Ok(Address::Unix("/run/keyway.sock".into())));
        assert_eq!(parse("unix:///run/keyway.sock"), Ok(Address::Unix("/run/keyway.sock".into())));
        assert_eq!(parse("unix:keyway.sock"), Ok(Address::Unix("keyway.sock".into())));
    }

    #[test]
    fn a_bare_address_means_what_the_caller_says() {
        assert_eq!(Address::parse("h:1", Scheme::Https), tcp(Scheme::Https, "h", 1));
        assert_eq!(Address::parse("http://h:1", Scheme::Https), tcp(Scheme::Http, "h", 1));
    }

    #[test]
    fn what_names_no_daemon_is_refused() {
        for text in [
            "",
            "unix:",
            "unix://host/x",
            "http://",
            "ftp://h:1",
            "h:99999",
            "h:",
            "h:0",
            "h:1/path",
            "u@h:1",
            "a b",
            "http://h:1?q",
        ] {
            assert!(parse(text).is_err(), "{text:?} was read as {:?}", parse(text));
        }
    }

    #[test]
    fn an_address_prints_as_it_can_be_typed() {
        for text in ["http://127.0.0.1:50051", "https://[::1]:9", "unix:/run/keyway.sock"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn plaintext_beyond_loopback_is_exposed() {
        assert!(parse("kms.example:1").unwrap().is_exposed());
        for text in ["localhost:1", "127.0.0.2:1", "[::1]:1", "https://kms.example:1", "unix:/s"] {
            assert!(!parse(text).unwrap().is_exposed(), "{text}");
        }
    }
}
