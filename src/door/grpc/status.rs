//! Errors become gRPC statuses here and nowhere else.
//!
//! Each has a code, a sentence a person can act on, and details: `ErrorInfo` with a reason that
//! does not change, `BadRequest` for a field that is wrong, `RetryInfo` where a retry helps. A link to help comes last
//! (`finish`).

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::authz::Denied;
use crate::cluster::Failure;
use crate::keys;
use crate::keystore::{self, KmsuserInUse, prerequisites};
use crate::making;
use crate::model::{HsmId, MacAlgorithm, ShownState, SigningAlgorithm, Username};
use crate::records::Unavailable;
use crate::users::{self, Unproved};

use super::pipeline::TooMany;
use super::tally::Answer;

const DOMAIN: &str = "keyway";
/// How soon a caller who met a full queue or an absent node may come back.
const RETRY: Duration = Duration::from_millis(200);

/// A status in the making.
struct Refusal {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    field: Option<String>,
    retry: Option<Duration>,
}

impl Refusal {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), metadata: HashMap::new(), field: None, retry: None }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// Names the HSMs that it is about, if it is about some alone.
    fn on(self, hsms: &[HsmId]) -> Self {
        if hsms.is_empty() {
            return self;
        }
        let names: Vec<_> = hsms.iter().map(HsmId::as_str).collect();
        self.with("hsmIds", names.join(","))
    }

    fn field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self.with("field", field)
    }

    fn retry(mut self) -> Self {
        self.retry = Some(RETRY);
        self
    }

    fn status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, self.metadata);
        if let Some(field) = &self.field {
            details.add_bad_request_violation(field, &self.message);
        }
        if let Some(retry) = self.retry {
            details.set_retry_info(Some(retry));
        }
        let mut status = Status::with_error_details(self.code, self.message, details);
        if let Some(retry) = self.retry {
            let pushback = retry.as_millis().to_string();
            status.metadata_mut().insert("grpc-retry-pushback-ms", pushback.parse().expect("digits"));
        }
        status
    }
}

/// A field of the request is wrong.
pub(super) fn field(field: &str, why: impl std::fmt::Display) -> Status {
    field_reason(field, "VALIDATION", why)
}

/// A field of the request is wrong in a way that has a reason of its own.
pub(super) fn field_reason(field: &str, reason: &'static str, why: impl std::fmt::Display) -> Status {
    Refusal::new(Code::InvalidArgument, reason, format!("{field}: {why}")).field(field).status()
}

/// The connection proved nobody's name.
pub(super) fn nobody() -> Status {
    let message = "the connection does not say who is calling; connect with a client certificate or the Unix socket";
    Refusal::new(Code::Unauthenticated, "NO_CALLER_IDENTITY", message).status()
}

pub(super) fn denied(denied: Denied) -> Status {
    Refusal::new(Code::PermissionDenied, "ACCESS_DENIED", denied.to_string())
        .with("caller", denied.caller)
        .with("action", denied.action)
        .status()
}

/// A stream that has more to tell ends because the daemon does.
pub(super) fn draining() -> Status {
    Refusal::new(Code::Unavailable, "DRAINING", "the daemon is on its way down").retry().status()
}

/// A caller would have more streams than are served.
pub(super) fn too_many_streams(too_many: TooMany) -> Status {
    Refusal::new(Code::ResourceExhausted, "THROTTLING", too_many.to_string()).retry().status()
}

/// What did the work is gone, and nobody knows why.
pub(super) fn broken_off() -> Status {
    Refusal::new(Code::Internal, "KMS_INTERNAL", "the daemon failed in the middle of it").status()
}

/// The caller stopped waiting before anything else could be said.
pub(super) fn late() -> Status {
    Refusal::new(Code::DeadlineExceeded, "DEADLINE", "the deadline passed").status()
}

/// How a call is counted whose caller left before it was answered.
pub(super) fn caller_left() -> Answer {
    Answer::Refused { code: Code::Cancelled, reason: "CANCELLED".to_owned() }
}

/// A code's name as the protocol spells it.
pub(super) fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// What tonic itself refused carries no details; these give it the same form as everything else.
pub(super) fn complete(status: &Status, max_message_bytes: usize) -> Status {
    let message = status.message();
    match status.code() {
        Code::Unimplemented => {
            Refusal::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", "this daemon does not serve this call")
        }
        Code::OutOfRange | Code::ResourceExhausted => Refusal::new(
            Code::InvalidArgument,
            "VALIDATION",
            format!("the request message is longer than the limit of {max_message_bytes} bytes"),
        )
        .field("(message)")
        .with("maxMessageBytes", max_message_bytes),
        Code::Internal | Code::InvalidArgument => {
            Refusal::new(Code::InvalidArgument, "VALIDATION", format!("the request cannot be read: {message}"))
                .field("(message)")
        }
        Code::DeadlineExceeded => return late(),
        Code::Cancelled => Refusal::new(Code::Cancelled, "CANCELLED", "the call was cancelled"),
        Code::Unavailable => Refusal::new(Code::Unavailable, "DRAINING", message).retry(),
        _ => return status.clone(),
    }
    .status()
}

/// As it stands in an answer, where it is one of many.
pub(super) fn as_message(status: &Status) -> tonic_types::pb::Status {
    // The details are such a message, whole.
    let told = tonic_types::pb::Status::decode(status.details()).unwrap_or_default();
    tonic_types::pb::Status { code: status.code().into(), message: status.message().to_owned(), ..told }
}

impl From<keystore::Error> for Refusal {
    fn from(error: keystore::Error) -> Self {
        use keystore::Error as E;
        let message = error.to_string();
        match error {
            E::NotFound(name) => {
                Self::new(Code::NotFound, "CUSTOM_KEY_STORE_NOT_FOUND", message).with("keyStore", name)
            }
            E::ClusterNotFound(cluster) => {
                Self::new(Code::NotFound, "CLOUD_HSM_CLUSTER_NOT_FOUND", message).with("clusterId", cluster)
            }
            E::HsmNotFound { cluster, hsm } => {
                Self::new(Code::NotFound, "NOT_FOUND", message).with("clusterId", cluster).with("hsmId", hsm)
            }
            E::Prerequisite(refusal) => refusal.into(),
            E::InvalidState(refused) => Self::new(
                Code::FailedPrecondition,
                "CUSTOM_KEY_STORE_INVALID_STATE",
                format!("{message}; {}", way_out(refused.state)),
            )
            .with("connectionState", refused.state),
            E::HasKeys(keys) => Self::new(
                Code::FailedPrecondition,
                "CUSTOM_KEY_STORE_HAS_CMKS",
                format!("{message}; only one without keys can be deleted: schedule their deletion, and come back when they are gone"),
            )
            .with("keys", keys),
            E::Conflict => Self::new(Code::Aborted, "CONFLICT", message).retry(),
            E::Records(error) => error.into(),
        }
    }
}

/// The reason is the prerequisite's own; here it gets its code, and its variables.
impl From<prerequisites::Refusal> for Refusal {
    fn from(refused: prerequisites::Refusal) -> Self {
        use prerequisites::Unmet as U;
        let message = format!("{refused}. {}", refused.unmet.remedy());
        let refusal = |code| Self::new(code, refused.reason(), message.clone());
        let of_cluster = |code| refusal(code).with("clusterId", &refused.cluster);
        let failed = || of_cluster(Code::FailedPrecondition);
        match &refused.unmet {
            U::NameInUse(name) => refusal(Code::AlreadyExists).with("keyStoreName", name),
            U::QuotaReached(quota) => refusal(Code::ResourceExhausted).with("quota", quota),
            U::NotFound => of_cluster(Code::NotFound),
            U::Tied(store) => of_cluster(Code::AlreadyExists).with("keyStoreId", store),
            U::RelativeTied { cluster, store } => {
                of_cluster(Code::AlreadyExists).with("keyStoreId", store).with("relatedClusterId", cluster)
            }
            U::IncorrectTrustAnchor | U::UnreadableTrustAnchor(_) => {
                of_cluster(Code::InvalidArgument).field("trust_anchor_certificate")
            }
            U::NotUnderTrustAnchor { hsm, .. } => of_cluster(Code::InvalidArgument).with("hsmId", hsm),
            U::UnreadablePassword(_) => refusal(Code::InvalidArgument).field("key_store_password"),
            U::Elsewhere { here, store } => of_cluster(Code::NotFound)
                .with("region", &here.region)
                .with("account", &here.account)
                .with("keyStoreRegion", &store.region)
                .with("keyStoreAccount", &store.account),
            U::NotRelated(present) => failed().with("presentClusterId", present),
            U::NotActive { state, .. } => failed().with("clusterState", state),
            U::SubnetsInTooFewZones { zones } => failed().with("availabilityZones", zones),
            U::Closed { group, direction: _, ports } => failed().with("securityGroupId", group).with("ports", ports),
            U::TooFewHsms { hsms, zones, needed: _ } => failed().with("hsms", hsms).with("availabilityZones", zones),
            U::SubnetGone(subnet) | U::NoFreeAddress(subnet) | U::OneFreeAddress(subnet) => {
                failed().with("subnetId", subnet)
            }
            U::Unreachable { hsm, .. } => failed().with("hsmId", hsm),
            U::NotConnected { store, state } | U::NotDisconnected { store, state } => {
                failed().with("keyStoreId", store).with("connectionState", state)
            }
            U::NoActiveHsm | U::AllDrained | U::LoginFailed { .. } => failed(),
            U::TooFewAnswer { hsms, zones, needed: _ } => {
                of_cluster(Code::Unavailable).with("hsms", hsms).with("availabilityZones", zones).retry()
            }
            U::NobodyAnswers => of_cluster(Code::Unavailable).retry(),
        }
    }
}

impl From<keys::Error> for Refusal {
    fn from(error: keys::Error) -> Self {
        use keys::Error as E;
        let message = error.to_string();
        match error {
            E::NotFound(key) => Self::new(Code::NotFound, "NOT_FOUND", message).with("key", key),
            E::KeyStore(error) => error.into(),
            E::User(error) => error.into(),
            E::OfKmsuser => Self::new(Code::InvalidArgument, "VALIDATION", message).field("x-keyway-login"),
            E::StoreNotConnected { store, state } => Self::new(
                Code::FailedPrecondition,
                "CUSTOM_KEY_STORE_INVALID_STATE",
                format!("{message}; {}", way_out(state)),
            )
            .with("keyStoreId", store)
            .with("connectionState", state),
            E::Unavailable { key, store, state } => {
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", format!("{message}; {}", way_out(state)))
                    .with("keyId", key)
                    .with("keyStoreId", store)
                    .with("connectionState", state)
            }
            E::Disabled(key) => Self::new(Code::FailedPrecondition, "DISABLED", format!("{message}; enable it first"))
                .with("keyId", key),
            E::PendingDeletion(key) => {
                let way_out = "cancel its deletion first, and enable it";
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", format!("{message}; {way_out}"))
                    .with("keyId", key)
                    .with("keyState", ShownState::PendingDeletion)
            }
            E::NotPendingDeletion(key) => {
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", message).with("keyId", key)
            }
            E::Undeclared { store, cluster } => {
                let way_out = "declare it in the daemon's configuration again, and send the daemon SIGHUP";
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", format!("{message}; {way_out}"))
                    .with("keyStoreId", store)
                    .with("clusterId", cluster)
            }
            E::Lost { key, cluster } => {
                let way_out = "bring back an HSM that holds it; a key store can also move to a cluster that does";
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", format!("{message}; {way_out}"))
                    .with("keyId", key)
                    .with("clusterId", cluster)
            }
            E::NoConnectedStore => {
                Self::new(Code::FailedPrecondition, "CUSTOM_KEY_STORE_INVALID_STATE", format!("{message}; connect one"))
            }
            E::TooFewNodes { nodes, zones, .. } => Self::new(Code::Unavailable, "NO_NODE", message)
                .with("hsms", nodes)
                .with("availabilityZones", zones)
                .retry(),
            E::InvalidCiphertext => Self::new(Code::InvalidArgument, "INVALID_CIPHERTEXT", message).field("ciphertext"),
            E::IncorrectKey => Self::new(Code::InvalidArgument, "INCORRECT_KEY", message).field("key_id"),
            E::DryRun => Self::new(Code::FailedPrecondition, "DRY_RUN_OPERATION", message),
            E::Unsupported { what, hsm, missing } => {
                let way_out = "ask for another key spec, or use a cluster whose HSMs have it";
                let refusal = Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", format!("{message}; {way_out}"))
                    .with("what", what)
                    .with("missingMechanism", missing);
                hsm.into_iter().fold(refusal, |refusal, hsm| refusal.with("hsmId", hsm))
            }
            E::PairNotMade(_) => {
                tracing::error!(message, "internal error");
                Self::new(Code::Internal, "KMS_INTERNAL", message)
            }
            E::NoPublicKey(key) => {
                Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", message).field("key_id").with("keyId", key)
            }
            E::WrongUsage { key, usage, operation } => Self::new(Code::InvalidArgument, "INVALID_KEY_USAGE", message)
                .field("key_id")
                .with("keyId", key)
                .with("keyUsage", usage)
                .with("operation", operation),
            E::WrongAlgorithm { key, algorithm, spec, usage } => {
                Self::new(Code::InvalidArgument, "INVALID_KEY_USAGE", message)
                    .field(algorithm_field(algorithm))
                    .with("keyId", key)
                    .with("algorithm", algorithm)
                    .with("keySpec", spec)
                    .with("keyUsage", usage)
            }
            E::DigestLength { algorithm, needed, given } => Self::new(Code::InvalidArgument, "VALIDATION", message)
                .field("message")
                .with("algorithm", algorithm)
                .with("neededBytes", needed)
                .with("givenBytes", given),
            E::AlgorithmNeeded(key) => {
                Self::new(Code::InvalidArgument, "VALIDATION", message).field("encryption_algorithm").with("keyId", key)
            }
            E::TooLong { algorithm, spec, room } => Self::new(Code::InvalidArgument, "VALIDATION", message)
                .field("plaintext")
                .with("algorithm", algorithm)
                .with("keySpec", spec)
                .with("mostBytes", room),
            E::ContextNotTaken => Self::new(Code::InvalidArgument, "VALIDATION", message).field("encryption_context"),
            E::KeyNotNamed => Self::new(Code::InvalidArgument, "VALIDATION", message).field("key_id"),
            E::WrongSignature => Self::new(Code::InvalidArgument, "KMS_INVALID_SIGNATURE", message).field("signature"),
            E::WrongMac => Self::new(Code::InvalidArgument, "KMS_INVALID_MAC", message).field("mac"),
            E::UseLimit(key) => Self::new(Code::FailedPrecondition, "KEY_USE_LIMIT", message).with("keyId", key),
            E::AliasInUse(alias) => Self::new(Code::AlreadyExists, "ALREADY_EXISTS", message).with("aliasName", alias),
            E::NotRotated { key, spec } => Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", message)
                .field("key_id")
                .with("keyId", key)
                .with("keySpec", spec),
            E::AliasOfAnotherKind { name, kind } => Self::new(Code::InvalidArgument, "INVALID_KEY_USAGE", message)
                .field("target_key_id")
                .with("aliasName", name)
                .with("keySpec", kind.spec())
                .with("keyUsage", kind.usage()),
            E::TooManyTags(quota) => {
                Self::new(Code::InvalidArgument, "TAG", message).field("tags").with("quota", quota)
            }
            E::LabelInUse { name, hsm } => {
                let refusal = Self::new(Code::AlreadyExists, "ALREADY_EXISTS", message).with("keyId", name);
                hsm.into_iter().fold(refusal, |refusal, hsm| refusal.with("hsmId", hsm))
            }
            E::TooManyAliases(quota) | E::TooManyKeys(quota) | E::TooManyRotations(quota) => {
                Self::new(Code::ResourceExhausted, "LIMIT_EXCEEDED", message).with("quota", quota)
            }
            E::RequestReused => Self::new(Code::InvalidArgument, "REQUEST_ID_REUSED", message).field("request_id"),
            E::NobodyLoggedIn(cluster) => Self::new(
                Code::FailedPrecondition,
                "CUSTOM_KEY_STORE_INVALID_STATE",
                format!("{message}; make a key store on it and connect it"),
            )
            .with("clusterId", cluster),
            E::Syncing(cluster) => Self::new(Code::Aborted, "CONFLICT", message).with("clusterId", cluster).retry(),
            E::BeingRotated(key) => Self::new(Code::Aborted, "CONFLICT", message).with("keyId", key).retry(),
            E::StillCreating(key) => Self::new(Code::Aborted, "CONFLICT", message).with("keyId", key).retry(),
            E::HolderAway { key, hsm } => {
                Self::new(Code::Unavailable, "NO_NODE", message).with("keyId", key).with("hsmId", hsm).retry()
            }
            E::Unusable { key, why } => {
                Self::new(Code::FailedPrecondition, "KMS_INVALID_STATE", message).with("keyId", key).with("why", why)
            }
            E::Ambiguous { name, hsm } => Self::new(
                Code::FailedPrecondition,
                "AMBIGUOUS_LABEL",
                format!("{message}; name it by its CKA_ID, hsm:<cluster id>/id=<hex>, or give each a name of its own"),
            )
            .with("keyId", name)
            .with("hsmId", hsm),
            E::OutcomeUnknown(key) | E::StillDestroying(key) => {
                Self::new(Code::Aborted, "OUTCOME_UNKNOWN", message).with("keyId", key)
            }
            E::HeldBack { key, remaining } => {
                let mut refusal = Self::new(Code::ResourceExhausted, "THROTTLING", message).with("keyId", key);
                refusal.retry = Some(remaining);
                refusal
            }
            E::Hsm(failure) => failure.into(),
            E::Records(error) => error.into(),
        }
    }
}

impl From<users::Error> for Refusal {
    fn from(error: users::Error) -> Self {
        use users::Error as E;
        let message = error.to_string();
        match error {
            E::ClusterNotFound(cluster) => {
                Self::new(Code::NotFound, "CLOUD_HSM_CLUSTER_NOT_FOUND", message).with("clusterId", cluster)
            }
            E::ClusterNotActive { cluster, state } => {
                Self::new(Code::FailedPrecondition, "CLOUD_HSM_CLUSTER_NOT_ACTIVE", message)
                    .with("clusterId", cluster)
                    .with("state", state)
            }
            E::NotManaged(cluster) => {
                Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", message).with("clusterId", cluster)
            }
            E::NotFound { cluster, user } => {
                Self::new(Code::NotFound, "NOT_FOUND", message).with("clusterId", cluster).with("username", user)
            }
            E::Exists { cluster, user, hsms } => Self::new(Code::AlreadyExists, "ALREADY_EXISTS", message)
                .with("clusterId", cluster)
                .with("username", user)
                .on(&hsms),
            E::BeingDeleted { cluster, user, hsms } => Self::new(Code::Aborted, "CONFLICT", message)
                .with("clusterId", cluster)
                .with("username", user)
                .on(&hsms)
                .retry(),
            E::TooManyUsers(quota) | E::TooManyLogins(quota) => {
                Self::new(Code::ResourceExhausted, "LIMIT_EXCEEDED", message).with("quota", quota)
            }
            E::LoggedIn(user) => Self::new(Code::FailedPrecondition, "USER_LOGGED_IN", message).with("username", user),
            E::KmsuserInUse(KmsuserInUse { store, state }) => {
                Self::new(Code::FailedPrecondition, "USER_LOGGED_IN", format!("{message}; {}", way_out(state)))
                    .with("username", Username::kmsuser())
                    .with("keyStoreId", store)
                    .with("connectionState", state)
            }
            E::KmsuserHasKeyStore { store, state } => {
                Self::new(Code::FailedPrecondition, "CUSTOM_KEY_STORE_INVALID_STATE", message)
                    .with("keyStoreId", store)
                    .with("connectionState", state)
            }
            E::NoNode { cluster, .. }
            | E::NotServed { cluster, .. }
            | E::Unproved(Unproved::NoNode { cluster, .. }) => {
                Self::new(Code::Unavailable, "NO_NODE", message).with("clusterId", cluster).retry()
            }
            E::OutcomeUnknown(_) => Self::new(Code::Aborted, "OUTCOME_UNKNOWN", message),
            E::Unproved(Unproved::Refused) => Self::new(Code::Unauthenticated, "INVALID_CREDENTIALS", message),
            E::Unproved(Unproved::Throttled) => Self::new(Code::ResourceExhausted, "THROTTLING", message),
            E::SecondFactor(user) => {
                Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", message).with("username", user)
            }
            E::Busy => Self::new(Code::ResourceExhausted, "SESSIONS_EXHAUSTED", message).retry(),
            E::LoginRequired => Self::new(
                Code::Unauthenticated,
                "LOGIN_REQUIRED",
                format!("{message}: send it as metadata x-keyway-login"),
            ),
            E::LoginExpired => Self::new(Code::Unauthenticated, "LOGIN_EXPIRED", format!("{message}; log in again")),
            E::Conflict => Self::new(Code::Aborted, "CONFLICT", message).retry(),
            E::NoRandomness => {
                tracing::error!(message, "internal error");
                Self::new(Code::Internal, "KMS_INTERNAL", message)
            }
            E::Records(error) | E::Unproved(Unproved::Records(error)) => error.into(),
        }
    }
}

impl From<making::Error> for Refusal {
    fn from(error: making::Error) -> Self {
        use making::Error as E;
        let message = error.to_string();
        let refusal = |code, reason| Self::new(code, reason, message.clone());
        let too_few = || refusal(Code::FailedPrecondition, "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION");
        match error {
            E::NotConfigured => refusal(Code::Unimplemented, "UNSUPPORTED_OPERATION"),
            E::NoNodeClient => refusal(Code::Unimplemented, "UNSUPPORTED_OPERATION").field("address"),
            E::NotMade(cluster) => refusal(Code::Unimplemented, "UNSUPPORTED_OPERATION").with("clusterId", cluster),
            E::ClusterNotFound(cluster) => {
                refusal(Code::NotFound, "CLOUD_HSM_CLUSTER_NOT_FOUND").with("clusterId", cluster)
            }
            E::TooManyClusters(quota) => refusal(Code::ResourceExhausted, "LIMIT_EXCEEDED").with("quota", quota),
            E::TooManyHsms(quota) => refusal(Code::ResourceExhausted, "LIMIT_EXCEEDED").with("quota", quota),
            E::RequestReused => refusal(Code::InvalidArgument, "REQUEST_ID_REUSED").field("request_id"),
            E::Initialized { cluster, state } => refusal(Code::FailedPrecondition, "CLOUD_HSM_INVALID_REQUEST")
                .with("clusterId", cluster)
                .with("clusterState", state),
            E::NothingToSign(cluster) => {
                refusal(Code::FailedPrecondition, "CLOUD_HSM_INVALID_REQUEST").with("clusterId", cluster)
            }
            E::IsGoing { hsm, state } => refusal(Code::FailedPrecondition, "CLOUD_HSM_INVALID_REQUEST")
                .with("hsmId", hsm)
                .with("hsmState", state),
            E::Certificate(which, why) => {
                Self::new(Code::InvalidArgument, "VALIDATION", format!("{which}: {why}")).field(which.field())
            }
            E::NotIssued => {
                refusal(Code::InvalidArgument, "INCORRECT_TRUST_ANCHOR").field(making::Certificate::TrustAnchor.field())
            }
            E::SubnetNotFound { cluster, subnet, .. } => refusal(Code::InvalidArgument, "VALIDATION")
                .field("subnet_id")
                .with("clusterId", cluster)
                .with("subnetId", subnet),
            E::ZoneNotFound { cluster, zone, .. } => refusal(Code::InvalidArgument, "VALIDATION")
                .field("availability_zone")
                .with("clusterId", cluster)
                .with("availabilityZone", zone),
            E::HsmExists { cluster, hsm } => refusal(Code::AlreadyExists, "ALREADY_EXISTS")
                .field("hsm_id")
                .with("clusterId", cluster)
                .with("hsmId", hsm),
            E::AddressTaken { cluster, hsm } => refusal(Code::AlreadyExists, "ALREADY_EXISTS")
                .field("address")
                .with("clusterId", cluster)
                .with("hsmId", hsm),
            E::HsmNotFound { cluster, hsm } => {
                refusal(Code::NotFound, "NOT_FOUND").with("clusterId", cluster).with("hsmId", hsm)
            }
            E::LastHsm { hsm, store } | E::NoHeir { hsm, store } => {
                too_few().with("hsmId", hsm).with("keyStoreId", store)
            }
            E::KeysLeft { hsm, keys, needed } => too_few().with("hsmId", hsm).with("keys", keys).with("hsms", needed),
            E::Conflict => refusal(Code::Aborted, "CONFLICT").retry(),
            E::NoRequest(_) => {
                tracing::error!(%message, "internal error");
                refusal(Code::Internal, "KMS_INTERNAL")
            }
            E::Records(error) => error.into(),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::BadCiphertext => {
                Self::new(Code::InvalidArgument, "INVALID_CIPHERTEXT", message).field("ciphertext")
            }
            Failure::NoNode => Self::new(Code::Unavailable, "NO_NODE", message).retry(),
            Failure::KeyUnavailable => Self::new(Code::Unavailable, "KEY_UNAVAILABLE", message).retry(),
            Failure::Busy => Self::new(Code::ResourceExhausted, "SESSIONS_EXHAUSTED", message).retry(),
            Failure::Late => Self::new(Code::DeadlineExceeded, "DEADLINE", message),
            Failure::Unsupported(what) => {
                Self::new(Code::Unimplemented, "UNSUPPORTED_OPERATION", message).with("missingMechanism", what)
            }
            Failure::OutcomeUnknown => Self::new(Code::Aborted, "OUTCOME_UNKNOWN", message),
            Failure::BadInput | Failure::Poisonous | Failure::OutOfTurn => {
                tracing::error!(%failure, "internal error");
                Self::new(Code::Internal, "KMS_INTERNAL", message)
            }
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(error: Unavailable) -> Self {
        tracing::error!(%error, source = ?std::error::Error::source(&error), "the records cannot be reached");
        Self::new(Code::Unavailable, "RECORDS_UNAVAILABLE", "the records cannot be reached; nothing was changed")
            .retry()
    }
}

pub(super) fn key_store(error: keystore::Error) -> Status {
    Refusal::from(error).status()
}

pub(super) fn making(error: making::Error) -> Status {
    Refusal::from(error).status()
}

pub(super) fn users(error: users::Error) -> Status {
    Refusal::from(error).status()
}

pub(super) fn key(error: keys::Error) -> Status {
    Refusal::from(error).status()
}

/// A request with two keys calls the one that decrypts by another name than the others do.
pub(super) fn re_encrypt(error: keys::Error) -> Status {
    let refusal = Refusal::from(error);
    let named_otherwise = refusal.field.as_deref() == Some("key_id");
    if named_otherwise { refusal.field("source_key_id") } else { refusal }.status()
}

/// The field that an algorithm is asked for in.
fn algorithm_field(algorithm: &str) -> &'static str {
    if MacAlgorithm::parse(algorithm).is_some() {
        "mac_algorithm"
    } else if SigningAlgorithm::parse(algorithm).is_some() {
        "signing_algorithm"
    } else {
        "encryption_algorithm"
    }
}

/// What to do about a store that is in the way.
fn way_out(state: crate::model::ConnectionState) -> &'static str {
    use crate::model::ConnectionState as S;
    match state {
        S::Disconnected => "connect the key store first",
        S::Connecting => "wait until it is connected",
        S::Connected => "disconnect it first",
        S::Disconnecting => "wait until it is disconnected",
        S::Failed => "disconnect it, fix the cause, and connect it again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystore::prerequisites::{CheckPhase, Unmet};

    #[test]
    fn a_code_is_named_as_the_protocol_spells_it() {
        let named = [Code::Ok, Code::InvalidArgument, Code::Unauthenticated].map(name);
        assert_eq!(named.join(" "), "OK INVALID_ARGUMENT UNAUTHENTICATED");
    }

    /// The variables of the sentence are in the metadata, and the sentence ends with what to do.
    #[test]
    fn every_refused_prerequisite_tells_what_to_do_and_its_variables() {
        let cluster: crate::model::ClusterId = "cluster-2abcdefghij".parse().unwrap();
        for unmet in Unmet::one_of_each() {
            let (variables, remedy) = (variables(&unmet), unmet.remedy());
            let refused = prerequisites::Refusal { cluster: cluster.clone(), phase: CheckPhase::Create, unmet };
            let refusal = Refusal::from(refused.clone());
            assert_eq!(refusal.message, format!("{refused}. {remedy}"));
            let mut told: Vec<_> = refusal.metadata.keys().map(String::as_str).collect();
            told.sort_unstable();
            assert_eq!(told, variables, "{refused:?}");
        }
    }

    fn variables(unmet: &Unmet) -> &'static [&'static str] {
        use Unmet as U;
        match unmet {
            U::NameInUse(_) => &["keyStoreName"],
            U::QuotaReached(_) => &["quota"],
            U::NotFound | U::NoActiveHsm | U::AllDrained | U::LoginFailed { .. } | U::NobodyAnswers => &["clusterId"],
            U::Tied(_) => &["clusterId", "keyStoreId"],
            U::RelativeTied { .. } => &["clusterId", "keyStoreId", "relatedClusterId"],
            U::NotRelated(_) => &["clusterId", "presentClusterId"],
            U::Elsewhere { .. } => &["account", "clusterId", "keyStoreAccount", "keyStoreRegion", "region"],
            U::NotActive { .. } => &["clusterId", "clusterState"],
            U::SubnetsInTooFewZones { .. } => &["availabilityZones", "clusterId"],
            U::Closed { .. } => &["clusterId", "ports", "securityGroupId"],
            U::TooFewHsms { .. } | U::TooFewAnswer { .. } => &["availabilityZones", "clusterId", "hsms"],
            U::IncorrectTrustAnchor | U::UnreadableTrustAnchor(_) => &["clusterId", "field"],
            U::NotUnderTrustAnchor { .. } => &["clusterId", "hsmId"],
            U::UnreadablePassword(_) => &["field"],
            U::SubnetGone(_) | U::NoFreeAddress(_) | U::OneFreeAddress(_) => &["clusterId", "subnetId"],
            U::Unreachable { .. } => &["clusterId", "hsmId"],
            U::NotConnected { .. } | U::NotDisconnected { .. } => &["clusterId", "connectionState", "keyStoreId"],
        }
    }
}
