//! TLS 1.3 with certificates at both ends: read from files, and what a certificate says of its holder.
//!
//! A leaf. Whoever listens or connects decides who may come in; here stands only how anybody proves who they are.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::model::TrustAnchor;

/// What a listener needs, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Client certificates must come from here.
    pub client_ca: PathBuf,
}

/// What a client shows of itself, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

/// Why the TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("the certificate, its key and the CA do not go together")]
    Material(#[source] rustls::Error),
    #[error("the CA cannot verify anybody")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// A listener's end of TLS, as its files were last read. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    shared: Arc<Files>,
    protocol: &'static [u8],
}

struct Files {
    files: TlsFiles,
    current: RwLock<ServerConfig>,
}

impl Acceptor {
    /// Asks every client for a certificate under the client CA, and speaks `protocol` (ALPN).
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn new(files: TlsFiles, protocol: &'static [u8]) -> Result<Self, TlsError> {
        let current = RwLock::new(server_config(&files)?);
        Ok(Self { shared: Arc::new(Files { files, current }), protocol })
    }

    /// Another listener's, of the same files: both are exchanged at once.
    pub fn speaking(&self, protocol: &'static [u8]) -> Self {
        Self { shared: self.shared.clone(), protocol }
    }

    /// Reads the files again, for connections from now on. With a problem in any, nothing changes.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn read_again(&self) -> Result<(), TlsError> {
        let fresh = server_config(&self.shared.files)?;
        *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// For the next connection.
    pub fn current(&self) -> TlsAcceptor {
        let mut config = self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        config.alpn_protocols = vec![self.protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    pub fn protocol(&self) -> &'static [u8] {
        self.protocol
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acceptor").field(&self.shared.files).finish()
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let (chain, key) = identity(&files.certificate, &files.private_key)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca)? {
        roots.add(certificate).map_err(TlsError::Material)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Material)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Material)?;
    // Nobody resumes: a resumed session's certificates are not verified again, so that one that has expired, or whose CA
    // was taken out of the file since, would still be let in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A connector that believes what the trust anchor has signed and nobody else, and shows who it is.
pub fn connector(files: &ClientFiles, anchor: &TrustAnchor, protocol: &[u8]) -> Result<TlsConnector, TlsError> {
    let (chain, key) = identity(&files.certificate, &files.private_key)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(anchor.der())).map_err(TlsError::Material)?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(TlsError::Verifier)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Material)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Material)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name on a verified certificate: its SPIFFE URI, else its first DNS name, else its common name.
pub fn name_on(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names: Vec<GeneralName<'_>> = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    let spiffe = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(*uri),
        _ => None,
    });
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => Some(*dns),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    spiffe.or(dns).or(common).map(str::to_owned)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn identity(
    certificate: &Path,
    private_key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let key = PrivateKeyDer::from_pem_file(private_key)
        .map_err(|error| TlsError::File { path: private_key.to_owned(), why: error.to_string() })?;
    Ok((certificates(certificate)?, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |why: String| TlsError::File { path: path.to_owned(), why };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| file(error.to_string()))?.collect();
    let found = found.map_err(|error| file(error.to_string()))?;
    if found.is_empty() { Err(file("holds no certificate".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn certificate(sans: Vec<SanType>, common_name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    /// A server's files in a directory of their own, and a connector that it lets in and that would resume.
    fn acquainted(home: &Path) -> (TlsFiles, TlsConnector) {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let path = |name: &str, text: String| {
            std::fs::write(home.join(name), text).unwrap();
            home.join(name)
        };
        let files = TlsFiles {
            certificate: path("crt", certificate.pem()),
            private_key: path("key", key.serialize_pem()),
            client_ca: path("ca", ca.pem()),
        };
        let shown = ClientFiles { certificate: files.certificate.clone(), private_key: files.private_key.clone() };
        let anchor = TrustAnchor::parse(&ca.pem()).unwrap();
        (files, connector(&shown, &anchor, b"test").unwrap())
    }

    #[tokio::test]
    async fn every_connection_has_its_certificates_verified() {
        let home = tempfile::tempdir().unwrap();
        let (files, connector) = acquainted(home.path());
        let acceptor = Acceptor::new(files, b"test").unwrap();
        for _ in 0..2 {
            let (near, far) = tokio::io::duplex(64 << 10);
            let accepting = acceptor.current().accept(far);
            let connecting = connector.connect("localhost".try_into().unwrap(), near);
            let (accepted, connected) = tokio::join!(accepting, connecting);
            let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
            // Tickets come with the first bytes.
            accepted.write_all(b"x").await.unwrap();
            connected.read_exact(&mut [0]).await.unwrap();
            assert_eq!(accepted.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }

    #[test]
    fn a_certificate_is_named_by_its_spiffe_uri_then_its_dns_name_then_its_common_name() {
        let uri = SanType::URI("spiffe://example.org/app".try_into().unwrap());
        let dns = SanType::DnsName("app.example.org".try_into().unwrap());
        let name = |sans| name_on(&certificate(sans, "app")).unwrap();
        assert_eq!(name(vec![dns.clone(), uri]), "spiffe://example.org/app");
        assert_eq!(name(vec![dns]), "app.example.org");
        assert_eq!(name(vec![]), "app");
    }
}
