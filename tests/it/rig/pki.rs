//! Certificates made for one test.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A CA that this test alone trusts.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For the daemon: it is called `localhost`.
    pub fn server(&self) -> Identity {
        self.issue("server", vec![SanType::DnsName("localhost".try_into().expect("a name"))])
    }

    /// For a client that is known by its common name.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(name, Vec::new())
    }

    /// For a workload that is known by its SPIFFE id.
    pub fn workload(&self, spiffe_id: &str) -> Identity {
        self.issue("workload", vec![SanType::URI(spiffe_id.try_into().expect("a URI"))])
    }

    /// For a server that is reached by its address.
    pub fn for_address(&self, address: &str) -> Identity {
        self.issue("node", vec![SanType::IpAddress(address.parse().expect("an address"))])
    }

    /// What comes of a certificate request.
    pub fn sign(&self, request: &str, validity: Validity) -> String {
        let mut asked = CertificateSigningRequestParams::from_pem(request).expect("a request");
        validity.set(&mut asked.params);
        asked.signed_by(&self.0).expect("a certificate").pem()
    }

    fn issue(&self, common_name: &str, subject_alt_names: Vec<SanType>) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = subject_alt_names;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A client's side of TLS that trusts this CA and shows who it is, or does not.
    pub fn client_config(&self, shown: Option<&Identity>) -> rustls::ClientConfig {
        let root = CertificateDer::from_pem_slice(self.pem().as_bytes()).expect("PEM");
        Self::client_config_trusting(root, shown)
    }

    /// One that trusts another CA.
    pub fn client_config_trusting(root: CertificateDer<'static>, shown: Option<&Identity>) -> rustls::ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(root).expect("a CA");
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut config = match shown {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
                config.with_client_auth_cert(chain, key).expect("they go together")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// A server's certificate for this address, under a CA that is given in PEM.
pub fn issue_under(ca: &str, ca_key: &str, address: &str) -> Identity {
    let ca_key = KeyPair::from_pem(ca_key).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(ca, ca_key).expect("a CA");
    let mut params = CertificateParams::new([address.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, "node");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Identity { certificate: certificate.pem(), key: key.serialize_pem() }
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub enum Validity {
    Past,
    Now,
    Future,
}

impl Validity {
    fn set(self, params: &mut CertificateParams) {
        let (from, to) = match self {
            Self::Past => (1999, 2000),
            Self::Now => (2000, 4000),
            Self::Future => (3999, 4000),
        };
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
    }
}

/// A certificate that signed itself, an authority's or not.
pub fn certificate_in(validity: Validity, authority: bool) -> String {
    let mut params = CertificateParams::default();
    validity.set(&mut params);
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
}
