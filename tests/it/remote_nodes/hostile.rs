//! Whoever comes to a node's ports: strangers, the half-known, and those who speak nonsense.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConnection, StreamOwned};

use keyway::link::v1::host_fault::Kind;
use keyway::link::v1::summon::Purpose;
use keyway::link::v1::{GenerateRandom, GiveUser, LogIn, SetPin};
use keyway::link::v1::{Request, Response, Summon, request::Verb, response::Outcome};
use keyway::link::{Frames, push};

use faulty_pkcs11::Function::C_GenerateRandom;
use faulty_pkcs11::Rule;

use crate::crypto_users::FIRST;
use crate::rig::{Authority, Rig, pb, wait};

/// A node closes what says nothing of use within this time, on a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(20);

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection that shows this certificate and wants to speak `protocol`.
fn tls(rig: &mut Rig, shown: Option<&str>, protocol: &[u8]) -> Tls {
    let ca = CertificateDer::from_pem_slice(rig.trust_anchor().as_bytes()).unwrap();
    let identity = shown.map(|name| rig.daemon_called(name));
    let mut config = Authority::client_config_trusting(ca, identity.as_ref());
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = connect(rig.host("hsm-1").ports()[0]);
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
    stream
}

/// Sends, and reads until the node has closed; whether it did, and what came.
fn closed_after(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    // It may be closed already, in the middle of this.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    let begun = Instant::now();
    let mut got = Vec::new();
    let ended = stream.read_to_end(&mut got);
    assert!(begun.elapsed() < CLOSED_WITHIN, "it was left open: {ended:?}, {got:?}");
    got
}

/// A parcel of the link's carrier.
fn parcel(kind: u8, number: usize, bytes: &[u8]) -> Vec<u8> {
    [&[kind][..], &u32::try_from(number).unwrap().to_be_bytes(), bytes].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_nonsense_get_nothing_and_disturb_nobody() {
    let (mut rig, mut clients, store) = Rig::new().nodes(2).zones(2).remote().connected().await;
    let before = clients.all_healthy(&store).await.nodes;
    let ports = rig.host("hsm-1").ports().to_vec();
    let client_hello_cut_short = [0x16, 3, 1, 0, 200, 1, 0, 0, 196];
    let nonsense = [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 70_000], &client_hello_cut_short, b""];
    std::thread::scope(|threads| {
        for port in ports {
            for bytes in nonsense {
                threads.spawn(move || closed_after(connect(port), bytes));
            }
        }
    });
    let link = b"keyway-link";
    // Without a certificate, with the wrong name on it, for another port's protocol.
    for (shown, protocol) in [(None, &link[..]), (Some("somebody-else"), link), (Some("keyway-daemon"), b"h2")] {
        let connection = tls(&mut rig, shown, protocol);
        assert_eq!(closed_after(connection, &parcel(0, 0, b"")), b"", "{shown:?}");
    }
    // Who is let in and speaks nonsense: no parcels, a parcel too long, no frame, a frame too long, and no summons.
    let too_long_a_frame = parcel(1, 4, &u32::MAX.to_be_bytes());
    let no_message = parcel(1, 8, &[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]);
    let a_ping = parcel(1, 8, &[0, 0, 0, 4, 0x08, 0x01, 0x2a, 0x00]);
    let nonsense = [vec![0xee; 64], parcel(1, 1 << 30, b""), too_long_a_frame, no_message, a_ping];
    let connections = nonsense.map(|bytes| (tls(&mut rig, Some("keyway-daemon"), link), bytes));
    std::thread::scope(|threads| {
        for (connection, bytes) in connections {
            threads.spawn(move || closed_after(connection, &[bytes, parcel(3, 0, b"")].concat()));
        }
    });
    let after = clients.describe_store(&store).await.nodes;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.health(), pb::HsmHealth::Healthy, "{after:?}");
        assert_eq!(after.worker_restarts, before.worker_restarts, "{after:?}");
    }
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"x").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_say_nothing_keep_no_daemon_out_for_long() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let mut clients = rig.clients().await;
    let port = rig.host("hsm-1").ports()[0];
    let silent: Vec<_> = (0..200).map(|_| connect(port)).collect();
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    drop(silent);
}

/// The bytes of the link in what a node sent.
fn carried(mut parcels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(([kind, number @ ..], behind)) = parcels.split_first_chunk::<5>() {
        let length = if *kind == 1 { u32::from_be_bytes(*number) as usize } else { 0 };
        bytes.extend_from_slice(&behind[..length]);
        parcels = &behind[length..];
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_of_another_build_or_one_that_means_another_hsm_or_user_is_told_so() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let good = Summon {
        contract: keyway::link::CONTRACT,
        cluster: rig.cluster_id(),
        hsm: "hsm-1".to_owned(),
        username: "kmsuser".to_owned(),
        purpose: Purpose::Look.into(),
        ..Default::default()
    };
    let cases = [
        (Summon { contract: 1, ..good.clone() }, Kind::DifferentBuild),
        (Summon { hsm: "hsm-2".to_owned(), ..good.clone() }, Kind::UnknownSlot),
        (Summon { cluster: "cluster-2abcdefghij".to_owned(), ..good.clone() }, Kind::UnknownSlot),
        (Summon { cluster: "../../etc".to_owned(), ..good.clone() }, Kind::UnknownSlot),
        (Summon { username: "../kmsuser".to_owned(), ..good.clone() }, Kind::UnknownSlot),
        (Summon { username: "(security officer)".to_owned(), ..good.clone() }, Kind::UnknownSlot),
        (Summon { purpose: 99, ..good }, Kind::OutOfTurn),
    ];
    for (summon, kind) in cases {
        let mut frame = Vec::new();
        push(&Request { id: 7, remaining_ms: 1_000, verb: Some(Verb::Summon(summon.clone())) }, &mut frame).unwrap();
        let connection = tls(&mut rig, Some("keyway-daemon"), b"keyway-link");
        let said = closed_after(connection, &[parcel(1, frame.len(), &frame), parcel(3, 0, b"")].concat());
        let mut frames = Frames::default();
        frames.feed(&carried(&said));
        let told: Response = frames.take().unwrap().expect("an answer");
        let Some(Outcome::HostFault(fault)) = told.outcome else { panic!("{summon:?}: {told:?}") };
        assert_eq!((told.id, fault.kind()), (7, kind), "{summon:?}: {fault:?}");
    }
}

/// A daemon's end of a link, spoken by hand.
struct Daemon {
    connection: Tls,
    frames: Frames,
    /// How many bytes more the node takes.
    credit: usize,
}

impl Daemon {
    /// For kmsuser on `hsm-1`.
    fn summon(rig: &mut Rig, purpose: Purpose) -> (Self, Response) {
        Self::summon_for(rig, "kmsuser", purpose)
    }

    fn summon_for(rig: &mut Rig, username: &str, purpose: Purpose) -> (Self, Response) {
        let connection = tls(rig, Some("keyway-daemon"), b"keyway-link");
        let mut daemon = Self { connection, frames: Frames::default(), credit: 256 << 10 };
        let summon = Summon {
            contract: keyway::link::CONTRACT,
            cluster: rig.cluster_id(),
            hsm: "hsm-1".to_owned(),
            username: username.to_owned(),
            purpose: purpose.into(),
            sessions: 1,
            patience_ms: 500,
            slow_patience_ms: 500,
        };
        let told = daemon.ask(Verb::Summon(summon));
        (daemon, told)
    }

    fn ask(&mut self, verb: Verb) -> Response {
        let mut frame = Vec::new();
        push(&Request { id: 1, remaining_ms: 10_000, verb: Some(verb) }, &mut frame).unwrap();
        self.send(&frame);
        loop {
            if let Some(told) = self.frames.take().unwrap() {
                return told;
            }
            self.hear();
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.credit -= bytes.len();
        self.connection.write_all(&parcel(1, bytes.len(), bytes)).unwrap();
        self.connection.flush().unwrap();
    }

    /// The kind of the next parcel.
    fn hear(&mut self) -> u8 {
        let mut header = [0; 5];
        self.connection.read_exact(&mut header).unwrap();
        let [kind, number @ ..] = header;
        let number = u32::from_be_bytes(number) as usize;
        match kind {
            1 => {
                let mut bytes = vec![0; number];
                self.connection.read_exact(&mut bytes).unwrap();
                self.frames.feed(&bytes);
            }
            2 => self.credit += number,
            _ => {}
        }
        kind
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_vanishes_while_its_worker_is_stuck_and_takes_no_more_leaves_nobody_logged_in() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().faulty().start();
    let (mut daemon, told) = Daemon::summon(&mut rig, Purpose::Serve);
    assert!(matches!(told.outcome, Some(Outcome::Opened(_))), "{told:?}");
    let pin = format!("kmsuser:{}", rig.password()).into_bytes();
    let told = daemon.ask(Verb::LogIn(LogIn { pin }));
    assert!(matches!(told.outcome, Some(Outcome::Done(_))), "{told:?}");

    // Its only thread is stuck, and then all that is between us fills.
    rig.faults("hsm-1").set([Rule::block(C_GenerateRandom)]);
    let mut request = Vec::new();
    let verb = Verb::GenerateRandom(GenerateRandom { number_of_bytes: 1 });
    push(&Request { id: 2, remaining_ms: 60_000, verb: Some(verb) }, &mut request).unwrap();
    let much = request.repeat((2 << 20) / request.len());
    let mut parcels = much.chunks(8 << 10);
    let mut signs_of_life = 0;
    while signs_of_life < 2 {
        if daemon.credit >= 8 << 10 {
            daemon.send(parcels.next().expect("not all of it is taken"));
        } else if daemon.hear() == 0 {
            signs_of_life += 1;
        } else {
            signs_of_life = 0;
        }
    }
    assert_eq!(rig.workers_of("hsm-1").len(), 1);
    drop(daemon);
    wait(|| rig.workers_of("hsm-1").is_empty().then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crypto_user_is_served_by_a_worker_of_his_own_beside_kmsusers() {
    let (mut rig, mut clients, store) = Rig::new().nodes(2).zones(2).remote().connected().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let (mut daemon, told) = Daemon::summon_for(&mut rig, "alice", Purpose::Serve);
    assert!(matches!(told.outcome, Some(Outcome::Opened(_))), "{told:?}");
    let told = daemon.ask(Verb::LogIn(LogIn { pin: format!("alice:{FIRST}").into_bytes() }));
    assert!(matches!(told.outcome, Some(Outcome::Done(_))), "{told:?}");
    let told = daemon.ask(Verb::GenerateRandom(GenerateRandom { number_of_bytes: 16 }));
    assert!(matches!(&told.outcome, Some(Outcome::Opaque(random)) if random.bytes.len() == 16), "{told:?}");
    let slots: Vec<_> = rig.workers().into_iter().map(|(_, slot)| slot).collect();
    assert!(slots.iter().any(|slot| slot.ends_with("hsm-1.alice")), "{slots:?}");
    clients.all_healthy(&store).await;
    drop(daemon);
    wait(|| rig.workers().iter().all(|(_, slot)| !slot.ends_with(".alice")).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_does_only_what_it_was_summoned_for() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let give = || Verb::GiveUser(GiveUser { user_pin: b"kmsuser:stolen".to_vec(), ..Default::default() });
    let log_in = || Verb::LogIn(LogIn { pin: b"kmsuser:guessed".to_vec() });
    let set = || Verb::SetPin(SetPin { old_pin: b"kmsuser:guessed".to_vec(), new_pin: b"kmsuser:stolen".to_vec() });
    let cases = [
        (Purpose::Administer, give()),
        (Purpose::Administer, log_in()),
        (Purpose::Serve, give()),
        (Purpose::Serve, set()),
        (Purpose::Look, log_in()),
        (Purpose::Try, give()),
        (Purpose::TryAlone, give()),
    ];
    for (purpose, verb) in cases {
        let (mut daemon, told) = Daemon::summon(&mut rig, purpose);
        assert!(matches!(told.outcome, Some(Outcome::Opened(_))), "{purpose:?}: {told:?}");
        let told = daemon.ask(verb.clone());
        let Some(Outcome::HostFault(fault)) = told.outcome else { panic!("{purpose:?}, {verb:?}: {told:?}") };
        assert_eq!(fault.kind(), Kind::OutOfTurn, "{purpose:?}, {verb:?}");
    }
    assert!(rig.opens("hsm-1", &rig.password()), "its password is what it was");
}
