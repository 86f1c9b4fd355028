//! The serving verbs, each turned into calls on a session and its result into an answer.

use zeroize::Zeroizing;

use crate::link::v1;
use crate::link::v1::presence::Found;
use crate::link::v1::request::Verb;
use crate::link::v1::response::Outcome;
use crate::model::{EncryptionAlgorithm, KeyKind, MacAlgorithm, SigningAlgorithm};

use super::log;
use super::pkcs11::{Ability, Canary, Fault, Listed, NewKey, Page, Pin, Presence, Session};

/// Does what the verb asks, on this session.
pub fn perform(session: &mut Session, verb: Verb) -> Result<Outcome, Fault> {
    match verb {
        Verb::Encrypt(ask) => encrypt(session, ask),
        Verb::Decrypt(ask) => decrypt(session, &ask),
        Verb::GenerateDataKey(ask) => generate_data_key(session, &ask),
        Verb::GenerateRandom(ask) => generate_random(session, &ask),
        Verb::GenerateKey(ask) => generate_key(session, &ask),
        Verb::WrapKey(ask) => Ok(opaque(session.wrap(&ask.cka_id, &ask.kek_cka_id, &ask.probe)?)),
        Verb::UnwrapKey(ask) => unwrap_key(session, &ask),
        Verb::ProveKey(ask) => Ok(presence(session.prove(&ask.cka_id, &ask.probe, ask.afresh)?)),
        Verb::DestroyKey(ask) => Ok(done(session.destroy(&ask.cka_id)?)),
        Verb::ListObjects(ask) => list_objects(session, &ask),
        Verb::FindKeys(ask) => find_keys(session, &ask),
        Verb::MakeProbe(ask) => Ok(opaque(session.make_probe(&ask.cka_id)?)),
        Verb::Sign(ask) => sign(session, &ask),
        Verb::DecryptOaep(ask) => decrypt_oaep(session, &ask),
        Verb::TestAbilities(ask) => test_abilities(session, &ask),
        Verb::DestroyProvenKey(ask) => Ok(presence(session.destroy_proven(&ask.cka_id, &ask.probe)?)),
        Verb::SweepUnfinished(_) => sweep_unfinished(session),
        Verb::CheckToken(ask) => check_token(session, &ask),
        Verb::SetPin(ask) => set_pin(session, ask),
        Verb::Ping(_) => Err(Fault::protocol("a ping is for the pool")),
        Verb::Open(_)
        | Verb::LogIn(_)
        | Verb::MakeKek(_)
        | Verb::OfferJoin(_)
        | Verb::SealKek(_)
        | Verb::AcceptKek(_)
        | Verb::GiveUser(_)
        | Verb::Summon(_) => Err(Fault::protocol("the pool is open already")),
    }
}

fn encrypt(session: &mut Session, ask: v1::Encrypt) -> Result<Outcome, Fault> {
    let plaintext = Zeroizing::new(ask.plaintext);
    let sealed = session.encrypt(&ask.cka_id, &ask.aad, &plaintext, &ask.probe)?;
    Ok(Outcome::Sealed(v1::Sealed { iv: sealed.nonce.to_vec(), sealed: sealed.sealed }))
}

fn decrypt(session: &mut Session, ask: &v1::Decrypt) -> Result<Outcome, Fault> {
    let mut plaintext = session.decrypt(&ask.cka_id, &ask.aad, &ask.iv, &ask.sealed, &ask.probe)?;
    Ok(opaque(std::mem::take(&mut *plaintext)))
}

fn generate_data_key(session: &mut Session, ask: &v1::GenerateDataKey) -> Result<Outcome, Fault> {
    let mut plaintext = session.random(count(ask.number_of_bytes))?;
    let sealed = session.encrypt(&ask.cka_id, &ask.aad, &plaintext, &ask.probe)?;
    Ok(Outcome::DataKey(v1::DataKey {
        plaintext: if ask.with_plaintext { std::mem::take(&mut *plaintext) } else { Vec::new() },
        iv: sealed.nonce.to_vec(),
        sealed: sealed.sealed,
    }))
}

fn generate_random(session: &mut Session, ask: &v1::GenerateRandom) -> Result<Outcome, Fault> {
    let mut bytes = session.random(count(ask.number_of_bytes))?;
    Ok(opaque(std::mem::take(&mut *bytes)))
}

fn generate_key(session: &mut Session, ask: &v1::GenerateKey) -> Result<Outcome, Fault> {
    let kind = kind(ask.kind())?;
    let new = NewKey { kind, cka_id: &ask.cka_id, label: &ask.label, kek: named(&ask.kek_cka_id) };
    let created = session.create(new)?;
    let public_key = created.public_key.map(|key| key.as_der().to_vec()).unwrap_or_default();
    Ok(Outcome::NewKey(v1::NewKey { wrapped: created.wrapped, probe: created.probe, public_key }))
}

fn sign(session: &mut Session, ask: &v1::Sign) -> Result<Outcome, Fault> {
    if let Some(algorithm) = MacAlgorithm::parse(&ask.algorithm) {
        return Ok(opaque(session.mac(&ask.cka_id, algorithm, &ask.input, &ask.probe)?));
    }
    let algorithm = SigningAlgorithm::parse(&ask.algorithm).ok_or_else(unknown_algorithm)?;
    Ok(opaque(session.sign(&ask.cka_id, algorithm, &ask.input, &ask.probe)?))
}

fn decrypt_oaep(session: &mut Session, ask: &v1::DecryptOaep) -> Result<Outcome, Fault> {
    let algorithm = EncryptionAlgorithm::parse(&ask.algorithm).ok_or_else(unknown_algorithm)?;
    let mut plaintext = session.decrypt_oaep(&ask.cka_id, algorithm, &ask.ciphertext, &ask.probe)?;
    Ok(opaque(std::mem::take(&mut *plaintext)))
}

fn test_abilities(session: &mut Session, ask: &v1::TestAbilities) -> Result<Outcome, Fault> {
    let abilities = session.abilities(&ask.kek_cka_id)?;
    let told = |ability: Ability| v1::abilities::Ability {
        of: ability.of.to_owned(),
        missing: ability.missing.unwrap_or_default(),
    };
    Ok(Outcome::Abilities(v1::Abilities { abilities: abilities.into_iter().map(told).collect() }))
}

fn unwrap_key(session: &mut Session, ask: &v1::UnwrapKey) -> Result<Outcome, Fault> {
    let kind = kind(ask.kind())?;
    let new = NewKey { kind, cka_id: &ask.cka_id, label: &ask.label, kek: named(&ask.kek_cka_id) };
    Ok(presence(session.take_in(new, &ask.wrapped, &ask.probe)?))
}

fn list_objects(session: &mut Session, ask: &v1::ListObjects) -> Result<Outcome, Fault> {
    let Page { objects, listing, total, next_offset } = session.list(ask.listing, count(ask.offset))?;
    let objects = objects.into_iter().map(listed).collect();
    let (total, next_offset) = (counted(total), counted(next_offset));
    Ok(Outcome::Objects(v1::Objects { objects, listing, total, next_offset }))
}

fn find_keys(session: &mut Session, ask: &v1::FindKeys) -> Result<Outcome, Fault> {
    let found = match ask.label.as_str() {
        "" => session.keys_with_id(&ask.cka_id)?,
        label => session.keys_labelled(label)?,
    };
    let total = counted(found.len());
    let objects = found.into_iter().map(listed).collect();
    Ok(Outcome::Objects(v1::Objects { objects, listing: 0, total, next_offset: total }))
}

fn listed(it: Listed) -> v1::objects::Object {
    let kind = if it.is_usable { v1::KeyKind::Aes256 } else { v1::KeyKind::Unspecified };
    v1::objects::Object {
        class: it.class,
        cka_id: it.cka_id,
        label: it.label,
        differing: it.differing,
        kind: kind.into(),
    }
}

fn sweep_unfinished(session: &mut Session) -> Result<Outcome, Fault> {
    // The daemon hears only what kind of fault it was.
    let swept = session.sweep_unfinished().inspect_err(|fault| log(format_args!("nothing is cleared up: {fault}")))?;
    Ok(done(swept))
}

fn set_pin(session: &Session, ask: v1::SetPin) -> Result<Outcome, Fault> {
    session.set_pin(&Pin::new(ask.old_pin), &Pin::new(ask.new_pin))?;
    Ok(done(1))
}

/// Also before the login, with no canary.
pub fn check_token(session: &mut Session, ask: &v1::CheckToken) -> Result<Outcome, Fault> {
    let canary = Canary { cka_id: &ask.canary_cka_id, probe: &ask.canary_probe };
    match session.check_token((!canary.cka_id.is_empty()).then_some(canary))? {
        None => Ok(done(0)),
        Some(took) => {
            let canary_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            Ok(Outcome::Checked(v1::Checked { canary_us }))
        }
    }
}

fn kind(named: v1::KeyKind) -> Result<KeyKind, Fault> {
    named.kind().ok_or_else(|| Fault::bad_input("the kind of key is not known here"))
}

fn unknown_algorithm() -> Fault {
    Fault::bad_input("the algorithm is not known here")
}

fn named(kek_cka_id: &[u8]) -> Option<&[u8]> {
    (!kek_cka_id.is_empty()).then_some(kek_cka_id)
}

fn count(number_of_bytes: u32) -> usize {
    usize::try_from(number_of_bytes).expect("usize holds a u32")
}

fn opaque(bytes: Vec<u8>) -> Outcome {
    Outcome::Opaque(v1::Opaque { bytes })
}

fn done(count: usize) -> Outcome {
    Outcome::Done(v1::Done { count: counted(count) })
}

fn counted(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn presence(presence: Presence) -> Outcome {
    let found = match presence {
        Presence::Proven => Found::Proven,
        Presence::Missing => Found::Missing,
        Presence::Different => Found::Different,
    };
    Outcome::Presence(v1::Presence { found: found.into() })
}
