//! Keys in the token: what they are made with, how they are found and recognised, and how they end.
//!
//! A key is named by its `CKA_ID` and recognised by its class, type and label. What this room
//! finds missing is only ever reported: the token may have been emptied or swapped.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::probe::{self, Answer};
use super::{Fault, Session};

/// How the label of every object of ours begins.
const OUR_LABEL: &str = "keyway:";
const MAX_CKA_ID: usize = 64;
const MAX_LABEL: usize = 128;
const AES_256_BYTES: u64 = 32;
/// A 256-bit key wrapped is 40 bytes long; nothing this room unwraps comes near.
const MAX_WRAPPED: usize = 4 * 1024;

/// What a key is called in the token, and what it travels under.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
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

/// What a search by `CKA_ID` found.
enum Lookup {
    Found(ObjectHandle),
    Missing,
    Different,
}

impl Session {
    /// Makes an AES-256 key, wraps it if a key-encryption key is named, and has it answer its probe. A key that fails
    /// any of this is destroyed again.
    pub fn create(&mut self, new: NewKey<'_>) -> Result<Created, Fault> {
        check_name(&new)?;
        let mut template = data_key(&new);
        template.push(Attribute::ValueLen(AES_256_BYTES.into()));
        let key = {
            let token = self.token.clone();
            let _alone = token.changing();
            self.check_free(new.cka_id)?;
            self.raw.generate_key(&Mechanism::AesKeyGen, &template)?
        };
        let created = self.wrap_and_prove(&new, key).map_err(|fault| self.undo(key, fault))?;
        self.token.handles().remember(new.cka_id, key);
        Ok(created)
    }

    /// Wraps a key under the key-encryption key.
    pub fn wrap(&mut self, cka_id: &[u8], kek: &[u8]) -> Result<Vec<u8>, Fault> {
        self.with_key(kek, |session, kek| session.with_key(cka_id, |session, key| session.wrap_under(kek, key)))
    }

    /// Takes a wrapped key in, unless it is there already, and has it answer the probe. What this call took in and found wrong is destroyed.
    pub fn take_in(&mut self, new: NewKey<'_>, wrapped: &[u8], probe: &[u8]) -> Result<Presence, Fault> {
        check_name(&new)?;
        if wrapped.is_empty() || wrapped.len() > MAX_WRAPPED || probe.is_empty() {
            return Err(Fault::bad_input("a key is taken in wrapped, with its probe"));
        }
        let kek = new.kek.ok_or_else(|| Fault::bad_input("the key-encryption key is not named"))?;
        match self.prove(new.cka_id, probe)? {
            Presence::Missing => {}
            there @ (Presence::Proven | Presence::Different) => return Ok(there),
        }
        let template = data_key(&new);
        let key = self.with_key(kek, |session, kek| {
            let token = session.token.clone();
            let _alone = token.changing();
            session.check_free(new.cka_id)?;
            Ok(session.raw.unwrap_key(&Mechanism::AesKeyWrapPad, kek, wrapped, &template)?)
        })?;
        match probe::ask(self, new.cka_id, key, probe) {
            Ok(Answer::Right) => {
                self.token.handles().remember(new.cka_id, key);
                Ok(Presence::Proven)
            }
            Ok(Answer::Wrong) => {
                let _alone = self.token.changing();
                self.raw.destroy_object(key)?;
                Ok(Presence::Different)
            }
            Err(fault) => Err(self.undo(key, fault)),
        }
    }

    /// Looks for a key, past what is remembered of it, and has it answer the probe unless that is empty.
    pub fn prove(&mut self, cka_id: &[u8], probe: &[u8]) -> Result<Presence, Fault> {
        self.token.handles().forget(cka_id);
        let key = match self.look(cka_id)? {
            Lookup::Found(key) => key,
            Lookup::Missing => return Ok(Presence::Missing),
            Lookup::Different => return Ok(Presence::Different),
        };
        let answer = if probe.is_empty() { Answer::Right } else { probe::ask(self, cka_id, key, probe)? };
        match answer {
            Answer::Right => {
                self.token.handles().remember(cka_id, key);
                Ok(Presence::Proven)
            }
            Answer::Wrong => Ok(Presence::Different),
        }
    }

    /// Destroys every object with this `CKA_ID`, and tells how many there were.
    pub fn destroy(&mut self, cka_id: &[u8]) -> Result<usize, Fault> {
        check_cka_id(cka_id)?;
        self.token.handles().forget(cka_id);
        let _alone = self.token.changing();
        let objects = self.raw.find_objects(&[Attribute::Id(cka_id.to_vec())])?;
        if objects.is_empty() {
            self.sees_the_token()?;
        }
        for &object in &objects {
            self.raw.destroy_object(object)?;
        }
        Ok(objects.len())
    }

    /// A key's handle, remembered or looked up.
    pub(super) fn key(&mut self, cka_id: &[u8]) -> Result<ObjectHandle, Fault> {
        if let Some(handle) = self.token.handles().recall(cka_id) {
            return Ok(handle);
        }
        match self.look(cka_id)? {
            Lookup::Found(handle) => {
                self.token.handles().remember(cka_id, handle);
                Ok(handle)
            }
            Lookup::Missing => Err(missing("no such key in the token")),
            Lookup::Different => Err(missing("under this CKA_ID is another object, or more than one")),
        }
    }

    fn look(&self, cka_id: &[u8]) -> Result<Lookup, Fault> {
        check_cka_id(cka_id)?;
        let _unchanging = self.token.unchanging();
        self.find(cka_id)
    }

    /// That nothing has this id. Only between the look and the making of the key may nobody else make one.
    fn check_free(&self, cka_id: &[u8]) -> Result<(), Fault> {
        match self.find(cka_id)? {
            Lookup::Missing => Ok(()),
            Lookup::Found(_) | Lookup::Different => {
                Err(Fault::bad_input("there is an object with this CKA_ID already"))
            }
        }
    }

    fn find(&self, cka_id: &[u8]) -> Result<Lookup, Fault> {
        let id = Attribute::Id(cka_id.to_vec());
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true), id];
        let found = self.raw.iter_objects(&template)?.take(2).collect::<Result<Vec<_>, _>>()?;
        match found[..] {
            [] => {
                self.sees_the_token()?;
                Ok(Lookup::Missing)
            }
            [one] if self.is_ours(one)? => Ok(Lookup::Found(one)),
            [..] => Ok(Lookup::Different),
        }
    }

    fn is_ours(&self, object: ObjectHandle) -> Result<bool, Fault> {
        let attributes = self.raw.get_attributes(object, &[AttributeType::KeyType, AttributeType::Label])?;
        let aes = attributes.contains(&Attribute::KeyType(KeyType::AES));
        let labelled = attributes
            .iter()
            .any(|attribute| matches!(attribute, Attribute::Label(label) if label.starts_with(OUR_LABEL.as_bytes())));
        Ok(aes && labelled)
    }

    fn wrap_and_prove(&mut self, new: &NewKey<'_>, key: ObjectHandle) -> Result<Created, Fault> {
        let wrapped = match new.kek {
            Some(kek) => self.with_key(kek, |session, kek| session.wrap_under(kek, key))?,
            None => Vec::new(),
        };
        let probe = probe::make(self, new.cka_id, key)?;
        match probe::ask(self, new.cka_id, key, &probe)? {
            Answer::Right => Ok(Created { wrapped, probe }),
            Answer::Wrong => Err(Fault::refused(Bucket::Node, Kind::Device, "a new key does not answer its own probe")),
        }
    }

    fn wrap_under(&mut self, kek: ObjectHandle, key: ObjectHandle) -> Result<Vec<u8>, Fault> {
        Ok(self.raw.wrap_key(&Mechanism::AesKeyWrapPad, kek, key)?)
    }

    /// Destroys what a failed call had made. If that fails too, nobody knows what is there.
    pub(super) fn undo(&self, object: ObjectHandle, fault: Fault) -> Fault {
        let _alone = self.token.changing();
        match self.raw.destroy_object(object) {
            Ok(()) => fault,
            Err(_) => Fault { bucket: Bucket::Unknown, ..fault },
        }
    }
}

/// What every data key is made or unwrapped with. `WRAP_WITH_TRUSTED` can only be set here, and is what keeps the user
/// himself from exporting the key; a copy could be made without it, so there are no copies.
fn data_key(new: &NewKey<'_>) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(new.kek.is_some()),
        Attribute::WrapWithTrusted(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Id(new.cka_id.to_vec()),
        Attribute::Label(new.label.as_bytes().to_vec()),
    ];
    if new.kek.is_some() {
        template.push(Attribute::Copyable(false));
    }
    template
}

pub(super) fn check_name(new: &NewKey<'_>) -> Result<(), Fault> {
    check_cka_id(new.cka_id)?;
    if new.label.len() > MAX_LABEL || !new.label.starts_with(OUR_LABEL) {
        return Err(Fault::bad_input("a label begins with `keyway:` and has at most 128 bytes"));
    }
    Ok(())
}

fn check_cka_id(cka_id: &[u8]) -> Result<(), Fault> {
    if (1..=MAX_CKA_ID).contains(&cka_id.len()) { Ok(()) } else { Err(Fault::bad_input("a CKA_ID has 1 to 64 bytes")) }
}

fn missing(why: &'static str) -> Fault {
    Fault::refused(Bucket::Node, Kind::KeyMissing, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_key_encryption_key_can_never_be_extracted() {
        let alone = NewKey { cka_id: b"id", label: "keyway:a", kek: None };
        assert!(data_key(&alone).contains(&Attribute::Extractable(false)));
        let travelling = data_key(&NewKey { kek: Some(b"kek"), ..alone });
        assert!(travelling.contains(&Attribute::WrapWithTrusted(true)));
        assert!(travelling.contains(&Attribute::Copyable(false)));
    }

    #[test]
    fn a_key_that_could_not_be_found_again_is_not_made() {
        let good = NewKey { cka_id: b"id", label: "keyway:a", kek: None };
        assert!(check_name(&good).is_ok());
        for bad in [
            NewKey { cka_id: b"", ..good },
            NewKey { cka_id: &[0; MAX_CKA_ID + 1], ..good },
            NewKey { label: "someone else's", ..good },
        ] {
            assert_eq!(check_name(&bad).unwrap_err().kind, Kind::BadInput);
        }
    }
}
