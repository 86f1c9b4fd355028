//! The core's words become messages here, once.

use std::time::SystemTime;

use crate::cluster::{Connection, Member, NodeSettings};
use crate::keys::{Description, Unusable, VersionDescription, VersionState};
use crate::keystore::{ConnectPhase, Progress, Store};
use crate::model::{ConnectionErrorCode, ConnectionState, HsmId, KeyKind, PasswordVersion, ShownState};
use crate::node::{Health, LoginRefusal, Reach, Status};
use crate::proto::v1 as pb;
use crate::records::{AliasRecord, ConnectionFault, KeyStoreRecord, PresenceRecord, Proof};

use super::{Pages, kinds, topology};

pub(super) fn key_store(
    record: &KeyStoreRecord,
    connection: Option<&Connection>,
    keys: u64,
    pages: &Pages,
) -> pb::KeyStore {
    let failed = (record.state == ConnectionState::Failed).then_some(record.last_error.as_ref()).flatten();
    pb::KeyStore {
        key_store_id: record.id.to_string(),
        key_store_name: record.name.to_string(),
        cluster_id: record.cluster.to_string(),
        trust_anchor_certificate: record.trust_anchor.pem().to_owned(),
        connection_state: connection_state(record.state).into(),
        connection_error_code: failed.map_or(0, |fault| connection_error_code(fault.code).into()),
        connection_error_message: failed.map(|fault| fault.message.clone()).unwrap_or_default(),
        connection_error_remedy: failed.map(|fault| fault.code.remedy().to_owned()).unwrap_or_default(),
        create_time: time(record.created),
        nodes: connection.map(node_connections).unwrap_or_default(),
        state_change_time: time(record.state_changed),
        connect_attempt: i32::try_from(record.connect_attempt).unwrap_or(i32::MAX),
        last_connection_error: record.last_error.as_ref().map(|fault| connection_error(fault, pages)),
        key_count: i32::try_from(keys).unwrap_or(i32::MAX),
        password_rotate_time: record.password_rotated.and_then(time),
    }
}

fn connection_error(fault: &ConnectionFault, pages: &Pages) -> pb::ConnectionError {
    pb::ConnectionError {
        code: connection_error_code(fault.code).into(),
        message: fault.message.clone(),
        remedy: fault.code.remedy().to_owned(),
        help_url: pages.of(fault.code.as_str()),
        hsm_id: fault.hsm.as_ref().map(ToString::to_string).unwrap_or_default(),
        time: time(fault.time),
    }
}

fn node_connections(connection: &Connection) -> Vec<pb::NodeConnection> {
    connection
        .members()
        .iter()
        .map(|member| {
            let status = member.node.status().borrow().clone();
            let load = member.node.load();
            let sessions = load.map_or(0, |load| load.sessions);
            pb::NodeConnection {
                hsm_id: member.node.hsm().to_string(),
                availability_zone: member.node.zone.to_string(),
                health: health(status.health).into(),
                sessions_open: count(sessions),
                sessions_busy: load.map_or(0, |load| count(load.sessions_busy())),
                last_error: status.last_error.as_ref().map(|(error, _)| error.clone()).unwrap_or_default(),
                last_error_time: status.last_error.as_ref().and_then(|(_, at)| time(*at)),
                sessions_limit: count(member.node.spec.sessions),
                requests_waiting: load.map_or(0, |load| count(load.waiting)),
                health_change_time: time(status.since),
                login_attempts_left: i32::from(status.may_log_in()),
                password_version: password_in_force(&status).map_or(0, |version| count(version.0)),
                keys_missing: i32::try_from(member.keys_missing()).unwrap_or(i32::MAX),
                worker_restarts: count(status.worker_restarts),
                next_retry_time: status.next_retry.and_then(time),
            }
        })
        .collect()
}

/// `None` when nobody knows, as when the HSM has refused what it had.
fn password_in_force(status: &Status) -> Option<PasswordVersion> {
    status.password.filter(|_| status.login_refusal != Some(LoginRefusal::Incorrect))
}

/// An HSM that somebody is, or ought to be, logged in to.
pub(super) fn hsm(hsm: &HsmId, settings: &NodeSettings, member: &Member) -> pb::Hsm {
    let status = member.node.status().borrow().clone();
    let latency = member.node.latency();
    let token = status.token.unwrap_or_default();
    pb::Hsm {
        latency_p50: latency.and_then(|latency| latency.p50.try_into().ok()),
        latency_p99: latency.and_then(|latency| latency.p99.try_into().ok()),
        serial_number: token.serial,
        model: token.model,
        firmware_version: token.firmware_version,
        last_proof_time: member.last_proof().and_then(time),
        ..hsm_at_rest(hsm, settings, status.health, status.reason)
    }
}

/// An HSM that serves although it is not declared any more.
pub(super) fn hsm_left_over(member: &Member) -> pb::Hsm {
    let status = member.node.status().borrow().clone();
    pb::Hsm {
        hsm_id: member.node.hsm().to_string(),
        availability_zone: member.node.zone.to_string(),
        health: health(status.health).into(),
        health_reason: status.reason,
        ..Default::default()
    }
}

/// An HSM of which no more is known than its health.
pub(super) fn hsm_at_rest(hsm: &HsmId, settings: &NodeSettings, is: Health, reason: String) -> pb::Hsm {
    pb::Hsm {
        hsm_id: hsm.to_string(),
        availability_zone: settings.zone.to_string(),
        subnet_id: settings.subnet.as_ref().map(ToString::to_string).unwrap_or_default(),
        state: topology::hsm_state(settings.state).into(),
        vendor_cluster: settings.vendor_cluster,
        health: health(is).into(),
        health_reason: reason,
        ..Default::default()
    }
}

/// An HSM that nobody is logged in to.
pub(super) fn hsm_looked_at(hsm: &HsmId, settings: &NodeSettings, reach: Option<Reach>) -> pb::Hsm {
    match reach {
        None => hsm_at_rest(hsm, settings, Health::NotProbed, "nobody is logged in".to_owned()),
        Some(Reach::Unreached(why)) => hsm_at_rest(hsm, settings, Health::Unreachable, why),
        Some(Reach::Reached(token)) => pb::Hsm {
            serial_number: token.serial,
            model: token.model,
            firmware_version: token.firmware_version,
            ..hsm_at_rest(hsm, settings, Health::NotProbed, "it can be reached; nobody is logged in".to_owned())
        },
    }
}

/// The cluster's step, and then each HSM's.
pub(super) fn connect_steps(store: &Store) -> Vec<pb::ConnectStep> {
    let (record, progress) = (store.record(), store.progress());
    if matches!(record.state, ConnectionState::Disconnected | ConnectionState::Disconnecting) {
        return Vec::new();
    }
    let of_cluster = prerequisites_step(&record, progress.is_some());
    std::iter::once(of_cluster).chain(progress.into_iter().flatten().map(connect_step)).collect()
}

/// Whether the cluster is one to connect to, which is looked at before any HSM is.
fn prerequisites_step(record: &KeyStoreRecord, hsms_looked_at: bool) -> pb::ConnectStep {
    let step = |status: pb::CheckStatus| pb::ConnectStep {
        phase: pb::ConnectPhase::Prerequisites.into(),
        status: status.into(),
        ..Default::default()
    };
    let unmet = record.last_error.as_ref().filter(|fault| fault.code.is_unmet_prerequisite());
    match (record.state, unmet) {
        (ConnectionState::Failed, Some(fault)) => pb::ConnectStep {
            problem: fault.message.clone(),
            remedy: fault.code.remedy().to_owned(),
            ..step(pb::CheckStatus::Failed)
        },
        (ConnectionState::Connecting, _) if !hsms_looked_at => step(pb::CheckStatus::Running),
        _ => step(pb::CheckStatus::Passed),
    }
}

fn connect_step(progress: Progress) -> pb::ConnectStep {
    let (phase, remedy) = match progress.phase {
        ConnectPhase::Reach => (pb::ConnectPhase::Reach, "Check the HSM's library, configuration and host."),
        ConnectPhase::LogIn => (pb::ConnectPhase::LogIn, progress.refusal.map_or("", ConnectionErrorCode::remedy)),
        ConnectPhase::RotatePassword => (pb::ConnectPhase::RotatePassword, ""),
        ConnectPhase::Probe => (pb::ConnectPhase::Probe, ""),
        ConnectPhase::SyncKeys => (pb::ConnectPhase::SyncKeys, ""),
        ConnectPhase::Ready => (pb::ConnectPhase::Ready, ""),
        ConnectPhase::Drained => (pb::ConnectPhase::Reach, "Resume the HSM when it may be used again."),
        ConnectPhase::OtherToken => (pb::ConnectPhase::Reach, "If its token was replaced on purpose, resume the HSM."),
    };
    let check = match (progress.failed, progress.phase) {
        (true, _) => pb::CheckStatus::Failed,
        (false, ConnectPhase::Ready) => pb::CheckStatus::Passed,
        (false, ConnectPhase::Drained) => pb::CheckStatus::Skipped,
        (false, _) => pb::CheckStatus::Running,
    };
    pb::ConnectStep {
        hsm_id: progress.hsm.to_string(),
        phase: phase.into(),
        status: check.into(),
        problem: if check == pb::CheckStatus::Passed { String::new() } else { progress.reason },
        remedy: match check {
            pb::CheckStatus::Failed | pb::CheckStatus::Skipped => remedy.to_owned(),
            _ => String::new(),
        },
    }
}

pub(super) fn key(description: &Description, nodes: Nodes<'_>) -> pb::Key {
    let record = &description.record;
    let current = record.versions.iter().find(|version| version.version == record.current_version);
    let kind = match description.unavailable {
        // What it is, only its maker knows.
        Some(Unusable::Found(_)) => None,
        Some(Unusable::KeyStore(_)) | None => Some(record.kind),
    };
    let (key_spec, key_usage) = match kind {
        Some(kind) => (kinds::key_spec(kind.spec()), kinds::key_usage(kind.usage())),
        None => (pb::KeySpec::Unspecified, pb::KeyUsage::Unspecified),
    };
    let state = match description.state() {
        ShownState::Creating => pb::KeyState::Creating,
        ShownState::Enabled => pb::KeyState::Enabled,
        ShownState::Disabled => pb::KeyState::Disabled,
        ShownState::PendingDeletion => pb::KeyState::PendingDeletion,
        ShownState::Unavailable => pb::KeyState::Unavailable,
    };
    pb::Key {
        key_id: description.key_id(),
        arn: description.arn.clone(),
        key_store_id: record.home.store().map(ToString::to_string).unwrap_or_default(),
        cluster_id: record.cluster.to_string(),
        key_spec: key_spec.into(),
        key_usage: key_usage.into(),
        state: state.into(),
        description: record.description.clone(),
        // Of a key that another program made, nobody here knows.
        create_time: record.home.found().map_or_else(|| time(record.created), |_| None),
        deletion_time: record.deletion.and_then(time),
        // A crypto user's own key has no versions to tell apart.
        current_version: record.home.store().map_or(0, |_| count(record.current_version.0)),
        nodes: match (nodes, current) {
            (Nodes::Of(cluster), Some(current)) => {
                current.on.iter().map(|presence| key_on_hsm(presence, cluster)).collect()
            }
            (Nodes::Of(_), None) | (Nodes::LeftOut, _) => Vec::new(),
        },
        state_reason: match description.unavailable {
            Some(Unusable::KeyStore(state)) => format!("the key store is {state}"),
            Some(Unusable::Found(why)) => why.to_owned(),
            None => String::new(),
        },
        encryption_algorithms: kind.map(encryption_algorithms).unwrap_or_default(),
        signing_algorithms: kind.map(signing_algorithms).unwrap_or_default(),
        mac_algorithms: {
            let of_kind = kind.map(KeyKind::mac_algorithms).unwrap_or_default();
            of_kind.iter().map(|it| kinds::mac_algorithm(*it).into()).collect()
        },
        rotation_period_days: record.rotation.map_or(0, |plan| count(plan.days)),
        next_rotation_time: record.rotation.and_then(|plan| time(plan.next)),
        uses: kind.zip(current).map_or(0, |(kind, version)| uses(kind, version.uses_reserved)),
        use_limit: kind.map_or(0, use_limit),
        last_use_time: record.last_used.and_then(time),
        hsm_label: description.label.clone(),
    }
}

/// As many as were reserved.
fn uses(kind: KeyKind, reserved: u64) -> i64 {
    if kind == KeyKind::AES { i64::try_from(reserved).unwrap_or(i64::MAX) } else { 0 }
}

/// Uses of other keys are not counted, since there is no limit to them.
fn use_limit(kind: KeyKind) -> i64 {
    if kind == KeyKind::AES { 1 << 32 } else { 0 }
}

pub(super) fn key_version(
    version: &VersionDescription,
    kind: KeyKind,
    cluster: Option<&crate::cluster::Settings>,
) -> pb::KeyVersion {
    let state = match version.state {
        VersionState::Creating => pb::KeyVersionState::Creating,
        VersionState::Current => pb::KeyVersionState::Current,
        VersionState::DecryptOnly => pb::KeyVersionState::DecryptOnly,
        VersionState::Exhausted => pb::KeyVersionState::Exhausted,
    };
    pb::KeyVersion {
        version: count(version.version.0),
        state: state.into(),
        create_time: time(version.created),
        uses: uses(kind, version.uses),
        use_limit: use_limit(kind),
        nodes: version.on.iter().map(|presence| key_on_hsm(presence, cluster)).collect(),
    }
}

pub(super) fn encryption_algorithms(kind: KeyKind) -> Vec<i32> {
    kind.encryption_algorithms().iter().map(|it| kinds::encryption_algorithm(*it).into()).collect()
}

pub(super) fn signing_algorithms(kind: KeyKind) -> Vec<i32> {
    kind.signing_algorithms().iter().map(|it| kinds::signing_algorithm(*it).into()).collect()
}

/// Whether a key is told with its presence on each node.
#[derive(Clone, Copy)]
pub(super) enum Nodes<'a> {
    Of(Option<&'a crate::cluster::Settings>),
    LeftOut,
}

fn key_on_hsm(presence: &PresenceRecord, cluster: Option<&crate::cluster::Settings>) -> pb::KeyOnHsm {
    let zone = cluster.and_then(|cluster| cluster.nodes.get(&presence.hsm)).map(|node| node.zone.to_string());
    let proof = match presence.proof {
        Proof::Used => pb::KeyProof::Used,
        // What stands under its name is another key.
        Proof::Missing | Proof::Different => pb::KeyProof::Missing,
        Proof::Unknown => pb::KeyProof::Unknown,
    };
    pb::KeyOnHsm {
        hsm_id: presence.hsm.to_string(),
        availability_zone: zone.unwrap_or_default(),
        proof: proof.into(),
        proof_time: time(presence.time),
    }
}

pub(super) fn alias(record: &AliasRecord, arn: String) -> pb::Alias {
    pb::Alias {
        alias_name: record.name.to_string(),
        alias_arn: arn,
        target_key_id: record.key.to_string(),
        create_time: time(record.created),
        update_time: time(record.updated),
    }
}

pub(super) const fn health(health: Health) -> pb::HsmHealth {
    match health {
        Health::NotProbed => pb::HsmHealth::NotProbed,
        Health::Healthy => pb::HsmHealth::Healthy,
        Health::Unreachable => pb::HsmHealth::Unreachable,
        Health::LoginRefused => pb::HsmHealth::LoginRefused,
        Health::Syncing => pb::HsmHealth::Syncing,
        Health::Slow => pb::HsmHealth::Slow,
        Health::Drained => pb::HsmHealth::Drained,
        Health::WrongIdentity => pb::HsmHealth::WrongIdentity,
    }
}

const fn connection_state(state: ConnectionState) -> pb::ConnectionState {
    match state {
        ConnectionState::Disconnected => pb::ConnectionState::Disconnected,
        ConnectionState::Connecting => pb::ConnectionState::Connecting,
        ConnectionState::Connected => pb::ConnectionState::Connected,
        ConnectionState::Disconnecting => pb::ConnectionState::Disconnecting,
        ConnectionState::Failed => pb::ConnectionState::Failed,
    }
}

const fn connection_error_code(code: ConnectionErrorCode) -> pb::ConnectionErrorCode {
    use ConnectionErrorCode as C;
    match code {
        C::InvalidCredentials => pb::ConnectionErrorCode::InvalidCredentials,
        C::ClusterNotFound => pb::ConnectionErrorCode::ClusterNotFound,
        C::NetworkErrors => pb::ConnectionErrorCode::NetworkErrors,
        C::InternalError => pb::ConnectionErrorCode::InternalError,
        C::InsufficientCloudhsmHsms => pb::ConnectionErrorCode::InsufficientCloudhsmHsms,
        C::UserLockedOut => pb::ConnectionErrorCode::UserLockedOut,
        C::UserNotFound => pb::ConnectionErrorCode::UserNotFound,
        C::UserLoggedIn => pb::ConnectionErrorCode::UserLoggedIn,
        C::SubnetNotFound => pb::ConnectionErrorCode::SubnetNotFound,
        C::InsufficientFreeAddressesInSubnet => pb::ConnectionErrorCode::InsufficientFreeAddressesInSubnet,
    }
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn time(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}
