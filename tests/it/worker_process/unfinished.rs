//! What killed generations leave in a token is cleared up, and nothing else is.

use std::path::Path;

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;

use super::*;

/// An attribute as SoftHSM2's files have it.
fn a_bool(kind: u64, value: u8) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &1_u64.to_be_bytes(), &[value]].concat()
}

fn a_number(kind: u64, value: u64) -> Vec<u8> {
    [kind, 2, value].map(u64::to_be_bytes).concat()
}

fn no_bytes(kind: u64) -> Vec<u8> {
    [kind, 3, 0].map(u64::to_be_bytes).concat()
}

/// What a generation has written when it is cut off, from its first write on.
fn stages() -> [Vec<u8>; 5] {
    let generation = 1_u64.to_be_bytes().to_vec();
    let (class, key_type) = (a_number(0, 4), a_number(0x100, 0x1f));
    let [own, ours] = [0, 1].map(|value| [a_bool(1, value), no_bytes(3)].concat());
    [
        generation.clone(),
        [&generation[..], &class].concat(),
        [&generation[..], &class, &key_type].concat(),
        [&generation[..], &class, &own, &key_type].concat(),
        [&generation[..], &class, &ours, &key_type, &no_bytes(0x102)].concat(),
    ]
}

impl Node {
    /// Leaves an object as a killed worker would, with the lock that SoftHSM2 has beside each.
    fn leave(&self, number: usize, written: &[u8]) -> PathBuf {
        let token = std::fs::read_dir(self.home.path().join("tokens")).unwrap().next().unwrap().unwrap().path();
        let object = token.join(format!("0badcafe-0bad-0bad-0bad-{number:012x}.object"));
        std::fs::write(object.with_extension("lock"), b"").unwrap();
        std::fs::write(&object, written).unwrap();
        object
    }
}

fn sweep() -> Verb {
    Verb::SweepUnfinished(v1::SweepUnfinished {})
}

fn swept(count: u32) -> Outcome {
    Outcome::Done(v1::Done { count })
}

#[test]
fn nameless_objects_are_swept_and_named_ones_stay() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    worker.make_key(b"k1");
    let status = Command::new("pkcs11-tool")
        .args(["--module", MODULE, "--login", "--pin", USER_PIN, "--keygen", "--key-type", "AES:32"])
        .env("SOFTHSM2_CONF", node.configuration())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(worker.ask(sweep()), swept(1));
    worker.encrypt(b"k1", b"still here");
}

#[test]
fn what_a_generation_leaves_is_swept_at_whatever_stage_it_was_cut_off() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    for (number, written) in stages().into_iter().enumerate() {
        let left = node.leave(number, &written);
        assert_eq!(node.serving(1).ask(sweep()), swept(1), "stage {number}");
        assert!(!left.exists(), "stage {number}");
    }
    let mut worker = node.serving(1);
    assert_eq!(worker.ask(sweep()), swept(0));
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Proven);
    assert_eq!(worker.ask(wrap_key(b"k1", &key.probe)), opaque(&key.wrapped));
}

#[test]
fn a_library_that_reads_no_attributes_has_nothing_destroyed() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    let mut worker = node.failing(1);
    for ckr in [
        CKR_FUNCTION_NOT_SUPPORTED,
        CKR_ARGUMENTS_BAD,
        CKR_ATTRIBUTE_SENSITIVE,
        CKR_ATTRIBUTE_TYPE_INVALID,
        CKR_ATTRIBUTE_VALUE_INVALID,
        CKR_TEMPLATE_INCONSISTENT,
        CKR_BUFFER_TOO_SMALL,
        CKR_DEVICE_ERROR,
    ] {
        node.faults().set([Rule::fail(C_GetAttributeValue, ckr)]);
        let answer = worker.ask(sweep());
        assert!(answer == swept(0) || matches!(answer, Outcome::Fault(_)), "0x{ckr:x}: {answer:?}");
        assert_eq!(node.faults().count(C_DestroyObject), 0, "0x{ckr:x}");
    }
    // Nor when it reads none beside searches that find nothing of the token's.
    node.faults().lose_login();
    node.faults().set([Rule::fail(C_GetAttributeValue, CKR_ATTRIBUTE_VALUE_INVALID)]);
    assert_eq!(worker.fault(sweep()), (Bucket::Node, Kind::LoginLost));
    node.faults().clear();
    let mut worker = node.serving(1);
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Proven);
    assert_eq!(worker.ask(wrap_key(b"k1", &key.probe)), opaque(&key.wrapped));
}

#[test]
fn more_objects_than_killed_workers_leave_are_left_for_a_person_to_look_at() {
    let node = Node::with_kek();
    let [.., nameless] = stages();
    let left: Vec<_> = (0..65).map(|number| node.leave(number, &nameless)).collect();
    let mut worker = node.serving(1);
    assert_eq!(worker.fault(sweep()), (Bucket::Node, Kind::Device));
    assert!(left.iter().all(|object: &PathBuf| object.exists()));
    std::fs::remove_file(&left[0]).unwrap();
    assert_eq!(node.serving(1).ask(sweep()), swept(64));
    assert!(!left.iter().any(|object| Path::exists(object)));
}
