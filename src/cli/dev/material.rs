//! Certificates of a development cluster, and kmsuser's password, made once.

use std::time::SystemTime;

use crate::cli::password;
use crate::clock;
use crate::pki::{AlternativeName, Authority, Days, Holder, Issued, PkiError, Purpose};

use super::ADMIN;
use super::assets::{Assets, AssetsError};

/// Makes what is missing. The last file of each group is written last, so that a group cut short is made anew.
pub(super) fn make(assets: &Assets) -> Result<(), AssetsError> {
    if !assets.exists("customerCA.crt") {
        let ca = authority("keyway dev cluster", clock::now()).expect("fixed parameters make a certificate");
        assets.write("customerCA.key", ca.key().expose().as_bytes())?;
        assets.write("customerCA.crt", ca.certificate().pem().as_bytes())?;
    }
    if !assets.exists("ca.crt") {
        transport(assets)?;
    }
    if !assets.has_password() {
        assets.write_password(&password::random())?;
    }
    Ok(())
}

/// The transport's CA, the server's certificate for this machine, and a client's.
fn transport(assets: &Assets) -> Result<(), AssetsError> {
    let now = clock::now();
    let ca = authority("keyway dev transport", now).expect("fixed parameters make a certificate");
    let here = ["localhost", "127.0.0.1", "::1"];
    for (file, name, alternatives, purpose) in
        [("server", "localhost", &here[..], Purpose::Server), ("client", ADMIN, &[], Purpose::Client)]
    {
        let Issued { certificate, key } =
            issue(&ca, name, alternatives, purpose, now).expect("fixed parameters make a certificate");
        assets.write(&format!("{file}.key"), key.expose().as_bytes())?;
        assets.write(&format!("{file}.crt"), certificate.as_bytes())?;
    }
    assets.write("ca.crt", ca.certificate().pem().as_bytes())
}

fn authority(name: &str, now: SystemTime) -> Result<Authority, PkiError> {
    Authority::make(&name.parse().expect("a name"), Days::TEN_YEARS, now)
}

fn issue(
    ca: &Authority,
    name: &str,
    alternatives: &[&str],
    purpose: Purpose,
    now: SystemTime,
) -> Result<Issued, PkiError> {
    let alternatives = alternatives.iter().map(|name| name.parse::<AlternativeName>().expect("a name")).collect();
    let holder = Holder { name: name.parse().expect("a name"), alternatives };
    ca.issue(&holder, purpose, Days::TEN_YEARS, now)
}
