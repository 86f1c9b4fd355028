//! Certificates, passwords and PINs of a development cluster, made once.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::ADMIN;
use super::assets::{Assets, AssetsError};

/// Makes what is missing. The last file of each group is written last, so that a group cut short is made anew.
pub(super) fn make(assets: &Assets) -> Result<(), AssetsError> {
    if !assets.exists("customerCA.crt") {
        let ca = authority("keyway dev cluster").expect("fixed parameters make a certificate");
        assets.write("customerCA.key", ca.key().serialize_pem().as_bytes())?;
        assets.write("customerCA.crt", ca.pem().as_bytes())?;
    }
    if !assets.exists("ca.crt") {
        transport(assets)?;
    }
    if !assets.has_password() {
        assets.write_password(&random_password())?;
    }
    Ok(())
}

/// The SO PIN of a node's tokens.
pub(super) fn so_pin(assets: &Assets, file: &str) -> Result<(), AssetsError> {
    if assets.exists(file) { Ok(()) } else { assets.write(file, random_password().as_bytes()) }
}

/// The transport's CA, the server's certificate for this machine, and a client's.
fn transport(assets: &Assets) -> Result<(), AssetsError> {
    let ca = authority("keyway dev transport").expect("fixed parameters make a certificate");
    let here = ["localhost", "127.0.0.1", "::1"];
    let (certificate, key) = issue(&ca, "localhost", &here, ExtendedKeyUsagePurpose::ServerAuth)
        .expect("fixed parameters make a certificate");
    assets.write("server.key", key.as_bytes())?;
    assets.write("server.crt", certificate.as_bytes())?;
    let (certificate, key) =
        issue(&ca, ADMIN, &[], ExtendedKeyUsagePurpose::ClientAuth).expect("fixed parameters make a certificate");
    assets.write("client.key", key.as_bytes())?;
    assets.write("client.crt", certificate.as_bytes())?;
    assets.write("ca.crt", ca.pem().as_bytes())
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

/// A certificate and its key, both PEM.
fn issue(
    ca: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    hosts: &[&str],
    purpose: ExtendedKeyUsagePurpose,
) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    for host in hosts {
        params.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into()?),
        });
    }
    params.extended_key_usages = vec![purpose];
    let certificate = params.signed_by(&key, ca)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// 32 letters and digits.
fn random_password() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
