//! Tags of key stores' keys: words of their owners', which keyway itself does not go by.

use std::collections::BTreeMap;

use crate::authz::{Permit, action};
use crate::model::KeyRef;
use crate::records::Tagged;

use super::lifecycle::Operation;
use super::{Error, Keys};

/// AWS's bound: so many tags has one key.
const PER_KEY: u32 = 50;

impl Keys {
    /// All of them, or none when the key would have too many.
    pub async fn tag(
        &self,
        _permit: Permit<action::TagResource>,
        key: &KeyRef,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let id = self.allowed(Operation::TagResource, key).await?.record.id;
        match self.0.records.tag_key(id, tags, PER_KEY).await? {
            Tagged::Done => Ok(()),
            Tagged::TooMany => Err(Error::TooManyTags(PER_KEY)),
            Tagged::NoSuchKey => Err(self.changed_meanwhile(Operation::TagResource, key).await),
        }
    }

    /// Those of these names that it has.
    pub async fn untag(
        &self,
        _permit: Permit<action::UntagResource>,
        key: &KeyRef,
        names: &[String],
    ) -> Result<(), Error> {
        let key = self.allowed(Operation::UntagResource, key).await?.record.id;
        Ok(self.0.records.untag_key(key, names).await?)
    }

    pub async fn list_tags(
        &self,
        _permit: Permit<action::ListResourceTags>,
        key: &KeyRef,
    ) -> Result<BTreeMap<String, String>, Error> {
        let key = self.allowed(Operation::ListResourceTags, key).await?.record.id;
        Ok(self.0.records.tags(key).await?)
    }
}
