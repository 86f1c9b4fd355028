//! What is there otherwise than a seed says, told before anything is made. Pure.

use std::collections::BTreeMap;

use crate::cli::failure::Failure;
use crate::model::{HsmLabel, KeySpec, Username};
use crate::proto::v1;

use super::file::{ClusterName, NewKey, Seed, User};
use super::look::{Present, Standing};

/// Refuses when a key store or a key is there otherwise than the seed says. `clusters`: those that are there.
pub(super) fn refuse(seed: &Seed, clusters: &BTreeMap<ClusterName, String>, present: &Present) -> Result<(), Failure> {
    conclude(differences(seed, clusters, present))
}

/// The same for the keys of a crypto user's own.
pub(super) fn refuse_of_user(
    name: &Username,
    user: &User,
    present: &BTreeMap<HsmLabel, v1::Key>,
) -> Result<(), Failure> {
    conclude(of_user(name, user, present))
}

fn conclude(differences: Vec<String>) -> Result<(), Failure> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the seed differs from what is there, which it does not change: {}",
        differences.join("; ")
    ))
    .advise("correct the seed, or begin anew with --reset, without what is there"))
}

fn differences(seed: &Seed, clusters: &BTreeMap<ClusterName, String>, present: &Present) -> Vec<String> {
    let mut found = Vec::new();
    for (name, cluster) in &seed.key_stores {
        let (field, wanted) = (format!("key_stores.{name:?}.cluster"), clusters.get(cluster));
        let called = cluster.as_str();
        match (present.key_stores.get(name), wanted.and_then(|wanted| present.carried.get(wanted))) {
            (Some(store), _) if Some(&store.cluster_id) != wanted => {
                found.push(format!("{field}: the key store is on {}, which is not {called:?}", store.cluster_id));
            }
            (None, Some(other)) => found.push(format!("{field}: {called:?} carries key store {other:?} already")),
            (Some(_), _) | (None, None) => {}
        }
    }
    for (alias, (store, wanted)) in &seed.keys {
        let Some(key) = present.keys.get(alias) else { continue };
        let field = format!("keys.{alias:?}");
        let is_there = present.key_stores.get(store).is_some_and(|store| store.key_store_id == key.key_store_id);
        if !is_there {
            found.push(format!("{field}.key_store: the key is in another key store than {store:?}"));
        }
        found.extend(of_key(&field, wanted, key));
    }
    for (name, user) in &seed.users {
        if let Some(Standing::Known(present)) = present.users.get(name) {
            found.extend(of_user(name, user, present));
        }
    }
    found
}

fn of_user(name: &Username, user: &User, present: &BTreeMap<HsmLabel, v1::Key>) -> Vec<String> {
    let of_one = |(label, key): (&HsmLabel, &v1::Key)| {
        let field = format!("crypto_users.{name}.keys.{:?}", label.as_str());
        user.keys.get(label).map(|wanted| of_key(&field, wanted, key)).unwrap_or_default()
    };
    present.iter().flat_map(of_one).collect()
}

/// What is said of the key and is not so. Tags are not compared: a key does not tell them.
fn of_key(field: &str, wanted: &NewKey, present: &v1::Key) -> Vec<String> {
    let mut found = Vec::new();
    let (spec, usage) = (wire_spec(wanted.spec), wanted.usage.unwrap_or(present.key_usage()));
    if present.key_spec() != spec {
        let is = short(present.key_spec().as_str_name(), "KEY_SPEC_");
        found.push(format!("{field}.spec: the key is {is}, not {}", wanted.spec.as_str()));
    }
    if present.key_usage() != usage {
        let [is, said] = [present.key_usage(), usage].map(|usage| short(usage.as_str_name(), "KEY_USAGE_"));
        found.push(format!("{field}.usage: the key is for {is}, not {said}"));
    }
    if wanted.description.as_ref().is_some_and(|description| *description != present.description) {
        found.push(format!("{field}.description: the key's is {:?}", present.description));
    }
    found
}

/// As the public contract has it, whose names are the same.
pub(super) fn wire_spec(spec: KeySpec) -> v1::KeySpec {
    v1::KeySpec::from_str_name(&format!("KEY_SPEC_{}", spec.as_str())).unwrap_or_default()
}

fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_seed_says_and_a_key_is_not_is_told() {
        let there = v1::Key {
            key_spec: v1::KeySpec::SymmetricDefault.into(),
            key_usage: v1::KeyUsage::EncryptDecrypt.into(),
            description: "letters".to_owned(),
            ..Default::default()
        };
        let said = |usage, description: Option<&str>| NewKey {
            spec: KeySpec::SymmetricDefault,
            usage,
            description: description.map(str::to_owned),
            tags: BTreeMap::new(),
        };
        assert!(of_key("k", &said(None, None), &there).is_empty(), "what is not said may be anything");
        assert!(of_key("k", &said(Some(v1::KeyUsage::EncryptDecrypt), Some("letters")), &there).is_empty());
        let other = v1::Key { key_spec: v1::KeySpec::Hmac256.into(), ..there };
        let told = of_key("k", &said(Some(v1::KeyUsage::SignVerify), Some("")), &other);
        assert_eq!(
            told,
            [
                "k.spec: the key is HMAC_256, not SYMMETRIC_DEFAULT",
                "k.usage: the key is for ENCRYPT_DECRYPT, not SIGN_VERIFY",
                "k.description: the key's is \"letters\"",
            ]
        );
    }

    #[test]
    fn every_spec_has_its_name_in_the_contract() {
        assert!(KeySpec::ALL.into_iter().all(|spec| wire_spec(spec) != v1::KeySpec::Unspecified));
    }
}
