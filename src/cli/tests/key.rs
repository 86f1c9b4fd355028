//! `key create` against a daemon that is away for a moment.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::proto::v1::key_service_server::{KeyService, KeyServiceServer};
use crate::proto::v1::{self, CreateKeyRequest, CreateKeyResponse};

use super::{Server, typed};

/// A key service that is away for its first calls.
#[derive(Clone, Default)]
struct BrieflyAway {
    refusals: usize,
    calls: Arc<AtomicUsize>,
    request_ids: Arc<Mutex<Vec<String>>>,
}

impl BrieflyAway {
    fn daemon(&self) -> super::Router {
        Server::builder().add_service(KeyServiceServer::new(self.clone()))
    }
}

#[tonic::async_trait]
impl KeyService for BrieflyAway {
    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Result<Response<CreateKeyResponse>, Status> {
        self.request_ids.lock().unwrap().push(request.into_inner().request_id);
        if self.calls.fetch_add(1, Ordering::SeqCst) < self.refusals {
            let details = ErrorDetails::with_error_info("NO_NODE", "keyway", [("hsms".to_owned(), "0".to_owned())]);
            return Err(Status::with_error_details(tonic::Code::Unavailable, "no HSM answers", details));
        }
        let key = v1::Key { key_id: "k1".to_owned(), ..Default::default() };
        Ok(Response::new(CreateKeyResponse { key: Some(key) }))
    }
}

const CREATE: &str = "key create --key-store cks-1234567890abcdef0";

#[tokio::test]
async fn a_create_is_repeated_with_one_request_id_until_the_daemon_is_back() {
    let keys = BrieflyAway { refusals: 2, ..Default::default() };
    typed(keys.daemon(), CREATE).await.unwrap();
    let ids = keys.request_ids.lock().unwrap();
    assert_eq!(ids.len(), 3);
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_create_is_not_repeated_for_ever_and_the_daemons_own_words_are_told() {
    let keys = BrieflyAway { refusals: usize::MAX, ..Default::default() };
    let failure = typed(keys.daemon(), CREATE).await.unwrap_err();
    assert_eq!(keys.calls.load(Ordering::SeqCst), 5);
    assert_eq!(failure.text(), "error: no HSM answers\n  reason: NO_NODE\n");
    assert!(!failure.is_unreachable());
}
