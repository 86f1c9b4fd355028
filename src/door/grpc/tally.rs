//! Calls, counted by one lane for itself: lanes share nothing here, and a scrape adds them up.
//!
//! Which call is meant is looked up once, in a table of all there are; what callers make up is counted as one. A call that
//! succeeds costs two looks at the clock and four additions. Refusals are counted under a lock, which nobody else wants.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use http::Response;
use http_body_util::BodyExt;
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic_types::StatusExt as _;

use crate::proto;
use crate::telemetry::{Count, Durations, Page, catalogue};

use super::status;

/// Calls of paths that no service has.
const UNKNOWN: &str = "unknown";

/// A call that there is.
struct Rpc {
    /// As the metrics name it: `CryptoService/Encrypt`, and services of others in full.
    name: String,
    streams: bool,
}

/// Every call that there is, and where it stands by its path.
struct Rpcs {
    all: Vec<Rpc>,
    by_path: HashMap<String, usize>,
}

static RPCS: LazyLock<Rpcs> = LazyLock::new(|| {
    let ours = proto::DESCRIPTOR_SET;
    let sets = [
        ours,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut rpcs = Rpcs { all: vec![Rpc { name: UNKNOWN.to_owned(), streams: false }], by_path: HashMap::new() };
    for set in sets {
        let set = FileDescriptorSet::decode(set).expect("our own descriptors decode");
        for file in &set.file {
            for (service, method) in file.service.iter().flat_map(|it| it.method.iter().map(move |method| (it, method)))
            {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let name = path.trim_start_matches('/').trim_start_matches("keyway.v1.").to_owned();
                let streams = method.client_streaming() || method.server_streaming();
                if rpcs.by_path.insert(path, rpcs.all.len()).is_none() {
                    rpcs.all.push(Rpc { name, streams });
                }
            }
        }
    }
    rpcs
});

/// The calls of one lane.
pub(in crate::door) struct Tally {
    rpcs: Box<[RpcTally]>,
}

#[derive(Default)]
struct RpcTally {
    done: Count,
    took: Durations,
    in_flight: Count,
    /// By code and reason, both of which are this code's own words.
    refused: Mutex<BTreeMap<(String, String), u64>>,
}

/// How a call was answered.
pub(super) enum Answer {
    Done,
    Refused { code: tonic::Code, reason: String },
}

impl Answer {
    /// As its caller gets it.
    pub(super) fn refused(refused: &Status) -> Self {
        let reason = refused.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default();
        Self::Refused { code: refused.code(), reason }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self { rpcs: RPCS.all.iter().map(|_| RpcTally::default()).collect() }
    }
}

impl Tally {
    pub(super) fn begin(self: &Arc<Self>, path: &str) -> Call {
        let rpc = RPCS.by_path.get(path).copied().unwrap_or_default();
        self.rpcs[rpc].in_flight.one_more();
        Call { lane: self.clone(), rpc, began: Instant::now(), answered: false }
    }

    /// Puts this lane's part on the page.
    pub(in crate::door) fn tell(&self, page: &mut Page) {
        for (Rpc { name, streams }, tally) in RPCS.all.iter().zip(&self.rpcs) {
            let refused = tally.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (done, in_flight) = (tally.done.so_far(), tally.in_flight.so_far());
            // What was never called is left out.
            if done == 0 && in_flight == 0 && refused.is_empty() {
                continue;
            }
            page.count(&catalogue::REQUESTS, [name, "OK", ""], done);
            for ((code, reason), count) in &refused {
                page.count(&catalogue::REQUESTS, [name, code, reason], *count);
            }
            page.level(&catalogue::REQUESTS_IN_FLIGHT, [name], in_flight as f64);
            if !streams {
                page.spread(&catalogue::REQUEST_SECONDS, [name], tally.took.so_far());
            }
        }
    }
}

/// A call on its way, and a stream until its end. One that is dropped without an answer was given up by its caller.
pub(super) struct Call {
    lane: Arc<Tally>,
    rpc: usize,
    began: Instant,
    answered: bool,
}

impl Call {
    pub(super) fn is_stream(&self) -> bool {
        RPCS.all[self.rpc].streams
    }

    /// Counts the answer of a call within a stream.
    pub(super) fn ended(mut self, answer: Answer) {
        self.count(answer);
    }

    /// Counts the answer. A stream that was begun is on its way until its body is gone.
    pub(super) fn answered(mut self, answer: Answer, response: Response<Body>) -> Response<Body> {
        self.count(answer);
        if !self.is_stream() {
            return response;
        }
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _until_then = &self;
                frame
            }))
        })
    }

    fn count(&mut self, answer: Answer) {
        self.answered = true;
        let tally = &self.lane.rpcs[self.rpc];
        match answer {
            Answer::Done => tally.done.one_more(),
            Answer::Refused { code, reason } => {
                let mut refused = tally.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused.entry((status::name(code), reason)).or_default() += 1;
            }
        }
        if !self.is_stream() {
            tally.took.note(self.began.elapsed());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.count(status::caller_left());
        }
        self.lane.rpcs[self.rpc].in_flight.one_less();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Form;

    fn told(tally: &Tally) -> String {
        let mut page = Page::default();
        tally.tell(&mut page);
        page.written(Form::Prometheus)
    }

    fn response() -> Response<Body> {
        Response::new(Body::new("an answer".to_owned()))
    }

    #[test]
    fn every_service_is_known_and_what_callers_make_up_is_counted_as_one() {
        let paths = [
            "/keyway.v1.CryptoService/Encrypt",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ];
        assert!(paths.iter().all(|path| RPCS.by_path.contains_key(*path)));
        let tally = Arc::new(Tally::default());
        for number in 0..1_000 {
            let call = tally.begin(&format!("/made.Up/Number{number}"));
            drop(call.answered(status::caller_left(), response()));
        }
        let text = told(&tally);
        assert!(text.contains("keyway_requests_total{rpc=\"unknown\",code=\"CANCELLED\",reason=\"CANCELLED\"} 1000\n"));
        assert!(!text.contains("Number"), "{text}");
    }

    #[test]
    fn a_call_is_in_flight_until_its_answer_and_a_stream_until_its_end() {
        let tally = Arc::new(Tally::default());
        let call = tally.begin("/keyway.v1.CryptoService/Encrypt");
        assert!(told(&tally).contains("keyway_requests_in_flight{rpc=\"CryptoService/Encrypt\"} 1.0\n"));
        let answer = call.answered(Answer::Done, response());
        assert!(told(&tally).contains("keyway_requests_in_flight{rpc=\"CryptoService/Encrypt\"} 0.0\n"));
        assert!(told(&tally).contains("keyway_request_duration_seconds_count{rpc=\"CryptoService/Encrypt\"} 1\n"));
        drop(answer);

        let watch = "KeyStoreService/WatchKeyStore";
        let stream = tally.begin(&format!("/keyway.v1.{watch}")).answered(Answer::Done, response());
        assert!(told(&tally).contains(&format!("keyway_requests_in_flight{{rpc=\"{watch}\"}} 1.0\n")));
        drop(stream);
        let text = told(&tally);
        assert!(text.contains(&format!("keyway_requests_in_flight{{rpc=\"{watch}\"}} 0.0\n")), "{text}");
        assert!(
            text.contains(&format!("keyway_requests_total{{rpc=\"{watch}\",code=\"OK\",reason=\"\"}} 1\n")),
            "{text}"
        );
        assert!(!text.contains("duration_seconds_count{rpc=\"KeyStore"), "how long somebody watches is no latency");
    }

    #[test]
    fn who_leaves_before_the_answer_is_counted_as_cancelled() {
        let tally = Arc::new(Tally::default());
        drop(tally.begin("/keyway.v1.CryptoService/Decrypt"));
        let counted =
            "keyway_requests_total{rpc=\"CryptoService/Decrypt\",code=\"CANCELLED\",reason=\"CANCELLED\"} 1\n";
        assert!(told(&tally).contains(counted));
    }
}
