//! What a request asks for. Pure.

use http::header::{ACCEPT, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request};

use super::Form;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask<'a> {
    Alive,
    Ready,
    Metrics(Form),
    /// A page of `docs/`, by its name, which may be none.
    Page(&'a str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Unknown,
    Method,
    Body,
}

impl<'a> Ask<'a> {
    pub(super) fn of<B>(request: &'a Request<B>) -> Result<Self, Refused> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Refused::Method);
        }
        if has_body(request.headers()) {
            return Err(Refused::Body);
        }
        match request.uri().path() {
            "/livez" => Ok(Self::Alive),
            "/readyz" => Ok(Self::Ready),
            "/metrics" => Ok(Self::Metrics(form(request.headers()))),
            "/" | "/docs" | "/docs/" => Ok(Self::Page("README")),
            path => match path.strip_prefix("/docs/") {
                // As the pages refer to each other.
                Some(name) => Ok(Self::Page(name.strip_suffix(".md").unwrap_or(name))),
                None => Err(Refused::Unknown),
            },
        }
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length.as_bytes() != b"0")
}

/// Prometheus names OpenMetrics first when it can read it; people and other programs name nothing.
fn form(headers: &HeaderMap) -> Form {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let mut types = accepts.flat_map(|accept| accept.split(','));
    let open_metrics =
        |wanted: &str| wanted.trim_start().to_ascii_lowercase().starts_with("application/openmetrics-text");
    if types.any(open_metrics) { Form::OpenMetrics } else { Form::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().method(method).uri(path);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn only_what_is_there_can_be_asked_for_and_only_by_asking() {
        let of = |method: &str, path: &str, headers: &[(&str, &str)]| {
            Ask::of(&request(method, path, headers)).map(|ask| format!("{ask:?}"))
        };
        assert_eq!(of("GET", "/livez?verbose", &[]).unwrap(), "Alive");
        assert_eq!(of("HEAD", "/readyz", &[("content-length", "0")]).unwrap(), "Ready");
        assert_eq!(of("GET", "/docs/errors.md", &[]).unwrap(), "Page(\"errors\")");
        for path in ["/Livez", "/livez/", "/metrics/..", "/admin", "//livez"] {
            assert_eq!(of("GET", path, &[]), Err(Refused::Unknown), "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            assert_eq!(of(method, "/livez", &[]), Err(Refused::Method), "{method}");
        }
        for body in [("content-length", "1"), ("content-length", "00"), ("transfer-encoding", "chunked")] {
            assert_eq!(of("GET", "/livez", &[body]), Err(Refused::Body), "{body:?}");
        }
    }

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, form) in
            [(prometheus, Form::OpenMetrics), ("*/*", Form::Prometheus), ("text/plain", Form::Prometheus)]
        {
            assert_eq!(Ask::of(&request("GET", "/metrics", &[("accept", accept)])), Ok(Ask::Metrics(form)), "{accept}");
        }
        assert_eq!(Ask::of(&request("GET", "/metrics", &[])), Ok(Ask::Metrics(Form::Prometheus)));
    }
}
