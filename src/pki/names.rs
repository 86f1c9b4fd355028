//! Whom a certificate is for: the names that stand in it.

use std::fmt;
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls::pki_types::ServerName;

use crate::model::Invalid;

/// X.520's bound on a common name.
const LONGEST_COMMON_NAME: usize = 64;
const LONGEST_URI: usize = 2048;

/// What somebody is called who is not found by that name: a certificate's common name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonName(String);

impl FromStr for CommonName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let length = text.chars().count();
        if length == 0 || length > LONGEST_COMMON_NAME || text.chars().any(char::is_control) || text.trim() != text {
            let rule = format!(
                "must have 1 to {LONGEST_COMMON_NAME} characters, no control characters and no space at either end"
            );
            return Err(Invalid::new(rule));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CommonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name by which others find the holder, or know him: a DNS name, an IP address or a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlternativeName(pub(super) SanType);

impl AlternativeName {
    pub(super) fn is_host(&self) -> bool {
        matches!(self.0, SanType::DnsName(_) | SanType::IpAddress(_))
    }
}

impl FromStr for AlternativeName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let rule = || Invalid::new("must be a DNS name, an IP address, or a URI such as spiffe://example.org/app");
        let written = || text.try_into().map_err(|_| rule());
        if text.contains("://") {
            let is_plain = text.len() <= LONGEST_URI && text.bytes().all(|byte| byte.is_ascii_graphic());
            return if is_plain { Ok(Self(SanType::URI(written()?))) } else { Err(rule()) };
        }
        match ServerName::try_from(text) {
            Ok(ServerName::IpAddress(address)) => Ok(Self(SanType::IpAddress(address.into()))),
            Ok(_) => Ok(Self(SanType::DnsName(written()?))),
            Err(_) => Err(rule()),
        }
    }
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            SanType::Rfc822Name(text) | SanType::DnsName(text) | SanType::URI(text) => f.write_str(text.as_str()),
            SanType::IpAddress(address) => address.fmt(f),
            _ => f.write_str("a name of another kind"),
        }
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub name: CommonName,
    pub alternatives: Vec<AlternativeName>,
}

impl Holder {
    pub(super) fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.name.0.clone());
        params.subject_alt_names = self.alternatives.iter().map(|name| name.0.clone()).collect();
        params
    }
}
