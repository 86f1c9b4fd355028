//! Jobs of an administrator on tokens we manage: the trust ceremony that gives
//! every token of a cluster the same key-encryption key without its ever being in the clear.
//!
//! Each job has a worker of its own that lives as long as the job. What the ceremony's steps are, and why in this order, stands in the worker's admin module.
//! Opening one logs nobody in: a caller has the time to write the job's logins down. The SO's PIN never comes here: the
//! worker's host puts it in (`keeper`).

use std::sync::Arc;

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::Password;

use super::opening::unexpected;
use super::{Host, OpeningError, Purpose, Turn, WorkerLink, WorkerSpec};

/// The label under which operators find the key-encryption key in a token.
const KEK_LABEL: &str = "keyway:kek";

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
pub struct AdminWorker(WorkerLink);

impl Host {
    /// A worker for one job of the SO's on this node, whose turn it is until the job's logins are closed.
    pub async fn admin(&self, _turn: &Turn, spec: &WorkerSpec) -> Result<AdminWorker, OpeningError> {
        Ok(AdminWorker(self.open(spec, Purpose::Administer).await?))
    }
}

impl AdminWorker {
    /// Makes the key-encryption key in this token, unless it has it. Logs the user in, and the SO if there is need.
    pub async fn make_kek(mut self, kek: &Kek) -> Result<Made, OpeningError> {
        let verb = Verb::MakeKek(v1::MakeKek {
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            label: KEK_LABEL.to_owned(),
            ..Default::default()
        });
        match self.0.ask(verb).await? {
            Outcome::Done(v1::Done { count: 0 }) => Ok(Made::Before),
            Outcome::Done(_) => Ok(Made::Now),
            other => Err(unexpected(other)),
        }
    }

    /// The joining token offers a public key that lives as long as its worker. Logs the SO in.
    pub async fn offer_join(mut self) -> Result<Joining, OpeningError> {
        match self.0.ask(Verb::OfferJoin(v1::OfferJoin::default())).await? {
            Outcome::JoinOffer(offer) => Ok(Joining { link: self.0, offer }),
            other => Err(unexpected(other)),
        }
    }

    /// A token that has the key-encryption key seals it to the offer. Logs the SO in, and then the user.
    pub async fn seal_kek(mut self, kek: &Kek, offer: &v1::JoinOffer) -> Result<Vec<u8>, OpeningError> {
        let verb = Verb::SealKek(v1::SealKek {
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            modulus: offer.modulus.clone(),
            public_exponent: offer.public_exponent.clone(),
            ..Default::default()
        });
        match self.0.ask(verb).await? {
            Outcome::Opaque(sealed) => Ok(sealed.bytes),
            other => Err(unexpected(other)),
        }
    }
}

/// A joining token's half of the ceremony: the worker that made the offer must also accept the KEK.
#[derive(Debug)]
pub struct Joining {
    link: WorkerLink,
    pub offer: v1::JoinOffer,
}

impl Joining {
    /// The joining token takes the KEK in. Logs the user in.
    pub async fn accept_kek(mut self, _turn: &Turn, kek: &Kek, sealed_kek: Vec<u8>) -> Result<(), OpeningError> {
        let verb = Verb::AcceptKek(v1::AcceptKek {
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.clone(),
            label: KEK_LABEL.to_owned(),
            sealed_kek,
        });
        match self.link.ask(verb).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}
