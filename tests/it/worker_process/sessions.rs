//! Sessions that are limited, expire, lose their login or keep an operation: what each thread does about its own.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;

use super::*;

const CAPACITY: (Bucket, Kind) = (Bucket::Node, Kind::Capacity);
const LOGIN_LOST: (Bucket, Kind) = (Bucket::Node, Kind::LoginLost);
const SPOILED: (Bucket, Kind) = (Bucket::Session, Kind::Device);

impl Worker {
    /// So many encryptions under a key, sent together: what came of each.
    fn encrypt_all(&mut self, cka_id: &[u8], count: usize) -> Vec<Outcome> {
        self.link.send_all((0..count).map(|_| (10_000, encrypt(cka_id, b"x"))));
        (0..count).map(|_| self.link.receive().expect("the worker lives").outcome.unwrap()).collect()
    }

    fn pong(&mut self) -> v1::Pong {
        match self.ask(Verb::Ping(v1::Ping {})) {
            Outcome::Pong(pong) => pong,
            other => panic!("no pong: {other:?}"),
        }
    }
}

impl Node {
    /// Sessions that were opened, and tries that were refused, as far as they are journalled.
    fn openings(&self) -> (usize, usize) {
        let journal = self.faults().journal().into_iter().filter(|entry| entry.function == C_OpenSession);
        let (opened, refused): (Vec<_>, Vec<_>) =
            journal.partition(|entry| entry.outcome == faulty_pkcs11::Outcome::Answered(CKR_OK));
        (opened.len(), refused.len())
    }
}

fn is_sealed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Sealed(_))
}

#[test]
fn a_thread_that_gets_no_session_steps_aside_and_none_of_its_requests_is_refused() {
    for ckr in [CKR_SESSION_COUNT, CKR_ARGUMENTS_BAD] {
        let node = Node::with_kek();
        let mut worker = node.failing(3);
        worker.make_key(b"k1");
        // Three are left, with the one that holds the login, so that the spoiled one cannot be replaced.
        let spoil = Rule::fail(C_Encrypt, CKR_BUFFER_TOO_SMALL).nth(1);
        node.faults().set([Rule::max_sessions(3, ckr), Rule::journal(C_OpenSession), spoil]);
        assert_eq!(worker.fault(encrypt(b"k1", b"x")), SPOILED);
        let begun = Instant::now();
        while node.openings().1 < 3 {
            let answers = worker.encrypt_all(b"k1", 16);
            assert!(answers.iter().all(is_sealed), "{answers:?}");
            assert!(begun.elapsed() < Duration::from_secs(30), "it did not try again");
        }
        assert_eq!(node.openings().0, 0);
        node.faults().set([Rule::journal(C_OpenSession)]);
        crate::rig::wait(|| (node.openings().0 == 1).then_some(()));
        let answers = worker.encrypt_all(b"k1", 64);
        assert!(answers.iter().all(is_sealed), "{answers:?}");
    }
}

#[test]
fn with_no_session_left_requests_are_refused_at_once_until_there_are_sessions_again() {
    let node = Node::with_kek();
    let mut worker = node.failing(3);
    worker.make_key(b"k1");
    // Only the session that holds the login stays.
    let spoil = Rule::fail(C_Encrypt, CKR_BUFFER_TOO_SMALL);
    node.faults().set([Rule::max_sessions(1, CKR_SESSION_COUNT), Rule::journal(C_OpenSession), spoil]);
    for _ in 0..3 {
        assert_eq!(worker.fault(encrypt(b"k1", b"x")), SPOILED);
    }
    // Each would take a quarter of a second if it waited for the next try.
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(worker.fault(encrypt(b"k1", b"x")), CAPACITY);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(worker.pong().running, [], "nobody is stuck");

    node.faults().set([Rule::journal(C_OpenSession)]);
    crate::rig::wait(|| is_sealed(&worker.ask(encrypt(b"k1", b"x"))).then_some(()));
    crate::rig::wait(|| (node.openings().0 == 3).then_some(()));
    let answers = worker.encrypt_all(b"k1", 64);
    assert!(answers.iter().all(is_sealed), "{answers:?}");
}

#[test]
fn a_session_that_expired_while_nobody_used_it_is_replaced_before_the_next_request_needs_it() {
    let node = Node::with_kek();
    let mut worker = node.failing(2);
    let key = worker.make_key(b"k1");
    // One session stays in a call, and so alive, and the login with it. The other is not used, nor is the one that
    // was opened to hold the login.
    node.faults().set([
        Rule::idle(Duration::from_secs(1)),
        Rule::block(C_WrapKey).during("held"),
        Rule::journal(C_OpenSession),
    ]);
    node.faults().mark("held");
    let held = worker.link.send(wrap_key(b"k1", &key.probe));
    // Pings use no session. The worker looks at one that was idle for 20 s.
    crate::rig::wait(|| {
        let running = worker.pong().running;
        running.iter().any(|it| it.id == held && it.age_ms > 20_500).then_some(())
    });
    assert!(matches!(worker.ask(encrypt_proved(b"k1", b"x", &key.probe)), Outcome::Sealed(_)));
    assert_eq!(node.openings(), (1, 0));
    node.faults().unmark("held");
    let late = worker.link.receive().expect("the worker lives");
    assert_eq!((late.id, late.outcome), (held, Some(opaque(&key.wrapped))));
}

#[test]
fn a_login_that_was_lost_is_told_by_every_request_that_needs_it_and_no_key_is_called_missing() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    let check = Verb::CheckToken(v1::CheckToken { canary_cka_id: b"k1".to_vec(), canary_probe: key.probe.clone() });
    let everything = [
        check,
        encrypt_proved(b"k1", b"x", &key.probe),
        prove(b"k1", &key.probe),
        prove(b"never made", &key.probe),
        unwrap_key(b"k1", &key.wrapped, &key.probe),
        destroy(b"k1"),
        generate_key(b"k2"),
        Verb::ListObjects(v1::ListObjects::default()),
    ];
    // What meets it first uses a handle that it knows; what comes later has to search, and the token shows nothing.
    for first in 0..everything.len() {
        let mut worker = node.failing(2);
        assert!(is_sealed(&worker.ask(encrypt_proved(b"k1", b"x", &key.probe))));
        node.faults().lose_login();
        for verb in everything.iter().cycle().skip(first).take(everything.len()) {
            assert_eq!(worker.fault(verb.clone()), LOGIN_LOST, "{verb:?}");
        }
        assert!(matches!(worker.ask(random(8)), Outcome::Opaque(_)), "needs no login");
    }
    assert_eq!(node.serving(1).found(prove(b"k1", &key.probe)), Found::Proven);
}

#[test]
fn an_operation_that_was_left_active_goes_with_its_session() {
    let node = Node::with_kek();
    let mut worker = node.failing(1);
    let key = worker.make_key(b"k1");
    let sealed = worker.encrypt(b"k1", b"attack at dawn");
    // None of these reaches SoftHSM2, in which the operation goes on.
    let left = [
        (Rule::fail(C_FindObjectsFinal, CKR_DEVICE_MEMORY), CAPACITY, prove(b"never made", b"")),
        (Rule::fail(C_FindObjects, CKR_DEVICE_MEMORY), CAPACITY, prove(b"never made", b"")),
        (Rule::fail(C_Encrypt, CKR_BUFFER_TOO_SMALL), SPOILED, encrypt(b"k1", b"x")),
        (Rule::fail(C_Decrypt, CKR_BUFFER_TOO_SMALL), SPOILED, decrypt(b"k1", sealed.clone(), &key.probe)),
    ];
    for (rule, told, verb) in left {
        node.faults().set([rule.nth(1)]);
        assert_eq!(worker.fault(verb.clone()), told, "{verb:?}");
        assert_eq!(worker.found(prove(b"never made", b"")), Found::Missing);
        assert_eq!(worker.decrypt(b"k1", sealed.clone(), &key.probe), opaque(b"attack at dawn"));
        assert!(is_sealed(&worker.ask(encrypt(b"k1", b"x"))));
    }
}

#[test]
fn who_waits_for_a_key_to_be_made_is_in_no_call_that_could_be_stuck() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    let mut worker = node.failing(4);
    node.faults().set([Rule::block(C_GenerateKey).during("made")]);
    node.faults().mark("made");
    let making = worker.link.send(generate_key(b"k2"));
    crate::rig::wait(|| worker.pong().running.iter().any(|it| it.id == making).then_some(()));
    // Another to be made, and a key to be looked for, which both have to wait.
    let waiting = [worker.link.send(generate_key(b"k3")), worker.link.send(encrypt_proved(b"k1", b"x", &key.probe))];
    crate::rig::wait(|| {
        let running = worker.pong().running;
        let old = |id: u64| running.iter().any(|it| it.id == id && it.age_ms > 300);
        assert!(!waiting.iter().any(|id| old(*id)), "{running:?}");
        running.iter().any(|it| it.id == making && it.age_ms > 1_000).then_some(())
    });
    node.faults().unmark("made");
    let mut answers: Vec<_> = (0..3).map(|_| worker.link.receive().expect("the worker lives")).collect();
    answers.sort_by_key(|answer| answer.id);
    let outcomes: Vec<_> = answers.into_iter().map(|answer| answer.outcome.unwrap()).collect();
    assert!(matches!(outcomes[..], [Outcome::NewKey(_), Outcome::NewKey(_), Outcome::Sealed(_)]), "{outcomes:?}");
}
