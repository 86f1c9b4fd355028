//! The operations listener: whether the process lives and is ready, its metrics, and the pages of `docs/`.
//!
//! In plaintext, to whoever asks, so that nothing here is anybody's secret and nothing can be changed: there is GET and
//! HEAD, and no request has a body. What it costs is bounded (connections, heads, time, scrapes). No call is served by the
//! threads it stands on, but the links to HSMs are: so what takes long to make is made once and kept, and is bytes to who
//! asks again.

mod ask;
mod daemon;
mod pages;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::Invalid;
use crate::telemetry::Form;

use super::ListenError;
use ask::{Ask, Refused};

pub use daemon::{Operations, Served};

/// Connections at once; the kernel's backlog holds the next ones.
const CONNECTIONS: usize = 64;
/// All of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// A connection says what it wants within this time, also the next time.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A connection ends after this time, whatever it is at: so one that reads nothing does not keep its place.
const LIFETIME: Duration = Duration::from_secs(60);
/// An answer that was begun by then gets this long.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// The pause after `accept` failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// Pages have a style of their own, and nothing else.
const NOTHING_FROM_ELSEWHERE: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// What the operator decides about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    /// How callers reach it, if they can.
    pub url: Option<Url>,
}

/// `http://` or `https://`, and whatever a browser makes of the rest: at most 200 characters, none of them a space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Of a listener that stands there.
    pub fn of(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Url {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
        let is_one = !host.is_empty() && text.len() <= 200 && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_one || text.contains(['?', '#', '"', '<', '>']) {
            return Err(Invalid::new("a URL is `http://` or `https://` and a host, of at most 200 characters in all"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Who knows what is asked here.
pub trait Teller: Clone + Send + Sync + 'static {
    /// Whether the process goes round its loops; some words on it.
    fn alive(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether it takes calls, and some lines about it for people.
    fn ready(&self) -> impl Future<Output = (bool, String)> + Send;

    fn metrics(&self, form: Form) -> impl Future<Output = Bytes> + Send;
}

/// Listens from now on, until the process ends. Where, now that the port is known.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(settings: &Settings, teller: impl Teller) -> Result<SocketAddr, ListenError> {
    let bind = |source| ListenError::Bind { address: settings.listen.to_string(), source };
    let listener = TcpListener::bind(settings.listen).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    tokio::spawn(accept(listener, teller));
    Ok(bound)
}

async fn accept(listener: TcpListener, teller: impl Teller) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, place, teller.clone()))),
            Err(error) => {
                tracing::warn!(%error, "a connection to the operations listener could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, _place: OwnedSemaphorePermit, teller: impl Teller) {
    let answering = service_fn(move |request| {
        let teller = teller.clone();
        async move { Ok::<_, Infallible>(answer(&request, &teller).await) }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(stream), answering)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(LIFETIME) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_ANSWER, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the operations listener was closed");
    }
}

async fn answer(request: &Request<Incoming>, teller: &impl Teller) -> Response<Full<Bytes>> {
    match Ask::of(request) {
        Ok(Ask::Alive) => match teller.alive().await {
            Ok(()) => told(StatusCode::OK, TEXT, "alive\n"),
            Err(why) => told(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
        },
        Ok(Ask::Ready) => {
            let (ready, lines) = teller.ready().await;
            told(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, TEXT, lines)
        }
        Ok(Ask::Metrics(form)) => told(StatusCode::OK, form.content_type(), teller.metrics(form).await),
        Ok(Ask::Page(name)) => match pages::html(name) {
            Some(page) => told(StatusCode::OK, HTML, page),
            None => refused(Refused::Unknown),
        },
        Err(why) => refused(why),
    }
}

fn told(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(NOTHING_FROM_ELSEWHERE));
    response
}

fn refused(why: Refused) -> Response<Full<Bytes>> {
    let (status, words) = match why {
        Refused::Unknown => (StatusCode::NOT_FOUND, "there are /livez, /readyz, /metrics and /docs\n"),
        Refused::Method => (StatusCode::METHOD_NOT_ALLOWED, "there is GET, and HEAD\n"),
        Refused::Body => (StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body\n"),
    };
    let mut response = told(status, TEXT, words);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    // Whatever else it sends is not read.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
