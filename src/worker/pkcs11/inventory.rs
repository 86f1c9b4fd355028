//! What is in the token altogether: for telling drift, and for clearing up after a generation that was killed.

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::{Fault, Session};

/// More objects than this are not listed.
const MOST_OBJECTS: usize = 20_000;

/// An object in the token.
#[derive(Debug)]
pub struct Listed {
    pub class: u64,
    pub cka_id: Vec<u8>,
    pub label: String,
}

impl Session {
    /// Every object the user can see. None at all is said only by a token that is there.
    pub fn list(&mut self) -> Result<Vec<Listed>, Fault> {
        let _unchanging = self.token.unchanging();
        let objects = self.search(&[])?;
        self.sees_the_token()?;
        let described = objects.into_iter().map(|object| self.describe(object));
        described.filter_map(Result::transpose).collect()
    }

    /// Destroys secret keys of the token that have neither id nor label: a generation that was killed leaves them.
    pub fn sweep_unfinished(&mut self) -> Result<usize, Fault> {
        let _alone = self.token.changing();
        let mut swept = 0;
        for object in self.search(&[Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true)])? {
            let nameless = self.describe(object)?.is_some_and(|it| it.cka_id.is_empty() && it.label.is_empty());
            if nameless {
                self.raw.destroy_object(object)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn search(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let objects = self.raw.iter_objects(template)?.take(MOST_OBJECTS + 1).collect::<Result<Vec<_>, _>>()?;
        if objects.len() > MOST_OBJECTS {
            return Err(Fault::refused(Bucket::Node, Kind::Capacity, "the token holds too many objects to list"));
        }
        Ok(objects)
    }

    /// `None` when the object went away meanwhile.
    fn describe(&self, object: ObjectHandle) -> Result<Option<Listed>, Fault> {
        let wanted = [AttributeType::Class, AttributeType::Id, AttributeType::Label];
        let attributes = match self.raw.get_attributes(object, &wanted).map_err(Fault::from) {
            Ok(attributes) => attributes,
            Err(fault) if fault.is_stale_handle() => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let mut listed = Listed { class: 0, cka_id: Vec::new(), label: String::new() };
        for attribute in attributes {
            match attribute {
                Attribute::Class(class) => listed.class = *class,
                Attribute::Id(id) => listed.cka_id = id,
                Attribute::Label(label) => listed.label = String::from_utf8_lossy(&label).into_owned(),
                _ => {}
            }
        }
        Ok(Some(listed))
    }
}
