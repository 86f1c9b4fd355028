//! `keyway node init`: what a SoftHSM2 node needs on its host, made once.
//!
//! Run again it makes what is missing and keeps the rest: a private key, a PIN or a token is never made twice. The token
//! itself is made when the daemon is told to create kmsuser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::failure::Failure;
use crate::cli::new_file::{self, Readers};
use crate::cli::{output, password, softhsm2};
use crate::host::TokenDirectory;
use crate::model::{ClusterId, HostName, HsmId};
use crate::pki::{AlternativeName, Holder, PrivateKey, Purpose, SigningRequest};

/// Prepare a SoftHSM2 HSM on this host, to be served with `keyway node --config`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  keyway node init --cluster cluster-2abcdefghij --hsm hsm-3 --name hsm-3.example.org --data-dir /var/lib/keyway-node

Makes directories for the tokens, a PIN of their security officer, a private key, a request for its certificate, and
node.toml, and says what is left to do. What is there is kept.")]
pub(in crate::cli) struct InitArgs {
    /// The cluster's id
    #[arg(long, value_name = "ID")]
    cluster: ClusterId,
    /// The HSM's id
    #[arg(long, value_name = "ID")]
    hsm: HsmId,
    /// The DNS name or IP address by which daemons find this host
    #[arg(long, value_name = "NAME")]
    name: HostName,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The name on the daemon's certificate
    #[arg(long, value_name = "NAME", default_value = "keyway-daemon")]
    daemon: String,
    /// SoftHSM2's library, where it is not in a usual place
    #[arg(long, value_name = "PATH")]
    softhsm2: Option<PathBuf>,
}

pub(in crate::cli) fn run(args: &InitArgs) -> Result<(), Failure> {
    let module = softhsm2::find(args.softhsm2.as_deref()).map_err(|why| Failure::usage(why.to_string()))?;
    let home = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let configuration = configuration(args, &home, &module)?;
    let mut made = Made { home, lines: Vec::new() };
    made.is_for(args)?;

    made.directory("")?;
    made.directory("users")?;
    made.token_directory()?;
    made.file("so-pin", Readers::Owner, || Ok(format!("{}\n", password::random()).into_bytes()))?;
    made.file("node.key", Readers::Owner, || {
        let key = PrivateKey::generate().map_err(|why| Failure::local(why.to_string()))?;
        Ok(key.expose().as_bytes().to_vec())
    })?;
    let key = made.read("node.key")?;
    made.file("node.csr", Readers::Everybody, || Ok(request(args, &key)?.into_bytes()))?;
    made.file("node.toml", Readers::Everybody, || Ok(configuration.into_bytes()))?;
    output::stdout(format!("{}\n\n{}", made.lines.join("\n"), left_to_do(args, &made.home)).as_bytes())
}

/// What was made, and what was kept.
struct Made {
    home: PathBuf,
    lines: Vec<String>,
}

impl Made {
    /// What a former run has left here is for this HSM and this name, if it left anything.
    fn is_for(&self, args: &InitArgs) -> Result<(), Failure> {
        let another =
            |what: &str| Failure::usage(format!("{} is {what}", self.home.display())).advise("name another --data-dir");
        let declared = declaration(args);
        if self.home.join("node.toml").exists() && !self.read("node.toml")?.lines().any(|line| line == declared) {
            return Err(another("for another HSM: its node.toml has none of this name"));
        }
        if self.home.join("node.csr").exists() {
            let request = SigningRequest::parse(&self.read("node.csr")?);
            let request = request.map_err(|why| Failure::usage(format!("node.csr: {why}")))?;
            if !request.names().iter().any(|name| name == args.name.as_str()) {
                return Err(Failure::usage("node.csr asks for another name than --name")
                    .advise("remove it, and have the new one signed; the key stays"));
            }
        }
        Ok(())
    }

    fn directory(&mut self, name: &str) -> Result<(), Failure> {
        let path = self.home.join(name);
        if path.is_dir() {
            return self.kept(&path);
        }
        new_file::make_directory(&path)?;
        self.made(&path)
    }

    /// kmsuser's; other users' are made with them.
    fn token_directory(&mut self) -> Result<(), Failure> {
        let path = self.home.join("kmsuser");
        // An operator may have changed it.
        if path.join("softhsm2.conf").exists() {
            return self.kept(&path);
        }
        TokenDirectory::make(path.clone()).map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
        self.made(&path)
    }

    fn file(
        &mut self,
        name: &str,
        readers: Readers,
        content: impl FnOnce() -> Result<Vec<u8>, Failure>,
    ) -> Result<(), Failure> {
        let path = self.home.join(name);
        if path.exists() {
            return self.kept(&path);
        }
        new_file::make(&path, &zeroize::Zeroizing::new(content()?), readers)?;
        self.made(&path)
    }

    fn read(&self, name: &str) -> Result<zeroize::Zeroizing<String>, Failure> {
        let path = self.home.join(name);
        let text = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new);
        text.map_err(|error| Failure::local(format!("{}: {error}", path.display())))
    }

    fn made(&mut self, path: &Path) -> Result<(), Failure> {
        self.lines.push(format!("made {}", path.display()));
        Ok(())
    }

    fn kept(&mut self, path: &Path) -> Result<(), Failure> {
        self.lines.push(format!("kept {}, which was there", path.display()));
        Ok(())
    }
}

fn request(args: &InitArgs, key: &str) -> Result<String, Failure> {
    let wrong = |why: &dyn std::fmt::Display| Failure::usage(why.to_string());
    let name = args.name.as_str();
    let alternative: AlternativeName = name.parse().map_err(|why| wrong(&format_args!("--name {why}")))?;
    let common = name.parse().map_err(|why| wrong(&format_args!("--name {why}")))?;
    let key = PrivateKey::parse(key).map_err(|why| wrong(&format_args!("node.key {why}")))?;
    let holder = Holder { name: common, alternatives: vec![alternative] };
    key.request(&holder, Purpose::Server).map_err(|why| wrong(&why))
}

fn declaration(args: &InitArgs) -> String {
    format!("[clusters.{}.nodes.{}]", args.cluster, args.hsm)
}

fn configuration(args: &InitArgs, home: &Path, module: &Path) -> Result<String, Failure> {
    Ok(format!(
        r#"# Made by `keyway node init`. docs/nodes.md explains every key; relative paths start from this file's directory.

data_dir = "state"
listen = "0.0.0.0"
tls = {{ certificate = "node.crt", private_key = "node.key", client_ca = "daemons-ca.crt" }}
# The names on the certificates of the daemons that are served.
daemons = [{daemon}]

[clusters.{cluster}]
sync = "wrap"
profile = "softhsm2"

{declaration}
module = {module}
token = {{ label = "{hsm}.kmsuser" }}
environment = {{ SOFTHSM2_CONF = {softhsm2} }}
so_pin_file = "so-pin"
user_tokens = "users"
"#,
        daemon = quoted(&args.daemon)?,
        cluster = args.cluster,
        declaration = declaration(args),
        module = quoted(&module.to_string_lossy())?,
        hsm = args.hsm,
        softhsm2 = quoted(&home.join("kmsuser/softhsm2.conf").to_string_lossy())?,
    ))
}

/// As TOML writes a text.
fn quoted(text: &str) -> Result<String, Failure> {
    if text.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(Failure::usage(format!("{text:?} cannot stand in a configuration file")));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn left_to_do(args: &InitArgs, home: &Path) -> String {
    let InitArgs { cluster, hsm, name, daemon, .. } = args;
    let home = home.display();
    let mut text = String::new();
    let _ = write!(
        text,
        "What is left to do:
  1. Have node.csr signed with the cluster's customerCA, where its key is, and put the certificate here as node.crt:
       keyway ca issue {name} --ca DIR --server --csr node.csr
  2. Put the CA here that signs daemons' certificates, as daemons-ca.crt. The daemon's own is for the name {daemon:?}.
  3. keyway node --config {home}/node.toml
  4. Tell the daemon. If keyway made the cluster:
       keyway cluster add-hsm {cluster} --hsm-id {hsm} --zone ZONE --address {name}
     Else declare the HSM, and have kmsuser made when every HSM of the cluster is declared:
       [clusters.{cluster}.nodes.{hsm}]
       address = \"{name}\"
       manages_users = true
       keyway crypto-user create {cluster} kmsuser
"
    );
    text
}
