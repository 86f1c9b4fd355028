//! The trust ceremony: how every token of a cluster comes to hold one trusted key-encryption key (KEK).
//!
//! A key marked `WRAP_WITH_TRUSTED` is wrapped only under a key marked `TRUSTED`, and only the SO
//! can give that mark. On SoftHSM2 one way alone works:
//!
//! ```text
//! SO    makes (or unwraps) the KEK: session object, not private, TRUSTED, WRAP_WITH_TRUSTED
//!  └──▶ logs out; the object stays, because it is not private
//! user  logs in, in the same process, and copies it: token object, private; both marks stay
//! ```
//!
//! Marking it later fails, and so does making it private or a token object as SO. SO and user are
//! never logged in at once in one process. The KEK is extractable, or it could not be sealed to a
//! joining token; `WRAP_WITH_TRUSTED` keeps that to keys the SO trusts.
//!
//! What wraps and unwraps can export, in the hands of the user, unless it is held to more:
//!
//! - unwrapping a key into the open: an unwrap template makes every unwrapped key sensitive again;
//! - wrapping the KEK under itself, to unwrap it as a key that decrypts: a wrap template shuts it out;
//! - padding oracles: one mechanism is allowed, whose unwrapping is all or nothing;
//! - changing any of this, or copying the KEK without it: it is not modifiable, so every copy is exact.

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use crate::model::KeyKind;

use super::fault::{Bucket, Kind};
use super::key::{NewKey, check_name};
use super::lookup::Lookup;
use super::mechanism::Sort;
use super::raw::Limits;
use super::{Fault, Pin, Session};

const JOIN_KEY_BITS: u64 = 3072;
const JOIN_KEY_BYTES: usize = 384;
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// What the KEK is called in its token.
#[derive(Debug, Clone, Copy)]
pub struct Kek<'a> {
    pub cka_id: &'a [u8],
    pub label: &'a str,
}

/// A joining token's RSA pair, alive as long as the session that made it.
#[derive(Debug)]
pub struct Offer {
    pub modulus: Vec<u8>,
    pub public_exponent: Vec<u8>,
    private: ObjectHandle,
}

impl Session {
    /// Does a job, and adds to its fault whose logins it had made by then: whoever counts them knows which were not.
    pub fn job<T>(&mut self, job: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.accepted.take();
        job(self).map_err(|fault| Fault { accepted: self.accepted.get(), ..fault })
    }

    /// Makes the KEK in this token, unless it is there. Tells whether it did.
    pub fn make_kek(&mut self, so_pin: &Pin, user_pin: &Pin, kek: Kek<'_>) -> Result<bool, Fault> {
        check(kek)?;
        if self.user_has(user_pin, kek)? {
            return Ok(false);
        }
        let mut template = session_kek(kek);
        template.push(Attribute::ValueLen(32.into()));
        let made = self.as_security_officer(so_pin, |so| {
            so.token.module().calls.generate_wrapping_key(&so.raw, &template, &LIMITS)
        })?;
        self.keep(user_pin, made, kek)?;
        Ok(true)
    }

    /// A joining token's SO makes an RSA pair for this session. The SO stays logged in: accepting the KEK takes him again.
    pub fn offer_join(&mut self, so_pin: &Pin) -> Result<Offer, Fault> {
        self.log_in_security_officer(so_pin)?;
        let offer = self.make_offer();
        if offer.is_err() {
            self.log_out()?;
        }
        offer
    }

    /// Seals this token's KEK to a joining token's offer.
    pub fn seal_kek(
        &mut self,
        (so_pin, user_pin): (&Pin, &Pin),
        kek_cka_id: &[u8],
        modulus: &[u8],
        public_exponent: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        if modulus.len() != JOIN_KEY_BYTES || public_exponent != PUBLIC_EXPONENT {
            return Err(Fault::bad_input("a join offer is an RSA-3072 key with exponent 65537"));
        }
        let trusted = trusted_public_key(modulus);
        let joiner = self.as_security_officer(so_pin, |so| Ok(so.raw.create_object(&trusted)?))?;
        self.log_in(user_pin)?;
        let sealed = self.with_kek(kek_cka_id, |user, kek| Ok(user.raw.wrap_key(&oaep(), joiner, kek)?));
        // The handle ends with the login.
        self.token.handles().forget(kek_cka_id);
        let cleared = self.raw.destroy_object(joiner);
        self.log_out()?;
        let sealed = sealed?;
        cleared?;
        Ok(sealed)
    }

    /// Takes the sealed KEK in, in the session that made the offer. Whatever comes of it, the SO is logged out and the offer spent.
    pub fn accept_kek(&mut self, offer: &Offer, user_pin: &Pin, kek: Kek<'_>, sealed: &[u8]) -> Result<(), Fault> {
        let unwrapped = check(kek).and_then(|()| {
            let (under, template) = ((&oaep(), offer.private), session_kek(kek));
            self.token.module().calls.unwrap_wrapping_key(&self.raw, under, sealed, &template, &LIMITS)
        });
        self.log_out()?;
        let unwrapped = unwrapped?;
        if self.user_has(user_pin, kek)? {
            return Ok(self.raw.destroy_object(unwrapped)?);
        }
        self.keep(user_pin, unwrapped, kek)
    }

    fn make_offer(&mut self) -> Result<Offer, Fault> {
        let public = [
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::ModulusBits(JOIN_KEY_BITS.into()),
            Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
            Attribute::Wrap(true),
        ];
        let private = [
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Unwrap(true),
        ];
        let (public, private) = self.raw.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
        let mut offer = Offer { modulus: Vec::new(), public_exponent: PUBLIC_EXPONENT.to_vec(), private };
        for attribute in self.raw.get_attributes(public, &[AttributeType::Modulus])? {
            if let Attribute::Modulus(modulus) = attribute {
                offer.modulus = modulus;
            }
        }
        Ok(offer)
    }

    /// Whether the user has the KEK already, with all its marks.
    fn user_has(&mut self, user_pin: &Pin, kek: Kek<'_>) -> Result<bool, Fault> {
        self.log_in(user_pin)?;
        let presence = self.look(kek.cka_id, Sort::AES).and_then(|found| match found {
            Lookup::Missing => Ok(false),
            Lookup::Found(key) if self.is_trusted_kek(key)? => Ok(true),
            Lookup::Found(_) | Lookup::Different => Err(untrusted("another object has the KEK's CKA_ID")),
        });
        self.log_out()?;
        presence
    }

    /// The user's half: copies the SO's session object to a private token object, and reads back that it kept its marks.
    fn keep(&mut self, user_pin: &Pin, made: ObjectHandle, kek: Kek<'_>) -> Result<(), Fault> {
        let lasting = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Id(kek.cka_id.to_vec()),
            Attribute::Label(kek.label.as_bytes().to_vec()),
            Attribute::Modifiable(false),
        ];
        self.as_user(user_pin, |user| {
            let copy = user.raw.copy_object(made, &lasting).map_err(Fault::from);
            // The session object has done its work, or will never do it.
            let cleared = user.raw.destroy_object(made);
            let copy = copy?;
            match user.is_trusted_kek(copy) {
                Ok(true) => Ok(cleared?),
                Ok(false) => Err(user.undo(copy, kek.cka_id, untrusted("the copied KEK lost a mark"))),
                Err(fault) => Err(user.undo(copy, kek.cka_id, fault)),
            }
        })
    }

    pub(super) fn is_trusted_kek(&self, object: ObjectHandle) -> Result<bool, Fault> {
        let marks = [
            (AttributeType::Trusted, Attribute::Trusted(true)),
            (AttributeType::WrapWithTrusted, Attribute::WrapWithTrusted(true)),
            (AttributeType::Sensitive, Attribute::Sensitive(true)),
            (AttributeType::Private, Attribute::Private(true)),
            (AttributeType::Token, Attribute::Token(true)),
            (AttributeType::Modifiable, Attribute::Modifiable(false)),
            (AttributeType::Decrypt, Attribute::Decrypt(false)),
        ];
        let read = self.raw.get_attributes(object, &marks.clone().map(|(kind, _)| kind))?;
        let marked = marks.iter().all(|(_, mark)| read.contains(mark));
        Ok(marked && self.token.module().calls.is_limited(&self.raw, object, &LIMITS)?)
    }
}

/// The KEK itself unwraps, so it does not wrap itself; what it unwraps is as closed as what [`super::key`] makes.
const LIMITS: Limits<'static> = Limits {
    wraps: &[Attribute::Unwrap(false), Attribute::WrapWithTrusted(true)],
    unwraps: &[
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
    ],
};

fn session_kek(kek: Kek<'_>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::Trusted(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_KEY_WRAP_PAD]),
        Attribute::Id(kek.cka_id.to_vec()),
        Attribute::Label(kek.label.as_bytes().to_vec()),
    ]
}

fn trusted_public_key(modulus: &[u8]) -> [Attribute; 9] {
    [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Trusted(true),
        Attribute::Modulus(modulus.to_vec()),
        Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
        Attribute::Label(b"keyway:joiner".to_vec()),
    ]
}

/// SHA-1 without a label is all that SoftHSM2 2.6.1 has. OAEP does not rest on its hash's collision resistance.
fn oaep() -> Mechanism<'static> {
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, PkcsOaepSource::empty()))
}

fn check(kek: Kek<'_>) -> Result<(), Fault> {
    check_name(&NewKey { kind: KeyKind::AES, cka_id: kek.cka_id, label: kek.label, kek: None })
}

fn untrusted(why: &'static str) -> Fault {
    Fault::refused(Bucket::Node, Kind::Unsupported, why)
}
