//! The two certificates of a cluster: its own, and the one it was initialised under (`customerCA.crt`).

use std::fmt;
use std::fmt::Write as _;
use std::ops::Deref;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use super::Invalid;

/// So much of what a PEM block calls itself is told again.
const SHOWN_LABEL: usize = 32;
/// AWS's bound on the PEM text.
const MAX_CHARACTERS: usize = 5_000;

/// One X.509 certificate in PEM. Two are equal when their DER is, however the text around it was wrapped.
#[derive(Debug, Clone)]
pub struct Certificate {
    pem: String,
    der: Vec<u8>,
    not_before: ASN1Time,
    not_after: ASN1Time,
    is_authority: bool,
}

/// A certificate authority's certificate: the one that a cluster was initialised under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustAnchor(Certificate);

/// Outside its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfDate {
    #[error("the certificate expired at {0}; give one that is valid")]
    Expired(String),
    #[error("the certificate is not valid before {0}; check the clock, or give one that is valid")]
    NotYet(String),
}

impl Certificate {
    /// Says what is wrong as what goes on after the name of a field.
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let expected = |found: &dyn fmt::Display| {
            Invalid::new(format!(
                "must be one X.509 certificate in PEM (-----BEGIN CERTIFICATE-----), at most {MAX_CHARACTERS} characters, not {found}"
            ))
        };
        let characters = pem.chars().count();
        if characters > MAX_CHARACTERS {
            return Err(expected(&format_args!("{characters} characters")));
        }
        if pem.trim().is_empty() {
            return Err(expected(&"an empty text"));
        }
        let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
        let block = match blocks.next() {
            Some(Ok(block)) => block,
            Some(Err(_)) => return Err(expected(&"a PEM block that is cut short or garbled")),
            None => return Err(expected(&"a text without a PEM block")),
        };
        let others = blocks.count();
        if others > 0 {
            return Err(expected(&format_args!("{} of them", others + 1)));
        }
        if block.label != "CERTIFICATE" {
            let label: String = block.label.chars().take(SHOWN_LABEL).collect();
            return Err(expected(&format_args!("a PEM block called {label:?}")));
        }
        let parsed = block.parse_x509().map_err(|_| expected(&"a PEM block that holds something else"))?;
        let (validity, is_authority) = (parsed.validity().clone(), is_authority(&parsed));
        Ok(Self {
            pem: pem.to_owned(),
            not_before: validity.not_before,
            not_after: validity.not_after,
            is_authority,
            der: block.contents,
        })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its `SubjectPublicKeyInfo`, DER.
    pub(super) fn public_key(&self) -> Option<Vec<u8>> {
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        Some(certificate.public_key().raw.to_vec())
    }

    /// SHA-256 of the DER, in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.der);
        digest.as_ref().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether it is in its time.
    pub fn is_valid_at(&self, now: SystemTime) -> Result<(), OutOfDate> {
        let seconds =
            now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        if seconds > self.not_after.timestamp() {
            Err(OutOfDate::Expired(self.not_after.to_string()))
        } else if seconds < self.not_before.timestamp() {
            Err(OutOfDate::NotYet(self.not_before.to_string()))
        } else {
            Ok(())
        }
    }
}

/// As its basic constraints say. Certificates of version 1 have none: one that signed itself may be an authority's.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    match certificate.version() {
        X509Version::V1 => certificate.subject() == certificate.issuer(),
        _ => certificate.is_ca(),
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Certificate {}

impl TrustAnchor {
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        let certificate = Certificate::parse(pem)?;
        if !certificate.is_authority {
            return Err(Invalid::new(
                "must be a certificate authority's certificate, the customerCA.crt that the cluster was initialised under, not one whose basic constraints lack CA",
            ));
        }
        Ok(Self(certificate))
    }
}

impl TrustAnchor {
    /// Whether this authority issued the certificate: its name stands there, and its key verifies the signature.
    pub fn has_issued(&self, certificate: &Certificate) -> bool {
        let (Ok((_, authority)), Ok((_, issued))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&certificate.der))
        else {
            return false;
        };
        issued.issuer() == authority.subject() && issued.verify_signature(Some(authority.public_key())).is_ok()
    }
}

impl Deref for TrustAnchor {
    type Target = Certificate;

    fn deref(&self) -> &Certificate {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn certificate(is_ca: rcgen::IsCa) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.self_signed(&key).unwrap().pem()
    }

    fn authority() -> String {
        certificate(rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained))
    }

    #[test]
    fn the_text_around_a_certificate_does_not_matter() {
        let pem = authority();
        let padded = format!("# the cluster's CA\n{}", pem.replace("\r\n", "\n"));
        let (one, same) = (TrustAnchor::parse(&pem).unwrap(), TrustAnchor::parse(&padded).unwrap());
        assert_eq!(one, same);
        assert_eq!(one.fingerprint(), same.fingerprint());
        assert_eq!(one.fingerprint().len(), 64);
        assert_ne!(one, TrustAnchor::parse(&authority()).unwrap());
    }

    #[test]
    fn what_is_not_one_certificate_is_refused_and_told_what_it_is() {
        let pem = authority();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let long = "x".repeat(6_000);
        for (text, found) in [
            ("", "an empty text"),
            (" \n", "an empty text"),
            ("hello", "a text without a PEM block"),
            (&pem[..pem.len() / 2], "cut short or garbled"),
            (&key, "\"PRIVATE KEY\""),
            (&pem.replace("CERTIFICATE", &"X".repeat(2_000)), &format!("called {:?}", "X".repeat(SHOWN_LABEL))),
            (&format!("{pem}{pem}"), "2 of them"),
            (&pem.replacen("MI", "AA", 1), "holds something else"),
            (&long, "6000 characters"),
        ] {
            let refused = Certificate::parse(text).unwrap_err().to_string();
            assert!(
                refused.starts_with("must be one X.509 certificate in PEM") && refused.contains(found),
                "{refused}"
            );
            assert_eq!(TrustAnchor::parse(text).unwrap_err().to_string(), refused);
        }
    }

    #[test]
    fn a_trust_anchor_is_an_authoritys_and_a_clusters_own_certificate_need_not_be() {
        let pem = certificate(rcgen::IsCa::NoCa);
        assert!(Certificate::parse(&pem).is_ok());
        let refused = TrustAnchor::parse(&pem).unwrap_err().to_string();
        assert!(refused.contains("authority"), "{refused}");
    }

    #[test]
    fn an_authority_knows_what_it_has_issued() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let issuer = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (own, namesake, other) = (issuer("customer"), issuer("customer"), issuer("other"));
        let issued = CertificateParams::default().signed_by(&KeyPair::generate().unwrap(), &own).unwrap();
        let issued = Certificate::parse(&issued.pem()).unwrap();
        let has_issued =
            |issuer: &CertifiedIssuer<'_, KeyPair>| TrustAnchor::parse(&issuer.pem()).unwrap().has_issued(&issued);
        assert!(has_issued(&own) && !has_issued(&namesake) && !has_issued(&other));
    }

    #[test]
    fn a_certificate_has_its_time() {
        let certificate = Certificate::parse(&authority()).unwrap();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(certificate.is_valid_at(at(1_700_000_000)), Ok(()));
        assert!(matches!(certificate.is_valid_at(at(2_000_000_000)), Err(OutOfDate::Expired(_))));
        assert!(matches!(certificate.is_valid_at(at(0)), Err(OutOfDate::NotYet(_))));
    }
}
