//! Keys: made once, found by id, alias or label, told (`describe`), used through the Connection of their key store or of
//! their crypto user's login (`owner`), as far as their state lets that happen (`lifecycle`).
//!
//! The records are the truth about keys; the HSMs are the truth about their material. This room
//! holds the two together: `create` makes a key in both or in neither, `destroy` takes a crypto user's out of both, and
//! [`deletion`] a key store's, when its window has ended; [`rotation`] gives one another version; [`reconcile`]
//! settles what a crash left and gives returning nodes what they lack, `inventory` says what tokens hold beyond that, `sync`
//! compares all. Nothing that a token fails to show ever deletes a record.

mod aliases;
mod change;
mod copy;
mod create;
mod crypto;
mod data_key_pair;
pub mod deletion;
mod describe;
mod destroy;
mod drift;
pub mod envelope;
mod found;
mod holdback;
mod inventory;
mod kinds;
mod known;
mod lifecycle;
mod owner;
mod re_encrypt;
pub mod reconcile;
pub mod rotation;
mod rsa;
mod settings;
mod sign;
mod sync;
mod tags;
mod tell;
mod terms;
pub mod usage;
mod uses;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cluster::{Declared, Failure, KeyInHsms, Quorum};
use crate::keystore::{self, KeyStores};
use crate::model::{
    AliasName, CkaId, ClusterId, ConnectionState, CryptoUser, HsmId, KeyId, KeyKind, KeySpec, KeyState, KeyStoreId,
    KeyUsage, KeyVersion, PublicKey,
};
use crate::node::heard_out;
use crate::records::{KeyHome, KeyRecord, Records, Unavailable};
use crate::users::{self, Users};

pub use create::{NewHome, NewKey, RequestClaim};
pub use crypto::{Encrypted, Used};
pub use data_key_pair::NewDataKeyPair;
pub use deletion::DeletionWindow;
pub use describe::{Description, Unusable};
use describe::{hsm_key, mark_of};
pub use drift::Drifts;
use holdback::Holdback;
use known::Known;
use owner::Home;
pub use re_encrypt::{Destination, Source};
pub use rotation::{RotationPeriod, VersionDescription, VersionState};
pub use settings::{DAY, Settings};
pub use sign::{Message, Signed};
pub use sync::{Repair, Synced};
pub use terms::Terms;
use usage::Usage;
use uses::{NoUse, Uses};

/// Why a key could not be made, found or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no key {0}")]
    NotFound(String),
    #[error(transparent)]
    KeyStore(#[from] keystore::Error),
    #[error(transparent)]
    User(#[from] users::Error),
    /// Whatever is kmsuser's is a key store's.
    #[error("kmsuser has no keys of his own: what is in his tokens is used through the key store")]
    OfKmsuser,
    /// The store of the key, or the store asked for, is not connected.
    #[error("key store {store} is {state}, not CONNECTED")]
    StoreNotConnected { store: KeyStoreId, state: ConnectionState },
    /// A key of another program's, which is not destroyed in part.
    #[error("key {key} cannot be destroyed: {hsm}, which may hold it, does not answer")]
    HolderAway { key: String, hsm: HsmId },
    /// A key of another program's that is not as keyway could use it.
    #[error("key {key} cannot be used: {why}")]
    Unusable { key: String, why: &'static str },
    #[error("{name} is not one key alone: {hsm} has several of that name, or another one than other HSMs")]
    Ambiguous { name: String, hsm: HsmId },
    /// A key that exists cannot be used, since its store is not connected.
    #[error("key {key} is UNAVAILABLE: its key store {store} is {state}")]
    Unavailable { key: KeyId, store: KeyStoreId, state: ConnectionState },
    #[error("key {0} is disabled")]
    Disabled(KeyId),
    #[error("key {0} is pending deletion")]
    PendingDeletion(KeyId),
    #[error("key {0} is not pending deletion")]
    NotPendingDeletion(KeyId),
    /// Nothing brings its HSMs back until it is declared again.
    #[error("cluster {cluster} of key store {store} is not declared")]
    Undeclared { store: KeyStoreId, cluster: ClusterId },
    /// Every HSM of the cluster was asked, and none has it.
    #[error("key {key} is on no HSM of cluster {cluster}, all of which were looked at")]
    Lost { key: String, cluster: ClusterId },
    #[error("no connected key store can give random bytes")]
    NoConnectedStore,
    #[error("a new key needs {needed} that answer; {nodes} in {zones} do")]
    TooFewNodes { nodes: usize, zones: usize, needed: Quorum },
    #[error("the ciphertext was not made by the key, or with another encryption context, or was changed")]
    InvalidCiphertext,
    #[error("the ciphertext was made by another key than the one named")]
    IncorrectKey,
    /// Nothing stands in its way, and nothing was done.
    #[error("the request would have succeeded, but dry_run is set")]
    DryRun,
    #[error("key {0} has been used as often as is safe")]
    UseLimit(String),
    /// An HSM, or every cluster of its kind, cannot do what is asked.
    #[error("{what} cannot be had here: {}lacks {missing}", .hsm.as_ref().map_or_else(|| "it ".to_owned(), |hsm| format!("{hsm} ")))]
    Unsupported { what: &'static str, hsm: Option<HsmId>, missing: String },
    #[error("key {key} is for {usage}, not for {operation}")]
    WrongUsage { key: String, usage: KeyUsage, operation: &'static str },
    #[error("algorithm {algorithm} does not fit key {key}, which is {spec} for {usage}")]
    WrongAlgorithm { key: String, algorithm: &'static str, spec: KeySpec, usage: KeyUsage },
    #[error("{algorithm} signs digests of {needed} bytes, not {given}")]
    DigestLength { algorithm: &'static str, needed: usize, given: usize },
    #[error("encryption_algorithm is required for RSA keys, as {0} is one")]
    AlgorithmNeeded(String),
    #[error("algorithm {algorithm} and key spec {spec} cannot encrypt data larger than {room} bytes")]
    TooLong { algorithm: &'static str, spec: KeySpec, room: usize },
    #[error("an encryption context is for symmetric keys only")]
    ContextNotTaken,
    #[error("the key must be named: a ciphertext of RSA's does not tell it")]
    KeyNotNamed,
    #[error("the signature is not the message's under this key")]
    WrongSignature,
    #[error("the MAC is not the message's under this key")]
    WrongMac,
    #[error("key {0} has no public half")]
    NoPublicKey(String),
    #[error("a key pair of spec {0} could not be made")]
    PairNotMade(KeySpec),
    #[error("alias {0} is in use")]
    AliasInUse(AliasName),
    #[error("the key has {0} aliases already")]
    TooManyAliases(u32),
    #[error("alias {name} stands for a {} key for {}, and moves only to another one of that kind and usage", .kind.spec(), .kind.usage())]
    AliasOfAnotherKind { name: AliasName, kind: KeyKind },
    #[error("key {key} is {spec}, and only SYMMETRIC_DEFAULT keys are rotated")]
    NotRotated { key: KeyId, spec: KeySpec },
    #[error("a key has at most {0} tags")]
    TooManyTags(u32),
    #[error(
        "a version of key {0} is being made, copied to its last HSMs, or still to go from some after it came to nothing"
    )]
    BeingRotated(KeyId),
    #[error("a key is rotated at most {0} times by request")]
    TooManyRotations(u32),
    #[error("there is a key {name} already{}", on(.hsm.as_ref()))]
    LabelInUse { name: String, hsm: Option<HsmId> },
    #[error("there are {0} keys already, as many as one key store or crypto user may have")]
    TooManyKeys(u32),
    #[error("request_id was used before, with another request")]
    RequestReused,
    #[error("nobody is logged in to cluster {0}")]
    NobodyLoggedIn(ClusterId),
    #[error("the keys of cluster {0} are being compared already")]
    Syncing(ClusterId),
    #[error("a request with this request_id is still at work on key {0}")]
    StillCreating(String),
    #[error("whether key {0} was made is not known yet; it is being settled")]
    OutcomeUnknown(String),
    #[error("key {0} is being destroyed, and is not gone from every HSM that answers yet")]
    StillDestroying(String),
    #[error("requests like this one on key {key} did harm and are held back for another {remaining:.0?}")]
    HeldBack { key: String, remaining: Duration },
    #[error(transparent)]
    Hsm(#[from] Failure),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

fn on(hsm: Option<&HsmId>) -> String {
    hsm.map(|hsm| format!(", made with another program, on {hsm}")).unwrap_or_default()
}

/// Every key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clusters: Declared,
    records: Records,
    stores: KeyStores,
    users: Users,
    /// Acknowledged keys that were asked for since the start. Bounded by the quotas of keys.
    known: Known<KeyId, Arc<Key>>,
    aliases: Known<AliasName, KeyId>,
    /// Of keys that were used since the start. Bounded likewise.
    usages: Mutex<HashMap<KeyId, Arc<Usage>>>,
    /// Keys that this daemon is making right now: nobody else settles them.
    creating: Mutex<HashSet<KeyId>>,
    /// There is something to settle or bring level: a creation ended midway, a key was destroyed or adopted, or a node
    /// lacks keys.
    unsettled: Notify,
    holdback: Holdback,
    /// Clusters whose keys are being compared for somebody.
    syncing: Mutex<HashSet<ClusterId>>,
    /// By cluster, held while keys that were read are being copied: none of them is destroyed before it is there.
    copying: Mutex<HashMap<ClusterId, Arc<tokio::sync::Mutex<()>>>>,
    /// Up to when the time that windows of deletions run through is written down.
    counted: Mutex<Instant>,
    workshop: data_key_pair::Workshop,
    /// Where work goes on when its caller's connection, and the lane that serves it, are gone.
    runtime: tokio::runtime::Handle,
}

/// An acknowledged key, ready for use as far as its state allows.
#[derive(Debug)]
struct Key {
    id: KeyId,
    home: Home,
    kind: KeyKind,
    state: KeyState,
    usage: Arc<Usage>,
    current: KeyVersion,
    versions: Vec<Version>,
}

#[derive(Debug)]
struct Version {
    version: KeyVersion,
    in_hsms: KeyInHsms,
    /// Of an asymmetric key.
    public_key: Option<PublicKey>,
    uses: Arc<Uses>,
}

impl Keys {
    /// Creations run on the runtime this is called on.
    pub fn new(settings: Settings, clusters: Declared, records: Records, stores: KeyStores, users: Users) -> Self {
        Self(Arc::new(Inner {
            settings,
            clusters,
            records,
            stores,
            users,
            known: Known::default(),
            aliases: Known::default(),
            usages: Mutex::default(),
            creating: Mutex::default(),
            unsettled: Notify::new(),
            holdback: Holdback::default(),
            syncing: Mutex::default(),
            copying: Mutex::default(),
            counted: Mutex::new(Instant::now()),
            workshop: data_key_pair::Workshop::default(),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// How many keys each store has, in any state.
    pub async fn count(&self, store: &KeyStoreId) -> Result<u64, Error> {
        Ok(self.0.records.count_keys(store).await?)
    }

    /// By where the store was made, so that a key keeps its name whatever is declared, and wherever the store goes.
    fn arn(&self, store: &KeyStoreId, resource: &str) -> String {
        let realm = self.0.stores.get(store).ok().and_then(|store| store.record().realm);
        realm.map_or_else(|| format!("arn:aws:kms:::{resource}"), |realm| realm.arn(resource))
    }

    /// An acknowledged key, from memory or from the records.
    async fn find(&self, id: KeyId) -> Result<Arc<Key>, Error> {
        let since = match self.0.known.get(&id) {
            Ok(key) => return Ok(key),
            Err(since) => since,
        };
        let record = self.0.records.key(id).await?.ok_or_else(|| Error::NotFound(id.to_string()))?;
        if record.state == KeyState::Creating {
            return Err(Error::NotFound(id.to_string()));
        }
        let home = match &record.home {
            KeyHome::KeyStore(store) => Home::KeyStore(self.0.stores.get(store)?),
            KeyHome::User { username, .. } | KeyHome::Found { username, .. } => Home::User {
                user: CryptoUser { cluster: record.cluster.clone(), username: username.clone() },
                mark: mark_of(&record.home).ok_or_else(|| Error::NotFound(id.to_string()))?,
            },
        };
        let key = Arc::new(Key::new(record, home, self.usage_of(id)));
        Ok(self.0.known.remember(since, id, key, usize::MAX))
    }

    /// For what is written down and then forgotten, and must not be cut short between the two when its caller leaves: what
    /// he has written is committed all the same, and what is remembered would be gone by for good.
    async fn outlive<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        heard_out(self.0.runtime.spawn(work)).await
    }

    /// After something has changed of a key, or of where it is.
    fn forget(&self, id: KeyId) {
        self.0.known.forget(&id);
    }
}

impl Key {
    fn new(record: KeyRecord, home: Home, usage: Arc<Usage>) -> Self {
        let versions = record.versions.into_iter().filter_map(|version| {
            let (id, found) = (CkaId::of(record.id, version.version), record.home.found().cloned());
            let in_hsms = KeyInHsms { id, found, probe: version.probe? };
            let public_key = version.public_key;
            Some(Version { version: version.version, in_hsms, public_key, uses: usage.of(version.version) })
        });
        let versions = versions.collect();
        let (id, kind, state, current) = (record.id, record.kind, record.state, record.current_version);
        Self { id, home, kind, state, usage, current, versions }
    }

    /// What callers know it by: they do not know the id of a crypto user's.
    fn name(&self) -> String {
        match &self.home {
            Home::KeyStore(_) => self.id.to_string(),
            Home::User { user, mark } => hsm_key(&user.cluster, mark.clone()),
        }
    }

    /// Whether another program made it.
    fn is_found(&self) -> bool {
        self.versions.iter().any(|version| version.in_hsms.found.is_some())
    }

    fn version(&self, version: KeyVersion) -> Option<&Version> {
        self.versions.iter().find(|candidate| candidate.version == version)
    }
}

/// A number for people: its digits in threes.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn a_number_for_people_has_its_digits_in_threes() {
        let told = [0, 999, 1_000, 12_345, 1_234_567].map(thousands);
        assert_eq!(told, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }
}
