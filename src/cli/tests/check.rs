//! `cluster check` against a daemon whose records are away for a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use crate::proto::v1::{self, Check, CheckPhase, CheckStatus};

use super::{Router, Server, typed};

/// Its records are away at the first call, and then the cluster lacks nothing.
#[derive(Clone, Default)]
struct AwayAtFirst {
    calls: Arc<AtomicUsize>,
}

impl AwayAtFirst {
    fn daemon(&self) -> Router {
        Server::builder().add_service(ClusterServiceServer::new(self.clone()))
    }
}

#[tonic::async_trait]
impl ClusterService for AwayAtFirst {
    async fn check_cluster(
        &self,
        request: Request<v1::CheckClusterRequest>,
    ) -> Result<Response<v1::CheckClusterResponse>, Status> {
        assert_eq!(request.get_ref().key_store_password, None);
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            let details =
                ErrorDetails::with_error_info("RECORDS_UNAVAILABLE", "keyway", std::collections::HashMap::new());
            return Err(Status::with_error_details(Code::Unavailable, "the records cannot be reached", details));
        }
        let (phase, status) = (CheckPhase::Create.into(), CheckStatus::Passed.into());
        let check = Check { name: "cluster-active".to_owned(), phase, status, ..Default::default() };
        Ok(Response::new(v1::CheckClusterResponse { passed: true, checks: vec![check] }))
    }
}

#[tokio::test]
async fn waiting_goes_on_over_an_error_that_passes() {
    let daemon = AwayAtFirst::default();
    typed(daemon.daemon(), "cluster check cluster-2abcdefghij --wait").await.unwrap();
    assert_eq!(daemon.calls.load(Ordering::SeqCst), 2);
    let alone = AwayAtFirst::default();
    let failure = typed(alone.daemon(), "cluster check cluster-2abcdefghij").await.unwrap_err();
    assert!(failure.is_passing(), "{}", failure.text());
}

/// The answer to it would be left out, and the attempt spent.
#[tokio::test]
async fn a_password_is_not_sent_when_its_answer_would_not_be_shown() {
    let daemon = AwayAtFirst::default();
    let command = "cluster check cluster-2abcdefghij --phase create --phase use --password-file no-such-file";
    let failure = typed(daemon.daemon(), command).await.unwrap_err();
    assert!(failure.message().contains("--phase connect"), "{}", failure.message());
    assert_eq!(daemon.calls.load(Ordering::SeqCst), 0);
}
