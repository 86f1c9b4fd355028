//! Typed clients for the tests, and what they do over and over.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

pub use keyway::proto::v1 as pb;

use pb::cluster_service_client::ClusterServiceClient;
use pb::crypto_service_client::CryptoServiceClient;
use pb::crypto_user_service_client::CryptoUserServiceClient;
use pb::key_service_client::KeyServiceClient;
use pb::key_store_service_client::KeyStoreServiceClient;
use pb::server_service_client::ServerServiceClient;

use super::Rig;

#[derive(Clone)]
pub struct Clients {
    pub channel: Channel,
    pub stores: KeyStoreServiceClient<Channel>,
    pub keys: KeyServiceClient<Channel>,
    pub crypto: CryptoServiceClient<Channel>,
    pub clusters: ClusterServiceClient<Channel>,
    pub users: CryptoUserServiceClient<Channel>,
    pub server: ServerServiceClient<Channel>,
}

/// The code and reason of an error, as clients read them.
pub fn reason(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    (status.code(), reason)
}

impl Clients {
    pub async fn unix(path: &Path) -> Self {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://keyway");
        Self::over(endpoint.connect_with_connector(connector).await.expect("the daemon listens"))
    }

    pub async fn tcp(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self::over(endpoint.connect().await.expect("the daemon listens"))
    }

    /// Over TLS, of a daemon that is called `localhost`.
    pub async fn tls(address: &str, config: rustls::ClientConfig) -> Result<Self, tonic::transport::Error> {
        let (connector, address) = (TlsConnector::from(Arc::new(config)), address.to_owned());
        let connect = tower::service_fn(move |_| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").expect("a name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Ok(Self::over(endpoint.connect_with_connector(connect).await?))
    }

    pub fn over(channel: Channel) -> Self {
        Self {
            stores: KeyStoreServiceClient::new(channel.clone()),
            keys: KeyServiceClient::new(channel.clone()),
            crypto: CryptoServiceClient::new(channel.clone()),
            clusters: ClusterServiceClient::new(channel.clone()),
            users: CryptoUserServiceClient::new(channel.clone()),
            server: ServerServiceClient::new(channel.clone()),
            channel,
        }
    }

    /// Makes a key store; its id.
    pub async fn store(&mut self, rig: &Rig, name: &str) -> String {
        let request = pb::CreateKeyStoreRequest {
            key_store_name: name.to_owned(),
            cluster_id: rig.cluster_id(),
            key_store_password: rig.password(),
            trust_anchor_certificate: rig.trust_anchor(),
        };
        self.stores.create_key_store(request).await.expect("a key store can be made").into_inner().key_store_id
    }

    /// Makes a key store and connects it; its id.
    pub async fn connected_store(&mut self, rig: &Rig, name: &str) -> String {
        let id = self.store(rig, name).await;
        self.connect(&id).await;
        assert_eq!(self.settled(&id).await.connection_state(), pb::ConnectionState::Connected);
        id
    }

    pub async fn connect(&mut self, id: &str) {
        let request = pb::ConnectKeyStoreRequest { key_store_id: id.to_owned() };
        self.stores.connect_key_store(request).await.expect("connecting begins");
    }

    /// Puts an HSM back into use, and perhaps has its password tried once more.
    pub async fn resume_hsm(&mut self, cluster: &str, hsm: &str, allow_one_login: bool) {
        let request = pb::ResumeHsmRequest { cluster_id: cluster.to_owned(), hsm_id: hsm.to_owned(), allow_one_login };
        self.clusters.resume_hsm(request).await.expect("it is resumed");
    }

    /// Takes an HSM out of use, and waits until it is for a key store.
    pub async fn drain_hsm(&mut self, cluster: &str, store: &str, hsm: &str) {
        let (cluster_id, hsm_id) = (cluster.to_owned(), hsm.to_owned());
        let request = pb::DrainHsmRequest { cluster_id, hsm_id, note: "by a test".to_owned(), drain_timeout: None };
        self.clusters.drain_hsm(request).await.expect("it is known");
        self.until_health(store, hsm, pb::HsmHealth::Drained).await;
    }

    pub async fn disconnect(&mut self, id: &str) {
        let request = pb::DisconnectKeyStoreRequest { key_store_id: id.to_owned(), drain_timeout: None };
        self.stores.disconnect_key_store(request).await.expect("disconnecting begins");
        assert_eq!(self.settled(id).await.connection_state(), pb::ConnectionState::Disconnected);
    }

    /// Watches a key store until it is neither connecting nor disconnecting.
    pub async fn settled(&mut self, id: &str) -> pb::KeyStore {
        self.watch_until(id, |store| {
            !matches!(store.connection_state(), pb::ConnectionState::Connecting | pb::ConnectionState::Disconnecting)
        })
        .await
    }

    /// Watches a key store until `wanted` of it is true.
    pub async fn watch_until(&mut self, id: &str, wanted: impl Fn(&pb::KeyStore) -> bool) -> pb::KeyStore {
        let request = pb::WatchKeyStoreRequest { key_store_id: id.to_owned() };
        let mut stream = self.stores.watch_key_store(request).await.expect("it can be watched").into_inner();
        let mut seen = None;
        let watching = async {
            loop {
                let message = stream.message().await.expect("the stream lasts").expect("the stream lasts");
                let store = seen.insert(message.key_store.expect("every message has it"));
                if wanted(store) {
                    break;
                }
            }
        };
        let gets_there = tokio::time::timeout(super::PATIENCE, watching).await.is_ok();
        assert!(gets_there, "the key store does not get there; it stays {seen:?}");
        seen.expect("it was watched")
    }

    /// Waits until every node of a connected store is healthy.
    pub async fn all_healthy(&mut self, id: &str) -> pb::KeyStore {
        let healthy = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy;
        let connected = |store: &pb::KeyStore| store.connection_state() == pb::ConnectionState::Connected;
        self.watch_until(id, |store| connected(store) && store.nodes.iter().all(healthy)).await
    }

    pub async fn key(&mut self, store: &str) -> pb::Key {
        let request = pb::CreateKeyRequest { key_store_id: store.to_owned(), ..Default::default() };
        self.keys.create_key(request).await.expect("a key can be made").into_inner().key.expect("it is told")
    }

    /// Makes a key, and asks for the same again whatever was answered: the same request is not done twice.
    pub async fn key_in_the_end(&mut self, store: &str, request_id: &str) -> pb::Key {
        let request = pb::CreateKeyRequest {
            key_store_id: store.to_owned(),
            request_id: request_id.to_owned(),
            ..Default::default()
        };
        let begun = Instant::now();
        loop {
            match self.keys.create_key(request.clone()).await {
                Ok(answer) => return answer.into_inner().key.expect("it is told"),
                Err(refused) => assert!(begun.elapsed() < super::PATIENCE, "it is never made: {refused:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks for three keys at once, each of which begins at another node; the first that is made.
    pub async fn key_from_whoever_is_quickest(&mut self, store: &str) -> String {
        let tries = (0..3).map(|_| {
            let (mut clients, store) = (self.clone(), store.to_owned());
            Box::pin(async move {
                let request = pb::CreateKeyRequest { key_store_id: store, ..Default::default() };
                Ok::<_, Status>(clients.keys.create_key(request).await?.into_inner().key.expect("it is told").key_id)
            })
        });
        let (key, others) = futures_util::future::select_ok(tries).await.expect("one of them is made");
        // The rest go on: whoever leaves early changes nothing.
        tokio::spawn(futures_util::future::join_all(others));
        key
    }

    pub async fn describe_key(&mut self, key: &str) -> pb::Key {
        let request = pb::DescribeKeyRequest { key_id: key.to_owned(), ..Default::default() };
        self.keys.describe_key(request).await.expect("the key is there").into_inner().key.expect("it is told")
    }

    pub async fn encrypt(&mut self, key: &str, plaintext: &[u8]) -> Vec<u8> {
        let request =
            pb::EncryptRequest { key_id: key.to_owned(), plaintext: plaintext.to_vec(), ..Default::default() };
        self.crypto.encrypt(request).await.expect("the key encrypts").into_inner().ciphertext
    }

    pub async fn decrypt(&mut self, ciphertext: &[u8]) -> Result<Vec<u8>, Status> {
        let request = pb::DecryptRequest { ciphertext: ciphertext.to_vec(), ..Default::default() };
        Ok(self.crypto.decrypt(request).await?.into_inner().plaintext)
    }
}
