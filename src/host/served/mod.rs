//! `keyway node`: this host, behind TLS, for daemons on other machines.
//!
//! Three ports, as CloudHSM has them. On the first each connection is one session link, carried to a worker of its own
//! (`session`); on the other two are plain services (`services`). Whoever connects shows a certificate under the
//! client CA with a name that is among the daemons'; nobody else gets as far as a first byte. A node decides nothing that
//! a host does not decide: which login may be tried, who serves what, is the daemon's.

mod services;
mod session;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::server::TlsStream;

use crate::link::Patience;
use crate::model::{ClusterId, HsmId, Username};
use crate::telemetry::{Page, catalogue};
use crate::tls::{self, Acceptor, TlsError};

use super::carry::SILENCE;
use super::local::Local;
use super::remote::{LINK_PROTOCOL, SERVICE_PROTOCOL};
use super::{LONGEST_PATIENCE, LocalToken, Location, OpeningError, WorkerSpec};

pub use settings::Settings;

/// A connection has said who it is within this time, or is closed: sooner than a daemon gives up, which may have to wait for
/// others who say nothing.
const GREETING: Duration = Duration::from_secs(2);
/// Connections that have not said who they are yet, on each port.
const GREETINGS: usize = 64;
/// The pause after `accept` failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the node did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{path} cannot be made or used")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the TLS material cannot be used")]
    Tls(#[from] TlsError),
}

/// A node that serves.
pub struct Served {
    pub sessions: SocketAddr,
    pub identity: SocketAddr,
    pub administration: SocketAddr,
    tls: Acceptor,
    links: Links,
}

/// The session links that there may be. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Links {
    /// One permit for each.
    places: Arc<Semaphore>,
    most: u32,
}

impl Links {
    pub fn tell(&self, page: &mut Page) {
        let free = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
        page.level(&catalogue::NODE_LINKS, [], self.most.saturating_sub(free).into());
        page.level(&catalogue::NODE_LINKS_LIMIT, [], self.most.into());
    }
}

/// What the ports have in common.
struct House {
    local: Local,
    settings: Settings,
    draining: watch::Receiver<bool>,
}

/// A slot of this node's.
struct Slot {
    cluster: ClusterId,
    hsm: HsmId,
    username: Username,
    token: LocalToken,
    /// Whether crypto users are made, changed and deleted there by a daemon's word: this node's configuration says so.
    manages_users: bool,
}

impl House {
    /// The slot that is meant, if it is one of this node's.
    fn slot(&self, cluster: &str, hsm: &str, username: &str) -> Result<Slot, OpeningError> {
        let unknown = |what: String| OpeningError::UnknownSlot(what);
        // Names become paths: whatever is none goes no further.
        let (Ok(cluster), Ok(hsm), Ok(username)) =
            (cluster.parse::<ClusterId>(), hsm.parse::<HsmId>(), Username::of_a_token(username))
        else {
            return Err(unknown("its names are not such".to_owned()));
        };
        let token = self.settings.hsms.get(&(cluster.clone(), hsm.clone()));
        let token = token.ok_or_else(|| unknown(format!("it has no {hsm} of {cluster}")))?;
        let manages_users = token.manages_users();
        let own = token.of(&username);
        let token = own.ok_or_else(|| unknown(format!("{hsm} has no token of {username}'s, and no user_tokens")))?;
        Ok(Slot { cluster, hsm, username, token, manages_users })
    }

    /// The same, for what is done with users, and not only as one of them.
    fn managed_slot(&self, cluster: &str, hsm: &str, username: &str) -> Result<Slot, OpeningError> {
        let slot = self.slot(cluster, hsm, username)?;
        if !slot.manages_users {
            let why = format!("its configuration has no user_tokens for {hsm}: crypto users are not managed there");
            return Err(OpeningError::UnknownSlot(why));
        }
        Ok(slot)
    }
}

impl Slot {
    /// For a worker that is not given any work to be patient with.
    fn spec(&self) -> WorkerSpec {
        self.spec_with(1, Patience { quick: Duration::ZERO, slow: Duration::ZERO })
    }

    /// As a daemon asks for it.
    fn spec_for(&self, sessions: u32, patience_ms: u32, slow_patience_ms: u32) -> WorkerSpec {
        let patience = |ms: u32| Duration::from_millis(ms.into()).min(LONGEST_PATIENCE);
        self.spec_with(sessions, Patience { quick: patience(patience_ms), slow: patience(slow_patience_ms) })
    }

    fn spec_with(&self, sessions: u32, patience: Patience) -> WorkerSpec {
        WorkerSpec {
            cluster: self.cluster.clone(),
            hsm: self.hsm.clone(),
            username: self.username.clone(),
            location: Location::Here(self.token.clone()),
            sessions,
            patience,
            // The daemon sees to that, by what the worker tells it.
            memory_limit: u64::MAX,
        }
    }
}

/// Listens on all three ports until `draining`.
pub async fn serve(settings: Settings, draining: watch::Receiver<bool>) -> Result<Served, ServeError> {
    let directory = settings.data_dir.join("host");
    let local = Local::for_daemons_elsewhere(directory.clone(), SILENCE);
    let local = local.map_err(|source| ServeError::Directory { path: directory, source })?;
    let links = Acceptor::new(settings.tls.clone(), LINK_PROTOCOL)?;
    let services = links.speaking(SERVICE_PROTOCOL);
    let places = Arc::new(Semaphore::new(settings.max_links));
    let most = u32::try_from(settings.max_links).unwrap_or(u32::MAX);
    let house = Arc::new(House { local, settings, draining });
    let (listener, sessions) = bind(&house, house.settings.ports.sessions).await?;
    tokio::spawn(accept_links(listener, links.clone(), house.clone(), places.clone()));
    let (listener, identity) = bind(&house, house.settings.ports.identity).await?;
    services::serve_identity(greeted(listener, services.clone(), house.clone()), house.clone());
    let (listener, administration) = bind(&house, house.settings.ports.administration).await?;
    services::serve_administration(greeted(listener, services, house.clone()), house);
    let links_open = Links { places, most };
    Ok(Served { sessions, identity, administration, tls: links, links: links_open })
}

impl Served {
    /// Reads certificates, key and client CA again, for connections on all ports from now on. With a problem in any, nothing changes.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn read_certificates_again(&self) -> Result<(), TlsError> {
        self.tls.read_again()
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Waits until the last link has ended, at most `limit`.
    pub async fn links_ended(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.links.places.acquire_many(self.links.most)).await;
    }
}

async fn bind(house: &House, port: u16) -> Result<(TcpListener, SocketAddr), ServeError> {
    let address = SocketAddr::new(house.settings.listen, port);
    let failed = |source| ServeError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Who is there, when it is one of the daemons.
async fn greet(acceptor: &Acceptor, stream: TcpStream, daemons: &[String]) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let greeted = tokio::time::timeout(GREETING, acceptor.current().accept(stream)).await;
    let stream = greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    if stream.get_ref().1.alpn_protocol() != Some(acceptor.protocol()) {
        return Err(io::Error::other("another protocol was meant: is this the right port?"));
    }
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    match certificate.and_then(tls::name_on) {
        Some(name) if daemons.contains(&name) => Ok(stream),
        Some(name) => {
            tracing::warn!(name, "a certificate under the client CA, and none of this node's daemons");
            Err(io::ErrorKind::PermissionDenied.into())
        }
        None => Err(io::Error::other("the certificate names nobody")),
    }
}

/// The next connection, with a place among those that have not said who they are yet. `None` once the node drains.
async fn accepted(
    listener: &TcpListener,
    greetings: &Arc<Semaphore>,
    draining: &mut watch::Receiver<bool>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => return None,
            accepted = async {
                let place = greetings.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), Ok(place)) => return Some((stream, place)),
            (Err(error), _) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Ok(_), Err(_)) => return None,
        }
    }
}

async fn accept_links(listener: TcpListener, acceptor: Acceptor, house: Arc<House>, places: Arc<Semaphore>) {
    let (greetings, mut draining) = (Arc::new(Semaphore::new(GREETINGS)), house.draining.clone());
    while let Some((stream, greeting)) = accepted(&listener, &greetings, &mut draining).await {
        let (acceptor, house, places) = (acceptor.clone(), house.clone(), places.clone());
        tokio::spawn(async move {
            let greeted = greet(&acceptor, stream, &house.settings.daemons).await;
            let place = places.try_acquire_owned().ok();
            // One without a place is told so, and stays among those who are being greeted until it has gone.
            let _greeting = place.is_none().then_some(greeting);
            match greeted {
                Ok(stream) => session::serve(&house, stream, place).await,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the sessions port was closed before it said who it is")
                }
            }
        });
    }
}

/// Connections of known daemons, for a server to take.
fn greeted(listener: TcpListener, acceptor: Acceptor, house: Arc<House>) -> services::Incoming {
    let (known, incoming) = services::incoming();
    tokio::spawn(async move {
        let (greetings, mut draining) = (Arc::new(Semaphore::new(GREETINGS)), house.draining.clone());
        while let Some((stream, greeting)) = accepted(&listener, &greetings, &mut draining).await {
            let (acceptor, house, known) = (acceptor.clone(), house.clone(), known.clone());
            tokio::spawn(async move {
                match greet(&acceptor, stream, &house.settings.daemons).await {
                    Ok(stream) => known.pass_on(stream, greeting).await,
                    Err(error) => {
                        tracing::debug!(%error, "a connection to a service's port was closed before it said who it is")
                    }
                }
            });
        }
    });
    incoming
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::example;
    use crate::model::Ports;
    use crate::tls::TlsFiles;

    fn house(home: &std::path::Path, user_tokens: Option<PathBuf>) -> House {
        let token = LocalToken { so_pin_file: Some(home.join("so-pin")), user_tokens, ..example::token() };
        let hsm = ("cluster-2abcdefghij".parse().unwrap(), "hsm-1".parse().unwrap());
        let nowhere = PathBuf::new;
        let settings = Settings {
            data_dir: home.to_owned(),
            listen: [127, 0, 0, 1].into(),
            ports: Ports::USUAL,
            tls: TlsFiles { certificate: nowhere(), private_key: nowhere(), client_ca: nowhere() },
            daemons: Vec::new(),
            max_links: 1,
            hsms: [(hsm, token)].into(),
        };
        House { local: Local::new(home.join("host")).unwrap(), settings, draining: watch::channel(false).1 }
    }

    #[test]
    fn a_user_has_a_token_in_a_directory_of_his_own_and_no_name_leads_out_of_it() {
        let home = tempfile::tempdir().unwrap();
        let house = house(home.path(), Some(home.path().join("users")));
        let slot = |username: &str| house.managed_slot("cluster-2abcdefghij", "hsm-1", username);
        for username in ["alice", "(nobody)"] {
            let configuration = &slot(username).unwrap().token.environment["SOFTHSM2_CONF"];
            assert_eq!(
                *configuration,
                home.path().join("users").join(username).join("softhsm2.conf").to_string_lossy()
            );
        }
        assert!(!slot("kmsuser").unwrap().token.environment.contains_key("SOFTHSM2_CONF"), "it is the declared one");
        for username in ["", ".", "..", "../alice", "/etc", "a/b", "a\0b", "(security officer)", "(nobody)/..", "a.b"] {
            assert!(matches!(slot(username), Err(OpeningError::UnknownSlot(_))), "{username:?}");
        }
    }

    #[test]
    fn without_a_directory_for_users_there_is_kmsusers_token_alone_and_it_is_not_managed() {
        let home = tempfile::tempdir().unwrap();
        let house = house(home.path(), None);
        let slot = |username: &str| house.slot("cluster-2abcdefghij", "hsm-1", username);
        assert!(slot("kmsuser").is_ok());
        assert!(matches!(slot("alice"), Err(OpeningError::UnknownSlot(_))));
        let managed = house.managed_slot("cluster-2abcdefghij", "hsm-1", "kmsuser").err().unwrap().to_string();
        assert!(managed.contains("user_tokens"), "{managed}");
    }
}
