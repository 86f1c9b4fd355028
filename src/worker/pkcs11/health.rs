//! Whether the token is still the one that was opened, with its user logged in and its keys answering.
//!
//! Asked often, so it costs a few quick calls. All of them are needed: a token whose directory has vanished says OK to
//! everything but C_GetTokenInfo.

use cryptoki::object::ObjectHandle;

use super::fault::{After, Bucket, Kind};
use super::handles::{Proof, Recalled};
use super::lookup::{Lookup, missing};
use super::probe::{self, Answer};
use super::{Fault, Session};

/// A key that every token of the cluster has, and what only that key decrypts.
#[derive(Debug, Clone, Copy)]
pub struct Canary<'a> {
    pub cka_id: &'a [u8],
    pub probe: &'a [u8],
}

impl Session {
    /// Before the login there is no canary to ask, and only the serial number is compared.
    pub fn check_token(&mut self, canary: Option<Canary<'_>>) -> Result<(), Fault> {
        self.token.still_there()?;
        match canary {
            None => Ok(()),
            Some(canary) => {
                self.is_logged_in()?;
                self.ask_canary(canary)
            }
        }
    }

    fn ask_canary(&mut self, canary: Canary<'_>) -> Result<(), Fault> {
        if let Recalled::Handle(remembered) = self.token.handles().recall(self.era, canary.cka_id) {
            match self.hear(canary, remembered.object) {
                Err(fault) if fault.is_stale_handle() => {}
                heard => return heard,
            }
        }
        match self.look(canary.cka_id)? {
            Lookup::Found(key) => self.hear(canary, key),
            Lookup::Missing => Err(missing("the canary is missing")),
            Lookup::Different => Err(missing("the canary's CKA_ID is another object's, or more than one's")),
        }
    }

    fn hear(&mut self, canary: Canary<'_>, key: ObjectHandle) -> Result<(), Fault> {
        match probe::ask(self, canary.cka_id, key, canary.probe)? {
            Answer::Right => {
                self.token.handles().remember(self.era, canary.cka_id, key, Proof::Answered);
                Ok(())
            }
            // It may be that every number names another key by now.
            Answer::Wrong => Err(Fault {
                session: After::Renew,
                ..Fault::refused(Bucket::Node, Kind::Device, "the canary does not answer its probe")
            }),
        }
    }
}
