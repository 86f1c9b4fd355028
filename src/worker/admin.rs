//! An administrator's jobs on an opened token: the steps of the trust ceremony, one request each.
//!
//! They use the token's anchor session and no pool; nobody is logged in between two of them, except
//! the SO from an offer to join until the key-encryption key is accepted.

use crate::link::v1;
use crate::link::v1::response::Outcome;

use super::pkcs11::{Fault, Kek, Offer, Pin, Session};

pub struct Admin {
    session: Session,
    offer: Option<Offer>,
}

impl Admin {
    pub fn new(session: Session) -> Self {
        Self { session, offer: None }
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    pub fn into_session(self) -> Session {
        self.session
    }

    pub fn make_kek(&mut self, ask: v1::MakeKek) -> Result<Outcome, Fault> {
        let (so_pin, user_pin) = (Pin::new(ask.so_pin), Pin::new(ask.user_pin));
        let kek = Kek { cka_id: &ask.kek_cka_id, label: &ask.label };
        let made = self.session.job(|session| session.make_kek(&so_pin, &user_pin, kek))?;
        Ok(Outcome::Done(v1::Done { count: made.into() }))
    }

    pub fn offer_join(&mut self, ask: v1::OfferJoin) -> Result<Outcome, Fault> {
        if self.offer.is_some() {
            return Err(Fault::protocol("an offer stands already"));
        }
        let so_pin = Pin::new(ask.so_pin);
        let offer = self.offer.insert(self.session.job(|session| session.offer_join(&so_pin))?);
        Ok(Outcome::JoinOffer(v1::JoinOffer {
            modulus: offer.modulus.clone(),
            public_exponent: offer.public_exponent.clone(),
        }))
    }

    pub fn seal_kek(&mut self, ask: v1::SealKek) -> Result<Outcome, Fault> {
        let (so_pin, user_pin) = (Pin::new(ask.so_pin), Pin::new(ask.user_pin));
        let pins = (&so_pin, &user_pin);
        let job = |session: &mut Session| session.seal_kek(pins, &ask.kek_cka_id, &ask.modulus, &ask.public_exponent);
        let sealed = self.session.job(job)?;
        Ok(Outcome::Opaque(v1::Opaque { bytes: sealed }))
    }

    pub fn accept_kek(&mut self, ask: v1::AcceptKek) -> Result<Outcome, Fault> {
        let offer = self.offer.take().ok_or_else(|| Fault::protocol("no offer to join was made here"))?;
        let kek = Kek { cka_id: &ask.kek_cka_id, label: &ask.label };
        let user_pin = Pin::new(ask.user_pin);
        self.session.job(|session| session.accept_kek(&offer, &user_pin, kek, &ask.sealed_kek))?;
        Ok(Outcome::Done(v1::Done::default()))
    }
}
