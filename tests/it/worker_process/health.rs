//! Whether the token is still what it was: asked of a worker at any time.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;

use super::*;

const DONE: Outcome = Outcome::Done(v1::Done { count: 0 });
const ABSENT: (Bucket, Kind) = (Bucket::Node, Kind::TokenAbsent);

fn check(canary_cka_id: &[u8], canary_probe: &[u8]) -> Verb {
    Verb::CheckToken(v1::CheckToken { canary_cka_id: canary_cka_id.to_vec(), canary_probe: canary_probe.to_vec() })
}

impl Worker {
    /// Has the canary answer: how long it took, by its worker's word.
    fn hear(&mut self, probe: &[u8]) -> Duration {
        match self.ask(check(b"canary", probe)) {
            Outcome::Checked(checked) => Duration::from_micros(checked.canary_us),
            other => panic!("not heard: {other:?}"),
        }
    }
}

impl Node {
    fn take_away(&self) {
        std::fs::rename(self.home.path().join("tokens"), self.home.path().join("gone")).unwrap();
    }
}

#[test]
fn a_canary_that_answers_says_that_all_is_well() {
    let node = Node::with_kek();
    let canary = node.serving(1).make_key(b"canary");
    let mut worker = node.serving(1);
    for _ in 0..2 {
        worker.hear(&canary.probe);
        assert_eq!(worker.ask(check(b"", b"")), DONE);
    }
    // Made anew by somebody else: found again by its id.
    let mut other = node.serving(1);
    other.ask(destroy(b"canary"));
    assert_eq!(other.found(unwrap_key(b"canary", &canary.wrapped, &canary.probe)), Found::Proven);
    worker.hear(&canary.probe);
}

#[test]
fn a_canary_that_is_missing_or_another_key_is_told() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let (canary, other) = (worker.make_key(b"canary"), worker.make_key(b"k1"));
    assert_eq!(worker.fault(check(b"nothing", &canary.probe)), (Bucket::Node, Kind::KeyMissing));
    assert_eq!(worker.fault(check(b"canary", &other.probe)), (Bucket::Node, Kind::Device));
    assert_eq!(worker.fault(check(b"canary", b"garbage")), (Bucket::Input, Kind::BadInput));
    worker.ask(destroy(b"canary"));
    assert_eq!(worker.fault(check(b"canary", &canary.probe)), (Bucket::Node, Kind::KeyMissing));
    assert!(matches!(worker.ask(encrypt_proved(b"k1", b"and still it serves", &other.probe)), Outcome::Sealed(_)));
}

#[test]
fn a_token_that_vanished_is_told_though_its_sessions_answer() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let canary = worker.make_key(b"canary");
    worker.hear(&canary.probe);
    node.take_away();
    assert!(matches!(worker.ask(random(8)), Outcome::Opaque(_)));
    assert_eq!(worker.fault(check(b"canary", &canary.probe)), ABSENT);
    assert_eq!(worker.fault(check(b"", b"")), ABSENT);
}

#[test]
fn before_the_login_a_token_can_be_checked_without_a_canary() {
    let node = Node::with_token();
    let mut worker = node.worker();
    assert_eq!(worker.fault(check(b"", b"")), (Bucket::Input, Kind::Protocol));
    let mut worker = node.opened(1);
    assert_eq!(worker.ask(check(b"", b"")), DONE);
    assert_eq!(worker.fault(check(b"canary", b"probe")), (Bucket::Input, Kind::Protocol));
    node.take_away();
    assert_eq!(worker.fault(check(b"", b"")), ABSENT);
}

#[test]
fn a_canary_takes_what_its_own_call_takes_whatever_it_waits_behind() {
    let node = Node::with_kek();
    let canary = node.serving(1).make_key(b"canary");
    let mut worker = node.failing(1);
    let quick = worker.hear(&canary.probe);
    assert!(quick < Duration::from_millis(200), "{quick:?}");

    node.faults().set([Rule::delay([C_GenerateKey, C_Encrypt, C_FindObjects], Duration::from_millis(500))]);
    let behind = [generate_key(b"k1"), encrypt(b"canary", b"x"), check(b"canary", &canary.probe)];
    let began = Instant::now();
    worker.link.send_all(behind.map(|verb| (10_000, verb)));
    let answers = [(); 3].map(|()| worker.link.receive().expect("the worker lives").outcome.unwrap());
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    let Outcome::Checked(checked) = &answers[2] else { panic!("not heard: {answers:?}") };
    assert!((1..200_000).contains(&checked.canary_us), "{checked:?}");

    node.faults().set([Rule::delay(C_Decrypt, Duration::from_millis(300))]);
    let slow = worker.hear(&canary.probe);
    assert!(slow >= Duration::from_millis(300), "{slow:?}");
}
