//! The probe: a ciphertext made when the key was, which only the same key decrypts.
//!
//! Stored by the daemon, opaque to it, and not a secret. Its format is final:
//! `1 ‖ nonce (12) ‖ AES-GCM("keyway probe" ‖ CKA_ID, AAD "keyway probe v1")`.

use cryptoki::object::ObjectHandle;

use super::fault::After;
use super::session::{NONCE_LEN, Nonce, TAG_LEN};
use super::{Fault, Kind, Session};

const VERSION: u8 = 1;
const AAD: &[u8] = b"keyway probe v1";
const TEXT: &[u8] = b"keyway probe";

/// What a key has to say to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Right,
    Wrong,
}

pub(super) fn make(session: &mut Session, cka_id: &[u8], key: ObjectHandle) -> Result<Vec<u8>, Fault> {
    let sealed = session.seal(key, AAD, &message(cka_id))?;
    Ok([&[VERSION], &sealed.nonce[..], &sealed.sealed].concat())
}

/// Has the key answer. Wrong is said only by a token that is there, with its user logged in.
pub(super) fn ask(session: &mut Session, cka_id: &[u8], key: ObjectHandle, probe: &[u8]) -> Result<Answer, Fault> {
    let (nonce, sealed) = parse(probe)?;
    let answer = match session.unseal(key, nonce, AAD, sealed) {
        // What could mean anything once is asked again: a moment's trouble makes a key no impostor.
        Err(fault) if fault.is_ambiguous => session.unseal(key, nonce, AAD, sealed),
        answer => answer,
    };
    match answer {
        Ok(text) if text.as_slice() == message(cka_id) => Ok(Answer::Right),
        Ok(_) => Ok(Answer::Wrong),
        Err(fault) if fault.kind == Kind::BadCiphertext || fault.is_ambiguous || fault.is_of_another_object() => {
            session.sees_the_token()?;
            // Not for all sessions: this is one key's answer, and what it came of is looked at by whoever asked.
            session.suffer(&Fault { session: fault.session.min(After::Reopen), ..fault });
            Ok(Answer::Wrong)
        }
        Err(fault) => Err(fault),
    }
}

fn message(cka_id: &[u8]) -> Vec<u8> {
    [TEXT, cka_id].concat()
}

fn parse(probe: &[u8]) -> Result<(&Nonce, &[u8]), Fault> {
    let unreadable = || Fault::bad_input("the probe cannot be read");
    let (&version, rest) = probe.split_first().ok_or_else(unreadable)?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(unreadable)?;
    if version != VERSION || sealed.len() <= TAG_LEN || probe.len() > 512 {
        return Err(unreadable());
    }
    Ok((nonce, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_probe_is_a_version_a_nonce_and_a_ciphertext() {
        let probe = [&[1], &[7; 12][..], &[9; 17][..]].concat();
        assert_eq!(parse(&probe).unwrap(), (&[7; 12], &[9; 17][..]));
        let later = [&[2], &[7; 12][..], &[9; 17][..]].concat();
        assert_eq!(parse(&later).unwrap_err().kind, Kind::BadInput);
    }

    proptest! {
        #[test]
        fn garbage_is_no_probe_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&bytes);
        }
    }
}
