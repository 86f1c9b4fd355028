//! Crypto users on tokens that we manage: each has a token of his own on each node, in a directory of its own.
//!
//! The user's `SOFTHSM2_CONF` stands in that directory, whose parent is made by the operator and never here: where it is
//! missing, the node's tokens are out of reach, and nothing is concluded from that. Every job is to be repeated as often as
//! one likes, so that one that was cut short is finished by being done again. Which users there should be is not known here.
//! On another host its node does the same.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::Password;

use super::local::Local;
use super::opening::unexpected;
use super::slot::SlotLock;
use super::{Host, LocalToken, Location, OpeningError, Purpose, Trial, Turn, WorkerSpec, attempts, pin_text, softhsm};

use softhsm::{rid, sync_above};

/// What keyway makes in a user's directory.
const OURS: [&str; 3] = ["softhsm2.conf", "softhsm2.conf.fresh", "tokens"];

/// Why a job for a user was not done.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("{0} is not there")]
    OutOfReach(PathBuf),
    #[error("the user's token is not in a directory of his own: no SOFTHSM2_CONF is configured")]
    NoDirectory,
    #[error("{0} holds more than keyway makes there: remove the token by hand")]
    NotOurs(PathBuf),
    #[error(transparent)]
    Host(#[from] OpeningError),
}

/// A user as his token's directory shows him.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserStanding {
    pub is_present: bool,
    /// In a row.
    pub failed_logins: u32,
    pub is_locked: bool,
}

impl Host {
    /// Whether the user has a token, and how his logins went.
    pub async fn user_standing(&self, spec: &WorkerSpec) -> Result<UserStanding, UserError> {
        match &spec.location {
            Location::Here(token) => self.local.user_standing(spec, token),
            Location::There(node) => self.remote.user_standing(spec, node).await,
        }
    }

    /// How each of the users stands, all of them on one HSM.
    pub async fn user_standings(
        &self,
        specs: &[WorkerSpec],
    ) -> Result<Vec<Result<UserStanding, UserError>>, UserError> {
        let Some(first) = specs.first() else { return Ok(Vec::new()) };
        match &first.location {
            Location::Here(_) => Ok(join_all(specs.iter().map(|spec| self.user_standing(spec))).await),
            Location::There(node) => self.remote.user_standings(specs, node).await,
        }
    }

    /// How many of the user's logins failed in a row, also while he is out of reach: none, where they lock nobody.
    pub async fn failed_logins(&self, spec: &WorkerSpec) -> Result<u32, OpeningError> {
        match &spec.location {
            Location::Here(token) => self.local.failed_logins(spec, token),
            Location::There(node) if node.manages_users => self.remote.failed_logins(spec, node).await,
            Location::There(_) => Ok(0),
        }
    }

    /// Makes the user's token, or gives the user of the one that is there another password, as its SO: one login of the
    /// SO's, which the caller has written down, unless the token is new. The token's serial number.
    pub async fn give_user(&self, _turn: &Turn, spec: &WorkerSpec, password: &Password) -> Result<String, UserError> {
        match &spec.location {
            Location::Here(token) => {
                let user = Alone { spec, token, slot: self.local.slot(spec).await? };
                self.local.give_user(user, password).await
            }
            Location::There(node) => self.remote.give_user(spec, node, password).await,
        }
    }

    /// Forgets the user's failed logins: he may log in again.
    pub async fn unlock_user(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<(), UserError> {
        match &spec.location {
            Location::Here(_) => self.local.unlock_user(spec),
            Location::There(node) => self.remote.unlock_user(spec, node).await,
        }
    }

    /// Destroys the user's token with all that is in it, once no worker uses it, and what the host kept of him.
    pub async fn remove_user(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<(), UserError> {
        match &spec.location {
            Location::Here(token) => {
                let user = Alone { spec, token, slot: self.local.slot(spec).await? };
                self.local.remove_user(user)
            }
            Location::There(node) => self.remote.remove_user(spec, node).await,
        }
    }

    /// Opens the user's token for one attempt to log in, as [`Host::open_trial`] does, once no other worker uses it.
    pub async fn open_user_trial(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<Trial, OpeningError> {
        let link = match &spec.location {
            Location::Here(token) => {
                let slot = self.local.slot(spec).await?;
                self.local.open_alone(spec, token, Purpose::Try, slot).await?
            }
            Location::There(node) => self.remote.open_alone(spec, node).await?,
        };
        Ok(Trial(link))
    }
}

/// A user whose slot nobody else has, in the node's turn.
pub(super) struct Alone<'a> {
    pub(super) spec: &'a WorkerSpec,
    pub(super) token: &'a LocalToken,
    pub(super) slot: SlotLock,
}

impl Local {
    pub(super) fn user_standing(&self, spec: &WorkerSpec, token: &LocalToken) -> Result<UserStanding, UserError> {
        reachable_home(token)?;
        let failed_logins = self.failed_logins(spec, token)?;
        let is_locked = attempts::is_locked(token, failed_logins);
        Ok(UserStanding { is_present: !softhsm::token_objects(token).is_empty(), failed_logins, is_locked })
    }

    pub(super) fn failed_logins(&self, spec: &WorkerSpec, token: &LocalToken) -> Result<u32, OpeningError> {
        if token.locks_user() { attempts::failed(self.directory(), spec) } else { Ok(0) }
    }

    pub(super) async fn give_user(&self, user: Alone<'_>, password: &Password) -> Result<String, UserError> {
        let Alone { spec, token, slot } = user;
        make_home(&reachable_home(token)?)?;
        let user_pin = pin_text(&spec.username, password).expose().as_bytes().to_vec();
        let mut link = self.open_alone(spec, token, Purpose::MakeToken, slot).await?;
        let answer = link.ask(Verb::GiveUser(v1::GiveUser { user_pin, ..Default::default() })).await;
        link.end().await;
        match answer? {
            Outcome::Opened(opened) => {
                self.keep_token(spec, token)?;
                Ok(opened.serial)
            }
            other => Err(unexpected(other).into()),
        }
    }

    pub(super) fn unlock_user(&self, spec: &WorkerSpec) -> Result<(), UserError> {
        Ok(attempts::forget(self.directory(), spec)?)
    }

    pub(super) fn remove_user(&self, user: Alone<'_>) -> Result<(), UserError> {
        let Alone { spec, token, slot: _slot } = user;
        remove_home(&reachable_home(token)?)?;
        let ours = format!("{}.", spec.slot_name());
        self.forget_files(&ours).map_err(files(self.directory()))
    }

    /// Copies of the token, counts, marks: all that is kept under the slot's name.
    pub(super) fn forget_files(&self, prefix: &str) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.directory())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The user's directory, which may not be there yet. The one above it must be.
fn reachable_home(token: &LocalToken) -> Result<PathBuf, UserError> {
    let configuration = token.environment.get("SOFTHSM2_CONF").map(Path::new);
    let home = configuration.and_then(Path::parent).ok_or(UserError::NoDirectory)?;
    let above = home.parent().ok_or(UserError::NoDirectory)?;
    if above.is_dir() { Ok(home.to_owned()) } else { Err(UserError::OutOfReach(above.to_owned())) }
}

/// Makes what is missing, on the disk when this returns. An operator's own configuration is left as it is.
fn make_home(home: &Path) -> Result<(), UserError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().mode(0o700).create(home);
    let made = made.or_else(|error| if home.is_dir() { Ok(()) } else { Err(error) });
    let configured = std::fs::metadata(home.join("softhsm2.conf")).is_ok_and(|file| file.len() > 0);
    let made =
        made.and_then(|()| if configured { Ok(()) } else { softhsm::TokenDirectory::make(home.to_owned()).map(drop) });
    made.and_then(|()| sync_above(home)).map_err(files(home))
}

/// Gone as a whole before the first file of it is removed: half a token is never found under the user's name.
fn remove_home(home: &Path) -> Result<(), UserError> {
    let name = home.file_name().ok_or(UserError::NoDirectory)?.to_string_lossy();
    // No user's name has a full stop.
    let removed = home.with_file_name(format!(".removed.{name}"));
    rid(&removed).map_err(files(&removed))?;
    if !home.exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(home).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(files(home))?;
    if entries.iter().any(|entry| !OURS.iter().any(|ours| entry.file_name() == *ours)) {
        return Err(UserError::NotOurs(home.to_owned()));
    }
    if !is_one_token_of_ours(home).map_err(files(home))? {
        return Err(UserError::NotOurs(home.to_owned()));
    }
    std::fs::rename(home, &removed).and_then(|()| sync_above(home)).map_err(files(home))?;
    rid(&removed).map_err(files(&removed))
}

/// Whether the directory has one token at most, and its configuration leads there: an operator's may not, and a
/// directory that several tokens share is nobody's to remove.
fn is_one_token_of_ours(home: &Path) -> std::io::Result<bool> {
    let tokens = home.join("tokens");
    let configuration = match std::fs::read_to_string(home.join("softhsm2.conf")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    // Nothing is in it yet when making it was cut short.
    let leads_there = configuration.is_empty()
        || softhsm::tokens_directory(&configuration).is_some_and(|configured| is_same(configured, &tokens));
    Ok(leads_there && softhsm::token_objects_in(&tokens).len() <= 1)
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn files(path: &Path) -> impl FnOnce(std::io::Error) -> UserError {
    let path = path.to_owned();
    move |source| OpeningError::Files { path, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_users_directory_goes_whole_and_one_with_more_in_it_stays() {
        let above = tempfile::tempdir().unwrap();
        let home = above.path().join("alice");
        make_home(&home).unwrap();
        let own = format!("# The operator's own\ndirectories.tokendir = {}\n", home.join("./tokens").display());
        std::fs::write(home.join("softhsm2.conf"), &own).unwrap();
        make_home(&home).unwrap();
        assert_eq!(std::fs::read_to_string(home.join("softhsm2.conf")).unwrap(), own);

        std::fs::write(home.join("so-pin"), b"").unwrap();
        assert!(matches!(remove_home(&home), Err(UserError::NotOurs(_))));
        assert!(home.join("softhsm2.conf").exists());

        std::fs::remove_file(home.join("so-pin")).unwrap();
        // What a crash left of an earlier one.
        std::fs::create_dir(above.path().join(".removed.alice")).unwrap();
        remove_home(&home).unwrap();
        remove_home(&home).unwrap();
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0);
    }

    #[test]
    fn tokens_that_may_be_others_are_not_removed_with_a_user() {
        let above = tempfile::tempdir().unwrap();
        let home = above.path().join("kmsuser");
        make_home(&home).unwrap();
        let ours = std::fs::read_to_string(home.join("softhsm2.conf")).unwrap();
        let elsewhere = above.path().join("elsewhere");
        for token in [home.join("tokens/one"), elsewhere.join("one")] {
            std::fs::create_dir_all(&token).unwrap();
            std::fs::write(token.join("token.object"), "a token").unwrap();
        }
        for leads_elsewhere in
            [format!("directories.tokendir = {}\n", elsewhere.display()), "log.level = INFO\n".into()]
        {
            std::fs::write(home.join("softhsm2.conf"), leads_elsewhere).unwrap();
            assert!(matches!(remove_home(&home), Err(UserError::NotOurs(_))));
        }
        std::fs::write(home.join("softhsm2.conf"), ours).unwrap();

        let second = home.join("tokens/two");
        std::fs::create_dir(&second).unwrap();
        std::fs::write(second.join("token.object"), "another's token").unwrap();
        assert!(matches!(remove_home(&home), Err(UserError::NotOurs(_))));
        assert!(home.join("tokens/one/token.object").exists() && second.join("token.object").exists());

        std::fs::remove_dir_all(second).unwrap();
        remove_home(&home).unwrap();
        assert!(!home.exists() && elsewhere.join("one/token.object").exists());
    }
}
