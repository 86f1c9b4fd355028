//! The client's end of mutual TLS.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::connect::CALL;
use super::{Failure, client};

/// A CA and what it signed, as files and as a server's configuration.
struct Authority {
    ca: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { ca: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn signed(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    fn write_client_files(&self, folder: &Path) {
        let (certificate, key) = self.signed("client");
        std::fs::write(folder.join("ca.crt"), self.ca.pem()).unwrap();
        std::fs::write(folder.join("client.crt"), certificate.pem()).unwrap();
        std::fs::write(folder.join("client.key"), key.serialize_pem()).unwrap();
    }

    /// Asks for a client certificate, speaks h2.
    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let (certificate, key) = self.signed("127.0.0.1");
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Connects to `server` with the files of `mine`; tells whether the server saw a client certificate and h2.
async fn handshake(server: &Authority, mine: &Authority) -> (Result<(), Failure>, std::io::Result<bool>) {
    let folder = tempfile::tempdir().unwrap();
    mine.write_client_files(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let environment =
        [("KEYWAY_CACERT", file("ca.crt")), ("KEYWAY_CERT", file("client.crt")), ("KEYWAY_KEY", file("client.key"))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let client = client(&format!("keyway --addr 127.0.0.1:{port} whoami"), &environment).unwrap();
    let acceptor = server.acceptor();
    let accepted = async {
        let (stream, _) = listener.accept().await?;
        let stream = acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        Ok(session.peer_certificates().is_some() && session.alpn_protocol() == Some(b"h2"))
    };
    let (connected, accepted) = tokio::join!(client.connect(CALL), accepted);
    (connected.map(|_| ()), accepted)
}

#[tokio::test]
async fn each_end_proves_itself_to_the_other() {
    let authority = Authority::new();
    let (connected, accepted) = handshake(&authority, &authority).await;
    connected.unwrap();
    assert!(accepted.unwrap(), "no client certificate, or not h2");
}

#[tokio::test]
async fn a_daemon_that_another_ca_signed_is_not_talked_to() {
    let (connected, accepted) = handshake(&Authority::new(), &Authority::new()).await;
    let failure = connected.unwrap_err();
    assert!(failure.is_unreachable());
    assert!(failure.message().contains("certificate"), "{}", failure.message());
    assert!(accepted.is_err());
}
