//! `ServerService`.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::clock;
use crate::proto::v1 as pb;
use crate::proto::v1::server_service_server::ServerService;

use super::{Faces, Mode, tell};

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

#[tonic::async_trait]
impl ServerService for Service {
    async fn get_server_info(
        &self,
        request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        let _permit = self.0.permit::<action::GetServerInfo, _>(&request)?;
        let faces = &self.0.0;
        let limits = HashMap::from([
            ("maxMessageBytes".to_owned(), faces.max_message_bytes.to_string()),
            ("pipelineInFlight".to_owned(), faces.pipeline_in_flight.to_string()),
            ("keyStores".to_owned(), faces.key_store_quota.to_string()),
            ("plaintextBytes".to_owned(), "4096".to_owned()),
            ("defaultDeadlineSeconds".to_owned(), super::DEFAULT_DEADLINE.as_secs().to_string()),
            ("longestDeadlineSeconds".to_owned(), super::LONGEST_DEADLINE.as_secs().to_string()),
        ]);
        Ok(Response::new(pb::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("KEYWAY_COMMIT").unwrap_or_default().to_owned(),
            server_time: tell::time(clock::now()),
            dev: faces.mode == Mode::Dev,
            limits,
        }))
    }
}
