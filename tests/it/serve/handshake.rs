//! Who does not get past the TLS handshake: nobody learns anything there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;

use crate::rig::{Authority, PATIENCE, pb};

use super::{ADMIN, served};

const FATAL: u8 = 2;
const HANDSHAKE: u8 = 0x16;
const ALERT: u8 = 0x15;
const PROTOCOL_VERSION: u8 = 70;

#[tokio::test]
async fn without_a_certificate_of_the_right_ca_tls_1_3_and_tls_at_all_nobody_comes_in() {
    let (_rig, served) = served().await;
    let stranger = Authority::new("another CA").client(ADMIN);
    for (shown, alert) in [(None, "CertificateRequired"), (Some(&stranger), "UnknownCA")] {
        let told = kept_out(served.address(), served.transport.client_config(shown)).await;
        assert!(told.contains(alert), "{told}");
        let call = async { served.clients(shown).await.ok()?.users.who_am_i(pb::WhoAmIRequest {}).await.ok() };
        assert!(call.await.is_none(), "a call was answered");
    }

    let address = served.address().to_owned();
    let answer = exchange(&address, &tls_1_2_hello());
    assert_eq!(answer.get(5..7), Some(&[FATAL, PROTOCOL_VERSION][..]), "{answer:?}");
    assert_eq!(answer[0], ALERT, "{answer:?}");
    let answer = exchange(&address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(answer.is_empty(), "plaintext was answered: {answer:?}");

    let admin = served.transport.client(ADMIN);
    let mut admin = served.clients(Some(&admin)).await.expect("it is let in");
    let info = admin.server.get_server_info(pb::GetServerInfoRequest {}).await;
    info.expect("all this disturbed nobody");
}

/// In TLS 1.3 a client has done its part before it is refused: it learns why with its first read.
async fn kept_out(address: &str, config: rustls::ClientConfig) -> String {
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = connector.connect(name, stream).await.expect("the server is who it is");
    let refused = stream.read(&mut [0; 64]).await;
    refused.expect_err("let in").to_string()
}

/// Sends, and reads what comes until the other end closes.
fn exchange(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(bytes).expect("it reads");
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    let open = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!open, "the connection stays open");
    answer
}

/// A ClientHello as TLS 1.2 had it: strong ciphers, and no word of TLS 1.3.
fn tls_1_2_hello() -> Vec<u8> {
    let with_length = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_length(body)].concat();
    let extensions = [
        extension(0x000a, &with_length(&[0x00, 0x1d, 0x00, 0x17])), // x25519, P-256
        extension(0x000b, &[1, 0]),
        extension(0x000d, &with_length(&[0x04, 0x03, 0x08, 0x04, 0x04, 0x01])), // ECDSA, PSS, RSA with SHA-256
        extension(0x0017, &[]),                                                 // extended master secret
    ]
    .concat();
    let body = [
        &[0x03, 0x03][..],
        &[7; 32],
        &[0],
        &with_length(&[0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x30]), // ECDHE with AES-GCM
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let hello = [&[1, 0][..], &with_length(&body)].concat();
    [&[HANDSHAKE, 0x03, 0x01][..], &with_length(&hello)].concat()
}
