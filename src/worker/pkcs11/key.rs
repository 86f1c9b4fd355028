//! Keys in the token: what they are made with, how they are proved, and how they end.
//!
//! A key is named by its `CKA_ID`, and recognised by its class, its type and its probe. What this room
//! finds missing is only ever reported: the token may have been emptied or swapped.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectHandle};

use crate::model::{KeyKind, KeyUsage, Material, PublicKey};

use super::fault::{After, Bucket, Kind};
use super::handles::{Handle, MOST, Proof, Recalled};
use super::lookup::{Lookup, check_cka_id, missing};
use super::mechanism::{self, AES_256_BYTES, Making, Sort};
use super::probe::{self, Answer};
use super::{Fault, Session};

pub(super) const MAX_LABEL: usize = 128;
/// A 256-bit key wrapped is 40 bytes long, an RSA key of 4,096 bits some 2,400.
const MAX_WRAPPED: usize = 4 * 1024;

/// What a key is called in the token, and what it travels under.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    pub kind: KeyKind,
    pub cka_id: &'a [u8],
    pub label: &'a str,
    /// The key-encryption key's `CKA_ID`. Without one the key can never leave its token, wrapped or not.
    pub kek: Option<&'a [u8]>,
}

/// A key that was made, and has answered its probe.
#[derive(Debug)]
pub struct Created {
    /// Empty without a key-encryption key.
    pub wrapped: Vec<u8>,
    pub probe: Vec<u8>,
    /// Of an asymmetric key.
    pub public_key: Option<PublicKey>,
}

/// Whether a key is in the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There, and answers its probe if one was given.
    Proven,
    Missing,
    /// There under this id, but another key, or more than one.
    Different,
}

impl Session {
    /// Makes a key, wraps it if a key-encryption key is named, and has it answer its probe. A key that fails any of this is
    /// destroyed again. Of a pair only the private half stays in the token.
    pub fn create(&mut self, new: NewKey<'_>) -> Result<Created, Fault> {
        check_name(&new)?;
        let (making, mut template) = (Making::of(new.kind)?, lasting_key(&new));
        let mut public_key = None;
        let key = self.make_one(new.cka_id, |session| match making {
            Making::Secret { mechanism, bytes } => {
                template.push(Attribute::ValueLen(bytes.into()));
                Ok(session.raw.generate_key(&mechanism, &template)?)
            }
            Making::Pair { mechanism, public } => {
                let (public, private) =
                    session.make_pair(new.kind.spec().material(), &mechanism, &public, &template)?;
                public_key = Some(public);
                Ok(private)
            }
        })?;
        let created = self.wrap_and_prove(&new, key, public_key);
        let created = created.map_err(|fault| self.undo(key, new.cka_id, fault))?;
        self.token.handles().remember(self.era, new.cka_id, key, Proof::Answered);
        Ok(created)
    }

    /// Wraps a key under the key-encryption key.
    pub fn wrap(&mut self, cka_id: &[u8], kek: &[u8], probe: &[u8]) -> Result<Vec<u8>, Fault> {
        self.with_kek(kek, |session, kek| session.with_key(cka_id, probe, |session, key| session.wrap_under(kek, key)))
    }

    /// Takes a wrapped key in, unless it is there already, and has it answer the probe. What this call took in and found wrong is destroyed.
    pub fn take_in(&mut self, new: NewKey<'_>, wrapped: &[u8], probe: &[u8]) -> Result<Presence, Fault> {
        check_name(&new)?;
        if wrapped.is_empty() || wrapped.len() > MAX_WRAPPED || probe.is_empty() {
            return Err(Fault::bad_input("a key is taken in wrapped, with its probe"));
        }
        let kek = new.kek.ok_or_else(|| Fault::bad_input("the key-encryption key is not named"))?;
        match self.prove(new.cka_id, probe, false)? {
            Presence::Missing => {}
            there @ (Presence::Proven | Presence::Different) => return Ok(there),
        }
        let template = lasting_key(&new);
        let key = self.with_kek(kek, |session, kek| {
            session.make_one(new.cka_id, |session| {
                Ok(session.raw.unwrap_key(&Mechanism::AesKeyWrapPad, kek, wrapped, &template)?)
            })
        })?;
        match probe::ask(self, new.cka_id, key, probe) {
            Ok(Answer::Right) => {
                self.token.handles().remember(self.era, new.cka_id, key, Proof::Answered);
                Ok(Presence::Proven)
            }
            Ok(Answer::Wrong) => {
                self.unmake(key, new.cka_id)?;
                Ok(Presence::Different)
            }
            Err(fault) => Err(self.undo(key, new.cka_id, fault)),
        }
    }

    /// Looks for a key, and has it answer the probe unless that is empty. Searches past what is remembered, unless that is
    /// the whole token and nobody else makes keys of this id.
    pub fn prove(&mut self, cka_id: &[u8], probe: &[u8], afresh: bool) -> Result<Presence, Fault> {
        if !afresh
            && !probe.is_empty()
            && self.token.handles().is_complete(self.era)
            && let Some(presence) = self.prove_remembered(cka_id, probe)?
        {
            return Ok(presence);
        }
        self.token.handles().forget(cka_id);
        let key = match self.look(cka_id, probe::sort(probe)?)? {
            Lookup::Found(key) => key,
            // Without a probe nobody knows of which sort it is to be.
            Lookup::Missing if probe.is_empty() && self.is_taken(cka_id)? => return Ok(Presence::Different),
            Lookup::Missing => return Ok(Presence::Missing),
            Lookup::Different => return Ok(Presence::Different),
        };
        let (answer, proof) = match probe {
            [] => (Answer::Right, Proof::Unproven),
            probe => (probe::ask(self, cka_id, key, probe)?, Proof::Answered),
        };
        match answer {
            Answer::Right => {
                self.token.handles().remember(self.era, cka_id, key, proof);
                Ok(Presence::Proven)
            }
            Answer::Wrong => Ok(Presence::Different),
        }
    }

    /// What needs no search, once everything in the token has been listed.
    fn prove_remembered(&mut self, cka_id: &[u8], probe: &[u8]) -> Result<Option<Presence>, Fault> {
        match self.token.handles().recall(self.era, cka_id) {
            Recalled::Unknown => Ok(None),
            Recalled::Free => {
                self.sees_the_token()?;
                Ok(Some(Presence::Missing))
            }
            Recalled::Handle(Handle { object, .. }) => match probe::ask(self, cka_id, object, probe) {
                Ok(Answer::Right) => {
                    self.token.handles().remember(self.era, cka_id, object, Proof::Answered);
                    Ok(Some(Presence::Proven))
                }
                Ok(Answer::Wrong) => Ok(None),
                Err(fault) if fault.is_stale_handle() => Ok(None),
                Err(fault) => Err(fault),
            },
        }
    }

    /// Destroys every object with this `CKA_ID`, and tells how many there were.
    pub fn destroy(&mut self, cka_id: &[u8]) -> Result<usize, Fault> {
        check_cka_id(cka_id)?;
        let token = self.token.clone();
        let _alone = token.changing(&self.stopwatch);
        token.handles().forget(cka_id);
        let objects = self.search(&[Attribute::Id(cka_id.to_vec())], MOST)?;
        if objects.is_empty() {
            self.sees_the_token()?;
        }
        for &object in &objects {
            self.raw.destroy_object(object)?;
        }
        token.handles().vacate(self.era, cka_id);
        Ok(objects.len())
    }

    /// Makes a probe with a key that another program made, and has it answer.
    pub fn make_probe(&mut self, cka_id: &[u8]) -> Result<Vec<u8>, Fault> {
        let key = match self.look(cka_id, Sort::AES)? {
            Lookup::Found(key) => key,
            Lookup::Missing => return Err(missing("no such key in the token")),
            Lookup::Different => return Err(missing("under this CKA_ID is another object, or more than one")),
        };
        if !is_usable(&self.raw.get_attributes(key, &USED)?) {
            return Err(Fault::bad_input("the key is no AES-256 key that encrypts and decrypts"));
        }
        let probe = probe::make(self, cka_id, key, KeyKind::AES, None)?;
        match probe::ask(self, cka_id, key, &probe)? {
            Answer::Right => {
                self.token.handles().remember(self.era, cka_id, key, Proof::Answered);
                Ok(probe)
            }
            Answer::Wrong => Err(Fault::refused(Bucket::Node, Kind::Device, "a key does not answer its own probe")),
        }
    }

    /// Destroys a key if it is the one that answers the probe, and nothing else under its id. As it was found.
    pub fn destroy_proven(&mut self, cka_id: &[u8], probe: &[u8]) -> Result<Presence, Fault> {
        if probe.is_empty() {
            return Err(Fault::bad_input("a key that another program made is destroyed by its probe"));
        }
        let key = match self.look(cka_id, probe::sort(probe)?)? {
            Lookup::Found(key) => key,
            Lookup::Missing => return Ok(Presence::Missing),
            Lookup::Different => return Ok(Presence::Different),
        };
        match probe::ask(self, cka_id, key, probe)? {
            Answer::Right => {
                self.unmake(key, cka_id)?;
                Ok(Presence::Proven)
            }
            Answer::Wrong => Ok(Presence::Different),
        }
    }

    /// Makes an object under a free id. While it is being made, and if that fails, only a search tells what is there.
    fn make_one(
        &mut self,
        cka_id: &[u8],
        make: impl FnOnce(&mut Self) -> Result<ObjectHandle, Fault>,
    ) -> Result<ObjectHandle, Fault> {
        let token = self.token.clone();
        let _alone = token.changing(&self.stopwatch);
        self.check_free(cka_id)?;
        token.handles().expect(self.era, cka_id);
        make(self)
    }

    /// Makes a pair, and keeps its private half alone. What fails midway leaves neither.
    pub(super) fn make_pair(
        &self,
        material: Material,
        mechanism: &Mechanism<'_>,
        public: &[Attribute],
        private: &[Attribute],
    ) -> Result<(PublicKey, ObjectHandle), Fault> {
        let (public, private) = self.raw.generate_key_pair(mechanism, public, private)?;
        // After what may have been a reset, the handles may be other objects': nothing is destroyed by them.
        let may_be_others = |fault: &Fault| fault.session == After::Renew;
        let read = match self.read_public_half(material, public) {
            Err(fault) if may_be_others(&fault) => Err(fault),
            read => self.raw.destroy_object(public).map_err(Fault::from).and(read),
        };
        match read {
            Ok(read) => Ok((read, private)),
            Err(fault) if !may_be_others(&fault) && self.raw.destroy_object(private).is_ok() => Err(fault),
            Err(fault) => Err(not_undone(fault)),
        }
    }

    fn read_public_half(&self, material: Material, public: ObjectHandle) -> Result<PublicKey, Fault> {
        let wanted = [AttributeType::Modulus, AttributeType::PublicExponent, AttributeType::EcPoint];
        let (mut modulus, mut exponent, mut point) = (Vec::new(), Vec::new(), Vec::new());
        for attribute in self.raw.get_attributes(public, &wanted)? {
            match attribute {
                Attribute::Modulus(told) => modulus = told,
                Attribute::PublicExponent(told) => exponent = told,
                Attribute::EcPoint(told) => point = told,
                _ => {}
            }
        }
        let read = match material {
            Material::Ec(curve) => PublicKey::of_point(curve, &point),
            _ => PublicKey::of_rsa(&modulus, &exponent),
        };
        read.ok_or_else(|| Fault::refused(Bucket::Node, Kind::Device, "the public half of a new pair cannot be read"))
    }

    fn wrap_and_prove(
        &mut self,
        new: &NewKey<'_>,
        key: ObjectHandle,
        public_key: Option<PublicKey>,
    ) -> Result<Created, Fault> {
        let wrapped = match new.kek {
            Some(kek) => self.with_kek(kek, |session, kek| session.wrap_under(kek, key))?,
            None => Vec::new(),
        };
        let probe = probe::make(self, new.cka_id, key, new.kind, public_key.as_ref())?;
        match probe::ask(self, new.cka_id, key, &probe)? {
            Answer::Right => Ok(Created { wrapped, probe, public_key }),
            Answer::Wrong => Err(Fault::refused(Bucket::Node, Kind::Device, "a new key does not answer its own probe")),
        }
    }

    fn wrap_under(&mut self, kek: ObjectHandle, key: ObjectHandle) -> Result<Vec<u8>, Fault> {
        Ok(self.raw.wrap_key(&Mechanism::AesKeyWrapPad, kek, key)?)
    }

    /// Destroys what a failed call had made. If that fails too, or the handle may be another object's by now, nobody knows
    /// what is there: it is settled by its `CKA_ID`.
    pub(super) fn undo(&self, object: ObjectHandle, cka_id: &[u8], fault: Fault) -> Fault {
        let undone = if fault.session == After::Renew { None } else { self.unmake(object, cka_id).ok() };
        match undone {
            Some(()) => fault,
            None => not_undone(fault),
        }
    }

    /// Destroys an object that this session has made or proved, if its handle is still its own.
    fn unmake(&self, object: ObjectHandle, cka_id: &[u8]) -> Result<(), Fault> {
        let _alone = self.token.changing(&self.stopwatch);
        let is_it = self.raw.get_attributes(object, &[AttributeType::Id])?.contains(&Attribute::Id(cka_id.to_vec()));
        if !is_it {
            return Err(Fault::refused(Bucket::Node, Kind::Device, "an object's handle names another one"));
        }
        self.raw.destroy_object(object)?;
        self.token.handles().vacate(self.era, cka_id);
        Ok(())
    }
}

/// A call failed, and nobody knows whether what it had made is gone.
fn not_undone(fault: Fault) -> Fault {
    Fault { bucket: Bucket::Unknown, session: fault.session.max(After::Reopen), ..fault }
}

/// The attributes of a key at hand that are not as keyway makes those of its sort.
pub(super) fn differing(sort: Sort, has: &[Attribute]) -> Vec<AttributeType> {
    let decrypts = has.contains(&Attribute::Decrypt(true));
    // Keys of one sort and usage differ in their size alone, which is not compared here.
    let is_it = |kind: &KeyKind| {
        Sort::of(kind.spec().material()) == Some(sort) && (kind.usage() == KeyUsage::EncryptDecrypt) == decrypts
    };
    let kind = KeyKind::all().find(is_it).unwrap_or(KeyKind::AES);
    let wanted = lasting_key(&NewKey { kind, cka_id: b"", label: "", kek: Some(b"") });
    let own = wanted.iter().filter(|it| !matches!(it, Attribute::Id(_) | Attribute::Label(_)));
    let mut differing: Vec<_> =
        own.filter(|attribute| !has.contains(attribute)).map(Attribute::attribute_type).collect();
    // SoftHSM2 does not know the length of a key that it unwrapped, and says 0.
    let fits = |length: u64| length == 0 || length == AES_256_BYTES;
    let is_of_a_length = sort == Sort::AES;
    if is_of_a_length && has.iter().any(|it| matches!(it, Attribute::ValueLen(length) if !fits(**length))) {
        differing.push(AttributeType::ValueLen);
    }
    differing
}

/// What [`is_usable`] looks at.
const USED: [AttributeType; 4] =
    [AttributeType::KeyType, AttributeType::Encrypt, AttributeType::Decrypt, AttributeType::ValueLen];

/// Whether a secret key does what keyway's do, however it was made. The key-encryption key and its like do not.
pub(super) fn is_usable(has: &[Attribute]) -> bool {
    let wanted = [Attribute::KeyType(KeyType::AES), Attribute::Encrypt(true), Attribute::Decrypt(true)];
    // See `differing`.
    let fits = |it: &Attribute| matches!(it, Attribute::ValueLen(length) if [0, AES_256_BYTES].contains(&**length));
    wanted.iter().all(|attribute| has.contains(attribute)) && has.iter().any(fits)
}

/// The attributes that every key of ours has alike, for [`differing`].
pub(super) const COMPARED: [AttributeType; 17] = [
    AttributeType::Class,
    AttributeType::KeyType,
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::WrapWithTrusted,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::SignRecover,
    AttributeType::Verify,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
    AttributeType::Copyable,
    AttributeType::ValueLen,
];

/// What every key that lasts is made or unwrapped with.
fn lasting_key(new: &NewKey<'_>) -> Vec<Attribute> {
    let mut template = guarded(new.kind, new.kek.is_some());
    template.extend([
        Attribute::Token(true),
        Attribute::Id(new.cka_id.to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ]);
    template
}

/// What guards a key, and what it may do. `WRAP_WITH_TRUSTED` can only be set when it is made, and is what keeps the user
/// himself from exporting it; a copy could be made without it, so there are no copies.
pub(super) fn guarded(kind: KeyKind, travels: bool) -> Vec<Attribute> {
    let sort = Sort::of(kind.spec().material()).unwrap_or(Sort::AES);
    let mut template = sort.attributes().to_vec();
    template.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(travels),
        Attribute::WrapWithTrusted(true),
    ]);
    template.extend(mechanism::abilities(kind));
    if travels {
        template.push(Attribute::Copyable(false));
    }
    template
}

pub(super) fn check_name(new: &NewKey<'_>) -> Result<(), Fault> {
    check_cka_id(new.cka_id)?;
    if !(1..=MAX_LABEL).contains(&new.label.len()) {
        return Err(Fault::bad_input("a label has 1 to 128 bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: NewKey<'static> = NewKey { kind: KeyKind::AES, cka_id: b"id", label: "keyway:a", kek: None };

    fn made() -> impl Iterator<Item = KeyKind> {
        KeyKind::all().filter(|kind| crate::link::v1::KeyKind::of(*kind).is_some())
    }

    #[test]
    fn a_key_without_a_key_encryption_key_can_never_be_extracted() {
        for kind in made() {
            let alone = NewKey { kind, ..ALONE };
            assert!(lasting_key(&alone).contains(&Attribute::Extractable(false)));
            let travelling = lasting_key(&NewKey { kek: Some(b"kek"), ..alone });
            assert!(travelling.contains(&Attribute::WrapWithTrusted(true)));
            assert!(travelling.contains(&Attribute::Copyable(false)));
        }
    }

    #[test]
    fn a_key_is_compared_with_how_it_would_be_made() {
        let own = [AttributeType::Id, AttributeType::Label];
        for kind in made() {
            let key = lasting_key(&NewKey { kind, kek: Some(b"kek"), ..ALONE });
            let sort = Sort::told_by(&key).unwrap();
            assert_eq!(differing(sort, &key), [], "{kind:?}");
            let compared = |it: &Attribute| COMPARED.contains(&it.attribute_type());
            assert!(key.iter().all(|it| compared(it) || own.contains(&it.attribute_type())), "{kind:?}");
            let loose: Vec<_> = key
                .into_iter()
                .filter(|attribute| *attribute != Attribute::Copyable(false))
                .map(|it| if it == Attribute::Unwrap(false) { Attribute::Unwrap(true) } else { it })
                .collect();
            assert_eq!(differing(sort, &loose), [AttributeType::Unwrap, AttributeType::Copyable]);
        }
        let mut short = lasting_key(&NewKey { kek: Some(b"kek"), ..ALONE });
        short.push(Attribute::ValueLen(16.into()));
        assert_eq!(differing(Sort::AES, &short), [AttributeType::ValueLen]);
    }

    #[test]
    fn a_key_that_could_not_be_found_again_is_not_made() {
        assert!(check_name(&ALONE).is_ok());
        for bad in [
            NewKey { cka_id: b"", ..ALONE },
            NewKey { cka_id: &[0; 65], ..ALONE },
            NewKey { label: "", ..ALONE },
            NewKey { label: &"a".repeat(129), ..ALONE },
        ] {
            assert_eq!(check_name(&bad).unwrap_err().kind, Kind::BadInput);
        }
    }
}
