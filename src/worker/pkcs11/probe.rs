//! The probe: what a key must answer, made when the key was, so that it is known again wherever it is.
//!
//! Stored by the daemon, opaque to it, and not a secret. Its formats are final, and the first byte tells which it is:
//!
//! ```text
//!   AES         1 ‖ nonce (12) ‖ AES-GCM("keyway probe" ‖ CKA_ID, AAD "keyway probe v1")   is decrypted
//!   HMAC        2 ‖ HMAC("keyway probe v1 mac" ‖ CKA_ID)                                   is computed again
//!   signing     3 ‖ length (1) ‖ key spec ‖ SubjectPublicKeyInfo                           what is signed, verifies:
//!                   SHA-2("keyway probe v1 signature" ‖ CKA_ID), as the curve or RSASSA-PKCS1-v1_5 with SHA-256 has it
//!   decrypting  4 ‖ RSA-OAEP-SHA-1("keyway probe" ‖ CKA_ID)                                is decrypted
//! ```

use aws_lc_rs::constant_time;
use cryptoki::object::ObjectHandle;

use crate::model::{EncryptionAlgorithm, Hash, KeyKind, KeySpec, KeyUsage, MacAlgorithm, Material, PublicKey};

use super::fault::After;
use super::mechanism::{self, Sort};
use super::session::{NONCE_LEN, Nonce, TAG_LEN};
use super::{Fault, Kind, Session};

const AES: u8 = 1;
const HMAC: u8 = 2;
const SIGNING: u8 = 3;
const DECRYPTING: u8 = 4;
const AAD: &[u8] = b"keyway probe v1";
const TEXT: &[u8] = b"keyway probe";
const MAC_TEXT: &[u8] = b"keyway probe v1 mac";
const SIGNATURE_TEXT: &[u8] = b"keyway probe v1 signature";
/// The public key of RSA with 4,096 bits has some 550 bytes.
const MAX_LEN: usize = 1_024;

/// What a key has to say to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Right,
    Wrong,
}

/// A probe, read.
#[derive(Debug, PartialEq, Eq)]
enum Probe<'a> {
    Aes { nonce: &'a Nonce, sealed: &'a [u8] },
    Hmac { algorithm: MacAlgorithm, mac: &'a [u8] },
    Signing { kind: KeyKind, public_key: PublicKey },
    Decrypting { ciphertext: &'a [u8] },
}

/// The public key is an asymmetric key's.
pub(super) fn make(
    session: &mut Session,
    cka_id: &[u8],
    key: ObjectHandle,
    kind: KeyKind,
    public_key: Option<&PublicKey>,
) -> Result<Vec<u8>, Fault> {
    let no_public_key = || Fault::bad_input("a pair is probed with its public key");
    match (kind.spec().material(), kind.usage()) {
        (Material::Aes, _) => {
            let sealed = session.seal(key, AAD, &message(TEXT, cka_id))?;
            Ok([&[AES], &sealed.nonce[..], &sealed.sealed].concat())
        }
        (Material::Hmac(_), _) => {
            let algorithm = *kind.mac_algorithms().first().expect("it makes MACs");
            let mac = session.mac_with(key, algorithm, &message(MAC_TEXT, cka_id))?;
            Ok([&[HMAC], &mac[..]].concat())
        }
        (_, KeyUsage::EncryptDecrypt) => {
            let public_key = public_key.ok_or_else(no_public_key)?;
            let ciphertext = public_key.encrypt_oaep(Hash::Sha1, &message(TEXT, cka_id)).ok_or_else(no_public_key)?;
            Ok([&[DECRYPTING], &ciphertext[..]].concat())
        }
        _ => {
            let public_key = public_key.ok_or_else(no_public_key)?;
            let name = kind.spec().as_str().as_bytes();
            let length = u8::try_from(name.len()).expect("names are short");
            Ok([&[SIGNING, length], name, public_key.as_der()].concat())
        }
    }
}

/// What the key that answers this probe is. Without a probe an AES key is meant.
pub(super) fn sort(probe: &[u8]) -> Result<Sort, Fault> {
    if probe.is_empty() {
        return Ok(Sort::AES);
    }
    Ok(match parse(probe)? {
        Probe::Aes { .. } => Sort::AES,
        Probe::Hmac { .. } => Sort::HMAC,
        Probe::Decrypting { .. } => Sort::RSA,
        Probe::Signing { kind, .. } => Sort::of(kind.spec().material()).ok_or_else(unreadable)?,
    })
}

/// Has the key answer. Wrong is said only by a token that is there, with its user logged in.
pub(super) fn ask(session: &mut Session, cka_id: &[u8], key: ObjectHandle, probe: &[u8]) -> Result<Answer, Fault> {
    let probe = parse(probe)?;
    let answer = match answer(session, cka_id, key, &probe) {
        // What could mean anything once is asked again: a moment's trouble makes a key no impostor.
        Err(fault) if fault.is_ambiguous => answer(session, cka_id, key, &probe),
        answer => answer,
    };
    match answer {
        Ok(true) => Ok(Answer::Right),
        Ok(false) => Ok(Answer::Wrong),
        Err(fault) if fault.kind == Kind::BadCiphertext || fault.is_ambiguous || fault.is_of_another_object() => {
            session.sees_the_token()?;
            // Not for all sessions: this is one key's answer, and what it came of is looked at by whoever asked.
            session.suffer(&Fault { session: fault.session.min(After::Reopen), ..fault });
            Ok(Answer::Wrong)
        }
        Err(fault) => Err(fault),
    }
}

fn answer(session: &mut Session, cka_id: &[u8], key: ObjectHandle, probe: &Probe<'_>) -> Result<bool, Fault> {
    match probe {
        Probe::Aes { nonce, sealed } => {
            let text = session.unseal(key, nonce, AAD, sealed)?;
            Ok(text.as_slice() == message(TEXT, cka_id))
        }
        Probe::Hmac { algorithm, mac } => {
            let again = session.mac_with(key, *algorithm, &message(MAC_TEXT, cka_id))?;
            Ok(constant_time::verify_slices_are_equal(&again, mac).is_ok())
        }
        Probe::Signing { kind, public_key } => {
            let algorithm = mechanism::probing(*kind).ok_or_else(unreadable)?;
            let (_, hash) = algorithm.of_digest().ok_or_else(unreadable)?;
            let digest = hash.of(&message(SIGNATURE_TEXT, cka_id));
            let signature = session.sign_with(key, algorithm, &digest)?;
            Ok(public_key.verifies(kind.spec(), algorithm, &digest, &signature))
        }
        Probe::Decrypting { ciphertext } => {
            let text = session.decrypt_oaep_with(key, EncryptionAlgorithm::RsaesOaepSha1, ciphertext)?;
            Ok(text.as_slice() == message(TEXT, cka_id))
        }
    }
}

fn message(text: &[u8], cka_id: &[u8]) -> Vec<u8> {
    [text, cka_id].concat()
}

fn parse(probe: &[u8]) -> Result<Probe<'_>, Fault> {
    if probe.len() > MAX_LEN {
        return Err(unreadable());
    }
    let (&format, rest) = probe.split_first().ok_or_else(unreadable)?;
    match format {
        AES => {
            let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(unreadable)?;
            if sealed.len() <= TAG_LEN {
                return Err(unreadable());
            }
            Ok(Probe::Aes { nonce, sealed })
        }
        HMAC => {
            let algorithm = MacAlgorithm::ALL.into_iter().find(|algorithm| algorithm.hash().digest_len() == rest.len());
            Ok(Probe::Hmac { algorithm: algorithm.ok_or_else(unreadable)?, mac: rest })
        }
        SIGNING => {
            let (&length, rest) = rest.split_first().ok_or_else(unreadable)?;
            let (name, der) = rest.split_at_checked(usize::from(length)).ok_or_else(unreadable)?;
            let spec = std::str::from_utf8(name).ok().and_then(KeySpec::parse).ok_or_else(unreadable)?;
            let kind = KeyKind::new(spec, KeyUsage::SignVerify).ok_or_else(unreadable)?;
            Ok(Probe::Signing { kind, public_key: PublicKey::from_der(der.to_vec()) })
        }
        DECRYPTING if !rest.is_empty() => Ok(Probe::Decrypting { ciphertext: rest }),
        _ => Err(unreadable()),
    }
}

fn unreadable() -> Fault {
    Fault::bad_input("the probe cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_probe_tells_its_format_first() {
        let aes = [&[1], &[7; 12][..], &[9; 17][..]].concat();
        assert_eq!(parse(&aes).unwrap(), Probe::Aes { nonce: &[7; 12], sealed: &[9; 17] });
        let mac = [&[2][..], &[7; 48]].concat();
        assert_eq!(parse(&mac).unwrap(), Probe::Hmac { algorithm: MacAlgorithm::HmacSha384, mac: &[7; 48] });
        let signing = b"\x03\x0dECC_NIST_P256der";
        let kind = KeyKind::new(KeySpec::EccNistP256, KeyUsage::SignVerify).unwrap();
        assert_eq!(parse(signing).unwrap(), Probe::Signing { kind, public_key: PublicKey::from_der(b"der".to_vec()) });
        let sorts =
            [(&aes[..], Sort::AES), (&mac, Sort::HMAC), (signing, Sort::EC), (b"\x04c", Sort::RSA), (b"", Sort::AES)];
        for (probe, expected) in sorts {
            assert_eq!(sort(probe).unwrap(), expected);
        }
        let unknown = [&[5], &[7; 12][..], &[9; 17][..]].concat();
        for bad in [&unknown[..], &[2; 30], b"\x03\x08HMAC_256der", b"\x03\xff", b"\x04", &[1; MAX_LEN + 1]] {
            assert_eq!(parse(bad).unwrap_err().kind, Kind::BadInput);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_probe_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = sort(&bytes);
        }
    }
}
