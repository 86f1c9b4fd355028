//! What a node's token holds, set beside the records: keys that are not there and, in kmsuser's tokens, which are keyway's
//! alone, strangers and odd attributes.
//!
//! ```text
//!   a page of the listing ─▶ ids that the records know ─▶ the rest are strangers, written down and left alone
//!   all pages             ─▶ keys proven here that were not shown ─▶ in doubt: to be looked for, and put back
//! ```
//!
//! A listing destroys nothing and forgets nothing. What it does not show is only looked for.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms, Member};
use crate::link::v1::objects::Object;
use crate::link::v1::presence::Found;
use crate::model::{CkaId, KeyId, KeyVersion, Probe};
use crate::records::{NewProof, ObjectName, Oddity, Proof, Unavailable};

use super::Keys;

/// `CKO_SECRET_KEY`: the class of every object that the records explain.
pub(super) const SECRET_KEY: u64 = 4;
/// Proven keys are compared with the listing so many at a time.
const PAGE: u32 = 1_000;
/// So many strangers that look like keys of ours are looked for once more: one that was being made and was given up
/// while the listing ran is gone by now. More than that are no such coincidence.
const LOOKED_FOR_AGAIN: usize = 100;
/// How long such a look may take.
const LOOK: Duration = Duration::from_secs(60);

/// Why an inventory was not finished. What it had found until then stands.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("its objects could not be listed")]
    Unlisted(#[source] Failure),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// What is to be done about keys that the listing does not show, besides writing down that they are in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unshown {
    /// Nobody asks for them here until they were found, or put back, which follows.
    Avoid,
    /// They are asked for as before: nobody is about to put them back, and whoever meets the gap has it closed.
    AskOn,
}

/// What a listing showed.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Keys of ours, in order: twenty bytes for each.
    shown: Vec<CkaId>,
}

impl Inventory {
    pub(super) fn shows(&self, key: &CkaId) -> bool {
        self.shown.binary_search(key).is_ok()
    }
}

/// Lists a node's objects and writes down what is odd about them. Its worker knows afterwards where each key is, and need not search for it.
pub(super) async fn take(
    keys: &Keys,
    connection: &Connection,
    member: &Member,
    unshown: Unshown,
) -> Result<Inventory, Error> {
    let (records, cluster, user) = (&keys.0.records, &connection.cluster, connection.user());
    let hsm = member.node.hsm();
    let began = clock::now();
    let keks: HashSet<Vec<u8>> = records.kek_ids(&user).await?.into_iter().collect();
    let mut inventory = Inventory::default();
    let mut again = LOOKED_FOR_AGAIN;
    let mut listing = connection.list_objects(member).await;
    while let Some(page) = listing.next_page().await.map_err(Error::Unlisted)? {
        let ids: Vec<CkaId> = page.iter().filter_map(|object| CkaId::from_bytes(&object.cka_id)).collect();
        let known = records.known_keys(&user, &ids).await?;
        inventory.shown.extend(ids.into_iter().filter(|id| known.contains(id)));
        if !connection.is_keyways_alone() {
            // What else its user has there is his.
            continue;
        }
        // What is on its way out is a difference of its own, and a version on its way in is none.
        let mut passing = records.destroyed_keys(&user, hsm).await?;
        passing.extend(records.versions_being_made(&user).await?);
        let is_passing = |object: &Object| CkaId::from_bytes(&object.cka_id).is_some_and(|id| passing.contains(&id));
        let page = page.into_iter().filter(|object| !is_passing(object));
        let found: Vec<Oddity> = page.filter_map(|object| oddity(object, &known, &keks)).collect();
        let mut odd = Vec::new();
        for oddity in found {
            if !is_gone(connection, member, &oddity, &mut again).await {
                odd.push(oddity);
            }
        }
        records.note_oddities(cluster, hsm, began, &odd).await?;
    }
    if connection.is_keyways_alone() {
        records.end_listing(cluster, hsm, began).await?;
    }
    // Only now: another listing of this node must not lose what it has noted.
    drop(listing);
    inventory.shown.sort_unstable();
    let hidden = doubt_what_is_not_shown(keys, connection, member, &inventory, (began, unshown)).await?;
    if hidden > 0 {
        tracing::warn!(%hsm, keys = hidden, "the token does not show keys that were there; they are looked for");
    }
    Ok(inventory)
}

/// What is odd about an object, if anything is.
fn oddity(object: Object, known: &HashSet<CkaId>, keks: &HashSet<Vec<u8>>) -> Option<Oddity> {
    let key = CkaId::from_bytes(&object.cka_id).is_some_and(|id| known.contains(&id));
    let is_secret = object.class == SECRET_KEY;
    // Half made, whether a worker is at it now or was killed over it: what is left of those goes at the next login.
    if is_secret && object.cka_id.is_empty() && object.label.is_empty() {
        return None;
    }
    let explained = is_secret && (key || keks.contains(&object.cka_id));
    let Object { class, cka_id, label, differing, kind: _ } = object;
    let object = ObjectName { class, cka_id, label };
    match (explained, differing) {
        (false, _) => Some(Oddity::Orphan(object)),
        (true, differing) if key && !differing.is_empty() => Some(Oddity::Attributes { object, differing }),
        (true, _) => None,
    }
}

/// Whether a stranger that looks like a key of ours was one that was just being given up.
async fn is_gone(connection: &Connection, member: &Member, oddity: &Oddity, again: &mut usize) -> bool {
    let Oddity::Orphan(object) = oddity else { return false };
    let Some(id) = CkaId::from_bytes(&object.cka_id).filter(|id| id.label() == object.label) else { return false };
    let Some(left) = again.checked_sub(1) else { return false };
    *again = left;
    let only_look = KeyInHsms { id, found: None, probe: Probe(Vec::new()) };
    let found = connection.prove_key(member, &only_look, Instant::now() + LOOK).await;
    matches!(found, Ok(Found::Missing))
}

/// Keys that were proven here before the listing began and that it does not show; how many.
async fn doubt_what_is_not_shown(
    keys: &Keys,
    connection: &Connection,
    member: &Member,
    inventory: &Inventory,
    (began, unshown): (SystemTime, Unshown),
) -> Result<usize, Unavailable> {
    let records = &keys.0.records;
    let hsm = member.node.hsm();
    let (mut after, mut doubted) = (None, 0);
    loop {
        let page = records.keys_proven(&connection.user(), hsm, began, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(doubted) };
        after = Some(*last);
        let hidden = page.into_iter().filter(|(key, version)| !inventory.shows(&CkaId::of(*key, *version)));
        let hidden: Vec<(KeyId, KeyVersion)> = hidden.collect();
        match unshown {
            Unshown::Avoid => member.lacks(hidden.iter().map(|(key, version)| CkaId::of(*key, *version))),
            Unshown::AskOn => {}
        }
        let unknown = |(key, version)| NewProof { key, version, hsm: hsm.clone(), proof: Proof::Unknown };
        doubted += hidden.len();
        records
            .set_presences(&connection.cluster, &hidden.into_iter().map(unknown).collect::<Vec<_>>(), clock::now())
            .await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(class: u64, cka_id: &[u8], differing: &str) -> Object {
        Object {
            class,
            cka_id: cka_id.to_vec(),
            label: "l".to_owned(),
            differing: differing.to_owned(),
            ..Object::default()
        }
    }

    #[test]
    fn an_object_is_odd_when_no_record_explains_it_or_its_attributes_differ() {
        let id = CkaId::of(KeyId::random(), KeyVersion::FIRST);
        let stranger = CkaId::of(KeyId::random(), KeyVersion::FIRST);
        let (known, keks) = (HashSet::from([id]), HashSet::from([b"kek".to_vec()]));
        let told = |object| oddity(object, &known, &keks);
        let is_orphan = |object| matches!(told(object), Some(Oddity::Orphan(_)));
        assert_eq!(told(object(SECRET_KEY, id.as_bytes(), "")), None);
        assert_eq!(told(object(SECRET_KEY, b"kek", "")), None);
        assert!(matches!(told(object(SECRET_KEY, id.as_bytes(), "CKA_WRAP")), Some(Oddity::Attributes { .. })));
        assert!(is_orphan(object(SECRET_KEY, stranger.as_bytes(), "")));
        assert!(is_orphan(object(SECRET_KEY, b"", "")));
        assert_eq!(told(Object { label: String::new(), ..object(SECRET_KEY, b"", "") }), None, "it is half made");
        // A certificate under a key's id is none of ours: the records explain secret keys.
        assert!(is_orphan(object(1, id.as_bytes(), "")));
    }
}
