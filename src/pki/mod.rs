//! Certificates made on a desk: an authority, what it signs for a key of its own making, and what it signs for a request.
//!
//! Texts in, texts out, and whoever asks says what time it is: where the files lie and who may read them is the commands'
//! business. Daemons and nodes sign nothing; how they prove who they are stands in `tls`.

mod names;
mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::model::{Invalid, OutOfDate, TrustAnchor};

use request::unusable_key;

pub use names::{AlternativeName, CommonName, Holder};
pub use request::SigningRequest;

/// Clocks of other hosts may be so far behind.
const BACKDATED: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("the CA's certificate {0}")]
    NoAuthority(Invalid),
    #[error("the private key is not that of the CA's certificate")]
    NotItsKey,
    #[error("the CA's own certificate is out of its time: {0}")]
    OutOfDate(OutOfDate),
    #[error("a certificate does not outlive its CA, which expires at {0}: ask for fewer days")]
    OutlivesAuthority(String),
    #[error("a server's certificate needs a DNS name or an IP address: clients look at nothing else")]
    NoHost,
    #[error("{0}")]
    Request(Invalid),
    #[error("signing failed")]
    Signing(#[source] rcgen::Error),
}

/// How long a certificate is good for, from when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u32);

impl Days {
    /// As long as one may be: what is made for longer is forgotten by those who would have to replace it.
    pub const TEN_YEARS: Self = Self(3653);
    pub const ONE_YEAR: Self = Self(365);

    fn until(self, now: SystemTime) -> SystemTime {
        now + DAY * self.0
    }
}

impl FromStr for Days {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let days = text.parse().ok().filter(|days| (1..=Self::TEN_YEARS.0).contains(days)).map(Self);
        days.ok_or_else(|| Invalid::new(format!("must be a whole number from 1 to {}", Self::TEN_YEARS.0)))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Coming to a daemon, or to a node.
    Client,
    /// Being found: a node's, or a daemon's.
    Server,
    /// Being a cluster's own certificate, which nobody shows in a handshake.
    Cluster,
}

impl Purpose {
    fn extended_key_usages(self) -> Vec<ExtendedKeyUsagePurpose> {
        match self {
            Self::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Self::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Self::Cluster => Vec::new(),
        }
    }
}

/// A private key that belongs to a certificate, or is to.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// On P-256.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, PkiError> {
        KeyPair::generate().map(Self).map_err(PkiError::Signing)
    }

    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let parsed = KeyPair::from_pem(pem).map(Self);
        parsed.map_err(|_| Invalid::new("must be one private key in PEM (-----BEGIN PRIVATE KEY-----), not encrypted"))
    }

    /// In PEM.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// Asks for a certificate, in PEM.
    pub fn request(&self, holder: &Holder, purpose: Purpose) -> Result<String, PkiError> {
        let mut params = holder.params();
        params.extended_key_usages = purpose.extended_key_usages();
        params.serialize_request(self).and_then(|request| request.pem()).map_err(PkiError::Signing)
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A certificate, and the key that was made for it.
#[derive(Debug)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    pub key: PrivateKey,
}

/// A certificate authority that can sign.
#[derive(Debug)]
pub struct Authority {
    certificate: TrustAnchor,
    issuer: Issuer<'static, PrivateKey>,
}

impl Authority {
    /// A new one, which signs for holders and for no other authority.
    pub fn make(name: &CommonName, days: Days, now: SystemTime) -> Result<Self, PkiError> {
        let key = PrivateKey::generate()?;
        let mut params = Holder { name: name.clone(), alternatives: Vec::new() }.params();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_time(&mut params, now, days);
        params.serial_number = Some(random_serial()?);
        let certificate = params.self_signed(&key).map_err(PkiError::Signing)?;
        let certificate = TrustAnchor::parse(&certificate.pem()).map_err(PkiError::NoAuthority)?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// One that was made before, here or by other means.
    pub fn new(certificate: TrustAnchor, key: PrivateKey) -> Result<Self, PkiError> {
        let (_, read) = x509_parser::parse_x509_certificate(certificate.der()).map_err(|_| PkiError::NotItsKey)?;
        if read.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::NotItsKey);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.der().into(), key).map_err(PkiError::Signing)?;
        Ok(Self { certificate, issuer })
    }

    pub fn certificate(&self) -> &TrustAnchor {
        &self.certificate
    }

    pub fn key(&self) -> &PrivateKey {
        self.issuer.key()
    }

    /// Makes a key and signs for it.
    pub fn issue(&self, holder: &Holder, purpose: Purpose, days: Days, now: SystemTime) -> Result<Issued, PkiError> {
        let params = self.params(holder.params(), purpose, days, now)?;
        let key = PrivateKey::generate()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(PkiError::Signing)?;
        Ok(Issued { certificate: certificate.pem(), key })
    }

    /// Signs what was asked for: subject, alternative names and key are the request's, and nothing else is. In PEM.
    pub fn sign(
        &self,
        request: SigningRequest,
        purpose: Purpose,
        days: Days,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let SigningRequest { mut asked, subject, public_key } = request;
        let mut params = CertificateParams::default();
        params.distinguished_name = asked.params.distinguished_name;
        params.subject_alt_names = asked.params.subject_alt_names;
        asked.params = self.params(params, purpose, days, now)?;
        let signed = asked.signed_by(&self.issuer).map_err(PkiError::Signing)?;
        // What reads requests here knows less of keys and subjects than there is, and would write down something else.
        let (_, read) = x509_parser::parse_x509_certificate(signed.der())
            .map_err(|_| PkiError::Request(Invalid::new("the request's subject cannot be read")))?;
        if read.public_key().raw != public_key {
            return Err(PkiError::Request(unusable_key()));
        }
        if read.subject().as_raw() != subject {
            return Err(PkiError::Request(Invalid::new(
                "the request's subject has a part twice, or one in an encoding of former days",
            )));
        }
        Ok(signed.pem())
    }

    /// What every certificate from here has.
    fn params(
        &self,
        mut params: CertificateParams,
        purpose: Purpose,
        days: Days,
        now: SystemTime,
    ) -> Result<CertificateParams, PkiError> {
        self.certificate.is_valid_at(now).map_err(PkiError::OutOfDate)?;
        if let Err(OutOfDate::Expired(at)) = self.certificate.is_valid_at(days.until(now)) {
            return Err(PkiError::OutlivesAuthority(at));
        }
        let hosts = params.subject_alt_names.iter().filter(|name| AlternativeName((*name).clone()).is_host());
        if purpose == Purpose::Server && hosts.count() == 0 {
            return Err(PkiError::NoHost);
        }
        set_time(&mut params, now, days);
        params.serial_number = Some(random_serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purpose.extended_key_usages();
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn set_time(params: &mut CertificateParams, now: SystemTime, days: Days) {
    let at = |time: SystemTime| rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = at(now - BACKDATED);
    params.not_after = at(days.until(now));
}

/// Another one each time, also for a key that has a certificate already; positive.
fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PkiError::Signing(rcgen::Error::RingUnspecified))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
