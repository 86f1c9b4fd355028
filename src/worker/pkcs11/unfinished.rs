//! Clears up after generations that were killed: keys without a name, and objects that are nothing yet.
//!
//! Never destroys what it could not read. A library that reads no attributes, or a login that is lost, makes every key
//! look like an object without a class, a label or an id.

use std::collections::HashSet;

use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::{Fault, Session};

/// A process makes one key at a time, so that each killed one leaves one object. More are not of our making.
const MOST_UNFINISHED: usize = 64;

/// What the library says of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The object has it, and there is nothing in it.
    Empty,
    Something,
    /// The object has no such attribute.
    None,
    /// Neither: the library will not or cannot say, or the object went away meanwhile.
    Nothing,
}

impl Session {
    /// Destroys secret and private keys with neither id nor label, and objects without even a class, and tells how many. Some say that
    /// they are no objects of the token: SoftHSM2 writes its defaults first. A worker that serves has no objects of a session.
    pub fn sweep_unfinished(&mut self) -> Result<usize, Fault> {
        let token = self.token.clone();
        let _alone = token.changing(&self.stopwatch);
        let objects = self.search_all(&[])?;
        // Afterwards, so that what another process finishes meanwhile is among them.
        let whole = self.search_all(&[Attribute::Token(true)])?;
        let whole: HashSet<_> = whole.iter().map(ObjectHandle::handle).collect();
        let mut unfinished = Vec::new();
        for object in objects {
            if self.is_nameless_key(object)? || (!whole.contains(&object.handle()) && self.is_nothing_yet(object)?) {
                unfinished.push(object);
            }
        }
        self.sees_the_token()?;
        if unfinished.len() > MOST_UNFINISHED {
            let why = "more objects look half-made than killed workers leave: a person must look at them";
            return Err(Fault::refused(Bucket::Node, Kind::Device, why));
        }
        for &object in &unfinished {
            self.raw.destroy_object(object)?;
        }
        Ok(unfinished.len())
    }

    fn is_nameless_key(&self, object: ObjectHandle) -> Result<bool, Fault> {
        let is_nameless = self.tells(object, AttributeType::Id)? == Told::Empty
            && self.tells(object, AttributeType::Label)? == Told::Empty
            && self.tells(object, AttributeType::Class)? == Told::Something;
        if !is_nameless {
            return Ok(false);
        }
        let class = self.raw.get_attributes(object, &[AttributeType::Class])?;
        let ours = [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY];
        Ok(ours.into_iter().any(|ours| class == [Attribute::Class(ours)]))
    }

    /// What is whole has a class, and is found as an object of the token. Reading and searching must agree that it is not:
    /// either of them alone may fail for every object.
    fn is_nothing_yet(&self, object: ObjectHandle) -> Result<bool, Fault> {
        for kind in [AttributeType::Class, AttributeType::Id, AttributeType::Label] {
            if self.tells(object, kind)? != Told::None {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tells(&self, object: ObjectHandle, kind: AttributeType) -> Result<Told, Fault> {
        match self.raw.get_attribute_info(object, &[kind]).map_err(Fault::from).as_deref() {
            Ok([AttributeInfo::Available(0)]) => Ok(Told::Empty),
            Ok([AttributeInfo::Available(_)]) => Ok(Told::Something),
            Ok([AttributeInfo::TypeInvalid]) => Ok(Told::None),
            Ok(_) => Ok(Told::Nothing),
            Err(fault) if fault.is_of_no_attribute() => Ok(Told::None),
            Err(fault) if fault.is_stale_handle() || fault.kind == Kind::Unsupported => Ok(Told::Nothing),
            Err(fault) => Err(fault.clone()),
        }
    }
}
