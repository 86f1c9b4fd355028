//! Answers that are wrong, or could mean either: whose fault it is, and that no wrong key is ever used.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;

use super::*;

const BAD_CIPHERTEXT: (Bucket, Kind) = (Bucket::Input, Kind::BadCiphertext);
const DEVICE: (Bucket, Kind) = (Bucket::Node, Kind::Device);
const SPOILED: (Bucket, Kind) = (Bucket::Session, Kind::Device);
const MISSING: (Bucket, Kind) = (Bucket::Node, Kind::KeyMissing);
const UNSUPPORTED: (Bucket, Kind) = (Bucket::Input, Kind::Unsupported);

fn check(canary: &[u8], probe: &[u8]) -> Verb {
    Verb::CheckToken(v1::CheckToken { canary_cka_id: canary.to_vec(), canary_probe: probe.to_vec() })
}

#[test]
fn after_a_reset_no_thread_uses_a_handle_from_before_though_its_own_session_still_answers() {
    let node = Node::with_kek();
    let mut worker = node.failing(2);
    let keys = [b"k1", b"k2"].map(|id| (id, worker.make_key(id)));
    let mut kept = Vec::new();
    for round in 0..4_u8 {
        // One session tells of it, once; the other goes on answering, and every handle names another key.
        let ckr = [CKR_SESSION_HANDLE_INVALID, CKR_SESSION_CLOSED][usize::from(round % 2)];
        let told = Rule::fail(C_EncryptInit, ckr).nth(1);
        node.faults().set([told, Rule::journal(C_OpenSession)]);
        node.faults().forget_journal();
        node.faults().reassign_handles();
        let (id, key) = &keys[usize::from(round % 2)];
        assert_eq!(worker.fault(encrypt_proved(*id, &[round], &key.probe)), SPOILED);
        // Until the session that looks alive has been replaced as well.
        crate::rig::wait(|| {
            for (id, key) in &keys {
                let Outcome::Sealed(sealed) = worker.ask(encrypt_proved(*id, &[round], &key.probe)) else {
                    panic!("not sealed")
                };
                kept.push((id, round, sealed));
            }
            (node.faults().count(C_OpenSession) == 2).then_some(())
        });
    }
    let mut other = node.serving(1);
    for (id, round, sealed) in kept {
        assert_eq!(other.ask(decrypt(*id, sealed, b"")), opaque(&[round]));
    }
}

#[test]
fn a_search_that_silently_finds_another_key_is_never_believed() {
    let node = Node::with_kek();
    let mut plain = node.serving(1);
    let (one, two) = (plain.make_key(b"k1"), plain.make_key(b"k2"));
    let sealed = plain.encrypt(b"k1", b"attack at dawn");
    node.faults().set([Rule::find_wrong()]);
    let mut worker = node.failing(2);
    for _ in 0..2 {
        assert_eq!(worker.fault(encrypt_proved(b"k1", b"x", &one.probe)), MISSING);
        assert_eq!(worker.fault(decrypt(b"k1", sealed.clone(), &one.probe)), MISSING);
        assert_eq!(worker.found(prove(b"k1", &one.probe)), Found::Different);
        assert_eq!(worker.fault(check(b"k1", &one.probe)), DEVICE);
        // What it finds in the place of the key that wraps the others lacks that one's marks.
        assert_eq!(worker.fault(wrap_key(b"k1", &one.probe)), (Bucket::Node, Kind::Unsupported));
        assert_eq!(worker.fault(generate_key(b"k3")), (Bucket::Node, Kind::Unsupported));
    }
    node.faults().clear();
    assert_eq!(worker.decrypt(b"k1", sealed, &one.probe), opaque(b"attack at dawn"));
    assert_eq!(worker.found(prove(b"k2", &two.probe)), Found::Proven);
    assert_eq!(worker.found(prove(b"k3", b"")), Found::Missing);
}

#[test]
fn a_failed_decryption_that_could_mean_either_is_the_ciphertexts_fault_only_if_the_key_answers_its_probe() {
    let node = Node::with_kek();
    let mut worker = node.failing(1);
    let key = worker.make_key(b"k1");
    let sealed = worker.encrypt(b"k1", b"attack at dawn");
    for ckr in [CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED] {
        let ambiguous = |times| Rule::fail(C_Decrypt, ckr).after().first(times);
        let cases = [
            (vec![ambiguous(1)], BAD_CIPHERTEXT),
            // A moment's trouble: the probe is asked once more.
            (vec![ambiguous(2)], BAD_CIPHERTEXT),
            // The probe, asked in the same session, is met by the same, both times.
            (vec![ambiguous(3)], DEVICE),
            (vec![ambiguous(1), Rule::fail(C_DecryptInit, CKR_DEVICE_ERROR).nth(2)], DEVICE),
            (vec![ambiguous(1), Rule::fail(C_DecryptInit, CKR_SESSION_HANDLE_INVALID).nth(2)], SPOILED),
            // The key does not answer, because there is no token any more that it could be in.
            (vec![ambiguous(3), Rule::fail(C_GetTokenInfo, CKR_DEVICE_REMOVED)], (Bucket::Node, Kind::TokenAbsent)),
        ];
        for (rules, told) in cases {
            assert_eq!(worker.decrypt(b"k1", sealed.clone(), &key.probe), opaque(b"attack at dawn"));
            node.faults().set(rules.clone());
            assert_eq!(worker.fault(decrypt(b"k1", sealed.clone(), &key.probe)), told, "{rules:?}");
            node.faults().clear();
        }
        assert_eq!(worker.decrypt(b"k1", sealed.clone(), &key.probe), opaque(b"attack at dawn"));
        // Without a probe nobody can tell.
        node.faults().set([ambiguous(1)]);
        assert_eq!(worker.fault(decrypt(b"k1", sealed.clone(), b"")), (Bucket::Unknown, Kind::Device));
    }
}

#[test]
fn an_hsm_that_insists_on_making_the_ivs_decrypts_and_is_otherwise_told_to_be_unsupported() {
    let node = Node::with_kek();
    let mut worker = node.failing(1);
    let key = worker.make_key(b"k1");
    let sealed = worker.encrypt(b"k1", b"attack at dawn");
    // CloudHSM's manner: whoever encrypts gives it an IV of zeros, and it puts its own there. keyway gives one.
    node.faults().set([Rule::gcm_iv()]);
    for _ in 0..2 {
        assert_eq!(worker.fault(encrypt(b"k1", b"x")), UNSUPPORTED);
        assert_eq!(worker.fault(generate_key(b"k2")), UNSUPPORTED);
        assert_eq!(worker.found(prove(b"k2", b"")), Found::Missing, "what was made has been destroyed");
        assert_eq!(worker.decrypt(b"k1", sealed.clone(), &key.probe), opaque(b"attack at dawn"));
    }
}
