//! From an address to a channel, and the clients that speak over it.
//!
//! Speaks TLS 1.3 or nothing, and trusts only the CA it is given, never the system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::crypto_service_client::CryptoServiceClient;
use crate::proto::v1::crypto_user_service_client::CryptoUserServiceClient;
use crate::proto::v1::key_service_client::KeyServiceClient;
use crate::proto::v1::key_store_service_client::KeyStoreServiceClient;
use crate::proto::v1::server_service_client::ServerServiceClient;

use super::address::{Address, Scheme};
use super::args::ClientArgs;
use super::failure::{Failure, root_cause};
use super::output::{self, Output};
use super::password;

const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";
/// How long a command takes that waits for nothing but an answer.
pub(super) const CALL: Duration = Duration::from_secs(30);
/// A stream's patience when none was asked for.
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// A connection that takes longer is not coming.
const CONNECT: Duration = Duration::from_secs(10);
/// The daemon gives no call more than this.
const CALL_CEILING: Duration = Duration::from_secs(120);
/// A silent connection is asked for a sign of life this often, so that a stream notices a daemon that vanished.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What every command is given: where the daemon is, how patient to be, how to print.
pub(super) struct Client {
    address: Address,
    tls: Option<TlsConnector>,
    has_certificate: bool,
    timeout: Option<Duration>,
    logins: Logins,
    pub(super) output: Output,
}

/// The tokens of logins that every request shows.
type Logins = Arc<[MetadataValue<Ascii>]>;

impl Client {
    /// Reads flags first, then `environment`.
    pub(super) fn new(args: &ClientArgs, environment: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let variable = |name| environment(name).filter(|value| !value.is_empty());
        let file = |flag: &Option<PathBuf>, name| flag.clone().or_else(|| variable(name).map(PathBuf::from));
        let files = TlsFiles {
            ca: file(&args.cacert, "KEYWAY_CACERT"),
            certificate: file(&args.cert, "KEYWAY_CERT"),
            private_key: file(&args.key, "KEYWAY_KEY"),
        };
        let bare = if files.ca.is_some() { Scheme::Https } else { Scheme::Http };
        let text = args.addr.clone().or_else(|| variable("KEYWAY_ADDR"));
        let address = Address::parse(text.as_deref().unwrap_or(DEFAULT_ADDRESS), bare).map_err(Failure::usage)?;
        let tls = match address.scheme() {
            Some(Scheme::Https) => Some(files.connector()?),
            Some(Scheme::Http) | None => {
                refuse_unused_tls(args, &address)?;
                None
            }
        };
        Ok(Self {
            address,
            tls,
            has_certificate: files.certificate.is_some(),
            timeout: args.timeout,
            logins: args.login_files.iter().map(|file| login(file)).collect::<Result<_, _>>()?,
            output: args.output,
        })
    }

    /// For the daemon behind this socket.
    pub(super) fn of_socket(path: PathBuf) -> Self {
        let (tls, timeout, output) = (None, None, Output::Table);
        Self { address: Address::Unix(path), tls, has_certificate: false, timeout, logins: Arc::default(), output }
    }

    /// The same, for the daemon behind this socket.
    pub(super) fn at_socket(&self, path: PathBuf) -> Self {
        let (timeout, logins, output) = (self.timeout, self.logins.clone(), self.output);
        Self { address: Address::Unix(path), tls: None, has_certificate: false, timeout, logins, output }
    }

    /// Connects for a command that takes `patience` unless `--timeout` says otherwise.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Daemon, Failure> {
        let deadline = self.deadline(patience);
        if self.address.is_exposed() && self.output == Output::Table {
            output::note(&format!("warning: {} is plaintext: anybody on the way can read and change it", self.address));
        }
        self.connect_once(deadline).await
    }

    /// Adds what a connection that broke off may mean. TLS 1.3 lets a client without a certificate in at first,
    /// and a daemon that wants TLS just hangs up on plaintext.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        if !failure.is_lost() || failure.is_advised() {
            return failure;
        }
        match self.address.scheme() {
            Some(Scheme::Https) if !self.has_certificate => {
                failure.advise("if the daemon asks for a client certificate, give --cert and --key")
            }
            Some(Scheme::Http) => {
                failure.advise("if the daemon speaks only TLS there, name it https:// and give --cacert")
            }
            Some(Scheme::Https) | None => failure,
        }
    }

    pub(super) fn deadline(&self, patience: Duration) -> Instant {
        Instant::now() + self.timeout.unwrap_or(patience)
    }

    /// One attempt, whatever `connect` says beside it.
    pub(super) async fn connect_once(&self, deadline: Instant) -> Result<Daemon, Failure> {
        let endpoint = Endpoint::from_shared(self.address.uri())
            .map_err(|error| Failure::usage(format!("{}: {}", self.address, root_cause(&error))))?
            .http2_keep_alive_interval(KEEP_ALIVE)
            .user_agent(concat!("keyway/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::local(root_cause(&error)))?;
        let (address, tls) = (self.address.clone(), self.tls.clone());
        let connector = tower::service_fn(move |_| open(address.clone(), tls.clone()));
        let limit = deadline.min(Instant::now() + CONNECT);
        match tokio::time::timeout_at(limit, endpoint.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(Daemon { channel, deadline, logins: self.logins.clone() }),
            Ok(Err(error)) => Err(Failure::unreachable(&self.address, &root_cause(&error))),
            Err(_) => Err(Failure::unreachable(&self.address, "it does not answer")),
        }
    }
}

fn login(file: &Path) -> Result<MetadataValue<Ascii>, Failure> {
    let token = password::login_token(file)?;
    sensitive(&token).ok_or_else(|| Failure::usage(format!("{}: not a login's token", file.display())))
}

fn sensitive(token: &str) -> Option<MetadataValue<Ascii>> {
    let mut value = MetadataValue::try_from(token).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// TLS flags beside an address without TLS are a misunderstanding; the environment may well hold both.
fn refuse_unused_tls(args: &ClientArgs, address: &Address) -> Result<(), Failure> {
    if args.cacert.is_some() || args.cert.is_some() || args.key.is_some() {
        return Err(Failure::usage(format!(
            "{address} does not speak TLS, so --cacert, --cert and --key do nothing there"
        ))
        .advise("name an https:// address with --addr"));
    }
    Ok(())
}

struct TlsFiles {
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    private_key: Option<PathBuf>,
}

impl TlsFiles {
    fn connector(&self) -> Result<TlsConnector, Failure> {
        let ca = self.ca.as_deref().ok_or_else(|| {
            Failure::usage("https:// needs the CA that signed the daemon's certificate")
                .advise("name it with --cacert or KEYWAY_CACERT")
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| in_file(ca, &error))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Failure::local(format!("TLS does not start: {error}")))?
            .with_root_certificates(roots);
        let mut config = match (&self.certificate, &self.private_key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, &error))?;
                builder
                    .with_client_auth_cert(certificates(chain)?, private_key)
                    .map_err(|error| in_file(chain, &error))?
            }
            (Some(_), None) | (None, Some(_)) => {
                return Err(Failure::usage("a client certificate and its private key go together")
                    .advise("give both --cert and --key, or both KEYWAY_CERT and KEYWAY_KEY"));
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| in_file(path, &error))?.collect();
    let found = found.map_err(|error| in_file(path, &error))?;
    if found.is_empty() { Err(in_file(path, &"holds no certificate")) } else { Ok(found) }
}

fn in_file(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {why}", path.display()))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn open(address: Address, tls: Option<TlsConnector>) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let (host, port) = match address {
        Address::Unix(path) => {
            let stream: Box<dyn Stream> = Box::new(UnixStream::connect(path).await?);
            return Ok(TokioIo::new(stream));
        }
        Address::Tcp { host, port, .. } => (host, port),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        Some(tls) => {
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            Box::new(tls.connect(name, stream).await?)
        }
        None => Box::new(stream),
    };
    Ok(TokioIo::new(stream))
}

/// A daemon that answered, and when the command's time is up.
#[derive(Clone)]
pub(super) struct Daemon {
    channel: Channel,
    pub(super) deadline: Instant,
    logins: Logins,
}

impl Daemon {
    /// The same daemon, shown this login's token alone.
    pub(super) fn logged_in(&self, token: &str) -> Result<Self, Failure> {
        let token = sensitive(token).ok_or_else(|| Failure::local("the daemon gave a token that cannot be sent"))?;
        Ok(Self { logins: [token].into(), ..self.clone() })
    }

    /// A request that carries what is left of the command's time.
    pub(super) fn request<M>(&self, message: M) -> Request<M> {
        self.request_within(message, CALL_CEILING)
    }

    /// A request that takes no longer than `limit`, even when the command may.
    pub(super) fn request_within<M>(&self, message: M, limit: Duration) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()).min(limit));
        for login in &*self.logins {
            request.metadata_mut().append("x-keyway-login", login.clone());
        }
        request
    }

    pub(super) fn key_stores(&self) -> KeyStoreServiceClient<Channel> {
        KeyStoreServiceClient::new(self.channel.clone())
    }

    pub(super) fn clusters(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    pub(super) fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel.clone())
    }

    pub(super) fn crypto(&self) -> CryptoServiceClient<Channel> {
        CryptoServiceClient::new(self.channel.clone())
    }

    pub(super) fn crypto_users(&self) -> CryptoUserServiceClient<Channel> {
        CryptoUserServiceClient::new(self.channel.clone())
    }

    pub(super) fn server(&self) -> ServerServiceClient<Channel> {
        ServerServiceClient::new(self.channel.clone())
    }

    pub(super) fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }
}
