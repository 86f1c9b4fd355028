//! What no well-behaved client sends: garbage, silence, too much, too late, and calls that are not served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use prost::Message;

use crate::rig::{Clients, Holdings, PATIENCE, Rig, pb, raw_call, refused};

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_on_a_connection_end_it_and_disturb_nobody() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let address = rig.tcp();
    let socket = rig.path("keyway.sock");
    let garbage: [&[u8]; 5] = [
        &[0xff; 4_096],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\xff\xff garbage where a TLS handshake was begun, and more of it",
        &[HTTP2_PREFACE, &[0xff; 1_024]].concat(),
        &[HTTP2_PREFACE, b"\x00\x00\x40\x00\x00\x00\x00\x00\x01", &[0; 64]].concat(),
    ];
    for bytes in garbage {
        ends(TcpStream::connect(&address).expect("it listens"), bytes);
        let first_is_tls = bytes[0] == 0x16;
        if !first_is_tls {
            ends(UnixStream::connect(&socket).expect("it listens"), bytes);
        }
    }

    let mut held: Vec<Box<dyn Write>> = Vec::new();
    for first in [&b""[..], b"P", b"\x16", HTTP2_PREFACE] {
        for _ in 0..64 {
            let mut tcp = TcpStream::connect(&address).expect("it listens");
            tcp.write_all(first).expect("it reads");
            let mut unix = UnixStream::connect(&socket).expect("it listens");
            unix.write_all(first).expect("it reads");
            held.extend([Box::new(tcp) as Box<dyn Write>, Box::new(unix)]);
        }
    }
    for mut clients in [rig.clients().await, Clients::tcp(&address).await] {
        let asked = clients.server.get_server_info(pb::GetServerInfoRequest {});
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        answer.expect("silent neighbours slow nobody").expect("it is served");
    }
    drop(held);
    assert!(rig.stop_daemon().success());
}

/// Sends, and reads until the other end closes.
fn ends(mut stream: impl Read + Write + Timed, bytes: &[u8]) {
    stream.patience();
    // The other end may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "still open after {:?}", &bytes[..20.min(bytes.len())]);
}

trait Timed {
    fn patience(&self);
}

impl Timed for TcpStream {
    fn patience(&self) {
        self.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    }
}

impl Timed for UnixStream {
    fn patience(&self) {
        self.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_garbled_or_not_served_is_told_so() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let address = rig.tcp();
    let key_id = clients.key(&store).await.key_id;
    let before = Holdings::of(&rig, &mut clients).await;
    let encrypt =
        |length| pb::EncryptRequest { key_id: key_id.clone(), plaintext: vec![7; length], ..Default::default() };

    let too_long = clients.crypto.encrypt(encrypt((1 << 20) + 1)).await;
    let status = refused("over 1 MiB", too_long, "VALIDATION", "(message)");
    assert!(status.message().contains("1048576"), "{}", status.message());

    let encapsulate = pb::EncapsulateRequest { key_id: key_id.clone(), ..Default::default() };
    refused("Encapsulate", clients.crypto.encapsulate(encapsulate).await, "UNSUPPORTED_OPERATION", "");
    let grant = pb::CreateGrantRequest { key_id: key_id.clone(), ..Default::default() };
    refused("CreateGrant", clients.keys.create_grant(grant).await, "UNSUPPORTED_OPERATION", "");

    let good = encrypt(8).encode_to_vec();
    let path = "/keyway.v1.CryptoService/Encrypt";
    let unserved = [
        ("a method that is none", "/keyway.v1.CryptoService/Guess"),
        ("a service that is none", "/keyway.v1.GuessService/Guess"),
        ("no path", "/"),
    ];
    for (what, path) in unserved {
        refused(what, raw_call(&address, path, &[], b"").await.result(), "UNSUPPORTED_OPERATION", "");
    }
    let garbled = raw_call(&address, path, &[], &[0xff; 32]).await;
    refused("bytes that are no message", garbled.result(), "VALIDATION", "(message)");

    let odd_ids = ["", "a b", "é", &"x".repeat(129)];
    for id in odd_ids {
        let answer = raw_call(&address, path, &[("x-request-id", id)], &good).await;
        let made = answer.headers.get("x-request-id").expect("one is made").as_bytes();
        assert!(made.len() == 36 && made != id.as_bytes(), "{id:?}: {made:?}");
        answer.result().expect("served all the same");
    }
    let answer = raw_call(&address, path, &[("x-request-id", "mine"), ("grpc-timeout", "nonsense")], &good).await;
    assert_eq!(answer.headers.get("x-request-id").expect("echoed"), "mine");
    answer.result().expect("a timeout that is none is as good as left out");
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
}

#[tokio::test]
async fn what_comes_too_late_is_not_begun_and_is_told_so() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key_id = clients.key(&store).await.key_id;
    let before = Holdings::of(&rig, &mut clients).await;
    let encrypt = pb::EncryptRequest { key_id, plaintext: b"attack at dawn".to_vec(), ..Default::default() };
    let create = pb::CreateKeyRequest { key_store_id: store, ..Default::default() };
    let calls = [
        ("/keyway.v1.CryptoService/Encrypt", encrypt.encode_to_vec()),
        ("/keyway.v1.KeyService/CreateKey", create.encode_to_vec()),
    ];
    for (path, body) in calls {
        for timeout in ["0n", "1n", "0S"] {
            let what = format!("{path} within {timeout}");
            let headers = [("grpc-timeout", timeout), ("x-request-id", "my-request-1")];
            let late = raw_call(&rig.tcp(), path, &headers, &body).await;
            let echoed = late.headers.get("x-request-id").map(|id| id.as_bytes().to_vec());
            assert_eq!(echoed.as_deref(), Some(&b"my-request-1"[..]), "{what}: {:?}", late.headers);
            refused(&what, late.result(), "DEADLINE", "");
        }
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
}
