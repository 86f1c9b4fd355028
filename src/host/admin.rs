//! Jobs of an administrator on tokens we manage: making a token, and the trust ceremony that gives
//! every token of a cluster the same key-encryption key without its ever being in the clear.
//!
//! Each job has a worker of its own that lives as long as the job. What the ceremony's steps are, and why in this order, stands in the worker's admin module.

use crate::link::v1::{self, request::Verb, response::Outcome};
use crate::model::{Password, Username};

use super::opening::unexpected;
use super::{Host, OpeningError, WorkerLink, WorkerSpec, process, softhsm};

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
#[derive(Debug, Clone, Copy)]
pub struct Kek<'a> {
    pub id: &'a [u8],
    /// The crypto user's PIN as the token wants it.
    pub user_pin: &'a Password,
}

/// A joining token's half of the ceremony: the worker that made the offer must also accept the KEK.
#[derive(Debug)]
pub struct Joining {
    link: WorkerLink,
    offer: v1::JoinOffer,
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

    /// Makes the key-encryption key in this token, unless it has it.
    pub async fn make_kek(&self, spec: &WorkerSpec, kek: Kek<'_>) -> Result<(), AdminError> {
        let verb = Verb::MakeKek(v1::MakeKek {
            so_pin: so_pin(spec)?,
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.to_vec(),
            label: KEK_LABEL.to_owned(),
        });
        match self.job(spec, verb).await?.1 {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other).into()),
        }
    }

    /// The joining token offers a public key that lives as long as its worker.
    pub async fn offer_join(&self, spec: &WorkerSpec) -> Result<Joining, AdminError> {
        match self.job(spec, Verb::OfferJoin(v1::OfferJoin { so_pin: so_pin(spec)? })).await? {
            (link, Outcome::JoinOffer(offer)) => Ok(Joining { link, offer }),
            (_, other) => Err(unexpected(other).into()),
        }
    }

    /// A token that has the KEK seals it to the offer.
    pub async fn seal_kek(&self, spec: &WorkerSpec, kek: Kek<'_>, joining: &Joining) -> Result<Vec<u8>, AdminError> {
        let verb = Verb::SealKek(v1::SealKek {
            so_pin: so_pin(spec)?,
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.to_vec(),
            modulus: joining.offer.modulus.clone(),
            public_exponent: joining.offer.public_exponent.clone(),
        });
        match self.job(spec, verb).await?.1 {
            Outcome::Opaque(sealed) => Ok(sealed.bytes),
            other => Err(unexpected(other).into()),
        }
    }

    /// The joining token takes the KEK in.
    pub async fn accept_kek(
        &self,
        spec: &WorkerSpec,
        kek: Kek<'_>,
        mut joining: Joining,
        sealed: Vec<u8>,
    ) -> Result<(), AdminError> {
        let verb = Verb::AcceptKek(v1::AcceptKek {
            user_pin: kek.user_pin.expose().as_bytes().to_vec(),
            kek_cka_id: kek.id.to_vec(),
            label: KEK_LABEL.to_owned(),
            sealed_kek: sealed,
        });
        let _turn = self.turn(spec).await;
        softhsm::save(&self.directory, spec)?;
        let outcome = joining.link.ask(verb).await;
        if outcome.is_err() {
            softhsm::repair(&self.directory, spec)?;
        }
        match outcome? {
            Outcome::Done(_) => Ok(()),
            other => Err(unexpected(other).into()),
        }
    }

    /// Starts an admin worker, opens the token, and does one job, in the node's turn and with its token kept safe.
    async fn job(&self, spec: &WorkerSpec, verb: Verb) -> Result<(WorkerLink, Outcome), AdminError> {
        let _turn = self.turn(spec).await;
        softhsm::save(&self.directory, spec)?;
        let mut link = process::spawn_admin(spec)?;
        link.open(spec.open_frame(1)).await?;
        match link.ask(verb).await {
            Ok(outcome) => Ok((link, outcome)),
            Err(error) => {
                softhsm::repair(&self.directory, spec)?;
                Err(error.into())
            }
        }
    }
}

fn so_pin(spec: &WorkerSpec) -> Result<Vec<u8>, AdminError> {
    let path = spec.so_pin_file.as_ref().ok_or_else(|| AdminError::NoSoPin(spec.hsm.clone()))?;
    let text = zeroize::Zeroizing::new(std::fs::read(path).map_err(AdminError::SoPin)?);
    Ok(text.trim_ascii_end().to_vec())
}
