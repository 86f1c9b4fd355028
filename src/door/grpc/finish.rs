//! The last touch on every answer: the request's id, details on what tonic itself refused, a link to what helps, and that
//! it is counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic_types::StatusExt;
use tower::{Layer, Service};

use super::tally::{Answer, Tally};
use super::{Pages, convert, status};

/// Accepted from callers and echoed, or made here.
#[derive(Debug, Clone)]
pub(super) struct RequestId(HeaderValue);

const REQUEST_ID: &str = "x-request-id";
const LONGEST_REQUEST_ID: usize = 128;

#[derive(Clone)]
pub(super) struct FinishLayer {
    pub(super) max_message_bytes: usize,
    /// Of the lane's calls.
    pub(super) tally: Arc<Tally>,
    pub(super) pages: Pages,
}

impl<S> Layer<S> for FinishLayer {
    type Service = Finish<S>;

    fn layer(&self, inner: S) -> Finish<S> {
        Finish {
            inner,
            max_message_bytes: self.max_message_bytes,
            tally: self.tally.clone(),
            pages: self.pages.clone(),
        }
    }
}

#[derive(Clone)]
pub(super) struct Finish<S> {
    inner: S,
    max_message_bytes: usize,
    tally: Arc<Tally>,
    pages: Pages,
}

impl<S> Service<Request<Body>> for Finish<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let counted = self.tally.begin(request.uri().path());
        let id = request_id(&request);
        request.extensions_mut().insert(id.clone());
        if counted.is_stream() {
            // The calls within it are counted as well.
            request.extensions_mut().insert(self.tally.clone());
        }
        let (max_message_bytes, pages) = (self.max_message_bytes, self.pages.clone());
        // tonic's own timeout stands outside of this layer and would answer without details: ours is made before it, and so fires first.
        let deadline = convert::asked_timeout(request.headers());
        let answering = tokio::time::timeout(deadline.unwrap_or(Duration::MAX), self.inner.call(request));
        Box::pin(async move {
            let response = match answering.await {
                Ok(response) => response?,
                Err(_) => status::late().into_http(),
            };
            let refused = response.headers().contains_key("grpc-status");
            let (mut response, answer) =
                if refused { with_details(response, &id, max_message_bytes, &pages) } else { (response, Answer::Done) };
            response.headers_mut().insert(REQUEST_ID, id.0);
            Ok(counted.answered(answer, response))
        })
    }
}

/// A refusal stands in the headers alone, without a body.
fn with_details(
    response: Response<Body>,
    id: &RequestId,
    max_message_bytes: usize,
    pages: &Pages,
) -> (Response<Body>, Answer) {
    let Some(refused) = Status::from_header_map(response.headers()) else {
        return (response, Answer::Done);
    };
    if refused.code() == tonic::Code::Ok {
        return (response, Answer::Done);
    }
    let finished = finished(refused, Some(id), max_message_bytes, pages);
    let answer = Answer::refused(&finished);
    (finished.into_http(), answer)
}

/// A refusal as its caller gets it.
pub(super) fn finished(refused: Status, id: Option<&RequestId>, max_message_bytes: usize, pages: &Pages) -> Status {
    let refused = if refused.details().is_empty() { status::complete(&refused, max_message_bytes) } else { refused };
    let mut details = refused.get_error_details();
    if let Some(RequestId(id)) = id {
        details.set_request_info(id.to_str().unwrap_or_default(), "");
    }
    pages.put_on(&mut details);
    let mut finished = Status::with_error_details(refused.code(), refused.message(), details);
    *finished.metadata_mut() = refused.metadata().clone();
    finished
}

fn request_id(request: &Request<Body>) -> RequestId {
    let given = request.headers().get(REQUEST_ID).filter(|value| {
        (1..=LONGEST_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    RequestId(
        given.cloned().unwrap_or_else(|| {
            HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a UUID is plain ASCII")
        }),
    )
}
