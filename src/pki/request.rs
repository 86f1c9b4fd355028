//! Requests for certificates (PKCS#10), as they come from others.

use rcgen::{CertificateSigningRequestParams, DnType, DnValue, IsCa};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::model::Invalid;

use super::AlternativeName;

/// More names than anybody's certificate needs.
const MAX_NAMES: usize = 64;
/// More than any request for a certificate is long.
const MAX_CHARACTERS: usize = 16_384;

/// Somebody asks for a certificate, and has shown that the key is his.
#[derive(Debug)]
pub struct SigningRequest {
    pub(super) asked: CertificateSigningRequestParams,
    /// Both in DER.
    pub(super) subject: Vec<u8>,
    pub(super) public_key: Vec<u8>,
}

impl SigningRequest {
    /// A PKCS#10 request. What it says its certificate should be good for is not heeded: whoever signs decides that.
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let expected = |found: &str| {
            Invalid::new(format!(
                "must be one PKCS#10 request in PEM (-----BEGIN CERTIFICATE REQUEST-----), at most {MAX_CHARACTERS} characters, not {found}"
            ))
        };
        if pem.len() > MAX_CHARACTERS {
            return Err(expected("a longer text"));
        }
        let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
        let block = match (blocks.next(), blocks.next()) {
            (Some(Ok(block)), None) => block,
            (Some(Ok(_)), Some(_)) => return Err(expected("several of them")),
            (Some(Err(_)), _) => return Err(expected("a PEM block that is cut short or garbled")),
            (None, _) => return Err(expected("a text without a PEM block")),
        };
        if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(expected("a PEM block that holds something else"));
        }
        Self::of_der(block.contents)
    }

    fn of_der(der: Vec<u8>) -> Result<Self, Invalid> {
        let garbled = || Invalid::new("the request cannot be read: make it anew");
        let (rest, read) = X509CertificationRequest::from_der(&der).map_err(|_| garbled())?;
        if !rest.is_empty() {
            return Err(garbled());
        }
        let info = &read.certification_request_info;
        let subject = info.subject.as_raw().to_vec();
        let public_key = info.subject_pki.raw.to_vec();
        let asked = CertificateSigningRequestParams::from_der(&der.into()).map_err(|error| match error {
            rcgen::Error::InvalidCertificationRequestSignature => {
                Invalid::new("the request is not signed with its own key: make it anew")
            }
            rcgen::Error::UnsupportedExtension => {
                Invalid::new("the request has an extension that is none of names, key usages and basic constraints")
            }
            rcgen::Error::UnsupportedSignatureAlgorithm => unusable_key(),
            _ => garbled(),
        })?;
        if matches!(asked.params.is_ca, IsCa::Ca(_)) {
            return Err(Invalid::new("the request asks for a CA's certificate, which is not given out"));
        }
        let names = &asked.params.subject_alt_names;
        if names.len() > MAX_NAMES {
            return Err(Invalid::new(format!("the request has more than {MAX_NAMES} names")));
        }
        if names.iter().any(|name| AlternativeName(name.clone()).to_string().parse::<AlternativeName>().is_err()) {
            return Err(Invalid::new("the request has a name that is no DNS name, IP address or URI"));
        }
        Ok(Self { asked, subject, public_key })
    }

    /// Every name that is asked for: the common name, if there is one, and those that others look at.
    pub fn names(&self) -> Vec<String> {
        let common = self.asked.params.distinguished_name.get(&DnType::CommonName).map(text_of);
        let alternatives =
            self.asked.params.subject_alt_names.iter().map(|name| AlternativeName(name.clone()).to_string());
        common.into_iter().chain(alternatives).collect()
    }
}

/// A common name as it was written; what is in an encoding of former days shows as no name that anybody expects.
fn text_of(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

pub(super) fn unusable_key() -> Invalid {
    Invalid::new(
        "the request's key must be ECDSA on P-256, signed with SHA-256, or on P-384, signed with SHA-384; RSA; or Ed25519",
    )
}
