//! `CryptoUserService`: for now, who one is.

use tonic::{Request, Response, Status};

use crate::authz::CallerSource;
use crate::proto::v1 as pb;
use crate::proto::v1::crypto_user_service_server::CryptoUserService;

use super::{Faces, caller};

#[derive(Clone)]
pub(super) struct Service(
    #[allow(dead_code, reason = "what the other calls of this service will stand on")] pub(super) Faces,
);

#[tonic::async_trait]
impl CryptoUserService for Service {
    /// Needs no permit: anybody who is somebody may know who.
    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Result<Response<pb::WhoAmIResponse>, Status> {
        let caller = caller(&request)?;
        let source = match caller.source() {
            CallerSource::Certificate => pb::CallerSource::Certificate,
            CallerSource::UnixSocket { .. } => pb::CallerSource::UnixSocket,
            CallerSource::Loopback => pb::CallerSource::Loopback,
        };
        Ok(Response::new(pb::WhoAmIResponse {
            caller: caller.name().to_owned(),
            source: source.into(),
            ..Default::default()
        }))
    }
}
