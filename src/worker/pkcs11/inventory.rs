//! What is in the token altogether: for telling drift, for knowing which ids are free, and for clearing up after a
//! generation that was killed.
//!
//! A listing is a snapshot of the handles. Their objects are read page by page, so that no answer is longer than a
//! frame and no session is held for long. Once every page was read, the token's memory of handles is complete.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::handles::{Era, MOST};
use super::key::{COMPARED, differing};
use super::lookup::OUR_LABEL;
use super::{Fault, Session};

/// Objects of a page.
const PAGE: usize = 1_000;
/// Longer ids and labels than keyway gives are cut here: they are shown to people, and must fit in a frame.
const SHOWN: usize = 128;

/// An object in the token.
#[derive(Debug)]
pub struct Listed {
    pub class: u64,
    pub cka_id: Vec<u8>,
    pub label: String,
    /// What keyway makes otherwise, for an AES key labelled as ours.
    pub differing: String,
}

/// A part of a listing.
#[derive(Debug)]
pub struct Page {
    /// Without those that went away since the listing began.
    pub objects: Vec<Listed>,
    pub listing: u64,
    pub total: usize,
    /// Where the next page begins.
    pub next_offset: usize,
}

/// The one listing that a token's sessions hold, whoever of them reads the next page.
#[derive(Debug, Default)]
pub(super) struct Listings(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    begun: u64,
    current: Option<Listing>,
}

#[derive(Debug)]
struct Listing {
    era: Era,
    objects: Vec<ObjectHandle>,
    /// The objects before this one have been read, and their keys gathered.
    read: usize,
    is_finished: bool,
    keys: HashMap<Box<[u8]>, Option<ObjectHandle>>,
}

/// An object as it was read, and whether it is a key that keyway may use.
struct Described {
    listed: Listed,
    key: Option<Use>,
}

/// What a secret key's id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Ours,
    SomebodyElses,
}

impl Session {
    /// A page of the objects that the user can see; 0 begins a listing. None at all is said only by a token that is there.
    pub fn list(&mut self, listing: u64, offset: usize) -> Result<Page, Fault> {
        let listing = if listing == 0 { self.begin_listing()? } else { listing };
        let (objects, total) = self.token.listings().page(listing, self.era, offset)?;
        let mut described = Vec::with_capacity(objects.len());
        for object in &objects {
            described.extend(self.describe(*object)?.map(|it| (*object, it)));
        }
        let next_offset = offset + objects.len();
        if let Some(keys) = self.token.listings().gather(listing, offset..next_offset, &described) {
            self.token.handles().finish_listing(self.era, keys);
        }
        let objects = described.into_iter().map(|(_, it)| it.listed).collect();
        Ok(Page { objects, listing, total, next_offset })
    }

    fn begin_listing(&mut self) -> Result<u64, Fault> {
        let token = self.token.clone();
        let _unchanging = token.unchanging();
        token.handles().begin_listing(self.era);
        let objects = self.search_all(&[])?;
        self.sees_the_token()?;
        Ok(token.listings().begin(self.era, objects))
    }

    /// Destroys what a generation that was killed leaves: secret keys with neither id nor label, and objects that are
    /// nothing yet, without even a class. Some say that they are no objects of the token: SoftHSM2 writes its defaults
    /// first. A worker that serves has no objects of a session.
    pub fn sweep_unfinished(&mut self) -> Result<usize, Fault> {
        let token = self.token.clone();
        let _alone = token.changing();
        let mut swept = 0;
        for object in self.search_all(&[])? {
            if self.is_unfinished(object)? {
                self.raw.destroy_object(object)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn search_all(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let objects = self.search(template, MOST + 1)?;
        if objects.len() > MOST {
            return Err(Fault::refused(Bucket::Node, Kind::Capacity, "the token holds too many objects to list"));
        }
        Ok(objects)
    }

    fn is_unfinished(&self, object: ObjectHandle) -> Result<bool, Fault> {
        let wanted = [AttributeType::Class, AttributeType::Id, AttributeType::Label];
        let Some(attributes) = self.attributes(object, &wanted)? else { return Ok(false) };
        let mut class = None;
        for attribute in &attributes {
            match attribute {
                Attribute::Class(read) => class = Some(*read),
                Attribute::Id(bytes) | Attribute::Label(bytes) if !bytes.is_empty() => return Ok(false),
                _ => {}
            }
        }
        Ok(class.is_none_or(|class| class == ObjectClass::SECRET_KEY))
    }

    /// `None` when the object went away meanwhile.
    fn describe(&self, object: ObjectHandle) -> Result<Option<Described>, Fault> {
        let named = [AttributeType::Id, AttributeType::Label, AttributeType::Trusted];
        let wanted: Vec<_> = named.into_iter().chain(COMPARED).collect();
        Ok(self.attributes(object, &wanted)?.map(Described::from))
    }

    /// What the object tells of these. One that is half made has few of them, and must not hide the others: it is asked
    /// for each by itself. `None` when it went away meanwhile.
    fn attributes(&self, object: ObjectHandle, wanted: &[AttributeType]) -> Result<Option<Vec<Attribute>>, Fault> {
        match self.raw.get_attributes(object, wanted).map_err(Fault::from) {
            Ok(attributes) => return Ok(Some(attributes)),
            Err(fault) if fault.is_stale_handle() => return Ok(None),
            Err(fault) if fault.kind == Kind::Unsupported => {}
            Err(fault) => return Err(fault),
        }
        let mut told = Vec::new();
        for kind in wanted {
            match self.raw.get_attributes(object, &[*kind]).map_err(Fault::from) {
                Ok(attributes) => told.extend(attributes),
                Err(fault) if fault.is_stale_handle() => return Ok(None),
                Err(fault) if fault.kind == Kind::Unsupported => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(Some(told))
    }
}

impl From<Vec<Attribute>> for Described {
    fn from(attributes: Vec<Attribute>) -> Self {
        let has = |wanted: &Attribute| attributes.contains(wanted);
        let mut listed = Listed { class: u64::MAX, cka_id: Vec::new(), label: String::new(), differing: String::new() };
        for attribute in &attributes {
            match attribute {
                Attribute::Class(class) => listed.class = **class,
                Attribute::Id(id) => listed.cka_id = id[..id.len().min(SHOWN)].to_vec(),
                Attribute::Label(label) => {
                    listed.label = String::from_utf8_lossy(&label[..label.len().min(SHOWN)]).into_owned();
                }
                _ => {}
            }
        }
        let is_secret = has(&Attribute::Class(ObjectClass::SECRET_KEY)) && has(&Attribute::Token(true));
        let is_ours = has(&Attribute::KeyType(KeyType::AES)) && listed.label.starts_with(OUR_LABEL);
        let key = is_secret.then_some(if is_ours { Use::Ours } else { Use::SomebodyElses });
        // Only the SO gives this mark: it is the key-encryption key, which is made otherwise.
        if is_ours && !has(&Attribute::Trusted(true)) {
            let names = differing(&attributes).into_iter().map(|kind| kind.to_string());
            listed.differing = names.collect::<Vec<_>>().join(", ");
        }
        Self { listed, key }
    }
}

impl Listings {
    fn begin(&self, era: Era, objects: Vec<ObjectHandle>) -> u64 {
        let mut held = self.lock();
        held.begun += 1;
        held.current = Some(Listing { era, objects, read: 0, is_finished: false, keys: HashMap::new() });
        held.begun
    }

    /// The handles of a page, and how many the listing has.
    fn page(&self, listing: u64, era: Era, offset: usize) -> Result<(Vec<ObjectHandle>, usize), Fault> {
        let mut held = self.lock();
        let current = held.current(listing).filter(|current| current.era == era);
        let current = current.ok_or_else(|| Fault::protocol("this listing is not held any more"))?;
        let page = current.objects.iter().skip(offset).take(PAGE).copied().collect();
        Ok((page, current.objects.len()))
    }

    /// Keeps what a page told of keys; all of it once no page is missing. Pages may be read twice.
    fn gather(
        &self,
        listing: u64,
        page: std::ops::Range<usize>,
        described: &[(ObjectHandle, Described)],
    ) -> Option<HashMap<Box<[u8]>, Option<ObjectHandle>>> {
        let mut held = self.lock();
        let current = held.current(listing)?;
        if current.is_finished || page.start > current.read {
            return None;
        }
        for (object, it) in described {
            let Some(whose) = it.key.filter(|_| !it.listed.cka_id.is_empty()) else { continue };
            let alone = (whose == Use::Ours).then_some(*object);
            let known = current.keys.entry(it.listed.cka_id.as_slice().into()).or_insert(alone);
            if *known != alone {
                *known = None;
            }
        }
        current.read = current.read.max(page.end);
        current.is_finished = current.read == current.objects.len();
        current.is_finished.then(|| std::mem::take(&mut current.keys))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn current(&mut self, listing: u64) -> Option<&mut Listing> {
        (listing == self.begun).then_some(self.current.as_mut()).flatten()
    }
}
