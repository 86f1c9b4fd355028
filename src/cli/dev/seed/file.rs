//! The file of `keyway dev --seed`: TOML, checked whole before anything is made.
//!
//! What a name, a password or a tag may be stands in `model`, as for everybody. What is said of a wrong line names it by its
//! number and never shows it: it may be a password's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use zeroize::Zeroizing;

use crate::model::{AliasName, HsmLabel, Invalid, KeyDescription, KeySpec, KeyStoreName, Password, Tags, Username};
use crate::proto::v1;

/// Far longer than any sensible one.
const LONGEST: u64 = 1 << 20;
/// Dev's own among them: as many as the daemon of dev makes.
const MOST_CLUSTERS: usize = 10;
const MOST_USERS: usize = 100;
/// Of key stores and users together.
const MOST_KEYS: usize = 1_000;

/// What a development cluster is to have from the beginning.
#[derive(Debug, Default)]
pub(in crate::cli::dev) struct Seed {
    /// Each on a cluster of its own, and connected.
    pub(super) key_stores: BTreeMap<KeyStoreName, ClusterName>,
    /// Each in one of the key stores.
    pub(super) keys: BTreeMap<AliasName, (KeyStoreName, NewKey)>,
    /// All but kmsuser.
    pub(super) users: BTreeMap<Username, User>,
    /// What kmsuser has from the first start on.
    kmsuser: Option<Password>,
}

#[derive(Debug)]
pub(super) struct User {
    pub(super) cluster: ClusterName,
    pub(super) password: Password,
    pub(super) keys: BTreeMap<HsmLabel, NewKey>,
}

/// A key, wherever it is. What is not said is the daemon's to choose.
#[derive(Debug, Clone)]
pub(super) struct NewKey {
    pub(super) spec: KeySpec,
    pub(super) usage: Option<v1::KeyUsage>,
    pub(super) description: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

/// What the file calls a cluster by: 1 to 16 lower-case letters, digits and hyphens; `main` is dev's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli::dev) struct ClusterName(String);

/// What is wrong with the file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}: {complaint}", .file.display())]
pub(in crate::cli::dev) struct BadSeed {
    file: PathBuf,
    complaint: String,
}

impl Seed {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it first, by its line or its key, and what would be right.
    pub(in crate::cli::dev) fn read(file: &Path) -> Result<Self, BadSeed> {
        let bad = |complaint| BadSeed { file: file.to_owned(), complaint };
        let text = text_of(file).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str::<Written>(text).map_err(|error| place(text, &error))?.checked()
    }

    pub(in crate::cli::dev) fn kmsusers_password(&self) -> Option<&Password> {
        self.kmsuser.as_ref()
    }

    /// Those beside dev's own.
    pub(super) fn further_clusters(&self) -> BTreeSet<&ClusterName> {
        let named = self.key_stores.values().chain(self.users.values().map(|user| &user.cluster));
        named.filter(|name| !name.is_devs_own()).collect()
    }

    pub(in crate::cli::dev) fn key_stores(&self) -> impl Iterator<Item = &KeyStoreName> {
        self.key_stores.keys()
    }
}

impl ClusterName {
    pub(super) fn devs_own() -> Self {
        Self("main".to_owned())
    }

    pub(super) fn is_devs_own(&self) -> bool {
        *self == Self::devs_own()
    }

    pub(in crate::cli::dev) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let alphabet = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !(1..=16).contains(&text.len()) || !alphabet {
            return Err(Invalid::new("a cluster is called by 1 to 16 lower-case letters, digits or hyphens"));
        }
        Ok(Self(text.to_owned()))
    }
}

fn text_of(file: &Path) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(file)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is longer than {LONGEST} bytes")));
    }
    Ok(text)
}

/// The line of what is wrong, and not the line itself, nor a value in it: that may be a password in a wrong place.
fn place(text: &str, error: &toml::de::Error) -> String {
    let message = without_value(error.message());
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.split('\n').count()),
        None => message.into_owned(),
    }
}

/// What serde says of a value that is not of the right kind shows the value: `invalid type: string "…", expected a map`.
fn without_value(message: &str) -> Cow<'_, str> {
    let Some(found) = ["invalid type: ", "invalid value: "].iter().find_map(|it| message.strip_prefix(it)) else {
        return message.into();
    };
    // The last one, as the value may have such words as well.
    match found.rsplit_once(", expected ") {
        Some((_value, expected)) if expected.starts_with("struct ") => "a table is expected here".into(),
        Some((_value, expected)) => format!("{expected} is expected here").into(),
        None => "something else is expected here".into(),
    }
}

/// The file's own shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "by_name")]
    key_stores: BTreeMap<KeyStoreName, WrittenKeyStore>,
    #[serde(default, deserialize_with = "by_name")]
    keys: BTreeMap<AliasName, WrittenKey>,
    #[serde(default, deserialize_with = "by_name")]
    crypto_users: BTreeMap<Username, WrittenUser>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKeyStore {
    #[serde(default = "ClusterName::devs_own", deserialize_with = "parsed")]
    cluster: ClusterName,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenUser {
    #[serde(default = "ClusterName::devs_own", deserialize_with = "parsed")]
    cluster: ClusterName,
    #[serde(deserialize_with = "secret")]
    password: Password,
    #[serde(default, deserialize_with = "by_name")]
    keys: BTreeMap<HsmLabel, WrittenKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    #[serde(default, deserialize_with = "parsed_if_there")]
    key_store: Option<KeyStoreName>,
    #[serde(default = "default_spec", deserialize_with = "spec")]
    spec: KeySpec,
    #[serde(default, deserialize_with = "usage")]
    usage: Option<v1::KeyUsage>,
    #[serde(default, deserialize_with = "description")]
    description: Option<KeyDescription>,
    #[serde(default, deserialize_with = "tags")]
    tags: Tags,
}

impl Written {
    /// What one line says, held against the others.
    fn checked(mut self) -> Result<Seed, String> {
        let kmsuser = self.crypto_users.remove(&Username::kmsuser()).map(kmsusers_password).transpose()?;
        let key_stores: BTreeMap<_, _> =
            self.key_stores.into_iter().map(|(name, store)| (name, store.cluster)).collect();
        let mut carries: BTreeMap<&ClusterName, &KeyStoreName> = BTreeMap::new();
        for (name, cluster) in &key_stores {
            if let Some(other) = carries.insert(cluster, name) {
                let cluster = cluster.as_str();
                return Err(format!(
                    "key_stores.{name:?}.cluster: cluster {cluster:?} carries {other:?} already, and a cluster carries one \
                     key store; name another, such as cluster = \"second\", which dev then makes"
                ));
            }
        }
        let only = match key_stores.keys().collect::<Vec<_>>()[..] {
            [only] => Some(only.clone()),
            _ => None,
        };
        let mut keys = BTreeMap::new();
        for (alias, key) in self.keys {
            let field = format!("keys.{alias:?}.key_store");
            let store = match (&key.key_store, &only) {
                (Some(named), _) if key_stores.contains_key(named) => named.clone(),
                (Some(named), _) => return Err(format!("{field}: there is no key store {named:?} in key_stores")),
                (None, Some(only)) => only.clone(),
                (None, None) => return Err(format!("{field}: is missing: name one of those in key_stores")),
            };
            keys.insert(alias, (store, key.into()));
        }
        let mut users = BTreeMap::new();
        for (name, user) in self.crypto_users {
            let user = user.checked(&name).map_err(|why| format!("crypto_users.{name}.{why}"))?;
            users.insert(name, user);
        }
        let seed = Seed { key_stores, keys, users, kmsuser };
        bounded("key_stores and crypto_users: clusters", 1 + seed.further_clusters().len(), MOST_CLUSTERS)?;
        bounded("crypto_users", seed.users.len(), MOST_USERS)?;
        let of_users: usize = seed.users.values().map(|user| user.keys.len()).sum();
        bounded("keys, with those of crypto_users", seed.keys.len() + of_users, MOST_KEYS)?;
        Ok(seed)
    }
}

impl WrittenUser {
    fn checked(self, name: &Username) -> Result<User, String> {
        let password = Password::for_crypto_user(name, self.password.expose().to_owned())
            .map_err(|rule| format!("password: {rule}"))?;
        let mut keys = BTreeMap::new();
        for (label, key) in self.keys {
            if key.key_store.is_some() {
                return Err(format!(
                    "keys.{:?}.key_store: a crypto user's own key is in no key store; leave it out",
                    label.as_str()
                ));
            }
            keys.insert(label, key.into());
        }
        Ok(User { cluster: self.cluster, password, keys })
    }
}

fn kmsusers_password(kmsuser: WrittenUser) -> Result<Password, String> {
    if !kmsuser.keys.is_empty() {
        return Err("crypto_users.kmsuser.keys: kmsuser's keys are key stores'; write them under keys".to_owned());
    }
    if !kmsuser.cluster.is_devs_own() {
        return Err(
            "crypto_users.kmsuser.cluster: kmsuser is on every cluster, with one password; leave it out".to_owned()
        );
    }
    kmsuser.checked(&Username::kmsuser()).map(|user| user.password).map_err(|why| format!("crypto_users.kmsuser.{why}"))
}

fn bounded(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count <= most { Ok(()) } else { Err(format!("{what}: {count} are more than {most}")) }
}

impl From<WrittenKey> for NewKey {
    fn from(key: WrittenKey) -> Self {
        let description = key.description.map(KeyDescription::into_string);
        Self { spec: key.spec, usage: key.usage, description, tags: key.tags.into_map() }
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn parsed_if_there<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<Option<T>, D::Error> {
    parsed(from).map(Some)
}

/// A section of sections, each named by an id.
fn by_name<'de, D, K, V>(from: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: FromStr<Err: Display> + Ord,
    V: Deserialize<'de>,
{
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    struct Name<K>(K);
    impl<'de, K: FromStr<Err: Display>> Deserialize<'de> for Name<K> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            parsed(from).map(Self)
        }
    }
    let named = BTreeMap::<Name<K>, V>::deserialize(from)?;
    Ok(named.into_iter().map(|(Name(name), value)| (name, value)).collect())
}

/// Judged once it is known whose it is.
fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Password, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => Ok(Password::trusted(text)),
        _ => Err(D::Error::custom("a password is text in quotes")),
    }
}

const fn default_spec() -> KeySpec {
    KeySpec::SymmetricDefault
}

fn spec<'de, D: Deserializer<'de>>(from: D) -> Result<KeySpec, D::Error> {
    KeySpec::parse(&String::deserialize(from)?)
        .ok_or_else(|| D::Error::custom(format!("a spec is one of {}", KeySpec::ALL.map(KeySpec::as_str).join(", "))))
}

fn usage<'de, D: Deserializer<'de>>(from: D) -> Result<Option<v1::KeyUsage>, D::Error> {
    let text = String::deserialize(from)?;
    match v1::KeyUsage::from_str_name(&format!("KEY_USAGE_{text}")) {
        Some(usage) if usage != v1::KeyUsage::Unspecified => Ok(Some(usage)),
        _ => Err(D::Error::custom("a usage is the name of a KeyUsage, such as ENCRYPT_DECRYPT")),
    }
}

fn description<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KeyDescription>, D::Error> {
    let described = KeyDescription::new(String::deserialize(from)?);
    described.map(Some).map_err(|rule| D::Error::custom(format!("a description {rule}")))
}

fn tags<'de, D: Deserializer<'de>>(from: D) -> Result<Tags, D::Error> {
    let pairs = BTreeMap::<String, String>::deserialize(from)?;
    Tags::new(pairs).map_err(|rule| D::Error::custom(format!("tags {rule}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str) -> String {
        match Seed::parse(text) {
            Ok(seed) => panic!("{text}: {seed:?}"),
            Err(why) => why,
        }
    }

    #[test]
    fn a_seed_says_what_there_is_to_be_and_where() {
        let seed = Seed::parse(
            "key_stores.orders = {}\nkey_stores.invoices.cluster = \"second\"\n\
             [keys.\"alias/a\"]\nkey_store = \"invoices\"\ntags = { team = \"payments\" }\n\
             [crypto_users.kmsuser]\npassword = \"letters4andmore\"\n\
             [crypto_users.alice]\npassword = \"co:lon;$%&\"\ncluster = \"third\"\n[crypto_users.alice.keys.\"a b/c\"]\n",
        )
        .unwrap();
        let further: Vec<_> = seed.further_clusters().into_iter().map(ClusterName::as_str).collect();
        assert_eq!(further, ["second", "third"]);
        let (store, key) = seed.keys.values().next().unwrap();
        assert_eq!((store.as_str(), key.spec, key.tags.len()), ("invoices", KeySpec::SymmetricDefault, 1));
        assert!(seed.kmsusers_password().is_some() && !seed.users.contains_key(&Username::kmsuser()));
        assert_eq!(seed.users.values().next().unwrap().keys.keys().next().unwrap().as_str(), "a b/c");
        assert!(Seed::parse("").unwrap().keys.is_empty(), "an empty file asks for nothing");
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_or_its_key() {
        let user = "[crypto_users.alice]\npassword = \"correct-horse\"\n";
        for (text, place, why) in [
            ("\n[key_store.orders]", "line 2", "unknown field `key_store`"),
            ("[key_stores.orders]\nname = \"x\"", "line 2", "unknown field `name`"),
            ("[key_stores.orders]\n[key_stores.orders]", "line 2", "duplicate"),
            ("[key_stores.orders]\ncluster = \"Second\"", "line 2", "lower-case"),
            ("key_stores = 3", "line 1", "map"),
            ("[keys.orders]", "line 1", "starts with `alias/`"),
            ("[keys.\"alias/a\"]", "keys.\"alias/a\".key_store", "is missing"),
            ("[keys.\"alias/a\"]\nkey_store = \"x\"", "keys.\"alias/a\".key_store", "no key store \"x\""),
            ("[key_stores.x]\n[keys.\"alias/a\"]\nspec = \"AES\"", "line 3", "SYMMETRIC_DEFAULT"),
            ("[key_stores.x]\n[keys.\"alias/a\"]\nusage = \"ENCRYPT\"", "line 3", "ENCRYPT_DECRYPT"),
            ("[key_stores.x]\n[keys.\"alias/a\"]\ntags = { \"aws:x\" = \"1\" }", "line 3", "start with aws:"),
            ("[key_stores.x]\n[key_stores.y]", "key_stores.\"y\".cluster", "carries one key store"),
            ("[crypto_users.alice]", "line 1", "missing field `password`"),
            ("[crypto_users.\"al ice\"]", "line 1", "letters, digits or underscores"),
            ("[crypto_users.alice]\npassword = 12345678", "line 2", "text in quotes"),
            ("[crypto_users.alice]\npassword = \"short1\"", "crypto_users.alice.password", "7 to 32"),
            (
                "[crypto_users.kmsuser]\npassword = \"co:lon;$%&\"",
                "crypto_users.kmsuser.password",
                "letters and digits",
            ),
            (
                "[crypto_users.kmsuser]\npassword = \"letters4\"\nkeys.x = {}",
                "crypto_users.kmsuser.keys",
                "key stores'",
            ),
            (&format!("{user}keys.\"keyway:x\" = {{}}"), "line 3", "keyway's own"),
            (&format!("{user}keys.x.key_store = \"y\""), "crypto_users.alice.keys.\"x\".key_store", "leave it out"),
            ("a = [", "line 1", ""),
        ] {
            let complaint = refused(text);
            assert!(complaint.starts_with(place) && complaint.contains(why), "{text:?}: {complaint}");
        }
    }

    #[test]
    fn more_than_dev_makes_is_refused() {
        let many = |count: usize, line: fn(usize) -> String| (0..count).map(line).collect::<String>();
        let stores = |count| many(count, |n| format!("key_stores.s{n}.cluster = \"c{n}\"\n"));
        assert!(Seed::parse(&stores(9)).is_ok() && refused(&stores(10)).contains("more than 10"));
        let users = |count| many(count, |n| format!("crypto_users.u{n}.password = \"correct-horse\"\n"));
        assert!(Seed::parse(&users(100)).is_ok() && refused(&users(101)).contains("more than 100"));
        let keys = |count| format!("key_stores.s = {{}}\n{}", many(count, |n| format!("keys.\"alias/{n}\" = {{}}\n")));
        assert!(Seed::parse(&keys(1_000)).is_ok() && refused(&keys(1_001)).contains("more than 1000"));
    }

    #[test]
    fn no_complaint_shows_a_password() {
        for text in [
            "[crypto_users.alice]\npassword = \"hunter2",
            "[crypto_users.alice]\npassword = \"hunter2 \"",
            "[crypto_users.alice]\npassword = \"hunter2hunter2\" x",
            "[crypto_users.alice]\npassword = { hunter2 = 1 }",
            "[crypto_users.alice]\npassword = [\"hunter2\"]",
            "[crypto_users.kmsuser]\npassword = \"hunter2:;\"",
            "[crypto_users]\nkmsuser = \"hunter2hunter2\"",
            "[crypto_users]\nalice = \"expected hunter2, expected a map\"",
            "[crypto_users.alice]\npassword = \"letters4andmore\"\nkeys = \"hunter2\"",
            "[crypto_users.alice]\npassword = \"letters4andmore\"\ncluster = [\"hunter2\"]",
            "crypto_users = \"hunter2\"",
        ] {
            let complaint = refused(text);
            assert!(!complaint.contains("hunter2"), "{text:?}: {complaint}");
        }
    }
}
