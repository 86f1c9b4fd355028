//! Before the pool: one thread, one request at a time. Opens the library and its sessions, does an
//! administrator's jobs, and ends with the login that the pool needs.

use std::path::Path;
use std::time::Duration;

use crate::link::Patience;
use crate::link::v1::request::Verb;
use crate::link::v1::response::Outcome;
use crate::link::v1::{self, Request, open};

use super::admin::Admin;
use super::pkcs11::{Fault, Kind, Module, Pin, Session, Token, TokenName};
use super::running;
use super::wire::{Answers, Ended, Incoming, Outgoing};

const MOST_SESSIONS: u32 = 256;

/// A token with its user logged in, and what the pool needs beside.
pub struct LoggedIn {
    pub token: Token,
    /// The login ends with the last session, so this one stays open and does nothing else.
    pub anchor: Session,
    pub sessions: Vec<Session>,
    pub patience: Patience,
}

/// Answers requests until the user is logged in.
pub fn until_login(incoming: &mut Incoming, outgoing: &Outgoing) -> Result<LoggedIn, Ended> {
    let mut opening = Opening::Nothing;
    let mut answers = Answers::default();
    loop {
        let request = incoming.next_alone()?;
        let (id, result) = (request.id, opening.answer(request));
        let logged_in = result.is_ok() && matches!(opening, Opening::LoggedIn(_));
        answers.push(id, result);
        outgoing.send(&mut answers).map_err(Ended::Failed)?;
        if logged_in && let Opening::LoggedIn(ready) = opening {
            return Ok(ready);
        }
    }
}

/// How far the worker has come.
enum Opening {
    Nothing,
    /// A library without a session: to look for a token or to make it, or because opening it failed.
    Loaded(Module, Option<Token>),
    Opened(LoggedOut),
    LoggedIn(LoggedIn),
}

/// An opened token that nobody is logged in to, or the SO while an offer to join stands.
struct LoggedOut {
    token: Token,
    admin: Admin,
    sessions: Vec<Session>,
    patience: Patience,
}

impl Opening {
    fn answer(&mut self, request: Request) -> Result<Outcome, Fault> {
        let verb = request.verb.ok_or_else(|| Fault::protocol("the request has no verb"))?;
        match (verb, &mut *self) {
            (Verb::Ping(_), _) => {
                Ok(Outcome::Pong(v1::Pong { running: Vec::new(), resident_bytes: running::resident_bytes() }))
            }
            _ if request.remaining_ms == 0 => Err(super::late()),
            (Verb::Open(ask), Self::Nothing) => self.open(&ask),
            (Verb::LogIn(ask), Self::Opened(_)) => self.log_in(&Pin::new(ask.pin)),
            (Verb::GiveUser(ask), Self::Loaded(module, token)) => {
                let (so_pin, user_pin) = (Pin::new(ask.so_pin), Pin::new(ask.user_pin));
                let token = Token::give_user(module, token.clone(), &ask.label, &so_pin, &user_pin)?;
                opened(&token, 0)
            }
            (Verb::CheckToken(ask), Self::Opened(it)) if ask.canary_cka_id.is_empty() => {
                super::verbs::check_token(it.admin.session(), &ask)
            }
            (Verb::CheckToken(ask), Self::Loaded(_, Some(token))) if ask.canary_cka_id.is_empty() => {
                token.still_there()?;
                Ok(Outcome::Done(v1::Done::default()))
            }
            (Verb::MakeKek(ask), Self::Opened(it)) => it.admin.make_kek(ask),
            (Verb::OfferJoin(ask), Self::Opened(it)) => it.admin.offer_join(ask),
            (Verb::SealKek(ask), Self::Opened(it)) => it.admin.seal_kek(ask),
            (Verb::AcceptKek(ask), Self::Opened(it)) => it.admin.accept_kek(ask),
            (
                Verb::Open(_)
                | Verb::LogIn(_)
                | Verb::MakeKek(_)
                | Verb::OfferJoin(_)
                | Verb::SealKek(_)
                | Verb::AcceptKek(_)
                | Verb::GiveUser(_)
                | Verb::Summon(_),
                _,
            ) => Err(out_of_turn()),
            (
                Verb::Encrypt(_)
                | Verb::Decrypt(_)
                | Verb::GenerateDataKey(_)
                | Verb::GenerateRandom(_)
                | Verb::Sign(_)
                | Verb::DecryptOaep(_)
                | Verb::TestAbilities(_)
                | Verb::GenerateKey(_)
                | Verb::WrapKey(_)
                | Verb::UnwrapKey(_)
                | Verb::ProveKey(_)
                | Verb::DestroyKey(_)
                | Verb::ListObjects(_)
                | Verb::FindKeys(_)
                | Verb::MakeProbe(_)
                | Verb::DestroyProvenKey(_)
                | Verb::CheckToken(_)
                | Verb::SweepUnfinished(_)
                | Verb::SetPin(_),
                _,
            ) => Err(Fault::protocol("nobody is logged in")),
        }
    }

    fn open(&mut self, ask: &v1::Open) -> Result<Outcome, Fault> {
        if ask.sessions > MOST_SESSIONS {
            return Err(Fault::bad_input("a worker keeps at most 256 sessions"));
        }
        let name = match &ask.token {
            Some(open::Token::Label(label)) => TokenName::Label(label),
            Some(open::Token::Serial(serial)) => TokenName::Serial(serial),
            None => return Err(Fault::bad_input("no token is named")),
        };
        let module = Module::load(Path::new(&ask.module))?;
        *self = Self::Loaded(module.clone(), None);
        let token = Token::find(&module, name)?;
        *self = Self::Loaded(module, token.clone());
        match (token, ask.sessions) {
            (Some(token), 0) => opened(&token, 0),
            (None, 0) => Ok(Outcome::Opened(v1::Opened::default())),
            (None, _) => Err(Fault::refused(super::pkcs11::Bucket::Node, Kind::TokenAbsent, "no slot has this token")),
            (Some(token), wanted) => {
                let admin = Admin::new(token.open_session()?);
                let sessions = open_sessions(&token, wanted)?;
                let answer = opened(&token, sessions.len())?;
                let patience = Patience {
                    quick: Duration::from_millis(ask.patience_ms.into()),
                    slow: Duration::from_millis(ask.slow_patience_ms.into()),
                };
                *self = Self::Opened(LoggedOut { token, admin, sessions, patience });
                Ok(answer)
            }
        }
    }

    fn log_in(&mut self, pin: &Pin) -> Result<Outcome, Fault> {
        let Self::Opened(it) = self else {
            return Err(Fault::protocol("out of turn"));
        };
        it.admin.session().log_in(pin)?;
        if let Self::Opened(it) = std::mem::replace(self, Self::Nothing) {
            let LoggedOut { token, admin, sessions, patience } = it;
            *self = Self::LoggedIn(LoggedIn { token, anchor: admin.into_session(), sessions, patience });
        }
        Ok(Outcome::Done(v1::Done::default()))
    }
}

fn out_of_turn() -> Fault {
    Fault::protocol("out of turn")
}

/// As many as wanted, or as the token allows; one at least.
fn open_sessions(token: &Token, wanted: u32) -> Result<Vec<Session>, Fault> {
    let mut sessions = Vec::new();
    for _ in 0..wanted {
        match token.open_session() {
            Ok(session) => sessions.push(session),
            Err(fault) if fault.kind == Kind::Capacity && !sessions.is_empty() => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(sessions)
}

fn opened(token: &Token, sessions: usize) -> Result<Outcome, Fault> {
    Ok(Outcome::Opened(v1::Opened {
        serial: token.serial().to_owned(),
        model: token.model().to_owned(),
        firmware_version: token.firmware_version(),
        label: token.label().to_owned(),
        mechanisms: token.mechanisms()?,
        sessions: u32::try_from(sessions).expect("at most 256"),
    }))
}
