//! Certificates of a development cluster.

use std::time::SystemTime;

use crate::cli::ca;
use crate::cli::failure::Failure;
use crate::clock;
use crate::model::with_causes;
use crate::pki::{AlternativeName, Authority, Days, Holder, Issued, PkiError, Purpose};

use super::ADMIN;
use super::assets::{Assets, AssetsError};

/// No dev runs longer without another start.
const DAYS_OF_SERVER: &str = "365";

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
        let now = clock::now();
        let ca = authority("keyway dev transport", now).expect("fixed parameters make a certificate");
        issue(assets, &ca, ("client", ADMIN, &[]), (Purpose::Client, Days::TEN_YEARS, now))?;
        assets.write("ca.key", ca.key().expose().as_bytes())?;
        assets.write("ca.crt", ca.certificate().pem().as_bytes())?;
    }
    let failed = |failure: Failure| assets.error("ca.key", failure.message());
    let ca = ca::authority(&assets.path("ca.crt"), &assets.path("ca.key")).map_err(failed)?;
    let here = ["localhost", "127.0.0.1", "::1"].map(|name| name.parse().expect("a name"));
    let names: Vec<_> = here.into_iter().chain(names.iter().cloned()).collect();
    let days = DAYS_OF_SERVER.parse().expect("a number of days");
    issue(assets, &ca, ("server", "localhost", &names), (Purpose::Server, days, clock::now()))
}

fn authority(name: &str, now: SystemTime) -> Result<Authority, PkiError> {
    Authority::make(&name.parse().expect("a name"), Days::TEN_YEARS, now)
}

/// A certificate and its key, in two files of this name.
fn issue(
    assets: &Assets,
    ca: &Authority,
    (file, name, alternatives): (&str, &str, &[AlternativeName]),
    (purpose, days, now): (Purpose, Days, SystemTime),
) -> Result<(), AssetsError> {
    let holder = Holder { name: name.parse().expect("a name"), alternatives: alternatives.to_vec() };
    let Issued { certificate, key } =
        ca.issue(&holder, purpose, days, now).map_err(|error| assets.error(file, with_causes(&error)))?;
    assets.write(&format!("{file}.key"), key.expose().as_bytes())?;
    assets.write(&format!("{file}.crt"), certificate.as_bytes())
}
