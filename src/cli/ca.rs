//! `keyway ca`: certificates on a desk. It asks no daemon, and what it makes are files that are not there yet.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::clock;
use crate::model::{Certificate, TrustAnchor, with_causes};
use crate::pki::{
    AlternativeName, Authority, CommonName, Days, Holder, Issued, PkiError, PrivateKey, Purpose, SigningRequest,
};
use crate::tls;

use super::failure::Failure;
use super::new_file::{self, Readers};
use super::output;
use super::table::printable;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const CUSTOMERS_CERTIFICATE: &str = "customerCA.crt";
const CUSTOMERS_KEY: &str = "customerCA.key";
/// No certificate, key or request is longer.
const MAX_FILE: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    Init(InitArgs),
    Issue(IssueArgs),
}

/// Make a certificate authority: ca.crt, and ca.key, which whoever has it can come in with under any name
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway ca init --out clients                  for clients: the daemon's grpc.tls.client_ca is clients/ca.crt
  keyway ca init --out customer --name 'customer CA'
                                                for a cluster: its trust_anchor is customer/ca.crt")]
pub(super) struct InitArgs {
    /// Where ca.crt and ca.key are made; they must not be there yet
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// What it is called
    #[arg(long, value_name = "NAME", default_value = "keyway CA")]
    name: CommonName,
    /// For how many days it is good
    #[arg(long, value_name = "N", default_value_t = Days::TEN_YEARS)]
    days: Days,
}

/// Sign a certificate: a client's, unless --server or --cluster says otherwise. Makes its key, unless --csr brings one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway ca issue orders-app --ca clients
  keyway ca issue orders-app --ca clients --san spiffe://example.org/orders
  keyway ca issue hsm-3.example.org --ca customer --server
  keyway ca issue hsm-3.example.org --ca customer --server --csr node.csr

A request is signed when NAME and every --san are the names that it asks for, and no others. Its subject, names and key are
taken over. What it says its certificate should be good for is not; a request for a CA's certificate is refused.")]
pub(super) struct IssueArgs {
    /// Whom it is for: a client's name, or the DNS name or IP address at which a server is found
    #[arg(value_name = "NAME", value_parser = name)]
    name: CommonName,
    /// Where ca.crt and ca.key are
    #[arg(long, value_name = "DIR", default_value = ".")]
    ca: PathBuf,
    /// One more DNS name, IP address or URI; may be given several times
    #[arg(long, value_name = "NAME")]
    san: Vec<AlternativeName>,
    /// For a server: a node, or a daemon
    #[arg(long)]
    server: bool,
    /// For a cluster: the certificate that its configuration declares, which is good for no connection
    #[arg(long, conflicts_with = "server")]
    cluster: bool,
    /// Sign this request (PKCS#10, PEM); NAME.crt alone is made then
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// For how many days it is good; not beyond the CA's own
    #[arg(long, value_name = "N", default_value_t = Days::ONE_YEAR)]
    days: Days,
    /// Where NAME.crt and NAME.key are made; they must not be there yet
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// The name is the files' too.
fn name(text: &str) -> Result<CommonName, String> {
    if text.contains('/') || text.starts_with('.') {
        return Err("files are called after it: no `/`, and no `.` at its beginning; give a URI as --san".to_owned());
    }
    text.parse::<CommonName>().map_err(|error| error.to_string())
}

impl CaCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Init(args) => init(&args),
            Self::Issue(args) => issue(&args),
        }
    }
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    let (certificate, key) = (args.out.join(CERTIFICATE), args.out.join(KEY));
    new_file::refuse_any_of(&[&certificate, &key])?;
    let authority = Authority::make(&args.name, args.days, clock::now()).map_err(refused)?;
    new_file::make_directory(&args.out)?;
    new_file::make(&key, authority.key().expose().as_bytes(), Readers::Owner)?;
    new_file::make(&certificate, authority.certificate().pem().as_bytes(), Readers::Everybody)?;
    tell(&[
        format!("made {} and {}", certificate.display(), key.display()),
        format!("Keep {} to yourself, and away from daemons and nodes: they need the other alone.", key.display()),
    ])
}

fn issue(args: &IssueArgs) -> Result<(), Failure> {
    let (certificate, key) = (args.out.join(format!("{}.crt", args.name)), args.out.join(format!("{}.key", args.name)));
    match &args.csr {
        Some(_) => new_file::refuse_any_of(&[&certificate])?,
        None => new_file::refuse_any_of(&[&certificate, &key])?,
    }
    let authority = authority_in(&args.ca)?;
    let (signed, made) = match &args.csr {
        Some(csr) => (sign(&authority, args, csr)?, None),
        None => {
            let issued = authority.issue(&args.holder(), args.purpose(), args.days, clock::now()).map_err(refused)?;
            let Issued { certificate, key } = issued;
            (certificate, Some(key))
        }
    };
    new_file::make_directory(&args.out)?;
    if let Some(made) = &made {
        new_file::make(&key, made.expose().as_bytes(), Readers::Owner)?;
    }
    new_file::make(&certificate, signed.as_bytes(), Readers::Everybody)?;
    let mut lines = vec![match made {
        Some(_) => format!("made {} and {}", certificate.display(), key.display()),
        None => format!("made {}", certificate.display()),
    }];
    if args.purpose() == Purpose::Client {
        lines.push(format!("Daemons and nodes know its holder as {:?}.", known_as(&signed)?));
    }
    tell(&lines)
}

fn sign(authority: &Authority, args: &IssueArgs, csr: &Path) -> Result<String, Failure> {
    let request = SigningRequest::parse(&text(csr)?).map_err(|why| about(csr, &why))?;
    let expected: Vec<_> =
        std::iter::once(args.name.to_string()).chain(args.san.iter().map(ToString::to_string)).collect();
    let asked = request.names();
    if let Some(more) = asked.iter().find(|name| !expected.contains(name)) {
        let shown = printable(more);
        return Err(about(csr, &format_args!("the request asks for the name {shown:?} too"))
            .advise("if that is meant, give each of its names: as NAME, or with --san"));
    }
    if let Some(missing) = expected.iter().find(|name| !asked.contains(name)) {
        return Err(about(csr, &format_args!("the request does not ask for the name {missing:?}"))
            .advise("a request is signed as it is: make another one with that name"));
    }
    authority.sign(request, args.purpose(), args.days, clock::now()).map_err(refused)
}

impl IssueArgs {
    fn purpose(&self) -> Purpose {
        match (self.server, self.cluster) {
            (true, _) => Purpose::Server,
            (false, true) => Purpose::Cluster,
            (false, false) => Purpose::Client,
        }
    }

    /// A server is found by its name as well, if that is a host's.
    fn holder(&self) -> Holder {
        let found_by = self.name.to_string().parse::<AlternativeName>().ok().filter(|_| self.server);
        let alternatives = found_by.into_iter().chain(self.san.iter().cloned()).collect();
        Holder { name: self.name.clone(), alternatives }
    }
}

/// The one in this directory: `keyway ca init`'s, or the customerCA that `keyway cluster init` made.
fn authority_in(directory: &Path) -> Result<Authority, Failure> {
    let own = (directory.join(CERTIFICATE), directory.join(KEY));
    let customers = (directory.join(CUSTOMERS_CERTIFICATE), directory.join(CUSTOMERS_KEY));
    let (certificate, key) =
        if !own.0.exists() && (customers.0.exists() || customers.1.exists()) { customers } else { own };
    authority(&certificate, &key)
}

/// The customer's authority in this directory, under the name that clusters know it by or as `keyway ca init` made it; a new one
/// when there is none.
pub(super) fn customers_authority(directory: &Path) -> Result<Authority, Failure> {
    if has_customers_authority(directory) {
        return authority_in(directory);
    }
    let name: CommonName = "customer CA".parse().expect("a common name");
    let authority = Authority::make(&name, Days::TEN_YEARS, clock::now()).map_err(refused)?;
    new_file::make_directory(directory)?;
    new_file::make(&directory.join(CUSTOMERS_KEY), authority.key().expose().as_bytes(), Readers::Owner)?;
    let certificate = authority.certificate().pem().as_bytes();
    new_file::make(&directory.join(CUSTOMERS_CERTIFICATE), certificate, Readers::Everybody)?;
    Ok(authority)
}

/// Whether there is one, or a part of one.
pub(super) fn has_customers_authority(directory: &Path) -> bool {
    [CERTIFICATE, CUSTOMERS_CERTIFICATE, CUSTOMERS_KEY].iter().any(|name| directory.join(name).exists())
}

/// The one that was written down in these files.
pub(super) fn authority(certificate: &Path, key: &Path) -> Result<Authority, Failure> {
    let anchor = TrustAnchor::parse(&text(certificate)?).map_err(|why| about(certificate, &why))?;
    let private = PrivateKey::parse(&text(key)?).map_err(|why| about(key, &why))?;
    Authority::new(anchor, private).map_err(refused)
}

/// As daemons and nodes read it.
fn known_as(certificate: &str) -> Result<String, Failure> {
    let certificate = Certificate::parse(certificate).map_err(|why| Failure::local(why.to_string()))?;
    Ok(tls::name_on(&CertificateDer::from(certificate.der())).unwrap_or_default())
}

fn text(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|error| about(path, &error))?;
    Ok(text)
}

fn about(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {why}", path.display()))
}

pub(super) fn refused(error: PkiError) -> Failure {
    Failure::usage(with_causes(&error))
}

fn tell(lines: &[String]) -> Result<(), Failure> {
    output::stdout(format!("{}\n", lines.join("\n")).as_bytes())
}
