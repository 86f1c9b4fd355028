//! What is in the token altogether: for telling drift, and for knowing which ids are free.
//!
//! A listing is a snapshot of the handles. Their objects are read page by page, so that no answer is longer than a
//! frame and no session is held for long. Once every page was read, the token's memory of handles is complete.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};

use super::fault::{Bucket, Kind};
use super::handles::{Era, MOST};
use super::key::{COMPARED, MAX_LABEL, differing, is_usable};
use super::lookup::check_cka_id;
use super::mechanism::Sort;
use super::{Fault, Session};

/// How the label of every object of ours begins, but for the keys that crypto users name themselves.
const OUR_LABEL: &str = "keyway:";
/// Objects of a page.
const PAGE: usize = 1_000;
/// Longer ids and labels than keyway gives are cut here: they are shown to people, and must fit in a frame.
const SHOWN: usize = 128;
/// Stands where a label was cut, so that it is nobody's whole label.
const CUT: char = '…';
/// Keys of one name that are told: two are ambiguous, and many are no more so.
const NAMESAKES: usize = 8;

/// An object in the token.
#[derive(Debug)]
pub struct Listed {
    pub class: u64,
    pub cka_id: Vec<u8>,
    pub label: String,
    /// What keyway makes otherwise, for a key labelled as ours.
    pub differing: String,
    /// Whether it is a key that keyway could use as one of its own.
    pub is_usable: bool,
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

/// What the id of a secret or private key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It may be a key of ours, which its probe tells before its first use.
    Possible,
    /// It is none, whatever its id.
    Impossible,
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

    /// The first few secret keys in the token with this label. None at all is said only by a token that is there.
    pub fn keys_labelled(&mut self, label: &str) -> Result<Vec<Listed>, Fault> {
        if label.len() > MAX_LABEL {
            return Err(Fault::bad_input("a label has at most 128 bytes"));
        }
        self.namesakes(Attribute::Label(label.as_bytes().to_vec()))
    }

    /// The same with this `CKA_ID`.
    pub fn keys_with_id(&mut self, cka_id: &[u8]) -> Result<Vec<Listed>, Fault> {
        check_cka_id(cka_id)?;
        self.namesakes(Attribute::Id(cka_id.to_vec()))
    }

    fn namesakes(&mut self, name: Attribute) -> Result<Vec<Listed>, Fault> {
        let token = self.token.clone();
        let _unchanging = token.unchanging(&self.stopwatch);
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true), name];
        let objects = self.search(&template, NAMESAKES)?;
        if objects.is_empty() {
            self.sees_the_token()?;
        }
        let mut found = Vec::new();
        for object in objects {
            found.extend(self.describe(object)?.map(|it| it.listed));
        }
        Ok(found)
    }

    fn begin_listing(&mut self) -> Result<u64, Fault> {
        let token = self.token.clone();
        let _unchanging = token.unchanging(&self.stopwatch);
        token.handles().begin_listing(self.era);
        let objects = self.search_all(&[])?;
        self.sees_the_token()?;
        Ok(token.listings().begin(self.era, objects))
    }

    pub(super) fn search_all(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
        let objects = self.search(template, MOST + 1)?;
        if objects.len() > MOST {
            return Err(Fault::refused(Bucket::Node, Kind::Capacity, "the token holds too many objects to list"));
        }
        Ok(objects)
    }

    /// `None` when the object went away meanwhile.
    fn describe(&self, object: ObjectHandle) -> Result<Option<Described>, Fault> {
        let named = [AttributeType::Id, AttributeType::Label, AttributeType::Trusted];
        let wanted: Vec<_> = named.into_iter().chain(COMPARED).collect();
        Ok(self.attributes(object, &wanted)?.map(Described::from))
    }

    /// What the object tells of these. One that is half made has few of them, and must not hide the others: it is asked
    /// for each by itself. A library that cannot read attributes is no object without any. `None` when it went away
    /// meanwhile.
    fn attributes(&self, object: ObjectHandle, wanted: &[AttributeType]) -> Result<Option<Vec<Attribute>>, Fault> {
        match self.raw.get_attributes(object, wanted).map_err(Fault::from) {
            Ok(attributes) => return Ok(Some(attributes)),
            Err(fault) if fault.is_stale_handle() => return Ok(None),
            Err(fault) if fault.is_of_no_attribute() => {}
            Err(fault) => return Err(fault),
        }
        let mut told = Vec::new();
        for kind in wanted {
            match self.raw.get_attributes(object, &[*kind]).map_err(Fault::from) {
                Ok(attributes) => told.extend(attributes),
                Err(fault) if fault.is_stale_handle() => return Ok(None),
                Err(fault) if fault.is_of_no_attribute() => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(Some(told))
    }
}

impl From<Vec<Attribute>> for Described {
    fn from(attributes: Vec<Attribute>) -> Self {
        let has = |wanted: &Attribute| attributes.contains(wanted);
        let mut listed = Listed {
            class: u64::MAX,
            cka_id: Vec::new(),
            label: String::new(),
            differing: String::new(),
            is_usable: false,
        };
        for attribute in &attributes {
            match attribute {
                Attribute::Class(class) => listed.class = **class,
                Attribute::Id(id) => listed.cka_id = id[..id.len().min(SHOWN)].to_vec(),
                Attribute::Label(label) => {
                    listed.label = String::from_utf8_lossy(&label[..label.len().min(SHOWN)]).into_owned();
                    listed.label.extend((label.len() > SHOWN).then_some(CUT));
                }
                _ => {}
            }
        }
        let is_of_class = |class| has(&Attribute::Class(class)) && has(&Attribute::Token(true));
        let (is_secret, is_private) = (is_of_class(ObjectClass::SECRET_KEY), is_of_class(ObjectClass::PRIVATE_KEY));
        let sort = Sort::told_by(&attributes);
        let possible = if sort.is_some() { Use::Possible } else { Use::Impossible };
        let key = (is_secret || is_private).then_some(possible);
        listed.is_usable = is_secret && is_usable(&attributes);
        // Only the SO gives this mark: it is the key-encryption key, which is made otherwise.
        if let Some(sort) = sort
            && listed.label.starts_with(OUR_LABEL)
            && !has(&Attribute::Trusted(true))
        {
            let names = differing(sort, &attributes).into_iter().map(|kind| kind.to_string());
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
            let alone = (whose == Use::Possible).then_some(*object);
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
