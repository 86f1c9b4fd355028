//! `Pipeline`: many items of work over one stream, each done as the call of its own would be, and answered when it is ready.
//!
//! ```text
//!   the client ─▶ is a place free? ─▶ item ─▶ the handler of the single call ─▶ its place ─▶ the client
//!                        ▲                                                           │
//!                        └──────────────── free again once it is written ◀───────────┘
//! ```
//!
//! An item is read only once its answer has a place in a queue of fixed length, so that neither work nor answers pile up:
//! a client that does not read is not read from. The work is not held up by one, since HSMs wait for it. A stream may so hold
//! all of its places and bytes for as long as its client likes, which is why there are only so many streams ([`Pipelines`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::ready;
use futures_util::stream::{self, FuturesUnordered};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::authz::Caller;
use crate::proto::v1 as pb;
use crate::proto::v1::crypto_service_server::CryptoService as _;
use crate::proto::v1::pipeline_request::Request as Asked;
use crate::proto::v1::pipeline_response::Response as Told;

use super::crypto::Service;
use super::finish::{RequestId, finished};
use super::tally::{Answer, Tally};
use super::{DEFAULT_DEADLINE, LONGEST_DEADLINE, caller, convert, status};

/// So many bytes of requests may be unanswered before no more are read: beside the number of items, since each may be as
/// long as any request.
const MOST_BYTES: usize = 8 << 20;
/// Streams of one caller at once, on whichever connections.
const MOST_OF_A_CALLER: usize = 16;
/// Streams at once, of all callers.
const MOST: usize = 256;

type Answers = mpsc::Sender<Result<pb::PipelineResponse, Status>>;
type Place<'a> = mpsc::Permit<'a, Result<pb::PipelineResponse, Status>>;

/// The streams that there are, by their callers' names.
#[derive(Clone, Default)]
pub struct Pipelines(Arc<Mutex<HashMap<String, usize>>>);

/// One of them, until it is dropped.
struct Stream {
    among: Pipelines,
    caller: String,
}

/// What an item can ask for, and which handler of the single call does it.
macro_rules! each_kind {
    ($then:ident) => {
        $then!(
            Encrypt by encrypt,
            Decrypt by decrypt,
            ReEncrypt by re_encrypt,
            GenerateDataKey by generate_data_key,
            GenerateDataKeyWithoutPlaintext by generate_data_key_without_plaintext,
            GenerateRandom by generate_random,
            Sign by sign,
            Verify by verify,
            GenerateMac by generate_mac,
            VerifyMac by verify_mac,
        )
    };
}

impl Pipelines {
    /// One more of this caller; or how many there may be, and whose, when there are.
    fn one_more(&self, caller: &str) -> Result<Stream, TooMany> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.values().sum::<usize>() >= MOST {
            return Err(TooMany::Of(MOST));
        }
        let own = streams.entry(caller.to_owned()).or_default();
        if *own >= MOST_OF_A_CALLER {
            return Err(TooMany::OfTheCaller(MOST_OF_A_CALLER));
        }
        *own += 1;
        Ok(Stream { among: self.clone(), caller: caller.to_owned() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = self.among.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = streams.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                streams.remove(&self.caller);
            }
        }
    }
}

/// Why there is no further stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMany {
    #[error("this caller has {0} Pipeline streams, which is as many as there may be; send more over those, or end one")]
    OfTheCaller(usize),
    #[error("callers have {0} Pipeline streams, which is as many as there may be; use single calls, or come back")]
    Of(usize),
}

/// What all items of a stream have in common.
struct Pipeline {
    service: Service,
    caller: Caller,
    /// The logins that were shown, and nothing else.
    metadata: MetadataMap,
    request_id: Option<RequestId>,
    /// Of the lane it is on.
    tally: Arc<Tally>,
    /// When the client stops waiting for the stream as a whole, if it said so.
    deadline: Option<Instant>,
}

/// Items that were read and are not answered yet.
#[derive(Default)]
struct Live {
    ids: HashSet<u32>,
    bytes: usize,
}

/// An item that was answered.
struct Answered {
    id: u32,
    bytes: usize,
}

pub(super) fn serve(
    service: Service,
    request: Request<Streaming<pb::PipelineRequest>>,
) -> Result<Response<BoxStream<pb::PipelineResponse>>, Status> {
    let caller = caller(&request)?.clone();
    let stream = service.0.0.pipelines.one_more(caller.name()).map_err(status::too_many_streams)?;
    let pipeline = Pipeline {
        caller,
        metadata: convert::login_metadata(request.metadata()),
        request_id: request.extensions().get::<RequestId>().cloned(),
        tally: request.extensions().get::<Arc<Tally>>().cloned().unwrap_or_default(),
        deadline: convert::asked_timeout(request.metadata().as_ref()).map(|timeout| Instant::now() + timeout),
        service,
    };
    let (answers, told) = mpsc::channel(pipeline.service.0.0.pipeline_in_flight);
    let running = tokio::spawn(pipeline.run(request.into_inner(), answers));
    // A stream that breaks off must not look like one that is done.
    let broken = stream::once(running).filter_map(|ended| ready(ended.err().map(|_| Err(status::broken_off()))));
    let told = ReceiverStream::new(told).chain(broken).map(move |answer| {
        // It is one of them for as long as answers of it may be here.
        let _until_then = &stream;
        answer
    });
    Ok(Response::new(Box::pin(told)))
}

impl Pipeline {
    /// Until the client has no more and everything is answered, or the client is gone, and all that is under way with it.
    async fn run(self, mut items: Streaming<pb::PipelineRequest>, answers: Answers) {
        let mut working = FuturesUnordered::new();
        let mut live = Live::default();
        let mut place: Option<Place<'_>> = None;
        let mut draining = self.service.0.0.draining.clone();
        let ended = loop {
            tokio::select! {
                () = answers.closed() => return,
                () = at(self.deadline) => {
                    // Nobody waits for them.
                    working.clear();
                    break Some(self.finished(status::late()));
                }
                _ = draining.wait_for(|draining| *draining) => break Some(self.finished(status::draining())),
                Some(answered) = working.next() => live.take_out(&answered),
                free = answers.reserve(), if place.is_none() => match free {
                    Ok(free) => place = Some(free),
                    Err(_gone) => return,
                },
                item = items.message(), if place.is_some() && live.bytes < MOST_BYTES => match item {
                    Ok(Some(item)) => {
                        let place = place.take().expect("it was looked at");
                        match live.put_in(&item) {
                            Ok(bytes) => working.push(self.answer(item, bytes, place)),
                            Err(refused) => place.send(Ok(told(item.id, Err(self.finished(refused))))),
                        }
                    }
                    Ok(None) => break None,
                    Err(unreadable) => break Some(self.finished(unreadable)),
                },
            }
        };
        drop(place);
        let rest = async {
            while working.next().await.is_some() {}
            if let Some(status) = ended {
                let _ = answers.send(Err(status)).await; // a client that is gone needs no reason
            }
        };
        tokio::select! {
            () = rest => {}
            () = answers.closed() => {}
        }
    }

    async fn answer(&self, item: pb::PipelineRequest, bytes: usize, place: Place<'_>) -> Answered {
        let id = item.id;
        let counted = item.request.as_ref().map(|asked| self.tally.begin(path(asked)));
        let done = self.do_item(item).await.map_err(|refused| self.finished(refused));
        if let Some(counted) = counted {
            counted.ended(done.as_ref().map_or_else(Answer::refused, |_| Answer::Done));
        }
        place.send(Ok(told(id, done)));
        Answered { id, bytes }
    }

    /// As the call of its own would be done: by the same handler.
    async fn do_item(&self, item: pb::PipelineRequest) -> Result<Told, Status> {
        let timeout = self.timeout(item.timeout)?;
        let asked = item.request.ok_or_else(|| status::field("request", "is required: an item says what to do"))?;
        let service = &self.service;
        macro_rules! dispatched {
            ($($kind:ident by $handler:ident,)*) => {
                match asked {
                    $(Asked::$kind(asked) => {
                        let answering = service.$handler(self.request(asked, timeout));
                        let answer = tokio::time::timeout(timeout, answering).await.map_err(|_| status::late())?;
                        Ok(Told::$kind(answer?.into_inner()))
                    })*
                }
            };
        }
        each_kind!(dispatched)
    }

    /// How long an item may take, from now.
    fn timeout(&self, asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
        let timeout = match asked.map(Duration::try_from) {
            None => DEFAULT_DEADLINE,
            Some(Ok(timeout)) => timeout.min(LONGEST_DEADLINE),
            Some(Err(_)) => return Err(status::field("timeout", "is not negative")),
        };
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Ok(left.map_or(timeout, |left| timeout.min(left)))
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.extensions_mut().insert(self.caller.clone());
        request.set_timeout(timeout);
        request
    }

    fn finished(&self, refused: Status) -> Status {
        let foundation = &self.service.0.0;
        finished(refused, self.request_id.as_ref(), foundation.max_message_bytes, &foundation.pages)
    }
}

impl Live {
    /// How many bytes it has; or what is wrong with its id.
    fn put_in(&mut self, item: &pb::PipelineRequest) -> Result<usize, Status> {
        if !self.ids.insert(item.id) {
            return Err(status::field(
                "id",
                format!("is not one of an item that is not answered yet, as {} is", item.id),
            ));
        }
        let bytes = item.encoded_len();
        self.bytes += bytes;
        Ok(bytes)
    }

    fn take_out(&mut self, answered: &Answered) {
        self.ids.remove(&answered.id);
        self.bytes -= answered.bytes;
    }
}

fn told(id: u32, done: Result<Told, Status>) -> pb::PipelineResponse {
    let response = done.unwrap_or_else(|refused| Told::Error(status::as_message(&refused)));
    pb::PipelineResponse { id, response: Some(response) }
}

/// Of the single call.
const fn path(asked: &Asked) -> &'static str {
    macro_rules! paths {
        ($($kind:ident by $handler:ident,)*) => {
            match asked {
                $(Asked::$kind(_) => concat!("/keyway.v1.CryptoService/", stringify!($kind)),)*
            }
        };
    }
    each_kind!(paths)
}

/// Never, when there is no such time.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_and_all_callers_have_so_many_streams_and_one_that_ends_makes_room() {
        let pipelines = Pipelines::default();
        let of = |caller: usize| pipelines.one_more(&format!("caller {caller}"));
        let mut all: Vec<_> = (0..MOST_OF_A_CALLER).map(|_| of(0).expect("there is room")).collect();
        assert_eq!(of(0).err(), Some(TooMany::OfTheCaller(16)));
        all.pop();
        all.push(of(0).expect("one has ended"));
        all.extend((MOST_OF_A_CALLER..MOST).map(|number| of(number / MOST_OF_A_CALLER).expect("there is room")));
        assert_eq!(of(1_000).err(), Some(TooMany::Of(256)));
        all.clear();
        assert!(pipelines.0.lock().unwrap().is_empty(), "callers who have none are remembered");
    }
}
