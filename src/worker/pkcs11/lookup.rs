//! From a key's `CKA_ID` to its handle: remembered, or searched for, and proved before its first use.
//!
//! ```text
//! remembered and proven ───────────────────────────────────────────────▶ use
//! remembered, not proven ──▶ its probe ── right ──▶ proven ──────────────▶ use
//!                               │ wrong, stale
//! not remembered ───────────────┴──▶ search ──▶ its probe ── right ──────▶ use
//!                                                  └─ wrong ─▶ never used: another key
//! ```
//!
//! A handle that names another key encrypts without a complaint, and what it encrypts is lost.

use cryptoki::object::{Attribute, AttributeType, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::handles::{Proof, Recalled};
use super::mechanism::Sort;
use super::probe::{self, Answer};
use super::{Fault, Session};

const MAX_CKA_ID: usize = 64;

/// What a search by `CKA_ID` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    Found(ObjectHandle),
    Missing,
    Different,
}

/// How a handle shows that it is the key's.
#[derive(Clone, Copy)]
enum Test<'a> {
    /// It answers the key's probe. Without a probe, class and type must do.
    Probe(&'a [u8]),
    /// It has all the marks of a key-encryption key, which has no probe.
    Marks,
}

impl Test<'_> {
    const fn proof(self) -> Proof {
        match self {
            Self::Probe([]) => Proof::Unproven,
            Self::Probe(_) => Proof::Answered,
            Self::Marks => Proof::Marked,
        }
    }

    /// What is looked for. Without a probe it is an AES key, as every key-encryption key is.
    fn sort(self) -> Result<Sort, Fault> {
        match self {
            Self::Probe(probe) => probe::sort(probe),
            Self::Marks => Ok(Sort::AES),
        }
    }

    /// Whether there is nothing left to test.
    fn is_passed_by(self, proof: Proof) -> bool {
        proof == self.proof() || matches!((self, proof), (Test::Probe([]), Proof::Answered))
    }
}

impl Session {
    /// Does `work` with the key's handle, which the probe proves before its first use. A handle found stale is looked up
    /// once more: the key may have been made anew under the same id.
    pub(super) fn with_key<T>(
        &mut self,
        cka_id: &[u8],
        probe: &[u8],
        work: impl FnMut(&mut Self, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.with_tested(cka_id, Test::Probe(probe), work)
    }

    /// The same with the key-encryption key.
    pub(super) fn with_kek<T>(
        &mut self,
        cka_id: &[u8],
        work: impl FnMut(&mut Self, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.with_tested(cka_id, Test::Marks, work)
    }

    fn with_tested<T>(
        &mut self,
        cka_id: &[u8],
        test: Test<'_>,
        mut work: impl FnMut(&mut Self, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let key = match self.token.handles().recall(self.era, cka_id) {
            Recalled::Handle(handle) if test.is_passed_by(handle.proof) => handle.object,
            Recalled::Handle(handle) => self.test_remembered(cka_id, handle.object, test)?,
            Recalled::Unknown | Recalled::Free => self.search_and_test(cka_id, test)?,
        };
        match work(self, key) {
            Err(fault) if fault.is_stale_handle() => {
                self.token.handles().forget(cka_id);
                let key = self.search_and_test(cka_id, test)?;
                work(self, key)
            }
            other => other,
        }
    }

    /// A handle that a listing told of, or one that was only looked at so far.
    fn test_remembered(&mut self, cka_id: &[u8], key: ObjectHandle, test: Test<'_>) -> Result<ObjectHandle, Fault> {
        match self.test(cka_id, key, test) {
            Ok(Answer::Right) => Ok(key),
            Ok(Answer::Wrong) => self.search_and_test(cka_id, test),
            Err(fault) if fault.is_stale_handle() => self.search_and_test(cka_id, test),
            Err(fault) => Err(fault),
        }
    }

    fn search_and_test(&mut self, cka_id: &[u8], test: Test<'_>) -> Result<ObjectHandle, Fault> {
        let key = match self.look(cka_id, test.sort()?)? {
            Lookup::Found(key) => key,
            Lookup::Missing => return Err(missing("no such key in the token")),
            Lookup::Different => return Err(missing("under this CKA_ID is another object, or more than one")),
        };
        match self.test(cka_id, key, test)? {
            Answer::Right => Ok(key),
            Answer::Wrong => Err(match test {
                Test::Probe(_) => missing("under this CKA_ID is another key"),
                Test::Marks => Fault::refused(Bucket::Node, Kind::Unsupported, "the key-encryption key lacks a mark"),
            }),
        }
    }

    /// Remembers the handle only if it may be used.
    fn test(&mut self, cka_id: &[u8], key: ObjectHandle, test: Test<'_>) -> Result<Answer, Fault> {
        let answer = match test {
            Test::Probe([]) => Answer::Right,
            Test::Probe(probe) => probe::ask(self, cka_id, key, probe)?,
            Test::Marks if self.is_trusted_kek(key)? => Answer::Right,
            Test::Marks => Answer::Wrong,
        };
        match answer {
            Answer::Right => self.token.handles().remember(self.era, cka_id, key, test.proof()),
            Answer::Wrong => self.token.handles().forget(cka_id),
        }
        Ok(answer)
    }

    /// Searches, past what is remembered.
    pub(super) fn look(&mut self, cka_id: &[u8], sort: Sort) -> Result<Lookup, Fault> {
        check_cka_id(cka_id)?;
        let token = self.token.clone();
        let _unchanging = token.unchanging(&self.stopwatch);
        let found = self.find(cka_id, sort)?;
        if found == Lookup::Missing {
            token.handles().vacate(self.era, cka_id);
        }
        Ok(found)
    }

    /// That nothing has this id. Only between the look and the making of the key may nobody else make one.
    pub(super) fn check_free(&self, cka_id: &[u8]) -> Result<(), Fault> {
        if self.token.handles().recall(self.era, cka_id) == Recalled::Free {
            return Ok(());
        }
        if self.is_taken(cka_id)? {
            return Err(Fault::bad_input("there is an object with this CKA_ID already"));
        }
        self.sees_the_token()
    }

    /// Whether an object of any class has this id.
    pub(super) fn is_taken(&self, cka_id: &[u8]) -> Result<bool, Fault> {
        Ok(!self.search(&[Attribute::Token(true), Attribute::Id(cka_id.to_vec())], 1)?.is_empty())
    }

    /// Other people's public keys and certificates may go by the same id: only the class that is looked for counts.
    fn find(&self, cka_id: &[u8], sort: Sort) -> Result<Lookup, Fault> {
        let id = Attribute::Id(cka_id.to_vec());
        let template = [Attribute::Class(sort.class), Attribute::Token(true), id];
        match self.search(&template, 2)?[..] {
            [] => {
                self.sees_the_token()?;
                Ok(Lookup::Missing)
            }
            [one] if self.is_of(one, sort)? => Ok(Lookup::Found(one)),
            [..] => Ok(Lookup::Different),
        }
    }

    pub(super) fn search(&self, template: &[Attribute], most: usize) -> Result<Vec<ObjectHandle>, Fault> {
        self.token.module().calls.find(&self.raw, template, most)
    }

    fn is_of(&self, object: ObjectHandle, sort: Sort) -> Result<bool, Fault> {
        let attributes = self.raw.get_attributes(object, &[AttributeType::KeyType])?;
        Ok(attributes.contains(&Attribute::KeyType(sort.key_type)))
    }
}

pub(super) fn check_cka_id(cka_id: &[u8]) -> Result<(), Fault> {
    if (1..=MAX_CKA_ID).contains(&cka_id.len()) { Ok(()) } else { Err(Fault::bad_input("a CKA_ID has 1 to 64 bytes")) }
}

pub(super) fn missing(why: &'static str) -> Fault {
    Fault::refused(Bucket::Node, Kind::KeyMissing, why)
}
