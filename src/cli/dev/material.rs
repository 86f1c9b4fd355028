//! Certificates of a development cluster.

use std::time::SystemTime;

use crate::cli::ca;
use crate::cli::failure::Failure;
use crate::clock;
use crate::pki::{AlternativeName, Authority, Days, Holder, Issued, PkiError, Purpose};

use super::ADMIN;
use super::assets::{Assets, AssetsError};

/// Makes what is missing. The last file of each group is written last, so that a group cut short is made anew. The server's
/// certificate is a new one at each start, for the names that clients know this machine by now.
pub(super) fn make(assets: &Assets, names: &[AlternativeName]) -> Result<(), AssetsError> {
    if !assets.exists("customerCA.crt") {
        let ca = authority("keyway dev cluster", clock::now()).expect("fixed parameters make a certificate");
        assets.write("customerCA.key", ca.key().expose().as_bytes())?;
        assets.write("customerCA.crt", ca.certificate().pem().as_bytes())?;
    }
    // A former release threw the key away.
    if !assets.exists("ca.crt") || !assets.exists("ca.key") {
        let ca = authority("keyway dev transport", clock::now()).expect("fixed parameters make a certificate");
        issue(assets, &ca, "client", (ADMIN, &[], Purpose::Client))?;
        assets.write("ca.key", ca.key().expose().as_bytes())?;
        assets.write("ca.crt", ca.certificate().pem().as_bytes())?;
    }
    let failed = |failure: Failure| assets.error("ca.key", failure.message());
    let ca = ca::authority(&assets.path("ca.crt"), &assets.path("ca.key")).map_err(failed)?;
    let here = ["localhost", "127.0.0.1", "::1"].map(|name| name.parse().expect("a name"));
    let names: Vec<_> = here.into_iter().chain(names.iter().cloned()).collect();
    issue(assets, &ca, "server", ("localhost", &names, Purpose::Server))
}

fn authority(name: &str, now: SystemTime) -> Result<Authority, PkiError> {
    Authority::make(&name.parse().expect("a name"), Days::TEN_YEARS, now)
}

/// A certificate and its key, in two files of this name.
fn issue(
    assets: &Assets,
    ca: &Authority,
    file: &str,
    (name, alternatives, purpose): (&str, &[AlternativeName], Purpose),
) -> Result<(), AssetsError> {
    let holder = Holder { name: name.parse().expect("a name"), alternatives: alternatives.to_vec() };
    let Issued { certificate, key } =
        ca.issue(&holder, purpose, Days::TEN_YEARS, clock::now()).expect("fixed parameters make a certificate");
    assets.write(&format!("{file}.key"), key.expose().as_bytes())?;
    assets.write(&format!("{file}.crt"), certificate.as_bytes())
}
