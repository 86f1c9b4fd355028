//! One thread's session, and the quick operations on it: encrypt, decrypt, random.
//!
//! `&mut self` wherever the library keeps an operation going: there is one at a time. Empty and
//! over-long inputs never reach the library, since some builds abort on them.

use std::cell::Cell;
use std::sync::Arc;

use cryptoki::object::ObjectHandle;
use zeroize::Zeroizing;

use super::fault::{Accepted, After, Bucket, Kind};
use super::handles::Era;
use super::probe::Answer;
use super::{Fault, Stopwatch, Token, probe};

pub const NONCE_LEN: usize = 12;
pub const TAG_LEN: usize = 16;
/// The longest plaintext: some HSMs take no more than 16 KiB in one call.
pub const MAX_PLAINTEXT: usize = 16 * 1024 - TAG_LEN;
pub const MAX_AAD: usize = 4 * 1024;
/// The most random bytes of one request.
const MAX_RANDOM: usize = 1024;
/// Nonces fetched from the HSM's generator at a time: each would otherwise cost a call of its own.
const NONCES_AT_A_TIME: usize = 32;

pub(super) type Nonce = [u8; NONCE_LEN];

/// A ciphertext and its tag, with the nonce they were made with.
#[derive(Debug)]
pub struct Sealed {
    pub nonce: [u8; NONCE_LEN],
    pub sealed: Vec<u8>,
}

/// A session. Lives on one thread at a time.
#[derive(Debug)]
pub struct Session {
    pub(super) raw: cryptoki::session::Session,
    pub(super) token: Token,
    /// Which handles it may use.
    pub(super) era: Era,
    pub(super) stopwatch: Arc<Stopwatch>,
    /// Whose logins it made.
    pub(super) accepted: Cell<Accepted>,
    nonces: Nonces,
    is_spoiled: bool,
}

impl Session {
    pub(super) fn new(raw: cryptoki::session::Session, token: Token, era: Era) -> Self {
        let (stopwatch, accepted, nonces) = Default::default();
        Self { raw, token, era, stopwatch, accepted, nonces, is_spoiled: false }
    }

    /// Its thread's stopwatch, which pauses while the session waits for another.
    pub fn timed_by(self, stopwatch: Arc<Stopwatch>) -> Self {
        Self { stopwatch, ..self }
    }

    /// Whether it may serve another request: nothing has spoiled it, here or for all sessions of its time.
    pub fn is_fit(&self) -> bool {
        !self.is_spoiled && self.era == self.token.handles().era()
    }

    /// Does what the fault asks for, whatever comes of the request.
    pub fn suffer(&mut self, fault: &Fault) {
        match fault.session {
            After::Keep => {}
            After::Reopen => self.is_spoiled = true,
            After::Renew => {
                self.is_spoiled = true;
                self.token.handles().forget_all(self.era);
            }
        }
    }

    /// AES-GCM under the named key, with a nonce from the HSM's own generator. The probe proves the key if it has not been used yet.
    pub fn encrypt(&mut self, cka_id: &[u8], aad: &[u8], plaintext: &[u8], probe: &[u8]) -> Result<Sealed, Fault> {
        check_aad(aad)?;
        check_plaintext(plaintext)?;
        self.with_key(cka_id, probe, |session, key| session.seal(key, aad, plaintext))
    }

    /// The plaintext. After an answer that could mean either, the key's probe tells whether the ciphertext is bad or the node is.
    pub fn decrypt(
        &mut self,
        cka_id: &[u8],
        aad: &[u8],
        nonce: &[u8],
        sealed: &[u8],
        probe: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        check_aad(aad)?;
        let nonce: &Nonce = nonce.try_into().map_err(|_| Fault::bad_input("an IV has 12 bytes"))?;
        if !(TAG_LEN + 1..=TAG_LEN + MAX_PLAINTEXT).contains(&sealed.len()) {
            return Err(Fault::refused(Bucket::Input, Kind::BadCiphertext, "no ciphertext has this length"));
        }
        self.with_key(cka_id, probe, |session, key| match session.unseal(key, nonce, aad, sealed) {
            Err(fault) if fault.is_ambiguous => Err(session.tell_apart(cka_id, key, probe, fault)),
            other => other,
        })
    }

    /// Random bytes from the HSM.
    pub fn random(&mut self, count: usize) -> Result<Zeroizing<Vec<u8>>, Fault> {
        if !(1..=MAX_RANDOM).contains(&count) {
            return Err(Fault::bad_input("1 to 1024 random bytes can be had at once"));
        }
        let mut bytes = Zeroizing::new(vec![0; count]);
        self.raw.generate_random_slice(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn seal(&mut self, key: ObjectHandle, aad: &[u8], plaintext: &[u8]) -> Result<Sealed, Fault> {
        let mut nonce = self.nonces.take(&self.raw)?;
        let sealed = self.token.module().calls.encrypt_gcm(&self.raw, key, &mut nonce, aad, plaintext)?;
        Ok(Sealed { nonce, sealed })
    }

    pub(super) fn unseal(
        &mut self,
        key: ObjectHandle,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.token.module().calls.decrypt_gcm(&self.raw, key, nonce, aad, sealed)
    }

    pub(super) fn tell_apart(&mut self, cka_id: &[u8], key: ObjectHandle, probe: &[u8], fault: Fault) -> Fault {
        if probe.is_empty() {
            return Fault { bucket: Bucket::Unknown, ..fault };
        }
        match probe::ask(self, cka_id, key, probe) {
            Ok(Answer::Right) => {
                Fault { bucket: Bucket::Input, kind: Kind::BadCiphertext, session: After::Keep, ..fault }
            }
            Err(why) if matches!(why.bucket, Bucket::Node | Bucket::Session) => why,
            // It had answered under this handle before: the numbers may have been given out anew.
            Ok(Answer::Wrong) | Err(_) => {
                Fault { bucket: Bucket::Node, kind: Kind::Device, session: After::Renew, ..fault }
            }
        }
    }
}

fn check_aad(aad: &[u8]) -> Result<(), Fault> {
    if (1..=MAX_AAD).contains(&aad.len()) { Ok(()) } else { Err(Fault::bad_input("the AAD is empty or too long")) }
}

fn check_plaintext(plaintext: &[u8]) -> Result<(), Fault> {
    if (1..=MAX_PLAINTEXT).contains(&plaintext.len()) {
        Ok(())
    } else {
        Err(Fault::bad_input("the plaintext is empty or too long"))
    }
}

/// Random nonces, each handed out once. What is left when the session ends is lost, which costs nothing.
struct Nonces {
    bytes: [u8; NONCES_AT_A_TIME * NONCE_LEN],
    used: usize,
}

impl Default for Nonces {
    fn default() -> Self {
        Self { bytes: [0; _], used: NONCES_AT_A_TIME }
    }
}

impl Nonces {
    fn take(&mut self, session: &cryptoki::session::Session) -> Result<Nonce, Fault> {
        if self.used == NONCES_AT_A_TIME {
            session.generate_random_slice(&mut self.bytes)?;
            self.used = 0;
        }
        let (nonces, _) = self.bytes.as_chunks::<NONCE_LEN>();
        let nonce = nonces[self.used];
        self.used += 1;
        Ok(nonce)
    }
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nonces({} left)", NONCES_AT_A_TIME - self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_aborts_some_libraries_is_refused_before_they_see_it() {
        assert_eq!(check_aad(b"").unwrap_err().kind, Kind::BadInput);
        assert_eq!(check_aad(&[0; MAX_AAD + 1]).unwrap_err().kind, Kind::BadInput);
        assert_eq!(check_plaintext(b"").unwrap_err().kind, Kind::BadInput);
        assert_eq!(check_plaintext(&[0; MAX_PLAINTEXT + 1]).unwrap_err().kind, Kind::BadInput);
        assert!(check_aad(b"a").is_ok() && check_plaintext(&[0; MAX_PLAINTEXT]).is_ok());
    }
}
