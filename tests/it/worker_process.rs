//! The worker as its daemon sees it: a real process, a real link, real SoftHSM2 tokens.
#![allow(clippy::unwrap_used)]

mod answers;
mod handles;
mod health;
mod listing;
mod sessions;
mod unfinished;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use faulty_pkcs11::Faults;
use keyway::link::v1::fault::{Bucket, Kind};
use keyway::link::v1::presence::Found;
use keyway::link::v1::{self, Request, Response, open, request::Verb, response::Outcome};
use keyway::link::{Frames, push};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const LABEL: &str = "keyway-test";
const SO_PIN: &str = "so:admin-of-the-test";
const USER_PIN: &str = "kmsuser:kmsPswd1";
const KEK: &[u8] = b"the-kek";
const AAD: &[u8] = b"what the ciphertext is bound to";

/// A token directory of its own, as each node and user has.
struct Node {
    home: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("tokens")).unwrap();
        let tokens = home.path().join("tokens");
        let text =
            format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
        std::fs::write(home.path().join("softhsm2.conf"), text).unwrap();
        Self { home }
    }

    /// With a token whose user has a PIN.
    fn with_token() -> Self {
        let node = Self::new();
        let mut worker = node.worker();
        worker.open(0);
        assert!(matches!(worker.ask(give_user()), Outcome::Opened(opened) if opened.label == LABEL));
        node
    }

    /// With a token that has the KEK.
    fn with_kek() -> Self {
        let node = Self::with_token();
        assert_eq!(node.opened(1).ask(make_kek()), Outcome::Done(v1::Done { count: 1 }));
        node
    }

    fn configuration(&self) -> PathBuf {
        self.home.path().join("softhsm2.conf")
    }

    fn worker(&self) -> Worker {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_keyway"))
            .args(["worker", "a-test"])
            .env_clear()
            .env("SOFTHSM2_CONF", self.configuration())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Worker { link: Link { stream: ours, frames: Frames::default(), next_id: 1 }, process }
    }

    fn opened(&self, sessions: u32) -> Worker {
        let mut worker = self.worker();
        worker.open(sessions);
        worker
    }

    fn serving(&self, sessions: u32) -> Worker {
        let mut worker = self.opened(sessions);
        assert_eq!(worker.ask(log_in(USER_PIN)), Outcome::Done(v1::Done { count: 0 }));
        worker
    }

    /// Serving on the library that fails on command: see [`Node::faults`].
    fn failing(&self, sessions: u32) -> Worker {
        let mut worker = self.worker();
        let Verb::Open(open) = open(LABEL, sessions) else { unreachable!() };
        let module = crate::rig::faulty_library().to_str().unwrap().to_owned();
        assert!(matches!(worker.ask(Verb::Open(v1::Open { module, ..open })), Outcome::Opened(_)));
        assert_eq!(worker.ask(log_in(USER_PIN)), Outcome::Done(v1::Done { count: 0 }));
        worker
    }

    /// What goes wrong in a worker that is `failing`.
    fn faults(&self) -> Faults {
        Faults::beside(&self.configuration())
    }

    /// Holds the lock that guards the token's list of objects, until the file is dropped.
    fn hold_token(&self) -> File {
        let token = std::fs::read_dir(self.home.path().join("tokens")).unwrap().next().unwrap().unwrap();
        let file = File::options().read(true).write(true).open(token.path().join("generation")).unwrap();
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        file
    }

    /// The key as its own user could reach it with any PKCS#11 program. Runs this test binary again, since
    /// SoftHSM2 takes its configuration from the process.
    fn intrude(&self, cka_id: &[u8]) {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "an_intruder_with_the_users_pin_gets_no_key"])
            .env("SOFTHSM2_CONF", self.configuration())
            .env("INTRUDE_ON", std::str::from_utf8(cka_id).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

struct Link {
    stream: UnixStream,
    frames: Frames,
    next_id: u64,
}

impl Link {
    fn send(&mut self, verb: Verb) -> u64 {
        self.send_all([(10_000, verb)])[0]
    }

    /// Several requests in one write.
    fn send_all(&mut self, verbs: impl IntoIterator<Item = (u32, Verb)>) -> Vec<u64> {
        let (mut bytes, mut ids) = (Vec::new(), Vec::new());
        for (remaining_ms, verb) in verbs {
            ids.push(self.next_id);
            push(&Request { id: self.next_id, remaining_ms, verb: Some(verb) }, &mut bytes).unwrap();
            self.next_id += 1;
        }
        self.stream.write_all(&bytes).unwrap();
        ids
    }

    fn receive(&mut self) -> Option<Response> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(response) = self.frames.take().unwrap() {
                return Some(response);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.frames.feed(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("neither an answer nor the end: {error}"),
            }
        }
    }
}

struct Worker {
    link: Link,
    process: Child,
}

impl Worker {
    fn ask(&mut self, verb: Verb) -> Outcome {
        let id = self.link.send(verb);
        let response = self.link.receive().expect("the worker lives");
        assert_eq!(response.id, id);
        response.outcome.expect("an outcome")
    }

    fn fault(&mut self, verb: Verb) -> (Bucket, Kind) {
        match self.ask(verb) {
            Outcome::Fault(fault) => (fault.bucket(), fault.kind()),
            other => panic!("no fault: {other:?}"),
        }
    }

    fn open(&mut self, sessions: u32) -> v1::Opened {
        match self.ask(open(LABEL, sessions)) {
            Outcome::Opened(opened) => opened,
            other => panic!("not opened: {other:?}"),
        }
    }

    fn make_key(&mut self, cka_id: &[u8]) -> v1::NewKey {
        match self.ask(generate_key(cka_id)) {
            Outcome::NewKey(key) => key,
            other => panic!("no key: {other:?}"),
        }
    }

    fn encrypt(&mut self, cka_id: &[u8], plaintext: &[u8]) -> v1::Sealed {
        match self.ask(encrypt(cka_id, plaintext)) {
            Outcome::Sealed(sealed) => sealed,
            other => panic!("not sealed: {other:?}"),
        }
    }

    fn decrypt(&mut self, cka_id: &[u8], sealed: v1::Sealed, probe: &[u8]) -> Outcome {
        self.ask(decrypt(cka_id, sealed, probe))
    }

    fn found(&mut self, verb: Verb) -> Found {
        match self.ask(verb) {
            Outcome::Presence(presence) => presence.found(),
            other => panic!("no presence: {other:?}"),
        }
    }

    /// Closes the link and waits for the process.
    fn end(mut self) -> ExitStatus {
        drop(self.link);
        self.process.wait().unwrap()
    }
}

fn open(label: &str, sessions: u32) -> Verb {
    Verb::Open(v1::Open {
        module: MODULE.to_owned(),
        token: Some(open::Token::Label(label.to_owned())),
        sessions,
        patience_ms: 2_000,
        slow_patience_ms: 2_000,
    })
}

fn log_in(pin: &str) -> Verb {
    Verb::LogIn(v1::LogIn { pin: pin.into() })
}

fn give_user() -> Verb {
    Verb::GiveUser(v1::GiveUser { label: LABEL.to_owned(), so_pin: SO_PIN.into(), user_pin: USER_PIN.into() })
}

fn make_kek() -> Verb {
    Verb::MakeKek(v1::MakeKek {
        so_pin: SO_PIN.into(),
        user_pin: USER_PIN.into(),
        kek_cka_id: KEK.to_vec(),
        label: "keyway:kek".to_owned(),
    })
}

fn generate_key(cka_id: &[u8]) -> Verb {
    Verb::GenerateKey(v1::GenerateKey {
        cka_id: cka_id.to_vec(),
        label: "keyway:test:1".to_owned(),
        kind: v1::KeyKind::Aes256.into(),
        kek_cka_id: KEK.to_vec(),
    })
}

fn unwrap_key(cka_id: &[u8], wrapped: &[u8], probe: &[u8]) -> Verb {
    Verb::UnwrapKey(v1::UnwrapKey {
        cka_id: cka_id.to_vec(),
        label: "keyway:test:1".to_owned(),
        kind: v1::KeyKind::Aes256.into(),
        wrapped: wrapped.to_vec(),
        kek_cka_id: KEK.to_vec(),
        probe: probe.to_vec(),
    })
}

fn prove(cka_id: &[u8], probe: &[u8]) -> Verb {
    Verb::ProveKey(v1::ProveKey { cka_id: cka_id.to_vec(), probe: probe.to_vec(), afresh: false })
}

fn destroy(cka_id: &[u8]) -> Verb {
    Verb::DestroyKey(v1::DestroyKey { cka_id: cka_id.to_vec() })
}

fn encrypt(cka_id: &[u8], plaintext: &[u8]) -> Verb {
    encrypt_proved(cka_id, plaintext, b"")
}

fn encrypt_proved(cka_id: &[u8], plaintext: &[u8], probe: &[u8]) -> Verb {
    Verb::Encrypt(v1::Encrypt {
        cka_id: cka_id.to_vec(),
        aad: AAD.to_vec(),
        plaintext: plaintext.to_vec(),
        probe: probe.to_vec(),
    })
}

fn wrap_key(cka_id: &[u8], probe: &[u8]) -> Verb {
    Verb::WrapKey(v1::WrapKey { cka_id: cka_id.to_vec(), kek_cka_id: KEK.to_vec(), probe: probe.to_vec() })
}

fn decrypt(cka_id: &[u8], sealed: v1::Sealed, probe: &[u8]) -> Verb {
    let v1::Sealed { iv, sealed } = sealed;
    Verb::Decrypt(v1::Decrypt { cka_id: cka_id.to_vec(), aad: AAD.to_vec(), iv, sealed, probe: probe.to_vec() })
}

fn random(number_of_bytes: u32) -> Verb {
    Verb::GenerateRandom(v1::GenerateRandom { number_of_bytes })
}

fn opaque(bytes: &[u8]) -> Outcome {
    Outcome::Opaque(v1::Opaque { bytes: bytes.to_vec() })
}

/// Gives `joiner` the KEK that `source` has.
fn join(source: &Node, joiner: &Node) {
    let mut joining = joiner.opened(1);
    let Outcome::JoinOffer(offer) = joining.ask(Verb::OfferJoin(v1::OfferJoin { so_pin: SO_PIN.into() })) else {
        panic!("no offer")
    };
    let sealed = source.opened(1).ask(Verb::SealKek(v1::SealKek {
        so_pin: SO_PIN.into(),
        user_pin: USER_PIN.into(),
        kek_cka_id: KEK.to_vec(),
        modulus: offer.modulus,
        public_exponent: offer.public_exponent,
    }));
    let Outcome::Opaque(sealed) = sealed else { panic!("not sealed: {sealed:?}") };
    let accepted = joining.ask(Verb::AcceptKek(v1::AcceptKek {
        user_pin: USER_PIN.into(),
        kek_cka_id: KEK.to_vec(),
        label: "keyway:kek".to_owned(),
        sealed_kek: sealed.bytes,
    }));
    assert!(matches!(accepted, Outcome::Done(_)), "{accepted:?}");
}

#[test]
fn a_key_made_on_one_token_is_used_on_another_and_leaves_neither() {
    let (a, b) = (Node::with_kek(), Node::with_token());
    join(&a, &b);
    join(&a, &b);
    let (mut on_a, mut on_b) = (a.serving(2), b.serving(2));

    let key = on_a.make_key(b"k1");
    assert_eq!(on_b.found(prove(b"k1", &key.probe)), Found::Missing);
    assert_eq!(on_b.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Proven);
    assert_eq!(on_b.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Proven);

    let sealed = on_a.encrypt(b"k1", b"attack at dawn");
    assert_eq!(on_b.decrypt(b"k1", sealed, &key.probe), opaque(b"attack at dawn"));
    a.intrude(b"k1");
    b.intrude(b"k1");
}

#[test]
fn a_key_under_the_right_id_that_is_another_key_is_told() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let (one, two) = (worker.make_key(b"k1"), worker.make_key(b"k2"));
    assert_eq!(worker.found(prove(b"k1", &one.probe)), Found::Proven);
    assert_eq!(worker.found(prove(b"k1", &two.probe)), Found::Different);
    // Taken in under an id that its probe does not fit: destroyed again.
    assert_eq!(worker.found(unwrap_key(b"k3", &two.wrapped, &one.probe)), Found::Different);
    assert_eq!(worker.found(prove(b"k3", b"")), Found::Missing);
    assert_eq!(worker.fault(generate_key(b"k1")), (Bucket::Input, Kind::BadInput));
    assert_eq!(worker.ask(wrap_key(b"k1", b"")), opaque(&one.wrapped));
}

#[test]
fn a_bad_ciphertext_is_the_callers_fault_and_the_session_serves_on() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    let mut sealed = worker.encrypt(b"k1", b"attack at dawn");
    let good = sealed.clone();
    *sealed.sealed.last_mut().unwrap() ^= 1;
    for _ in 0..3 {
        let bad = decrypt(b"k1", sealed.clone(), &key.probe);
        assert_eq!(worker.fault(bad), (Bucket::Input, Kind::BadCiphertext));
    }
    assert_eq!(worker.decrypt(b"k1", good, &key.probe), opaque(b"attack at dawn"));
    // With another key's probe the node itself is in doubt.
    let other = worker.make_key(b"k2");
    assert_eq!(worker.fault(decrypt(b"k1", sealed, &other.probe)), (Bucket::Node, Kind::Device));
    worker.encrypt(b"k1", b"and still it serves");
}

#[test]
fn what_makes_libraries_abort_never_reaches_them() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    let sealed = worker.encrypt(b"k1", b"text");
    let bad = (Bucket::Input, Kind::BadInput);
    let no_aad = v1::Encrypt { cka_id: b"k1".to_vec(), aad: Vec::new(), plaintext: b"x".to_vec(), probe: Vec::new() };
    assert_eq!(worker.fault(Verb::Encrypt(no_aad)), bad);
    assert_eq!(worker.fault(encrypt(b"k1", b"")), bad);
    assert_eq!(worker.fault(encrypt(b"k1", &[0; 20_000])), bad);
    assert_eq!(worker.fault(encrypt(b"", b"x")), bad);
    assert_eq!(worker.fault(decrypt(b"k1", v1::Sealed { iv: Vec::new(), ..sealed.clone() }, &key.probe)), bad);
    let short = v1::Sealed { sealed: vec![0; 16], ..sealed };
    assert_eq!(worker.fault(decrypt(b"k1", short, &key.probe)), (Bucket::Input, Kind::BadCiphertext));
    assert_eq!(worker.fault(random(0)), bad);
    assert_eq!(worker.fault(random(1025)), bad);
    assert!(matches!(worker.ask(random(1024)), Outcome::Opaque(it) if it.bytes.len() == 1024));
}

#[test]
fn a_data_key_comes_sealed_and_in_the_clear_only_when_asked() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    for with_plaintext in [true, false] {
        let ask = v1::GenerateDataKey {
            cka_id: b"k1".to_vec(),
            aad: AAD.to_vec(),
            number_of_bytes: 32,
            with_plaintext,
            probe: Vec::new(),
        };
        let Outcome::DataKey(made) = worker.ask(Verb::GenerateDataKey(ask)) else { panic!("no data key") };
        let Outcome::Opaque(opened) =
            worker.decrypt(b"k1", v1::Sealed { iv: made.iv, sealed: made.sealed }, &key.probe)
        else {
            panic!("the data key does not open")
        };
        assert_eq!(opened.bytes.len(), 32);
        assert_eq!(made.plaintext, if with_plaintext { opened.bytes } else { Vec::new() });
    }
}

#[test]
fn a_wrong_pin_is_told_as_such_and_no_pool_opens() {
    let node = Node::with_token();
    let mut worker = node.opened(1);
    assert_eq!(worker.fault(log_in("kmsuser:wrong123")), (Bucket::Input, Kind::PinIncorrect));
    assert_eq!(worker.fault(random(8)), (Bucket::Input, Kind::Protocol));
    assert!(worker.end().success());
}

#[test]
fn what_is_out_of_turn_or_unknown_is_refused() {
    let node = Node::with_token();
    let mut worker = node.worker();
    assert_eq!(worker.fault(log_in(USER_PIN)), (Bucket::Input, Kind::Protocol));
    assert!(matches!(worker.ask(Verb::Ping(v1::Ping {})), Outcome::Pong(pong) if pong.resident_bytes > 0));
    assert_eq!(worker.fault(open("no such token", 1)), (Bucket::Node, Kind::TokenAbsent));
    let mut worker = node.serving(1);
    assert_eq!(worker.fault(make_kek()), (Bucket::Input, Kind::Protocol));
    let mut worker = node.worker();
    let nowhere = v1::Open { module: "/nowhere.so".to_owned(), ..v1::Open::default() };
    let nowhere = v1::Open { token: Some(open::Token::Label("x".to_owned())), ..nowhere };
    assert_eq!(worker.fault(Verb::Open(nowhere)), (Bucket::Node, Kind::Module));
}

#[test]
fn a_token_that_exists_is_not_initialised_again_and_a_kek_is_made_once() {
    let node = Node::with_kek();
    let mut worker = node.worker();
    assert_eq!(worker.open(0).label, LABEL);
    assert!(matches!(worker.ask(give_user()), Outcome::Opened(opened) if opened.label == LABEL));
    let mut worker = node.opened(1);
    assert_eq!(worker.ask(make_kek()), Outcome::Done(v1::Done { count: 0 }));
    let mut worker = node.serving(1);
    let Outcome::Objects(objects) = worker.ask(Verb::ListObjects(v1::ListObjects::default())) else {
        panic!("no list")
    };
    let listed: Vec<_> = objects.objects.iter().map(|it| (it.cka_id.as_slice(), it.label.as_str())).collect();
    assert_eq!(listed, [(KEK, "keyway:kek")]);
}

#[test]
fn an_emptied_token_is_absent_and_never_said_to_lack_a_key() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    std::fs::rename(node.home.path().join("tokens"), node.home.path().join("gone")).unwrap();
    assert_eq!(worker.fault(prove(b"k1", &key.probe)), (Bucket::Node, Kind::TokenAbsent));
    assert_eq!(worker.fault(encrypt(b"k9", b"x")), (Bucket::Node, Kind::TokenAbsent));
    assert_eq!(worker.fault(Verb::ListObjects(v1::ListObjects::default())), (Bucket::Node, Kind::TokenAbsent));
}

#[test]
fn a_stale_handle_is_looked_up_again() {
    let node = Node::with_kek();
    let (mut one, mut other) = (node.serving(1), node.serving(1));
    let key = one.make_key(b"k1");
    let sealed = one.encrypt(b"k1", b"attack at dawn");

    assert_eq!(other.ask(destroy(b"k1")), Outcome::Done(v1::Done { count: 1 }));
    assert_eq!(one.fault(encrypt(b"k1", b"x")), (Bucket::Node, Kind::KeyMissing));
    assert_eq!(other.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Proven);
    assert_eq!(one.decrypt(b"k1", sealed.clone(), &key.probe), opaque(b"attack at dawn"));

    assert_eq!(other.ask(destroy(b"k1")), Outcome::Done(v1::Done { count: 1 }));
    assert_eq!(other.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Proven);
    assert_eq!(one.decrypt(b"k1", sealed, &key.probe), opaque(b"attack at dawn"));
}

#[test]
fn pipelined_requests_are_all_answered_in_whatever_order() {
    let node = Node::with_kek();
    let mut worker = node.serving(3);
    worker.make_key(b"k1");
    let mut sent = worker.link.send_all((0..64).map(|n| match n % 4 {
        0 => (10_000, random(32)),
        1 if n % 8 == 1 => (10_000, generate_key(format!("new-{n}").as_bytes())),
        _ => (10_000, encrypt(b"k1", &[7; 1024])),
    }));
    let mut nonces = Vec::new();
    while !sent.is_empty() {
        let response = worker.link.receive().expect("the worker lives");
        let place = sent.iter().position(|&id| id == response.id).expect("each is answered once");
        sent.swap_remove(place);
        match response.outcome.unwrap() {
            Outcome::Sealed(sealed) => nonces.push(sealed.iv),
            Outcome::Opaque(_) | Outcome::NewKey(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let count = nonces.len();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), count, "no nonce is used twice");
}

#[test]
fn a_ping_is_answered_while_others_work_and_names_them() {
    let node = Node::with_kek();
    let mut worker = node.serving(2);
    // One session makes keys, ahead of pings that the other answers: some ping must see it at work.
    let mut seen = false;
    for round in 0..20 {
        let making = worker.link.send(generate_key(format!("k{round}").as_bytes()));
        let ping = worker.link.send(Verb::Ping(v1::Ping {}));
        let answers = [worker.link.receive().unwrap(), worker.link.receive().unwrap()];
        assert!(answers.iter().any(|answer| answer.id == making));
        let pong = answers.iter().find(|answer| answer.id == ping).unwrap();
        let Some(Outcome::Pong(pong)) = &pong.outcome else { panic!("no pong") };
        seen |= pong.running.iter().any(|running| running.id == making);
        assert!(pong.resident_bytes > 1_000_000);
    }
    assert!(seen, "no ping ever saw the key being made");
}

#[test]
fn what_is_late_is_not_begun() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    worker.link.send_all([(0, generate_key(b"k1"))]);
    let Some(Outcome::Fault(fault)) = worker.link.receive().unwrap().outcome else { panic!("it was begun") };
    assert_eq!(fault.kind(), Kind::Late);
    assert_eq!(worker.found(prove(b"k1", b"")), Found::Missing);
}

#[test]
fn the_end_of_the_link_ends_the_process_and_what_runs_is_finished_first() {
    let node = Node::with_kek();
    let mut worker = node.serving(2);
    worker.link.send(generate_key(b"k1"));
    assert_eq!(worker.end().code(), Some(0));
    let mut successor = node.serving(1);
    // Begun before the end or never begun: nothing half made stays either way.
    assert_eq!(successor.ask(Verb::SweepUnfinished(v1::SweepUnfinished {})), Outcome::Done(v1::Done { count: 0 }));
    assert!(node.opened(1).end().success());
    assert!(node.worker().end().success());
}

#[test]
fn a_stuck_call_is_named_by_pings_holds_up_nobody_and_is_left_behind_in_the_end() {
    let node = Node::with_kek();
    let mut worker = node.worker();
    let Verb::Open(open) = open(LABEL, 2) else { unreachable!() };
    worker.ask(Verb::Open(v1::Open { patience_ms: 300, slow_patience_ms: 300, ..open }));
    worker.ask(log_in(USER_PIN));
    // SoftHSM2 waits for this lock, without a limit, before it makes an object.
    let _held = node.hold_token();
    let making = worker.link.send(generate_key(b"k1"));
    let began = Instant::now();
    loop {
        let Outcome::Pong(pong) = worker.ask(Verb::Ping(v1::Ping {})) else { panic!("no pong") };
        assert!(began.elapsed() < Duration::from_secs(10), "the call never grew old");
        if pong.running.iter().any(|running| running.id == making && running.age_ms >= 20) {
            break;
        }
    }
    assert!(matches!(worker.ask(random(8)), Outcome::Opaque(_)));
    let closing = Instant::now();
    assert!(worker.end().success());
    assert!((300..5_000).contains(&closing.elapsed().as_millis()), "left after {:?}", closing.elapsed());
}

/// How long a worker with these patiences stays after the end of its link while it makes a key on a token that hangs.
fn leaves_a_hung_generation_after(patience_ms: u32, slow_patience_ms: u32) -> Duration {
    let node = Node::with_kek();
    let mut worker = node.worker();
    let Verb::Open(open) = open(LABEL, 2) else { unreachable!() };
    worker.ask(Verb::Open(v1::Open { patience_ms, slow_patience_ms, ..open }));
    worker.ask(log_in(USER_PIN));
    let _held = node.hold_token();
    let making = worker.link.send(generate_key(b"k1"));
    let began = Instant::now();
    while !matches!(worker.ask(Verb::Ping(v1::Ping {})), Outcome::Pong(pong) if pong.running.iter().any(|it| it.id == making))
    {
        assert!(began.elapsed() < Duration::from_secs(10), "the generation never began");
    }
    let closing = Instant::now();
    assert!(worker.end().success());
    closing.elapsed()
}

#[test]
fn at_the_end_of_the_link_a_slow_call_has_the_patience_of_slow_calls() {
    let waited = leaves_a_hung_generation_after(100, 1_500);
    assert!((1_500..8_000).contains(&waited.as_millis()), "left after {waited:?}");
    let waited = leaves_a_hung_generation_after(20_000, 300);
    assert!((300..8_000).contains(&waited.as_millis()), "left after {waited:?}");
}

#[test]
fn signals_meant_for_the_daemon_do_not_end_a_worker() {
    use rustix::process::{Pid, Signal, kill_process};
    let node = Node::with_token();
    let mut worker = node.serving(1);
    let pid = Pid::from_raw(i32::try_from(worker.process.id()).unwrap()).unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        kill_process(pid, signal).unwrap();
    }
    assert!(matches!(worker.ask(random(8)), Outcome::Opaque(_)));
    assert!(worker.end().success());
}

#[test]
fn garbage_on_the_link_ends_the_worker() {
    let node = Node::with_token();
    let mut worker = node.serving(2);
    worker.link.stream.write_all(&[0xff; 64]).unwrap();
    assert!(worker.link.receive().is_none());
    assert!(worker.end().success());
}

#[test]
fn a_worker_started_by_hand_says_so() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_keyway")).args(["worker", "x"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
}

/// Everything the user's PIN allows against one key, in a process of its own.
#[test]
#[ignore = "started by other tests, with a token of theirs"]
fn an_intruder_with_the_users_pin_gets_no_key() {
    let cka_id = std::env::var("INTRUDE_ON").unwrap().into_bytes();
    let library = Pkcs11::new(MODULE).unwrap();
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let user = library.open_rw_session(slot).unwrap();
    user.login(UserType::User, Some(&AuthPin::new(USER_PIN.into()))).unwrap();
    let key = only(&user, &cka_id);
    let kek = only(&user, KEK);
    let untrusted = user
        .generate_key(
            &Mechanism::AesKeyGen,
            &[Attribute::ValueLen(32.into()), Attribute::Wrap(true), Attribute::Unwrap(true), Attribute::Decrypt(true)],
        )
        .unwrap();
    for target in [key, kek] {
        let value = user.get_attribute_info(target, &[AttributeType::Value]).unwrap();
        assert!(matches!(value[..], [AttributeInfo::Sensitive]), "{value:?}");
        assert!(user.wrap_key(&Mechanism::AesKeyWrapPad, untrusted, target).is_err());
        for looser in [Attribute::Sensitive(false), Attribute::WrapWithTrusted(false)] {
            assert!(user.update_attributes(target, std::slice::from_ref(&looser)).is_err(), "set {looser:?}");
            let copy = user.copy_object(target, std::slice::from_ref(&looser));
            let gained = copy.is_ok_and(|copy| user.wrap_key(&Mechanism::AesKeyWrapPad, untrusted, copy).is_ok());
            assert!(!gained, "copied with {looser:?}");
        }
    }
    assert!(user.update_attributes(untrusted, &[Attribute::Trusted(true)]).is_err());
    // Wrapping and unwrapping are both the KEK's; the unwrapped copy must stay as closed as the key was.
    assert!(user.wrap_key(&Mechanism::AesKeyWrapPad, kek, kek).is_err(), "the KEK wraps itself");
    for tamper in [
        Attribute::Decrypt(true),
        Attribute::Unwrap(false),
        Attribute::Modifiable(true),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_ECB]),
    ] {
        assert!(user.update_attributes(kek, std::slice::from_ref(&tamper)).is_err(), "set {tamper:?} on the KEK");
        assert!(user.copy_object(kek, std::slice::from_ref(&tamper)).is_err(), "copied the KEK with {tamper:?}");
    }
    for mechanism in [Mechanism::AesCbc([0; 16]), Mechanism::AesCbcPad([0; 16]), Mechanism::AesKeyWrap] {
        assert!(user.wrap_key(&mechanism, kek, key).is_err(), "the KEK wraps with {mechanism:?}");
    }
    let wrapped = user.wrap_key(&Mechanism::AesKeyWrapPad, kek, key).unwrap();
    let open = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let unwrapped = user.unwrap_key(&Mechanism::AesKeyWrapPad, kek, &wrapped, &open);
    assert!(unwrapped.is_err(), "the KEK unwraps a key into the open");
    assert!(user.decrypt(&Mechanism::AesEcb, kek, &wrapped[..16]).is_err(), "the KEK decrypts");
}

fn only(session: &Session, cka_id: &[u8]) -> ObjectHandle {
    let found = session.find_objects(&[Attribute::Id(cka_id.to_vec())]).unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

/// Not a test: how many operations a second go through one link. Run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_pipelined_encryptions() {
    const DEPTH: usize = 64;
    let node = Node::with_kek();
    for sessions in [1, 2] {
        let mut worker = node.serving(sessions);
        worker.make_key(format!("m{sessions}").as_bytes());
        let ask = || (10_000, encrypt(format!("m{sessions}").as_bytes(), &[7; 1024]));
        worker.link.send_all((0..DEPTH).map(|_| ask()));
        let (began, mut answered) = (Instant::now(), 0_u32);
        while began.elapsed() < Duration::from_secs(3) {
            let response = worker.link.receive().unwrap();
            assert!(matches!(response.outcome, Some(Outcome::Sealed(_))));
            answered += 1;
            let mut more = 1;
            while worker.link.frames.take::<Response>().unwrap().is_some() {
                answered += 1;
                more += 1;
            }
            worker.link.send_all((0..more).map(|_| ask()));
        }
        println!("{sessions} session(s): {:.0} op/s", f64::from(answered) / began.elapsed().as_secs_f64());
    }
}
