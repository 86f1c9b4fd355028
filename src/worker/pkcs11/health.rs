//! Whether the token is still the one that was opened, with its user logged in and its keys answering.
//!
//! Asked often, so it costs a few quick calls. All of them are needed: a token whose directory has vanished says OK to
//! everything but C_GetTokenInfo.

use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;

use super::fault::{After, Bucket, Kind};
use super::handles::{Proof, Recalled};
use super::lookup::{Lookup, missing};
use super::mechanism::Sort;
use super::probe::{self, Answer};
use super::{Fault, Session};

/// A key that every token of the cluster has, and what only that key decrypts.
#[derive(Debug, Clone, Copy)]
pub struct Canary<'a> {
    pub cka_id: &'a [u8],
    pub probe: &'a [u8],
}

impl Session {
    /// Before the login there is no canary to ask, and only the serial number is compared. Tells what the canary's own
    /// call took: neither a search for it nor the wait for other threads says how quick the HSM is.
    pub fn check_token(&mut self, canary: Option<Canary<'_>>) -> Result<Option<Duration>, Fault> {
        self.token.still_there()?;
        let Some(canary) = canary else { return Ok(None) };
        self.is_logged_in()?;
        self.ask_canary(canary).map(Some)
    }

    fn ask_canary(&mut self, canary: Canary<'_>) -> Result<Duration, Fault> {
        if let Recalled::Handle(remembered) = self.token.handles().recall(self.era, canary.cka_id) {
            match self.hear(canary, remembered.object) {
                Err(fault) if fault.is_stale_handle() => {}
                heard => return heard,
            }
        }
        match self.look(canary.cka_id, Sort::AES)? {
            Lookup::Found(key) => self.hear(canary, key),
            Lookup::Missing => Err(missing("the canary is missing")),
            Lookup::Different => Err(missing("the canary's CKA_ID is another object's, or more than one's")),
        }
    }

    fn hear(&mut self, canary: Canary<'_>, key: ObjectHandle) -> Result<Duration, Fault> {
        let began = Instant::now();
        match probe::ask(self, canary.cka_id, key, canary.probe)? {
            Answer::Right => {
                let took = began.elapsed();
                self.token.handles().remember(self.era, canary.cka_id, key, Proof::Answered);
                Ok(took)
            }
            // It may be that every number names another key by now.
            Answer::Wrong => Err(Fault {
                session: After::Renew,
                ..Fault::refused(Bucket::Node, Kind::Device, "the canary does not answer its probe")
            }),
        }
    }
}
