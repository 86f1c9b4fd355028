//! Jobs of an administrator on tokens we manage: making a token, and the trust ceremony that gives
//! every token of a cluster the same key-encryption key without its ever being in the clear.
//!
//! Each job has a worker of its own that lives as long as the job. What the ceremony's steps are, and why in this order, stands in the worker's admin module.
//! Opening one logs nobody in: a caller has the time to write the job's logins down.

use std::sync::Arc;

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::{Password, Username};

use super::opening::unexpected;
use super::{Host, OpeningError, Turn, WorkerLink, WorkerSpec, attempts, process, softhsm};

/// The label under which operators find the key-encryption key in a token.
const KEK_LABEL: &str = "keyway:kek";

/// Why an admin job was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("no so_pin_file is configured for {0}")]
    NoSoPin(crate::model::HsmId),
    #[error("the SO PIN cannot be read")]
    SoPin(#[source] std::io::Error),
    #[error("the admin worker failed")]
    Worker(#[from] OpeningError),
}

/// A key-encryption key, by the `CKA_ID` it has in every token of the cluster.
#[derive(Debug, Clone)]
pub struct Kek {
    pub id: Vec<u8>,
    /// The crypto user's PIN as the token wants it.
    pub user_pin: Arc<Password>,
}

/// Whether a token has just got its key-encryption key, or had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Now,
    Before,
}

/// A worker for one of the SO's jobs, its token open. Nobody is logged in.
#[derive(Debug)]
pub struct AdminWorker {
    host: Host,
    spec: WorkerSpec,
    so_pin: zeroize::Zeroizing<Vec<u8>>,
    link: WorkerLink,
}

impl Host {
    /// Makes the slot's token, with its SO PIN from the slot's file and the user's first password. Nothing is done when the token exists already.
    pub async fn init_token(
        &self,
        spec: &WorkerSpec,
        username: &Username,
        password: &Password,
    ) -> Result<(), AdminError> {
        let v1::open::Token::Label(label) = &spec.token else {
            return Err(AdminError::Worker(OpeningError::OutOfTurn));
        };
        let verb = Verb::InitToken(v1::InitToken {
            label: label.clone(),
            so_pin: so_pin(spec)?,
            user_pin: super::pin_text(username, password).expose().as_bytes().to_vec(),
        });
        let _turn = self.turn(spec).await;
        let mut link = process::spawn_admin(spec)?;
        // Without sessions: there is no token to have them with.
        link.open(spec.open_frame(0)).await?;
        match link.ask(verb).await? {
            Outcome::Opened(_) => Ok(()),
            other => Err(unexpected(other).into()),
        }
    }

    /// A worker for one job of the SO's on this node, whose turn it is until the job's logins are closed.
    pub async fn admin(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<AdminWorker, AdminError> {
        let so_pin = so_pin(spec)?.into();
        attempts::unlocked(&self.directory, spec)?;
        softhsm::save(&self.directory, spec)?;
        let mut link = process::spawn_admin(spec)?;
        link.open(spec.open_frame(1)).await?;
        Ok(AdminWorker { host: self.clone(), spec: spec.clone(), so_pin, link })
    }
}

impl AdminWorker {
    /// Makes the key-encryption key in this token, unless it has it. Logs the user in, and the SO if there is need.
    pub async fn make_kek(mut self, kek: &Kek) -> Result<Made, AdminError> {
        let verb = Verb::MakeKek(v1::MakeKek {
            so_pin: self.so_pin.to_vec(),
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            label: KEK_LABEL.to_owned(),
        });
        match self.job(verb).await? {
            Outcome::Done(v1::Done { count: 0 }) => Ok(Made::Before),
            Outcome::Done(_) => Ok(Made::Now),
            other => Err(unexpected(other).into()),
        }
    }

    /// The joining token offers a public key that lives as long as its worker. Logs the SO in.
    pub async fn offer_join(mut self) -> Result<Joining, AdminError> {
        let verb = Verb::OfferJoin(v1::OfferJoin { so_pin: self.so_pin.to_vec() });
        match self.job(verb).await? {
            Outcome::JoinOffer(offer) => Ok(Joining { host: self.host, spec: self.spec, link: self.link, offer }),
            other => Err(unexpected(other).into()),
        }
    }

    /// A token that has the key-encryption key seals it to the offer. Logs the SO in, and then the user.
    pub async fn seal_kek(mut self, kek: &Kek, offer: &v1::JoinOffer) -> Result<Vec<u8>, AdminError> {
        let verb = Verb::SealKek(v1::SealKek {
            so_pin: self.so_pin.to_vec(),
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            modulus: offer.modulus.clone(),
            public_exponent: offer.public_exponent.clone(),
        });
        match self.job(verb).await? {
            Outcome::Opaque(sealed) => Ok(sealed.bytes),
            other => Err(unexpected(other).into()),
        }
    }

    async fn job(&mut self, verb: Verb) -> Result<Outcome, AdminError> {
        ask(&self.host, &self.spec, &mut self.link, verb).await
    }
}

/// A joining token's half of the ceremony: the worker that made the offer must also accept the KEK.
#[derive(Debug)]
pub struct Joining {
    host: Host,
    spec: WorkerSpec,
    link: WorkerLink,
    pub offer: v1::JoinOffer,
}

impl Joining {
    /// The joining token takes the KEK in. Logs the user in.
    pub async fn accept_kek(mut self, _turn: &Turn, kek: &Kek, sealed_kek: Vec<u8>) -> Result<(), AdminError> {
        let verb = Verb::AcceptKek(v1::AcceptKek {
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            label: KEK_LABEL.to_owned(),
            sealed_kek,
        });
        softhsm::save(&self.host.directory, &self.spec)?;
        match ask(&self.host, &self.spec, &mut self.link, verb).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other).into()),
        }
    }
}

/// Whatever the worker answers. One that does not may have been cut off in the middle of a login.
async fn ask(host: &Host, spec: &WorkerSpec, link: &mut WorkerLink, verb: Verb) -> Result<Outcome, AdminError> {
    match link.ask(verb).await {
        Ok(outcome) => {
            if let Outcome::Fault(fault) = &outcome {
                attempts::count_refusal(&host.directory, spec, fault)?;
            }
            Ok(outcome)
        }
        Err(error) => {
            softhsm::repair(&host.directory, spec)?;
            Err(error.into())
        }
    }
}

pub(super) fn so_pin(spec: &WorkerSpec) -> Result<Vec<u8>, AdminError> {
    let path = spec.so_pin_file.as_ref().ok_or_else(|| AdminError::NoSoPin(spec.hsm.clone()))?;
    let text = zeroize::Zeroizing::new(std::fs::read(path).map_err(AdminError::SoPin)?);
    Ok(text.trim_ascii_end().to_vec())
}
