//! What a cluster asks its owner's authority to sign (CloudHSM's `ClusterCsr`).

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::{Certificate, Invalid};

/// A PKCS#10 certificate request in PEM. Two are equal when their public keys are: one key is asked for once.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    pem: String,
    /// `SubjectPublicKeyInfo`, DER.
    public_key: Vec<u8>,
}

impl CertificateRequest {
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::new("must be one certificate request in PEM (-----BEGIN CERTIFICATE REQUEST-----)");
        let block = match Pem::iter_from_buffer(pem.as_bytes()).next() {
            Some(Ok(block)) if block.label == "CERTIFICATE REQUEST" => block,
            Some(_) | None => return Err(invalid()),
        };
        let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|_| invalid())?;
        let public_key = request.certification_request_info.subject_pki.raw.to_vec();
        Ok(Self { pem: pem.to_owned(), public_key })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether this certificate is for the key that a signature was asked for.
    pub fn is_answered_by(&self, certificate: &Certificate) -> bool {
        certificate.public_key().is_some_and(|key| key == self.public_key)
    }
}

impl PartialEq for CertificateRequest {
    fn eq(&self, other: &Self) -> bool {
        self.public_key == other.public_key
    }
}

impl Eq for CertificateRequest {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_by_a_certificate_for_its_key_alone() {
        let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let params = rcgen::CertificateParams::default();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = CertificateRequest::parse(&pem).unwrap();
        let certificate = |key| Certificate::parse(&params.self_signed(key).unwrap().pem()).unwrap();
        assert!(request.is_answered_by(&certificate(&key)) && !request.is_answered_by(&certificate(&other)));
        let other_block = certificate(&key);
        for text in ["", "hello", other_block.pem(), &pem[..pem.len() / 2]] {
            assert!(CertificateRequest::parse(text).is_err(), "{text:?}");
        }
    }
}
