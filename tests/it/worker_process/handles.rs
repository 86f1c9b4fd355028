//! Handles: what was just found is proved before it is used.

use super::*;

const MISSING: (Bucket, Kind) = (Bucket::Node, Kind::KeyMissing);

fn data_key(cka_id: &[u8], probe: &[u8]) -> Verb {
    Verb::GenerateDataKey(v1::GenerateDataKey {
        cka_id: cka_id.to_vec(),
        aad: AAD.to_vec(),
        number_of_bytes: 32,
        with_plaintext: false,
        probe: probe.to_vec(),
    })
}

#[test]
fn a_key_that_was_put_in_anothers_place_encrypts_decrypts_and_wraps_nothing() {
    let node = Node::with_kek();
    let (mut one, mut other) = (node.serving(1), node.serving(1));
    let key = one.make_key(b"k1");
    let sealed = one.encrypt(b"k1", b"attack at dawn");

    assert_eq!(other.ask(destroy(b"k1")), Outcome::Done(v1::Done { count: 1 }));
    let impostor = other.make_key(b"k1");
    // One knew the key by a handle that is stale now. A third has never seen it.
    for worker in [&mut one, &mut node.serving(1)] {
        assert_eq!(worker.fault(encrypt_proved(b"k1", b"x", &key.probe)), MISSING);
        assert_eq!(worker.fault(data_key(b"k1", &key.probe)), MISSING);
        assert_eq!(worker.fault(wrap_key(b"k1", &key.probe)), MISSING);
        assert_eq!(worker.fault(decrypt(b"k1", sealed.clone(), &key.probe)), MISSING);
        assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Different);
        // Whoever means the other key may have it.
        assert_eq!(worker.ask(wrap_key(b"k1", &impostor.probe)), opaque(&impostor.wrapped));
    }
}

#[test]
fn a_handle_is_proved_once_and_a_verb_without_a_probe_uses_what_it_finds() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    let mut worker = node.serving(1);
    let other = worker.make_key(b"k2");
    worker.encrypt(b"k1", b"not proved, since there is nothing to prove it with");
    assert_eq!(worker.fault(encrypt_proved(b"k1", b"x", &other.probe)), MISSING);
    assert!(matches!(worker.ask(encrypt_proved(b"k1", b"x", &key.probe)), Outcome::Sealed(_)));
    // Proven by now: no probe is looked at any more.
    assert!(matches!(worker.ask(encrypt_proved(b"k1", b"x", &other.probe)), Outcome::Sealed(_)));
    assert!(matches!(worker.ask(encrypt_proved(b"k2", b"made here", b"no probe at all")), Outcome::Sealed(_)));
}

#[test]
fn what_lacks_the_marks_of_a_key_encryption_key_wraps_and_unwraps_nothing() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    worker.make_key(b"k2");
    let under_k2 = Verb::WrapKey(v1::WrapKey { cka_id: b"k1".to_vec(), kek_cka_id: b"k2".to_vec(), probe: key.probe });
    for _ in 0..2 {
        assert_eq!(worker.fault(under_k2.clone()), (Bucket::Node, Kind::Unsupported));
    }
}
