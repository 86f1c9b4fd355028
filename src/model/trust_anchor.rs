//! The certificate a cluster was initialised with, as an operator uploads it (`customerCA.crt`).

use x509_parser::pem::Pem;

use super::Invalid;

/// AWS's bound on the PEM text.
const MAX_CHARACTERS: usize = 5_000;

/// One X.509 certificate in PEM. Two are equal when their DER is, however the text around it was wrapped.
#[derive(Debug, Clone)]
pub struct TrustAnchor {
    pem: String,
    der: Vec<u8>,
}

impl TrustAnchor {
    pub fn parse(pem: &str) -> Result<Self, Invalid> {
        if pem.is_empty() || pem.chars().count() > MAX_CHARACTERS {
            return Err(Invalid::new(format!(
                "a trust anchor certificate has 1 to {MAX_CHARACTERS} characters of PEM"
            )));
        }
        let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
        let (Some(Ok(block)), None) = (blocks.next(), blocks.next()) else {
            return Err(Invalid::new(
                "a trust anchor is exactly one PEM block of the form -----BEGIN CERTIFICATE-----",
            ));
        };
        if block.label != "CERTIFICATE" || block.parse_x509().is_err() {
            return Err(Invalid::new("the PEM block is not an X.509 certificate"));
        }
        Ok(Self { pem: pem.to_owned(), der: block.contents })
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }
}

impl PartialEq for TrustAnchor {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for TrustAnchor {}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_text_around_a_certificate_does_not_matter() {
        let pem = certificate();
        let padded = format!("# the cluster's CA\n{}", pem.replace("\r\n", "\n"));
        assert_eq!(TrustAnchor::parse(&pem).unwrap(), TrustAnchor::parse(&padded).unwrap());
        assert_ne!(TrustAnchor::parse(&pem).unwrap(), TrustAnchor::parse(&certificate()).unwrap());
    }

    #[test]
    fn what_is_not_one_certificate_is_refused() {
        let pem = certificate();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let garbled = pem.replacen("MI", "AA", 1);
        for text in ["", "hello", &key, &format!("{pem}{pem}"), &garbled, &"x".repeat(6_000)] {
            assert!(TrustAnchor::parse(text).is_err(), "{text:.40}");
        }
    }
}
