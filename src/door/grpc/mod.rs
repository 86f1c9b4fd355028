//! The gRPC face: services over the core, in the names of `proto/keyway/v1`.
//!
//! A handler asks who is calling, what is asked (`convert`), whether they may
//! ([`Policy`]), and does it; every error becomes a status in `status` and nowhere else.
//! What is not served yet answers UNIMPLEMENTED.

mod check;
mod cluster;
mod convert;
mod crypto;
mod crypto_user;
mod data_key_pair;
mod drift;
mod finish;
mod health;
mod key;
mod key_store;
mod kinds;
mod making;
mod pages;
mod pipeline;
mod server;
mod sign;
mod status;
mod tally;
mod tell;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Server;

use crate::authz::{Action, Caller, Permit, Policy};
use crate::cluster::Declared;
use crate::keys::Keys;
use crate::keystore::KeyStores;
use crate::making::MadeClusters;
use crate::proto::{self, v1 as pb};
use crate::telemetry::Page;
use crate::users::Users;

use super::greet::Io;

pub use health::report as report_health;
pub use pages::Pages;
pub use pipeline::Pipelines;
pub(super) use tally::Tally;

/// A call without a deadline gets this long.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// No call gets longer.
const LONGEST_DEADLINE: Duration = Duration::from_secs(120);
/// An answer takes this long to get out of here, at most.
const ANSWERING: Duration = Duration::from_millis(20);
/// Idle connections are asked whether they are alive.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(20);
/// Streams of one connection that are served at once.
const STREAMS_PER_CONNECTION: u32 = 1_024;

/// What a client may have sent on a stream that is not read: on one that is full, nothing is.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same of a whole connection. h2 ends a connection with more unread frames of few bytes than it has a budget for, which is
/// half of this: a frame of n bytes costs 256 - n of it. So much holds a stream's window of the shortest messages, of 5 bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// What every service of this face stands on. Cheap to clone.
#[derive(Clone)]
pub struct Faces(Arc<Foundation>);

pub struct Foundation {
    pub policy: Policy,
    pub key_stores: KeyStores,
    pub keys: Keys,
    pub users: Users,
    pub clusters: Declared,
    pub made_clusters: MadeClusters,
    pub health: tonic_health::server::HealthReporter,
    pub draining: watch::Receiver<bool>,
    pub max_message_bytes: usize,
    /// Items of a Pipeline that are unanswered at once.
    pub pipeline_in_flight: usize,
    pub pipelines: Pipelines,
    pub mode: Mode,
    pub key_store_quota: u32,
    /// Where callers find what errors mean.
    pub pages: Pages,
}

/// Whether this daemon is somebody's desk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Dev,
    Serve,
}

impl Faces {
    pub fn new(foundation: Foundation) -> Self {
        Self(Arc::new(foundation))
    }

    pub(super) fn key_stores(&self) -> &KeyStores {
        &self.0.key_stores
    }

    /// Puts key stores, clusters, HSMs and keys on the page.
    pub(super) async fn tell(&self, page: &mut Page) {
        self.0.key_stores.tell(page);
        let clusters = topology::tell(self, page);
        self.0.keys.tell(page, &clusters).await;
    }

    /// Who is calling and may they: the proof, or the status to answer with.
    fn permit<A: Action, T>(&self, request: &tonic::Request<T>) -> Result<Permit<A>, Status> {
        let caller = caller(request)?;
        self.0.policy.decide(caller).map_err(status::denied)
    }
}

/// The caller that the listener found.
fn caller<T>(request: &tonic::Request<T>) -> Result<&Caller, Status> {
    request.extensions().get::<Caller>().ok_or_else(status::nobody)
}

/// When the work must be done, within the bounds: a little before the caller stops waiting, so that it hears what became of it.
fn deadline<T>(request: &tonic::Request<T>) -> Instant {
    let asked = convert::asked_timeout(request.metadata().as_ref()).unwrap_or(DEFAULT_DEADLINE).min(LONGEST_DEADLINE);
    Instant::now() + asked - (asked / 10).min(ANSWERING)
}

/// Serves one lane's connections until `drained`, then what is still in flight.
pub(super) async fn serve(
    faces: Faces,
    tally: Arc<Tally>,
    incoming: ReceiverStream<std::io::Result<Io>>,
    drained: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let limit = faces.0.max_message_bytes;
    let reflection = |builder: tonic_reflection::server::Builder<'static>| {
        builder
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection(tonic_reflection::server::Builder::configure()).build_v1();
    let v1alpha = reflection(tonic_reflection::server::Builder::configure()).build_v1alpha();
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(finish::FinishLayer { max_message_bytes: limit, tally, pages: faces.0.pages.clone() })
        .add_service(
            pb::key_store_service_server::KeyStoreServiceServer::new(key_store::Service(faces.clone()))
                .max_decoding_message_size(limit),
        )
        .add_service(
            pb::cluster_service_server::ClusterServiceServer::new(cluster::Service(faces.clone()))
                .max_decoding_message_size(limit),
        )
        .add_service(
            pb::crypto_user_service_server::CryptoUserServiceServer::new(crypto_user::Service(faces.clone()))
                .max_decoding_message_size(limit),
        )
        .add_service(
            pb::key_service_server::KeyServiceServer::new(key::Service(faces.clone())).max_decoding_message_size(limit),
        )
        .add_service(
            pb::crypto_service_server::CryptoServiceServer::new(crypto::Service(faces.clone()))
                .max_decoding_message_size(limit),
        )
        .add_service(
            pb::server_service_server::ServerServiceServer::new(server::Service(faces.clone()))
                .max_decoding_message_size(limit),
        )
        .add_service(tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(faces.0.health.clone()),
        ))
        .add_service(v1.expect("our own descriptors decode"))
        .add_service(v1alpha.expect("our own descriptors decode"))
        .serve_with_incoming_shutdown(incoming, drained)
        .await
}
