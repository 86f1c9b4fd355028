//! gRPC by hand, over HTTP/2 frames: for what a well-behaved client would never send.

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

/// How a call ended: its headers and trailers together, and the bytes between.
pub struct RawAnswer {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// As a client would get it.
    pub fn result(self) -> Result<Vec<u8>, tonic::Status> {
        let status = tonic::Status::from_header_map(&self.headers).expect("a gRPC status");
        if status.code() == tonic::Code::Ok { Ok(self.body) } else { Err(status) }
    }
}

/// One unary call, with these headers as they are and this body in one frame.
pub async fn raw_call(address: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> RawAnswer {
    let stream = TcpStream::connect(address).await.expect("the daemon listens");
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let driving = tokio::spawn(connection);
    let mut request = Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (response, mut sending) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
    // A daemon that has made up its mind need not read on.
    let _ = sending.send_data(framed(body), true);
    let response = response.await.expect("answered");
    let (parts, mut receiving) = response.into_parts();
    let (mut headers, mut body) = (parts.headers, Vec::new());
    while let Some(data) = receiving.data().await {
        let data = data.expect("a whole answer");
        let _ = receiving.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    if let Some(trailers) = receiving.trailers().await.expect("a whole answer") {
        headers.extend(trailers);
    }
    driving.abort();
    RawAnswer { headers, body }
}

/// Not compressed, and its length.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [&[0][..], &length, message].concat().into()
}
