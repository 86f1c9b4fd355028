//! Keys that other programs made in crypto users' tokens: looked for by name, told as they are, and written down when they
//! are first used.
//!
//! A label may be given twice, so that such a key goes by its `CKA_ID`. What is written down is a probe that it made where it
//! was found: by that it is known again there, and on the other nodes that have it. It is never copied, and never restored.
//! A name that several keys have, or that stands for different ones on different nodes, is nobody's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use futures_util::future;
use tokio::time::Instant;

use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms, Member};
use crate::link::v1::KeyKind;
use crate::link::v1::objects::Object;
use crate::link::v1::presence::Found;
use crate::model::{CkaId, CryptoUser, HsmId, HsmKeyMark, HsmLabel, KeyId, KeySpec, KeyState, KeyVersion};
use crate::records::{AdoptedKey, FoundKey, KeyHome, KeyRecord, PresenceRecord, Proof, Unavailable, VersionRecord};
use crate::users;

use super::describe::hsm_key;
use super::inventory::SECRET_KEY;
use super::{Error, Keys};

/// How long HSMs that are on their way are waited for, before the others alone are asked.
const SETTLING: Duration = Duration::from_secs(5);
/// Goes first into the id of a found key, so that it is no other hash of the same.
const ID_WORD: &[u8] = b"keyway found key v1";

/// A key as the tokens show it.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) cka_id: Arc<[u8]>,
    pub(super) label: String,
    pub(super) unusable: Option<&'static str>,
    pub(super) on: BTreeSet<HsmId>,
}

/// A found key, and the nodes on which it answers its probe.
#[derive(Debug)]
pub(super) struct Identified {
    pub(super) in_hsms: KeyInHsms,
    on: Vec<Arc<Member>>,
    /// The user's other nodes, which may hold it as well.
    others: Vec<Arc<Member>>,
}

impl Sighting {
    fn of(object: &Object) -> Self {
        let unusable = match (object.kind(), HsmKeyMark::id(&object.cka_id)) {
            (_, None) => Some("it has no CKA_ID of 1 to 64 bytes, by which it would be known again: give it one"),
            (KeyKind::Unspecified, Some(_)) => Some("it is no AES-256 key that both encrypts and decrypts"),
            (KeyKind::Aes256, Some(_)) => None,
        };
        let (cka_id, label) = (object.cka_id.as_slice().into(), object.label.clone());
        Self { cka_id, label, unusable, on: BTreeSet::new() }
    }

    /// By its `CKA_ID`, which a key of another program's goes by.
    pub(super) fn mark(&self) -> Option<HsmKeyMark> {
        HsmKeyMark::id(&self.cka_id)
    }

    /// As it would be written down, without a probe.
    pub(super) fn into_record(self, user: &CryptoUser) -> KeyRecord {
        let now = clock::now();
        let on = self.on.into_iter().map(|hsm| PresenceRecord { hsm, proof: Proof::Unknown, time: now });
        let version = KeyVersion::FIRST;
        KeyRecord {
            id: id_of(user, &self.cka_id),
            home: KeyHome::Found { username: user.username.clone(), cka_id: self.cka_id },
            cluster: user.cluster.clone(),
            spec: KeySpec::SymmetricDefault,
            state: KeyState::Enabled,
            description: String::new(),
            created: now,
            current_version: version,
            versions: vec![VersionRecord { version, probe: None, uses_reserved: 0, created: now, on: on.collect() }],
            deletion: None,
            last_used: None,
            rotation: None,
        }
    }
}

/// Always the same for a user's `CKA_ID`: what was encrypted is decrypted also when the records were lost and the key is found
/// anew.
fn id_of(user: &CryptoUser, cka_id: &[u8]) -> KeyId {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [ID_WORD, user.cluster.as_str().as_bytes(), user.username.as_str().as_bytes(), cka_id] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let hash = context.finish();
    let mut bytes: [u8; 16] = *hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
    // A UUID of version 8, made as its maker likes (RFC 9562).
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    KeyId::from_bytes(bytes)
}

impl Keys {
    /// The key of another program's that goes by this name in the user's tokens, on the nodes that answer.
    pub(super) async fn sight(
        &self,
        connection: &Connection,
        mark: &HsmKeyMark,
        deadline: Instant,
    ) -> Result<Option<Sighting>, Error> {
        settled(connection, deadline).await;
        let members = connection.members();
        let proved = those_that_answer(&members);
        let look_until = half_way_to(deadline);
        let looking = proved.iter().map(|member| connection.find_keys(member, mark, look_until));
        let looks = future::join_all(looking).await;
        if let Some(Err(failure)) = looks.first().filter(|_| looks.iter().all(Result::is_err)) {
            return Err(failure.clone().into());
        }
        let ambiguous =
            |hsm: &HsmId| Error::Ambiguous { name: hsm_key(&connection.cluster, mark.clone()), hsm: hsm.clone() };
        let mut sighting: Option<Sighting> = None;
        for (member, found) in proved.iter().zip(looks) {
            let hsm = member.node.hsm();
            let Ok(found) = found.inspect_err(|error| tracing::debug!(%hsm, %error, "not looked")) else { continue };
            let mut found = self.strangers(connection, member, found, look_until).await?.into_iter();
            let Some(object) = found.next() else { continue };
            let seen = sighting.get_or_insert_with(|| Sighting::of(&object));
            if found.next().is_some() || *seen.cka_id != *object.cka_id {
                return Err(ambiguous(hsm));
            }
            seen.on.insert(hsm.clone());
        }
        Ok(sighting)
    }

    /// A found key with a probe, by which it is known again on the nodes that have it, if they have the same.
    pub(super) async fn identify(
        &self,
        connection: &Connection,
        sighting: Sighting,
        (mark, deadline): (&HsmKeyMark, Instant),
    ) -> Result<Identified, Error> {
        if let Some(why) = sighting.unusable {
            return Err(Error::Unusable { key: hsm_key(&connection.cluster, mark.clone()), why });
        }
        let key = CkaId::of(id_of(&connection.user(), &sighting.cka_id), KeyVersion::FIRST);
        let members = connection.members();
        let (holders, mut others): (Vec<_>, Vec<_>) =
            members.iter().cloned().partition(|member| sighting.on.contains(member.node.hsm()));
        let (first, rest) = holders.split_first().ok_or(Error::Hsm(Failure::NoNode))?;
        let probe = connection.make_probe(first, &sighting.cka_id, deadline).await?;
        let in_hsms = KeyInHsms { id: key, found: Some(sighting.cka_id), probe };
        let mut on = vec![first.clone()];
        let prove_until = half_way_to(deadline);
        let proving = rest.iter().map(|member| connection.prove_key(member, &in_hsms, prove_until));
        for (member, found) in rest.iter().zip(future::join_all(proving).await) {
            match found {
                Ok(Found::Proven) => on.push(member.clone()),
                Ok(Found::Different) => {
                    let hsm = member.node.hsm().clone();
                    return Err(Error::Ambiguous { name: hsm_key(&connection.cluster, mark.clone()), hsm });
                }
                Ok(Found::Missing | Found::Unspecified) | Err(_) => others.push(member.clone()),
            }
        }
        Ok(Identified { in_hsms, on, others })
    }

    /// Writes a found key down, so that it can be used.
    pub(super) async fn adopt(
        &self,
        connection: &Connection,
        sighting: Sighting,
        (mark, deadline): (&HsmKeyMark, Instant),
    ) -> Result<KeyId, Error> {
        let (user, cka_id) = (connection.user(), sighting.cka_id.clone());
        let id = id_of(&user, &cka_id);
        let Identified { in_hsms, on, others } = self.identify(connection, sighting, (mark, deadline)).await?;
        // Before anybody can ask for it.
        others.iter().for_each(|member| member.lacks([in_hsms.id]));
        on.iter().for_each(|member| member.has_now(&in_hsms.id));
        let hsms = |members: Vec<Arc<Member>>| members.into_iter().map(|member| member.node.hsm().clone()).collect();
        let found = FoundKey {
            id,
            user,
            cka_id,
            spec: KeySpec::SymmetricDefault,
            probe: in_hsms.probe,
            found: clock::now(),
            on: hsms(on),
            others: hsms(others),
        };
        match self.0.records.adopt_key(&found, self.0.settings.per_key_store).await? {
            AdoptedKey::Adopted => {
                // It may be remembered from another time, with another probe.
                self.forget(id);
                // Nodes that were not asked may have it as well.
                self.0.unsettled.notify_waiters();
                Ok(id)
            }
            AdoptedKey::Known => Ok(id),
            AdoptedKey::TooManyKeys => Err(Error::TooManyKeys(self.0.settings.per_key_store)),
            AdoptedKey::UserLeaves => Err(users::Error::LoginExpired.into()),
        }
    }

    /// The first of those that go by a `CKA_ID` after this one, on the nodes that list them in time, in its order.
    pub(super) async fn sightings(
        &self,
        connection: &Connection,
        (after, limit): (Option<&[u8]>, usize),
        deadline: Instant,
    ) -> Result<Vec<Sighting>, Error> {
        settled(connection, deadline).await;
        let members = connection.members();
        let proved = those_that_answer(&members);
        let list_until = half_way_to(deadline);
        let listing = proved.iter().map(|member| async {
            let listed = self.list_one(connection, member, ((after, limit), list_until));
            let listed = tokio::time::timeout_at(list_until, listed).await;
            listed.unwrap_or(Err(Error::Hsm(Failure::Late)))
        });
        let mut seen: Option<BTreeMap<Arc<[u8]>, Sighting>> = None;
        let mut last_failure = Failure::NoNode;
        for (member, listed) in proved.iter().zip(future::join_all(listing).await) {
            match listed {
                Ok(here) => merge(seen.get_or_insert_default(), here),
                Err(Error::Hsm(failure)) => {
                    tracing::warn!(hsm = %member.node.hsm(), error = %failure, "a user's keys here are not listed");
                    last_failure = failure;
                }
                Err(other) => return Err(other),
            }
        }
        let seen = seen.ok_or(Error::Hsm(last_failure))?;
        Ok(seen.into_values().take(limit).collect())
    }

    /// The first of them on one node.
    async fn list_one(
        &self,
        connection: &Connection,
        member: &Member,
        ((after, limit), deadline): ((Option<&[u8]>, usize), Instant),
    ) -> Result<BTreeMap<Arc<[u8]>, Sighting>, Error> {
        let mut seen: BTreeMap<Arc<[u8]>, Sighting> = BTreeMap::new();
        let mut listing = connection.list_objects(member).await;
        while let Some(mut page) = listing.next_page().await? {
            page.retain(|object| {
                let is_after = after.is_none_or(|after| object.cka_id.as_slice() > after);
                object.class == SECRET_KEY && HsmKeyMark::id(&object.cka_id).is_some() && is_after
            });
            for object in self.strangers(connection, member, page, deadline).await? {
                let sighting = Sighting { on: BTreeSet::from([member.node.hsm().clone()]), ..Sighting::of(&object) };
                match seen.entry(sighting.cka_id.clone()) {
                    Entry::Vacant(free) => drop(free.insert(sighting)),
                    Entry::Occupied(mut taken) => taken.get_mut().unusable = Some("several keys have its CKA_ID"),
                }
                if seen.len() > limit {
                    seen.pop_last();
                }
            }
        }
        Ok(seen)
    }

    /// Those that keyway did not make: none that is labelled as its own, such as a canary that was given up. One that was just given up or destroyed may have lost its record since it was seen: it
    /// is in the list of what is destroyed by then, or gone from its token.
    async fn strangers(
        &self,
        connection: &Connection,
        member: &Member,
        objects: Vec<Object>,
        deadline: Instant,
    ) -> Result<Vec<Object>, Unavailable> {
        let (records, user) = (&self.0.records, connection.user());
        let ids: Vec<CkaId> = objects.iter().filter_map(like_ours).collect();
        let keks: HashSet<Vec<u8>> = records.kek_ids(&user).await?.into_iter().collect();
        let mut ours = records.known_keys(&user, &ids).await?;
        ours.extend(records.destroyed_keys(&user, member.node.hsm()).await?);
        let mut strangers = Vec::new();
        let may_be_strange =
            |object: &Object| !keks.contains(&object.cka_id) && !HsmLabel::is_keyways_own(&object.label);
        for object in objects.into_iter().filter(may_be_strange) {
            let is_stranger = match like_ours(&object) {
                None => true,
                Some(id) if ours.contains(&id) => false,
                Some(id) => {
                    let mark = HsmKeyMark::Id(id.as_bytes().into());
                    let again = connection.find_keys(member, &mark, deadline).await;
                    again.is_ok_and(|again| !again.is_empty())
                }
            };
            strangers.extend(is_stranger.then_some(object));
        }
        Ok(strangers)
    }
}

/// Adds what another node holds.
fn merge(seen: &mut BTreeMap<Arc<[u8]>, Sighting>, here: BTreeMap<Arc<[u8]>, Sighting>) {
    for (cka_id, sighting) in here {
        match seen.entry(cka_id) {
            Entry::Vacant(free) => drop(free.insert(sighting)),
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.unusable = known.unusable.or(sighting.unusable);
                known.on.extend(sighting.on);
            }
        }
    }
}

/// The proved nodes, but for those that hang, if there are others.
fn those_that_answer(members: &[Arc<Member>]) -> Vec<&Arc<Member>> {
    let (answer, hang): (Vec<_>, Vec<_>) =
        members.iter().filter(|member| member.is_proved()).partition(|member| member.answers_pings());
    if answer.is_empty() { hang } else { answer }
}

/// When half of the time that is left is over: a node that hangs takes no more, and the rest is for what follows.
fn half_way_to(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// By its `CKA_ID` it could be a key of keyway's.
fn like_ours(object: &Object) -> Option<CkaId> {
    CkaId::from_bytes(&object.cka_id)
}

/// Who has just logged in finds his HSMs on their way: those that come soon are asked as well.
async fn settled(connection: &Connection, deadline: Instant) {
    let settled = connection.until(|| !connection.any_on_its_way() || connection.is_closed());
    let _ = tokio::time::timeout_at(deadline.min(Instant::now() + SETTLING), settled).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_found_keys_id_is_its_users_and_its_cka_ids_as_another_language_computes_it() {
        let user = |cluster: &str, name: &str| CryptoUser {
            cluster: cluster.parse().unwrap(),
            username: name.parse().unwrap(),
        };
        let alice = user("cluster-2abcdefghij", "alice");
        let id = id_of(&alice, &[1, 2]);
        assert_eq!(id.to_string(), "3791752e-8577-8127-a7b7-85b669fb5a65");
        for (user, cka_id) in [
            (&user("cluster-2abcdefghik", "alice"), &[1, 2][..]),
            (&user("cluster-2abcdefghij", "bob"), &[1, 2][..]),
            (&alice, &[1][..]),
        ] {
            assert_ne!(id_of(user, cka_id), id);
        }
    }
}
