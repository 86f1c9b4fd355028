//! `key-store connect --wait` against a daemon that loses the watcher on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::proto::v1::key_store_service_server::{KeyStoreService, KeyStoreServiceServer};
use crate::proto::v1::{
    self, CheckStatus, ConnectPhase, ConnectStep, ConnectionState, KeyStore, WatchKeyStoreResponse,
};

use super::{Router, Server, typed};

/// A daemon with one key store, `orders`, whose connecting ends in `ending` once the watcher came back.
#[derive(Clone)]
struct OneStore {
    ending: ConnectionState,
    watches: Arc<AtomicUsize>,
}

type News = Result<WatchKeyStoreResponse, Status>;

impl OneStore {
    fn that_ends(ending: ConnectionState) -> Self {
        Self { ending, watches: Arc::default() }
    }

    fn daemon(&self) -> Router {
        Server::builder().add_service(KeyStoreServiceServer::new(self.clone()))
    }

    fn store(state: ConnectionState) -> KeyStore {
        KeyStore {
            key_store_id: "cks-1234567890abcdef0".to_owned(),
            key_store_name: "orders".to_owned(),
            connection_state: state.into(),
            ..Default::default()
        }
    }

    fn news(state: ConnectionState) -> News {
        let step = ConnectStep {
            hsm_id: "hsm-1".to_owned(),
            phase: ConnectPhase::LogIn.into(),
            status: CheckStatus::Running.into(),
            ..Default::default()
        };
        Ok(WatchKeyStoreResponse { key_store: Some(Self::store(state)), steps: vec![step], time: None })
    }
}

#[tonic::async_trait]
impl KeyStoreService for OneStore {
    async fn describe_key_stores(
        &self,
        _: Request<v1::DescribeKeyStoresRequest>,
    ) -> Result<Response<v1::DescribeKeyStoresResponse>, Status> {
        let key_stores = vec![Self::store(ConnectionState::Disconnected)];
        Ok(Response::new(v1::DescribeKeyStoresResponse { key_stores, ..Default::default() }))
    }

    async fn connect_key_store(
        &self,
        request: Request<v1::ConnectKeyStoreRequest>,
    ) -> Result<Response<v1::ConnectKeyStoreResponse>, Status> {
        assert_eq!(request.get_ref().key_store_id, "cks-1234567890abcdef0");
        let key_store = Some(Self::store(ConnectionState::Connecting));
        Ok(Response::new(v1::ConnectKeyStoreResponse { key_store }))
    }

    async fn watch_key_store(
        &self,
        _: Request<v1::WatchKeyStoreRequest>,
    ) -> Result<Response<BoxStream<WatchKeyStoreResponse>>, Status> {
        let mut news = vec![Self::news(ConnectionState::Connecting)];
        news.push(match self.watches.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Status::unavailable("draining")),
            _ => Self::news(self.ending),
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(news))))
    }
}

const CONNECT: &str = "key-store connect --name orders --wait";

#[tokio::test]
async fn a_watch_that_breaks_off_is_taken_up_again_until_the_store_is_connected() {
    let daemon = OneStore::that_ends(ConnectionState::Connected);
    typed(daemon.daemon(), CONNECT).await.unwrap();
    assert_eq!(daemon.watches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_store_that_fails_to_connect_fails_the_command() {
    let failure = typed(OneStore::that_ends(ConnectionState::Failed).daemon(), CONNECT).await.unwrap_err();
    assert!(failure.message().starts_with("the key store could not be connected"), "{}", failure.message());
    assert!(!failure.is_unreachable());
}

#[tokio::test]
async fn waiting_ends_with_the_commands_time() {
    let command = format!("--timeout 400ms {CONNECT}");
    let failure = typed(OneStore::that_ends(ConnectionState::Connecting).daemon(), &command).await.unwrap_err();
    assert!(failure.is_late() || failure.is_passing(), "{}", failure.text());
}
