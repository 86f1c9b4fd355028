//! A token in one slot: found by label or serial number, since slot numbers change.
//!
//! PKCS#11 keeps the login with the token and the process, not with a session, and drops it with
//! the last session: whoever logs in keeps one session open that does nothing else.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cryptoki::mechanism::{MechanismInfo, MechanismType};
use cryptoki::session::{SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};

use super::fault::{After, Bucket, Kind, User};
use super::handles::Handles;
use super::inventory::Listings;
use super::{Fault, Module, Pin, Session, Stopwatch};

/// How a token is told from the others.
#[derive(Debug, Clone, Copy)]
pub enum TokenName<'a> {
    Label(&'a str),
    Serial(&'a str),
}

impl TokenName<'_> {
    fn is_of(self, info: &TokenInfo) -> bool {
        match self {
            Self::Label(label) => info.label() == label,
            Self::Serial(serial) => info.serial_number() == serial,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Label(text) | Self::Serial(text) => text,
        }
    }
}

/// A token, as it was found. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Token(Arc<Found>);

#[derive(Debug)]
struct Found {
    module: Module,
    slot: Slot,
    info: TokenInfo,
    handles: Handles,
    listings: Listings,
    /// Held for writing by who makes or destroys objects, for reading by who searches them.
    objects: RwLock<()>,
}

impl Token {
    /// `None` when no initialised token has this name; a fault when several do.
    pub fn find(module: &Module, name: TokenName<'_>) -> Result<Option<Self>, Fault> {
        if name.text().is_empty() {
            return Err(Fault::bad_input("a token is named by its label or serial number"));
        }
        let mut named = module.tokens()?.into_iter().filter(|(_, info)| info.token_initialized() && name.is_of(info));
        match (named.next(), named.next()) {
            (None, _) => Ok(None),
            (Some((slot, info)), None) => Ok(Some(Self::at(module, slot, info))),
            (Some(_), Some(_)) => Err(absent("several tokens have this name")),
        }
    }

    /// Has the SO give the token's user this PIN, whatever he had before; without a token, makes one under this label
    /// first. To be repeated as often as one likes. The PIN is tried before the token is handed out.
    pub fn give_user(
        module: &Module,
        token: Option<Self>,
        label: &str,
        so_pin: &Pin,
        user_pin: &Pin,
    ) -> Result<Self, Fault> {
        let (so, user) = (so_pin.for_setting()?, user_pin.for_setting()?);
        let slot = match token {
            Some(token) => token.0.slot,
            None if label.is_empty() => return Err(absent("no slot has this token")),
            None => {
                check_label(label)?;
                let free = module.tokens()?.into_iter().find(|(_, info)| !info.token_initialized());
                let (slot, _) = free.ok_or_else(|| absent("there is no free slot"))?;
                module.library.init_token(slot, &so, label)?;
                slot
            }
        };
        let token = Self::at(module, slot, module.library.get_token_info(slot)?);
        token.open_session()?.job(|session| {
            session.as_security_officer(so_pin, |session| Ok(session.raw.init_pin(&user)?))?;
            session.as_user(user_pin, |_| Ok(()))
        })?;
        Ok(token)
    }

    /// A read-write session: some libraries refuse the other kind.
    pub fn open_session(&self) -> Result<Session, Fault> {
        // Asked before: a session that is opened while an era ends is not of the next one.
        let era = self.handles().era();
        match self.0.module.library.open_rw_session(self.0.slot).map_err(Fault::from) {
            Ok(raw) => Ok(Session::new(raw, self.clone(), era)),
            Err(fault) => {
                if fault.session == After::Renew {
                    self.handles().forget_all(era);
                }
                Err(fault)
            }
        }
    }

    /// Whether this very token still answers. A token that has vanished can look like an empty one to everything else.
    pub fn still_there(&self) -> Result<(), Fault> {
        let info = self.0.module.library.get_token_info(self.0.slot);
        let info = info.map_err(|error| Fault { kind: Kind::TokenAbsent, session: After::Renew, ..error.into() })?;
        if info.serial_number() == self.serial() { Ok(()) } else { Err(absent("another token is in this slot")) }
    }

    pub fn label(&self) -> &str {
        self.0.info.label()
    }

    pub fn serial(&self) -> &str {
        self.0.info.serial_number()
    }

    pub fn model(&self) -> &str {
        self.0.info.model()
    }

    pub fn firmware_version(&self) -> String {
        let version = self.0.info.firmware_version();
        format!("{}.{}", version.major(), version.minor())
    }

    /// Every mechanism number the token lists, known to us or not.
    pub fn mechanisms(&self) -> Result<Vec<u64>, Fault> {
        self.module().calls.mechanisms(self.0.slot)
    }

    /// What the token tells of one of them.
    pub(super) fn mechanism_info(&self, mechanism: MechanismType) -> Result<MechanismInfo, Fault> {
        Ok(self.module().library.get_mechanism_info(self.0.slot, mechanism)?)
    }

    pub(super) fn module(&self) -> &Module {
        &self.0.module
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.0.handles
    }

    pub(super) fn listings(&self) -> &Listings {
        &self.0.listings
    }

    /// The token's objects, to change them. SoftHSM2 fails a generation that another thread's search or generation comes
    /// across, and every token has a moment in which a new key is nameless. Who waits here is in no call.
    pub(super) fn changing(&self, stopwatch: &Stopwatch) -> RwLockWriteGuard<'_, ()> {
        stopwatch.pause(|| self.0.objects.write()).unwrap_or_else(PoisonError::into_inner)
    }

    /// The token's objects, to search them.
    pub(super) fn unchanging(&self, stopwatch: &Stopwatch) -> RwLockReadGuard<'_, ()> {
        stopwatch.pause(|| self.0.objects.read()).unwrap_or_else(PoisonError::into_inner)
    }

    fn at(module: &Module, slot: Slot, info: TokenInfo) -> Self {
        Self(Arc::new(Found {
            module: module.clone(),
            slot,
            info,
            handles: Handles::default(),
            listings: Listings::default(),
            objects: RwLock::default(),
        }))
    }
}

/// Logins. They hold for every session of the process on this token.
impl Session {
    /// Logs the crypto user in, for good. Spends a login attempt.
    pub fn log_in(&self, pin: &Pin) -> Result<(), Fault> {
        self.log_in_as(User::CryptoUser, UserType::User, pin)
    }

    /// Changes the PIN of the user who is logged in. Spends a login attempt if the old one is wrong.
    pub fn set_pin(&self, old: &Pin, new: &Pin) -> Result<(), Fault> {
        let answer = self.raw.set_pin(&old.for_setting()?, &new.for_setting()?);
        answer.map_err(|error| Fault { login: User::CryptoUser, ..Fault::from(error) })
    }

    pub(super) fn log_in_security_officer(&self, pin: &Pin) -> Result<(), Fault> {
        self.log_in_as(User::SecurityOfficer, UserType::So, pin)
    }

    fn log_in_as(&self, user: User, kind: UserType, pin: &Pin) -> Result<(), Fault> {
        let answer = self.raw.login_with_raw(kind, &pin.for_login());
        answer.map_err(|error| Fault { login: user, ..Fault::from(error) })?;
        self.accepted.set(self.accepted.get().and(user));
        Ok(())
    }

    pub(super) fn log_out(&self) -> Result<(), Fault> {
        Ok(self.raw.logout()?)
    }

    /// Does `work` as the user; nobody is logged in afterwards.
    pub(super) fn as_user<T>(&self, pin: &Pin, work: impl FnOnce(&Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.log_in(pin)?;
        self.then_log_out(work)
    }

    /// Does `work` as the SO; nobody is logged in afterwards.
    pub(super) fn as_security_officer<T>(
        &self,
        pin: &Pin,
        work: impl FnOnce(&Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.log_in_security_officer(pin)?;
        self.then_log_out(work)
    }

    fn then_log_out<T>(&self, work: impl FnOnce(&Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let result = work(self);
        let logged_out = self.log_out();
        let value = result?;
        logged_out.map(|()| value)
    }

    /// That an empty answer may be believed: the token is there, and the user still logged in to it.
    pub(super) fn sees_the_token(&self) -> Result<(), Fault> {
        self.token.still_there()?;
        self.is_logged_in()
    }

    /// That the session lives and its user is still logged in. Says nothing of the token: one that has vanished still answers this.
    pub fn is_logged_in(&self) -> Result<(), Fault> {
        match self.raw.get_session_info()?.session_state() {
            SessionState::RwUser | SessionState::RoUser => Ok(()),
            SessionState::RoPublic | SessionState::RwPublic | SessionState::RwSecurityOfficer => {
                let lost = Fault::refused(Bucket::Node, Kind::LoginLost, "the user is no longer logged in");
                Err(Fault { session: After::Renew, ..lost })
            }
        }
    }
}

fn check_label(label: &str) -> Result<(), Fault> {
    if (1..=32).contains(&label.len()) { Ok(()) } else { Err(Fault::bad_input("a token's label has 1 to 32 bytes")) }
}

fn absent(why: &'static str) -> Fault {
    Fault { session: After::Renew, ..Fault::refused(Bucket::Node, Kind::TokenAbsent, why) }
}
