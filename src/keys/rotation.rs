//! New versions of a key: made as a key is, under the same id, beside the versions that are there.
//!
//! ```text
//!   written down, with the nodes about to be asked ─▶ made on one node, wrapped for the others, each answering its probe
//!     ─▶ two zones answered: the current version from now on, and the caller told; the older ones decrypt
//!     └▶ else: written down as destroyed wherever it may be, which whoever keeps the nodes level sees to
//! ```
//!
//! A ciphertext names its version, so that nothing has to be encrypted anew. The number of a version that came to nothing
//! never comes again. What a daemon that was killed has left is abandoned by the next one.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{Failure, zones};
use crate::keystore;
use crate::keystore::lifecycle::Event;
use crate::model::{CkaId, KeyId, KeyKind, KeyRef, KeyVersion};
use crate::records::{
    BegunVersion, KeyRecord, NewVersion, PresenceRecord, RequestClaim, RotationCause, RotationCursor, RotationDue,
    RotationLimits, Unavailable,
};

use super::create::{Answer, Creation, Live, REQUEST_RETENTION, outcome};
use super::describe::Description;
use super::lifecycle::{self, Operation};
use super::settings::DAY;
use super::{Error, Keys, copy, deletion, uses};

/// AWS's bound: a key is rotated so often by request.
const ON_DEMAND: u32 = 25;
/// AWS's bounds for the days between automatic rotations.
const PERIODS: std::ops::RangeInclusive<u32> = 90..=2_560;
const DEFAULT_PERIOD: u32 = 365;
/// So many keys that are due are read at once.
const PAGE: u32 = 256;
/// How long an automatic rotation is waited for before the next one begins.
const PATIENCE: Duration = Duration::from_secs(60);
/// A key whose automatic rotation failed is tried again after the pause between two looks, then after twice as long, and so
/// on up to so many pauses: about an hour.
const LONGEST_WAIT: u32 = 64;

/// How many days lie between automatic rotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationPeriod {
    days: u32,
}

impl RotationPeriod {
    /// 0 is a year.
    pub fn of_days(days: i32) -> Option<Self> {
        match u32::try_from(days).ok()? {
            0 => Some(Self { days: DEFAULT_PERIOD }),
            days if PERIODS.contains(&days) => Some(Self { days }),
            _ => None,
        }
    }
}

/// A version of a key as it is told to callers.
#[derive(Debug)]
pub struct VersionDescription {
    pub version: KeyVersion,
    pub state: VersionState,
    pub created: SystemTime,
    /// Those that were reserved.
    pub uses: u64,
    pub on: Vec<PresenceRecord>,
}

/// What a version is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    Creating,
    Current,
    DecryptOnly,
    Exhausted,
}

impl Keys {
    /// Answers once the new version is the current one.
    pub async fn rotate_on_demand(
        &self,
        permit: Permit<action::RotateKeyOnDemand>,
        key: &KeyRef,
        request_id: Option<String>,
        deadline: Instant,
    ) -> Result<Description, Error> {
        let record = self.allowed(Operation::RotateKeyOnDemand, key).await?.record;
        let request = request_id.map(|request_id| RequestClaim {
            caller: permit.caller().name().to_owned(),
            request_id,
            body_sha256: fingerprint(record.id),
        });
        let id = self.rotate(record, RotationCause::Demand, request, deadline).await?;
        self.stores_key(id).await
    }

    pub async fn enable_rotation(
        &self,
        _permit: Permit<action::EnableKeyRotation>,
        key: &KeyRef,
        period: RotationPeriod,
    ) -> Result<Description, Error> {
        self.set_rotation(Operation::EnableKeyRotation, key, Some(period)).await
    }

    /// A version that is worn is replaced all the same.
    pub async fn disable_rotation(
        &self,
        _permit: Permit<action::DisableKeyRotation>,
        key: &KeyRef,
    ) -> Result<Description, Error> {
        self.set_rotation(Operation::DisableKeyRotation, key, None).await
    }

    /// Versions older than `before`, newest first.
    pub async fn list_versions(
        &self,
        _permit: Permit<action::ListKeyVersions>,
        key: &KeyRef,
        before: Option<KeyVersion>,
        limit: u32,
    ) -> Result<(KeyRecord, Vec<VersionDescription>), Error> {
        let mut record = self.allowed(Operation::ListKeyVersions, key).await?.record;
        let mut versions: Vec<_> = std::mem::take(&mut record.versions)
            .into_iter()
            .map(|version| VersionDescription {
                version: version.version,
                state: match (version.version == record.current_version, version.uses_reserved) {
                    (true, uses::LIMIT..) => VersionState::Exhausted,
                    (true, _) => VersionState::Current,
                    (false, _) => VersionState::DecryptOnly,
                },
                created: version.created,
                uses: version.uses_reserved,
                on: version.on,
            })
            .collect();
        if let Some((version, created)) = self.0.records.rotation(record.id).await? {
            let (state, on) = (VersionState::Creating, Vec::new());
            versions.push(VersionDescription { version, state, created, uses: 0, on });
        }
        versions.sort_by_key(|version| std::cmp::Reverse(version.version));
        versions.retain(|version| before.is_none_or(|before| version.version < before));
        versions.truncate(limit as usize);
        Ok((record, versions))
    }

    async fn set_rotation(
        &self,
        operation: Operation,
        key: &KeyRef,
        period: Option<RotationPeriod>,
    ) -> Result<Description, Error> {
        let found = self.allowed(operation, key).await?.record;
        must_be_symmetric(&found)?;
        let every = period.map(|period| (period.days, clock::now() + DAY * period.days));
        if !self.0.records.set_rotation(found.id, found.state, every).await? {
            return Err(keystore::Error::Conflict.into());
        }
        self.stores_key(found.id).await
    }

    async fn rotate(
        &self,
        record: KeyRecord,
        cause: RotationCause,
        request: Option<RequestClaim>,
        deadline: Instant,
    ) -> Result<KeyId, Error> {
        must_be_symmetric(&record)?;
        if deadline <= Instant::now() {
            // Too late to tell the caller of a version: none is begun.
            return Err(Error::Hsm(Failure::Late));
        }
        let keys = self.clone();
        let (answer, answered) = oneshot::channel();
        let (begun, name) = oneshot::channel();
        self.0.runtime.spawn(async move {
            if let Err((answer, error)) = keys.rotate_now(record, cause, request, begun, answer).await {
                let _ = answer.send(Err(error));
            }
        });
        outcome(answered, name, deadline).await
    }

    /// Answers through `answer` as soon as the version is the current one, and goes on to the nodes that are still missing it.
    async fn rotate_now(
        &self,
        record: KeyRecord,
        cause: RotationCause,
        request: Option<RequestClaim>,
        begun: oneshot::Sender<String>,
        answer: Answer,
    ) -> Result<(), (Answer, Error)> {
        let id = record.id;
        let (creation, live) = match self.begin_version(record, cause, request).await {
            Ok(Some(begun)) => begun,
            Ok(None) => {
                let _ = answer.send(Ok(id));
                return Ok(());
            }
            Err(error) => return Err((answer, error)),
        };
        let _ = begun.send(creation.name.clone());
        #[cfg(debug_assertions)]
        crate::seams::stop_point("rotate-begun");
        self.carry_out(&creation, live, answer, "rotate-made").await
    }

    /// `None`: the same request came before, and its version is there.
    async fn begin_version(
        &self,
        record: KeyRecord,
        cause: RotationCause,
        request: Option<RequestClaim>,
    ) -> Result<Option<(Creation, Live)>, Error> {
        let (id, cluster, kind) = (record.id, record.cluster.clone(), record.kind);
        let store = record.home.store().ok_or_else(|| Error::NotFound(id.to_string()))?;
        let store = self.0.stores.get(store)?;
        let connection = self.connection_of_store(&store, Event::CreateKey)?;
        self.0.stores.may_create_key(&cluster)?;
        let needed = self.0.stores.quorum(&cluster);
        let nodes = connection.ready_for_new_keys();
        if !needed.is_met_by(nodes.len(), zones(&nodes)) {
            return Err(Error::TooFewNodes { nodes: nodes.len(), zones: zones(&nodes), needed });
        }
        // Its maker may still be copying the version before to the last nodes.
        let live = Live::alone(self.clone(), id).ok_or(Error::BeingRotated(id))?;
        let new = NewVersion {
            key: record,
            store_state: store.record().state,
            asked_by: cause,
            created: clock::now(),
            hsms: nodes.iter().map(|member| member.node.hsm().clone()).collect(),
            request,
        };
        let limits = RotationLimits { on_demand: ON_DEMAND, request_retention: REQUEST_RETENTION };
        let version = match self.0.records.begin_version(&new, &limits).await? {
            BegunVersion::Begun(version) => version,
            BegunVersion::Replay => return Ok(None),
            BegunVersion::RequestReused => return Err(Error::RequestReused),
            BegunVersion::Running => return Err(Error::BeingRotated(id)),
            BegunVersion::TooMany => return Err(Error::TooManyRotations(ON_DEMAND)),
            BegunVersion::Changed => return Err(keystore::Error::Conflict.into()),
        };
        let template = copy::template(kind, &CkaId::of(id, version), None);
        Ok(Some((Creation { id, version, name: id.to_string(), template, connection, nodes, needed }, live)))
    }

    /// What there may be of versions that nobody is making any more is to go.
    async fn abandon_leftovers(&self) -> Result<(), Unavailable> {
        for key in self.0.records.rotations().await? {
            // Held on to: nobody begins another one meanwhile, and whoever keeps the nodes level hears of it in the end.
            let Some(_alone) = Live::alone(self.clone(), key) else { continue };
            self.0.records.abandon_version(key, clock::now()).await?;
            tracing::info!(%key, "a version that was never finished is abandoned");
        }
        Ok(())
    }

    /// Rotates what its period, or its wear, has made due. What cannot be rotated now is due again.
    async fn rotate_due(&self, retries: &mut Retries) -> Result<(), Unavailable> {
        let due = RotationDue { now: clock::now() };
        // A look asks a store of too few HSMs once, however many of its keys are due.
        let mut lacking = BTreeSet::new();
        let mut after = Some(RotationCursor::START);
        while let Some(page_after) = after {
            let (page, next) = self.0.records.due_rotations(due, page_after, PAGE).await?;
            after = next;
            for id in page {
                if !retries.lets_try(id, Instant::now()) {
                    continue;
                }
                let Some(record) = self.0.records.key(id).await? else { continue };
                let Some(store) = record.home.store().filter(|store| !lacking.contains(*store)).cloned() else {
                    continue;
                };
                let found = self.describe_record(record);
                if lifecycle::check(Operation::RotateKeyOnDemand, found.state()).is_err() {
                    continue;
                }
                match self.rotate(found.record, RotationCause::Itself, None, Instant::now() + PATIENCE).await {
                    Ok(key) => {
                        retries.rotated(key);
                        tracing::info!(%key, "a key was rotated by itself");
                    }
                    Err(error) => {
                        tracing::warn!(key = %id, %store, %error, "a key could not be rotated; it is tried again");
                        if matches!(error, Error::TooFewNodes { .. }) {
                            lacking.insert(store);
                        } else {
                            retries.failed(id, deletion::pause(self), Instant::now());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Keys whose automatic rotation failed. Bounded by the quotas of keys.
#[derive(Debug, Default)]
struct Retries(HashMap<KeyId, Retry>);

#[derive(Debug)]
struct Retry {
    wait: Duration,
    at: Instant,
}

impl Retries {
    fn lets_try(&self, key: KeyId, now: Instant) -> bool {
        self.0.get(&key).is_none_or(|retry| retry.at <= now)
    }

    fn failed(&mut self, key: KeyId, pause: Duration, now: Instant) {
        let before = self.0.get(&key).map(|retry| retry.wait * 2);
        let wait = before.unwrap_or(pause).min(pause * LONGEST_WAIT);
        self.0.insert(key, Retry { wait, at: now + wait });
        // One that is due no more, for whatever reason, does not stay.
        self.0.retain(|_, retry| now < retry.at + pause * LONGEST_WAIT);
    }

    fn rotated(&mut self, key: KeyId) {
        self.0.remove(&key);
    }
}

/// Rotates keys by themselves, as long as the daemon runs.
pub async fn run(keys: Keys) {
    let pause = deletion::pause(&keys);
    let mut retries = Retries::default();
    loop {
        let done = async {
            keys.abandon_leftovers().await?;
            keys.rotate_due(&mut retries).await
        };
        if let Err(error) = done.await {
            tracing::warn!(%error, "keys whose rotation is due have to wait");
        }
        tokio::time::sleep(pause).await;
    }
}

/// AWS's rule: whoever has the public half of another key, or has made MACs with it, would have to be told of the new one.
fn must_be_symmetric(key: &KeyRecord) -> Result<(), Error> {
    if key.kind == KeyKind::AES { Ok(()) } else { Err(Error::NotRotated { key: key.id, spec: key.kind.spec() }) }
}

/// What a request to rotate asks for, however it names the key: a repeat has the same, and no other request has.
fn fingerprint(key: KeyId) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"RotateKeyOnDemand");
    context.update(key.as_bytes());
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_90_to_2560_days_and_a_year_when_none_is_asked_for() {
        let days = |days| RotationPeriod::of_days(days).map(|period| period.days);
        assert_eq!([0, 90, 2_560].map(days), [Some(365), Some(90), Some(2_560)]);
        assert_eq!([i32::MIN, -1, 1, 89, 2_561].map(days), [None; 5]);
    }

    #[test]
    fn a_rotation_that_fails_again_and_again_is_tried_ever_more_seldom_but_hourly_at_least() {
        const MINUTE: Duration = Duration::from_secs(60);
        let (mut retries, key, mut now) = (Retries::default(), KeyId::random(), Instant::now());
        for minutes in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(retries.lets_try(key, now));
            retries.failed(key, MINUTE, now);
            assert!(retries.lets_try(KeyId::random(), now), "another one does not wait");
            assert!(!retries.lets_try(key, now + MINUTE * minutes - Duration::from_secs(1)), "{minutes}");
            now += MINUTE * minutes;
        }
        retries.rotated(key);
        retries.failed(key, MINUTE, now);
        assert!(retries.lets_try(key, now + MINUTE), "it begins anew");
        retries.failed(KeyId::random(), MINUTE, now + MINUTE * 66);
        assert_eq!(retries.0.len(), 1, "what is due no more is forgotten");
    }
}
