//! What a host does around the requests of a worker of its own: it fills in what only it knows, keeps a copy of the token
//! from before whatever may damage it, and puts that back when a worker came to its end in the middle.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::link::v1::{request::Verb, response::Outcome};
use crate::model::HsmId;

use super::attempts::{self, Logins};
use super::{LocalToken, OpeningError, Purpose, TokenName, WorkerSpec, softhsm};

/// Keeps one worker's token.
pub(super) struct Keeper {
    directory: PathBuf,
    spec: WorkerSpec,
    token: LocalToken,
    purpose: Purpose,
    /// Of a worker that does the SO's jobs.
    so_pin: Option<Zeroizing<Vec<u8>>>,
}

impl Keeper {
    /// Reads the SO PIN where a job will need it: a job without it is not even begun.
    pub(super) fn new(
        directory: &Path,
        spec: &WorkerSpec,
        token: &LocalToken,
        purpose: Purpose,
    ) -> Result<Self, OpeningError> {
        let so_pin = match purpose {
            Purpose::Administer | Purpose::MakeToken => Some(so_pin(token, &spec.hsm)?),
            Purpose::Serve | Purpose::Try | Purpose::Look => None,
        };
        Ok(Self { directory: directory.to_owned(), spec: spec.clone(), token: token.clone(), purpose, so_pin })
    }

    /// Before the worker is given the request. What it says of an answer is for [`Keeper::after`].
    pub(super) fn before(&self, verb: &mut Verb) -> Result<Option<Logins>, OpeningError> {
        match verb {
            Verb::GiveUser(ask) => {
                if let TokenName::Label(label) = &self.token.name {
                    label.clone_into(&mut ask.label);
                }
                ask.so_pin = self.so_pin()?;
            }
            Verb::MakeKek(ask) => ask.so_pin = self.so_pin()?,
            Verb::OfferJoin(ask) => ask.so_pin = self.so_pin()?,
            Verb::SealKek(ask) => ask.so_pin = self.so_pin()?,
            Verb::LogIn(_) | Verb::AcceptKek(_) => {}
            _ => return Ok(None),
        }
        softhsm::save(&self.directory, &self.spec, &self.token)?;
        Ok(match verb {
            Verb::LogIn(_) => Some(attempts::count(&self.directory, &self.spec, &self.token, self.purpose)?),
            // They log the user in on their way, with a password that was proved before.
            Verb::MakeKek(_) | Verb::SealKek(_) | Verb::AcceptKek(_) => {
                Some(attempts::unlocked(&self.directory, &self.spec, &self.token)?)
            }
            _ => None,
        })
    }

    /// After the answer, if one came.
    pub(super) fn after(&self, logins: Logins, answer: &Result<Outcome, OpeningError>) -> Result<(), OpeningError> {
        attempts::answered(&self.directory, &self.spec, logins, answer)
    }

    /// Whether the token is put back by whoever ends this worker. After a serving one its successor sees to that, which
    /// knows when it is gone.
    pub(super) fn repairs_at_its_end(&self) -> bool {
        match self.purpose {
            Purpose::Administer | Purpose::MakeToken | Purpose::Try => true,
            Purpose::Serve | Purpose::Look => false,
        }
    }

    /// Only while no worker uses the token.
    pub(super) fn repair(&self) -> Result<(), OpeningError> {
        softhsm::repair(&self.directory, &self.spec, &self.token)
    }

    fn so_pin(&self) -> Result<Vec<u8>, OpeningError> {
        self.so_pin.as_ref().map(|pin| pin.to_vec()).ok_or(OpeningError::OutOfTurn)
    }
}

/// Without the SO PIN, which its type would print.
impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, purpose, .. } = self;
        f.debug_struct("Keeper").field("slot", &spec.slot_name()).field("purpose", purpose).finish_non_exhaustive()
    }
}

fn so_pin(token: &LocalToken, hsm: &HsmId) -> Result<Zeroizing<Vec<u8>>, OpeningError> {
    let path = token.so_pin_file.as_ref().ok_or_else(|| OpeningError::NoSoPin(hsm.clone()))?;
    let text = Zeroizing::new(std::fs::read(path).map_err(OpeningError::SoPin)?);
    Ok(Zeroizing::new(text.trim_ascii_end().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::example;

    #[test]
    fn a_keeper_is_printed_without_its_so_pin() {
        let home = tempfile::tempdir().unwrap();
        let so_pin_file = home.path().join("so-pin");
        std::fs::write(&so_pin_file, "12345678").unwrap();
        let token = LocalToken { so_pin_file: Some(so_pin_file), ..example::token() };
        let spec = example::slot(&token);
        let keeper = Keeper::new(home.path(), &spec, &token, Purpose::Administer).unwrap();
        let (pin, printed) = (keeper.so_pin().unwrap(), format!("{keeper:?}"));
        assert!(!printed.contains("12345678") && !printed.contains(&format!("{pin:?}")), "{printed}");
    }
}
