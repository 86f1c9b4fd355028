//! The identity and administration ports: who is there, and what is done to tokens beside any session link.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::host::users::Alone;
use crate::host::{OpeningError, UserError, UserStanding, fault};
use crate::link;
use crate::link::v1::{self, response::Outcome};
use crate::model::{Password, with_causes};
use crate::proto::node::administration_service_server::{AdministrationService, AdministrationServiceServer};
use crate::proto::node::identify_response::Hsm;
use crate::proto::node::identity_service_server::{IdentityService, IdentityServiceServer};
use crate::proto::node::list_standings_response::{Standing, WithinReach, standing::Token};
use crate::proto::node::{
    GiveUserRequest, GiveUserResponse, IdentifyRequest, IdentifyResponse, KeepTokenRequest, KeepTokenResponse,
    ListStandingsRequest, ListStandingsResponse, RemoveUserRequest, RemoveUserResponse, UnlockUserRequest,
    UnlockUserResponse,
};

use super::House;

/// Connections on their way to a server.
const ARRIVALS: usize = 16;
/// The longest request that is read.
const LONGEST_REQUEST: usize = 64 << 10;
/// Users whose standing is asked for at once: as many as a page of them has.
const MOST_STANDINGS: usize = 1_000;
/// Streams of one connection.
const STREAMS: u32 = 16;
/// A client is asked so often whether it is there, and has so long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// Connections of known daemons, one server's.
pub(super) type Incoming = ReceiverStream<io::Result<Arrival>>;

/// Where they come from.
#[derive(Clone)]
pub(super) struct Known(mpsc::Sender<io::Result<Arrival>>);

pub(super) fn incoming() -> (Known, Incoming) {
    let (known, incoming) = mpsc::channel(ARRIVALS);
    (Known(known), ReceiverStream::new(incoming))
}

impl Known {
    /// The connection keeps its place until it ends: no more of them are served at once than may say who they are.
    pub(super) async fn pass_on(&self, stream: TlsStream<TcpStream>, place: OwnedSemaphorePermit) {
        let _ = self.0.send(Ok(Arrival { stream, _place: place })).await;
    }
}

pub(super) fn serve_identity(incoming: Incoming, house: Arc<House>) {
    let draining = house.draining.clone();
    let service = IdentityServiceServer::new(Identity(house)).max_decoding_message_size(LONGEST_REQUEST);
    tokio::spawn(server().add_service(service).serve_with_incoming_shutdown(incoming, until(draining)));
}

pub(super) fn serve_administration(incoming: Incoming, house: Arc<House>) {
    let draining = house.draining.clone();
    let service = AdministrationServiceServer::new(Administration(house)).max_decoding_message_size(LONGEST_REQUEST);
    tokio::spawn(server().add_service(service).serve_with_incoming_shutdown(incoming, until(draining)));
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS)
}

async fn until(mut draining: watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}

struct Identity(Arc<House>);

#[tonic::async_trait]
impl IdentityService for Identity {
    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        let hsms = self.0.settings.hsms.keys();
        Ok(Response::new(IdentifyResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            contract: link::CONTRACT,
            hsms: hsms.map(|(cluster, hsm)| Hsm { cluster: cluster.to_string(), hsm: hsm.to_string() }).collect(),
        }))
    }
}

struct Administration(Arc<House>);

#[tonic::async_trait]
impl AdministrationService for Administration {
    async fn keep_token(&self, request: Request<KeepTokenRequest>) -> Result<Response<KeepTokenResponse>, Status> {
        let KeepTokenRequest { cluster, hsm, username } = request.into_inner();
        let slot = self.0.slot(&cluster, &hsm, &username).map_err(refused)?;
        // Whoever asks has the turn among its own; another daemon may have a login made on this token meanwhile.
        let _turn = self.0.local.turn(&slot.spec()).await;
        self.0.local.keep_token(&slot.spec(), &slot.token).map_err(refused)?;
        Ok(Response::new(KeepTokenResponse {}))
    }

    async fn list_standings(
        &self,
        request: Request<ListStandingsRequest>,
    ) -> Result<Response<ListStandingsResponse>, Status> {
        let ListStandingsRequest { cluster, hsm, usernames } = request.into_inner();
        if usernames.len() > MOST_STANDINGS {
            return Err(Status::invalid_argument(format!("more than {MOST_STANDINGS} users at once")));
        }
        let each = usernames.iter().map(|username| {
            let slot = self.0.managed_slot(&cluster, &hsm, username)?;
            let failed_logins = self.0.local.failed_logins(&slot.spec(), &slot.token)?;
            let token = match self.0.local.user_standing(&slot.spec(), &slot.token) {
                Ok(UserStanding { is_present, is_locked, .. }) => {
                    Token::WithinReach(WithinReach { is_present, is_locked })
                }
                Err(why) => Token::OutOfReach(with_causes(&why)),
            };
            Ok(Standing { failed_logins, token: Some(token) })
        });
        let standings = each.collect::<Result<_, _>>().map_err(refused)?;
        Ok(Response::new(ListStandingsResponse { standings }))
    }

    async fn give_user(&self, request: Request<GiveUserRequest>) -> Result<Response<GiveUserResponse>, Status> {
        let ask = request.into_inner();
        let password = Password::trusted(ask.password);
        let slot = self.0.managed_slot(&ask.cluster, &ask.hsm, &ask.username).map_err(refused)?;
        let spec = slot.spec_for(1, ask.patience_ms, ask.slow_patience_ms);
        let house = self.0.clone();
        let serial = to_its_end(async move {
            let alone = Alone { spec: &spec, token: &slot.token, slot: house.local.slot(&spec).await? };
            let _turn = house.local.turn(&spec).await;
            house.local.give_user(alone, &password).await
        });
        Ok(Response::new(GiveUserResponse { serial: serial.await? }))
    }

    async fn unlock_user(&self, request: Request<UnlockUserRequest>) -> Result<Response<UnlockUserResponse>, Status> {
        let UnlockUserRequest { cluster, hsm, username } = request.into_inner();
        let slot = self.0.managed_slot(&cluster, &hsm, &username).map_err(refused)?;
        let _turn = self.0.local.turn(&slot.spec()).await;
        self.0.local.unlock_user(&slot.spec()).map_err(not_done)?;
        Ok(Response::new(UnlockUserResponse {}))
    }

    async fn remove_user(&self, request: Request<RemoveUserRequest>) -> Result<Response<RemoveUserResponse>, Status> {
        let ask = request.into_inner();
        let slot = self.0.managed_slot(&ask.cluster, &ask.hsm, &ask.username).map_err(refused)?;
        let spec = slot.spec_for(1, ask.patience_ms, ask.slow_patience_ms);
        let house = self.0.clone();
        let removed = to_its_end(async move {
            let alone = Alone { spec: &spec, token: &slot.token, slot: house.local.slot(&spec).await? };
            let _turn = house.local.turn(&spec).await;
            house.local.remove_user(alone)
        });
        removed.await?;
        Ok(Response::new(RemoveUserResponse {}))
    }
}

/// Does a job to its end, also when whoever asked for it is heard no more: half of it would be found by the next one.
async fn to_its_end<T: Send + 'static>(
    job: impl Future<Output = Result<T, UserError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(job).await {
        Ok(done) => done.map_err(not_done),
        Err(panicked) => Err(Status::internal(panicked.to_string())),
    }
}

fn not_done(error: UserError) -> Status {
    refused(match error {
        UserError::Host(error) => error,
        // Before anybody was asked.
        error @ (UserError::OutOfReach(_) | UserError::NoDirectory | UserError::NotOurs(_)) => {
            OpeningError::Host(error.to_string())
        }
    })
}

/// As the same would be told on a link.
fn refused(error: OpeningError) -> Status {
    let message = with_causes(&error);
    let plain = match error {
        OpeningError::UnknownSlot(_) => Status::not_found(message),
        _ => Status::internal(message),
    };
    let outcome = match error {
        OpeningError::Fault(fault) => Outcome::Fault(fault),
        error => Outcome::HostFault(fault::told(&error)),
    };
    let details = v1::Response { outcome: Some(outcome), ..Default::default() }.encode_to_vec();
    Status::with_details(plain.code(), plain.message(), details.into())
}

/// A connection of a known daemon.
pub(super) struct Arrival {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Arrival {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Arrival {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Arrival {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
