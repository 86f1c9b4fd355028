//! What an authority signs, and what it does not.

use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose};

use super::*;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn holder(name: &str, alternatives: &[&str]) -> Holder {
    let alternatives = alternatives.iter().map(|name| name.parse().unwrap()).collect();
    Holder { name: name.parse().unwrap(), alternatives }
}

fn authority() -> Authority {
    Authority::make(&"keyway CA".parse().unwrap(), Days::TEN_YEARS, now()).unwrap()
}

/// As somebody writes it who is not us.
fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = holder("hsm-1", &["hsm-1.example.org"]).params();
    change(&mut params);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn shown(pem: &str) -> x509_parser::pem::Pem {
    x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap()
}

#[test]
fn an_authority_that_was_written_down_signs_as_before() {
    let made = authority();
    let key = PrivateKey::parse(&made.key().expose()).unwrap();
    let read = Authority::new(TrustAnchor::parse(made.certificate().pem()).unwrap(), key).unwrap();
    for authority in [made, read] {
        let issued = authority.issue(&holder("app", &[]), Purpose::Client, Days::ONE_YEAR, now()).unwrap();
        let issued = crate::model::Certificate::parse(&issued.certificate).unwrap();
        assert!(authority.certificate().has_issued(&issued));
        assert!(issued.is_valid_at(now()).is_ok() && issued.is_valid_at(now() + DAY * 366).is_err());
    }
}

#[test]
fn an_authority_signs_with_its_own_key_or_not_at_all() {
    let certificate = TrustAnchor::parse(authority().certificate().pem()).unwrap();
    let refused = Authority::new(certificate, PrivateKey::generate().unwrap()).unwrap_err();
    assert!(matches!(refused, PkiError::NotItsKey), "{refused}");
}

#[test]
fn a_certificate_does_not_outlive_its_authority() {
    let authority = Authority::make(&"keyway CA".parse().unwrap(), "30".parse().unwrap(), now()).unwrap();
    let issue = |days: &str, now| authority.issue(&holder("app", &[]), Purpose::Client, days.parse().unwrap(), now);
    assert!(issue("30", now()).is_ok());
    assert!(matches!(issue("31", now()), Err(PkiError::OutlivesAuthority(_))));
    assert!(matches!(issue("1", now() + DAY * 40), Err(PkiError::OutOfDate(_))));
}

#[test]
fn a_server_is_found_by_a_host_name_or_not_at_all() {
    let issue = |names: &[&str]| authority().issue(&holder("hsm-1", names), Purpose::Server, Days::ONE_YEAR, now());
    assert!(matches!(issue(&[]), Err(PkiError::NoHost)));
    assert!(matches!(issue(&["spiffe://example.org/hsm-1"]), Err(PkiError::NoHost)));
    assert!(issue(&["hsm-1.example.org"]).is_ok() && issue(&["192.0.2.1"]).is_ok() && issue(&["::1"]).is_ok());
}

#[test]
fn a_request_is_given_its_names_and_nothing_else_it_asks_for() {
    let pem = request(|params| {
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::CodeSigning];
    });
    let request = SigningRequest::parse(&pem).unwrap();
    assert_eq!(request.names(), ["hsm-1", "hsm-1.example.org"]);
    let pem = authority().sign(request, Purpose::Server, Days::ONE_YEAR, now()).unwrap();
    let signed = shown(&pem);
    let signed = signed.parse_x509().unwrap();
    assert_eq!(signed.subject().to_string(), "CN=hsm-1, O=Example");
    let usage = signed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.code_signing);
    assert!(!signed.key_usage().unwrap().unwrap().value.key_cert_sign() && !signed.is_ca());
}

#[test]
fn a_request_that_is_none_or_asks_for_too_much_is_refused_and_told_why() {
    let good = request(|_| ());
    let many: Vec<_> = (0..65).map(|number| format!("hsm-{number}").parse::<AlternativeName>().unwrap().0).collect();
    let certificate = authority().certificate().pem().to_owned();
    for (pem, why) in [
        (String::new(), "without a PEM block"),
        ("x".repeat(20_000), "a longer text"),
        (good[..good.len() / 2].to_owned(), "cut short"),
        (format!("{good}{good}"), "several"),
        (certificate, "something else"),
        (good.replacen("MI", "AA", 1), "cannot be read"),
        (request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "a CA's certificate"),
        (request(|params| params.subject_alt_names = many), "more than 64 names"),
        (
            request(|params| {
                params.subject_alt_names = vec![rcgen::SanType::Rfc822Name("a@example.org".try_into().unwrap())];
            }),
            "no DNS name",
        ),
    ] {
        let refused = SigningRequest::parse(&pem).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_request_that_somebody_altered_is_refused() {
    let mut der = shown(&request(|_| ())).contents;
    let at = der.windows(5).position(|bytes| bytes == b"hsm-1").unwrap();
    der[at + 4] = b'2';
    let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{pem}\n-----END CERTIFICATE REQUEST-----\n");
    let refused = SigningRequest::parse(&pem).unwrap_err().to_string();
    assert!(refused.contains("own key"), "{refused}");
}

#[test]
fn two_certificates_of_an_authority_never_have_one_serial_number() {
    let (authority, pem) = (authority(), request(|_| ()));
    let sign = || {
        let request = SigningRequest::parse(&pem).unwrap();
        let signed = shown(&authority.sign(request, Purpose::Client, Days::ONE_YEAR, now()).unwrap());
        signed.parse_x509().unwrap().raw_serial().to_vec()
    };
    assert_ne!(sign(), sign());
}

#[test]
fn names_that_are_none_are_refused() {
    for text in ["", " app", "a\nb", &"a".repeat(65)] {
        assert!(text.parse::<CommonName>().is_err(), "{text:?}");
    }
    for text in ["", "a b", "-", "spiffe://ex ample", "ünicode.example.org", "host:2223"] {
        assert!(text.parse::<AlternativeName>().is_err(), "{text:?}");
    }
    for text in ["0", "3654", "", "-1", "1.5"] {
        assert!(text.parse::<Days>().is_err(), "{text:?}");
    }
}
