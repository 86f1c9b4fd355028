//! Requests become the core's types here, once, with an error that names the field; answers become messages.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use tonic::Status;

use crate::cluster::Connection;
use crate::keys::Description;
use crate::keystore::{self, Phase, Progress};
use crate::model::{
    ConnectionErrorCode, ConnectionState, EncryptionContext, KeyRef, KeySpec, KeyState, KeyStoreId, Plaintext,
};
use crate::node::Health;
use crate::proto::v1 as pb;
use crate::records::{AliasRecord, ConnectionFault, KeyStoreRecord, PresenceRecord, Proof};

use super::status;

/// AWS's bound on what Encrypt takes.
const MAX_PLAINTEXT: usize = 4_096;
/// AWS's bound on data keys and random bytes.
const MAX_RANDOM: i32 = 1_024;
const DEFAULT_PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1_000;

/// Parses one field.
pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Status> {
    if text.is_empty() {
        return Err(status::field(field, "is required"));
    }
    text.parse().map_err(|why| status::field(field, why))
}

/// Parses a field that may be left out.
pub(super) fn parse_optional<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

pub(super) fn key_ref(text: &str) -> Result<KeyRef, Status> {
    if text.starts_with("arn:") {
        return text.parse().map_err(|why| status::field_reason("key_id", "INVALID_ARN", why));
    }
    parse("key_id", text)
}

pub(super) fn context(pairs: HashMap<String, String>) -> Result<EncryptionContext, Status> {
    EncryptionContext::new(pairs).map_err(|why| status::field("encryption_context", why))
}

/// What Encrypt takes, its checksum verified when one came along.
pub(super) fn plaintext(bytes: Vec<u8>, crc32c: Option<u32>) -> Result<Plaintext, Status> {
    let plaintext = Plaintext::new(bytes);
    if plaintext.is_empty() || plaintext.len() > MAX_PLAINTEXT {
        let why = format!("has 1 to {MAX_PLAINTEXT} bytes, not {}; for more, use a data key", plaintext.len());
        return Err(status::field("plaintext", why));
    }
    checksum("plaintext", plaintext.expose(), crc32c)?;
    Ok(plaintext)
}

pub(super) fn ciphertext(bytes: Vec<u8>, crc32c: Option<u32>) -> Result<Vec<u8>, Status> {
    if bytes.is_empty() {
        return Err(status::field("ciphertext", "is required"));
    }
    checksum("ciphertext", &bytes, crc32c)?;
    Ok(bytes)
}

fn checksum(field: &str, bytes: &[u8], expected: Option<u32>) -> Result<(), Status> {
    match expected {
        Some(expected) if expected != crc32c::crc32c(bytes) => Err(status::field_reason(
            &format!("{field}_crc32c"),
            "CHECKSUM_MISMATCH",
            format!("is not the CRC-32C of {field}: the bytes changed on their way here"),
        )),
        Some(_) | None => Ok(()),
    }
}

/// For AES keys nothing else is possible, and nothing need be said.
pub(super) fn encryption_algorithm(value: i32) -> Result<(), Status> {
    use pb::EncryptionAlgorithm as A;
    match A::try_from(value) {
        Ok(A::Unspecified | A::SymmetricDefault) => Ok(()),
        _ => Err(status::field("encryption_algorithm", "is SYMMETRIC_DEFAULT for symmetric keys")),
    }
}

pub(super) fn dry_run(asked: bool) -> Result<(), Status> {
    if asked { Err(status::field("dry_run", "is not supported by this release")) } else { Ok(()) }
}

/// How long a data key is to be.
pub(super) fn data_key_length(spec: Option<i32>, number_of_bytes: Option<i32>) -> Result<u32, Status> {
    match (spec.map(pb::DataKeySpec::try_from), number_of_bytes) {
        (Some(Ok(pb::DataKeySpec::Aes128)), _) => Ok(16),
        (Some(Ok(pb::DataKeySpec::Aes256)), _) => Ok(32),
        (Some(_), _) => Err(status::field("data_key_spec", "is AES_128 or AES_256")),
        (None, Some(number)) => number_of_random_bytes(number),
        (None, None) => Err(status::field("data_key_spec", "or number_of_bytes is required")),
    }
}

pub(super) fn number_of_random_bytes(number: i32) -> Result<u32, Status> {
    match u32::try_from(number) {
        Ok(bytes) if (1..=MAX_RANDOM).contains(&number) => Ok(bytes),
        _ => Err(status::field("number_of_bytes", format!("is 1 to {MAX_RANDOM}, not {number}"))),
    }
}

pub(super) fn key_spec(spec: i32, usage: i32) -> Result<KeySpec, Status> {
    let spec = match pb::KeySpec::try_from(spec) {
        Ok(pb::KeySpec::Unspecified | pb::KeySpec::SymmetricDefault) => KeySpec::SymmetricDefault,
        Ok(other) => return Err(status::unsupported_key_spec(other.as_str_name())),
        Err(_) => return Err(status::field("key_spec", "is not a key spec")),
    };
    match pb::KeyUsage::try_from(usage) {
        Ok(pb::KeyUsage::Unspecified | pb::KeyUsage::EncryptDecrypt) => Ok(spec),
        _ => Err(status::field("key_usage", "is ENCRYPT_DECRYPT for SYMMETRIC_DEFAULT")),
    }
}

pub(super) fn description(text: String) -> Result<String, Status> {
    if text.chars().count() > 8_192 {
        return Err(status::field("description", "has at most 8,192 characters"));
    }
    Ok(text)
}

/// AWS's rule for tags.
pub(super) fn tags(tags: HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    let bad = |why: &str| Err(status::field_reason("tags", "TAG", why));
    if tags.len() > 50 {
        return bad("are at most 50");
    }
    for (key, value) in &tags {
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return bad("have keys of 1 to 128 and values of at most 256 characters");
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return bad("have no keys that start with aws:");
        }
    }
    Ok(tags.into_iter().collect())
}

pub(super) fn request_id(text: &str) -> Result<Option<String>, Status> {
    match text.chars().count() {
        0 => Ok(None),
        1..=36 if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(text.to_owned())),
        _ => Err(status::field("request_id", "has at most 36 visible ASCII characters")),
    }
}

/// How many entries a page has.
pub(super) fn page_size(asked: i32) -> Result<u32, Status> {
    match u32::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(LARGEST_PAGE)),
        Err(_) => Err(status::field("page_size", "is not negative")),
    }
}

/// Where the last page ended. Opaque to callers, so what they made up is refused.
pub(super) fn page_token<T: FromStr>(token: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let cursor = token.strip_prefix("after:").and_then(|cursor| cursor.parse().ok());
    match cursor {
        Some(cursor) => Ok(Some(cursor)),
        None => Err(status::field_reason("page_token", "INVALID_MARKER", "was not given out here")),
    }
}

pub(super) fn next_page_token(last: impl ToString) -> String {
    format!("after:{}", last.to_string())
}

/// `grpc-timeout`: up to eight digits and a unit.
pub(super) fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

pub(super) fn drain_timeout(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    match asked {
        None => Ok(keystore::DRAIN_TIMEOUT),
        Some(asked) => Duration::try_from(asked)
            .ok()
            .filter(|timeout| *timeout <= Duration::from_secs(600))
            .ok_or_else(|| status::field("drain_timeout", "is 0 to 600 seconds")),
    }
}

pub(super) fn time(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}

// ---- answers ---------------------------------------------------------------------------------

pub(super) fn key_store(record: &KeyStoreRecord, connection: Option<&Connection>, keys: u64) -> pb::KeyStore {
    let failed = (record.state == ConnectionState::Failed).then_some(record.last_error.as_ref()).flatten();
    pb::KeyStore {
        key_store_id: record.id.to_string(),
        key_store_name: record.name.to_string(),
        cluster_id: record.cluster.to_string(),
        trust_anchor_certificate: record.trust_anchor.clone(),
        connection_state: connection_state(record.state).into(),
        connection_error_code: failed.map_or(0, |fault| connection_error_code(fault.code).into()),
        connection_error_message: failed.map(|fault| fault.message.clone()).unwrap_or_default(),
        connection_error_remedy: failed.map(|fault| fault.code.remedy().to_owned()).unwrap_or_default(),
        create_time: time(record.created),
        nodes: connection.map(node_connections).unwrap_or_default(),
        state_change_time: time(record.state_changed),
        connect_attempt: i32::try_from(record.connect_attempt).unwrap_or(i32::MAX),
        last_connection_error: record.last_error.as_ref().map(connection_error),
        key_count: i32::try_from(keys).unwrap_or(i32::MAX),
        password_rotate_time: None,
    }
}

fn connection_error(fault: &ConnectionFault) -> pb::ConnectionError {
    pb::ConnectionError {
        code: connection_error_code(fault.code).into(),
        message: fault.message.clone(),
        remedy: fault.code.remedy().to_owned(),
        help_url: format!("docs/errors.md#{}", fault.code),
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
                sessions_busy: load.map_or(0, |load| count(load.in_flight.min(load.sessions))),
                last_error: status.last_error.as_ref().map(|(error, _)| error.clone()).unwrap_or_default(),
                last_error_time: status.last_error.and_then(|(_, at)| time(at)),
                sessions_limit: count(member.node.spec.sessions),
                requests_waiting: load.map_or(0, |load| count(load.waiting)),
                health_change_time: time(status.since),
                login_attempts_left: i32::from(status.login_refusal.is_none()),
                password_version: count(connection.password_version().0),
                keys_missing: i32::try_from(member.keys_missing()).unwrap_or(i32::MAX),
                worker_restarts: count(status.worker_restarts),
                next_retry_time: status.next_retry.and_then(time),
            }
        })
        .collect()
}

pub(super) fn connect_steps(connection: Option<&Connection>) -> Vec<pb::ConnectStep> {
    let progress = connection.map(keystore::progress).unwrap_or_default();
    progress.into_iter().map(connect_step).collect()
}

fn connect_step(progress: Progress) -> pb::ConnectStep {
    let (phase, remedy) = match progress.phase {
        Phase::Reach => (pb::ConnectPhase::Reach, "Check the HSM's library, configuration and host."),
        Phase::LogIn => (pb::ConnectPhase::LogIn, ConnectionErrorCode::InvalidCredentials.remedy()),
        Phase::Probe => (pb::ConnectPhase::Probe, ""),
        Phase::SyncKeys => (pb::ConnectPhase::SyncKeys, ""),
        Phase::Ready => (pb::ConnectPhase::Ready, ""),
    };
    let check = match (progress.failed, progress.phase) {
        (true, _) => pb::CheckStatus::Failed,
        (false, Phase::Ready) => pb::CheckStatus::Passed,
        (false, _) => pb::CheckStatus::Running,
    };
    pb::ConnectStep {
        hsm_id: progress.hsm.to_string(),
        phase: phase.into(),
        status: check.into(),
        problem: if check == pb::CheckStatus::Passed { String::new() } else { progress.reason },
        remedy: if progress.failed { remedy.to_owned() } else { String::new() },
    }
}

pub(super) fn key(description: &Description, nodes: Nodes<'_>) -> pb::Key {
    let record = &description.record;
    let current = record.versions.iter().find(|version| version.version == record.current_version);
    let state = match (record.state, description.unavailable) {
        (KeyState::Creating, _) => pb::KeyState::Creating,
        (KeyState::Enabled, Some(_)) => pb::KeyState::Unavailable,
        (KeyState::Enabled, None) => pb::KeyState::Enabled,
    };
    pb::Key {
        key_id: record.id.to_string(),
        arn: description.arn.clone(),
        key_store_id: record.store.to_string(),
        cluster_id: record.cluster.to_string(),
        key_spec: match record.spec {
            KeySpec::SymmetricDefault => pb::KeySpec::SymmetricDefault.into(),
        },
        key_usage: pb::KeyUsage::EncryptDecrypt.into(),
        state: state.into(),
        description: record.description.clone(),
        create_time: time(record.created),
        deletion_time: None,
        current_version: count(record.current_version.0),
        nodes: match (nodes, current) {
            (Nodes::Of(cluster), Some(current)) => {
                current.on.iter().map(|presence| key_on_hsm(presence, cluster)).collect()
            }
            (Nodes::Of(_), None) | (Nodes::LeftOut, _) => Vec::new(),
        },
        state_reason: match description.unavailable {
            Some(state) => format!("the key store is {state}"),
            None => String::new(),
        },
        encryption_algorithms: vec![pb::EncryptionAlgorithm::SymmetricDefault.into()],
        signing_algorithms: Vec::new(),
        mac_algorithms: Vec::new(),
        rotation_period_days: 0,
        next_rotation_time: None,
        uses: current.map_or(0, |version| i64::try_from(version.uses_reserved).unwrap_or(i64::MAX)),
        use_limit: 1 << 32,
        last_use_time: None,
        hsm_label: String::new(),
    }
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
        Proof::Missing => pb::KeyProof::Missing,
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

/// A key store's id among the fields of a request.
pub(super) fn key_store_id(text: &str) -> Result<KeyStoreId, Status> {
    parse("key_store_id", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        for text in ["", "m", "123456789S", "5x", "-1S", "é"] {
            assert_eq!(timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn pages_have_bounds_and_tokens_are_ours() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!(page_size(5_000).unwrap(), 1_000);
        assert!(page_size(-1).is_err());
        let token = next_page_token("alias/x");
        assert_eq!(page_token::<String>(&token).unwrap().as_deref(), Some("alias/x"));
        assert!(page_token::<String>("made up").is_err());
    }

    #[test]
    fn a_plaintext_has_1_to_4096_bytes_and_the_checksum_it_came_with() {
        assert!(plaintext(Vec::new(), None).is_err());
        assert!(plaintext(vec![0; MAX_PLAINTEXT + 1], None).is_err());
        assert!(plaintext(vec![0; MAX_PLAINTEXT], None).is_ok());
        assert!(plaintext(b"x".to_vec(), Some(crc32c::crc32c(b"x"))).is_ok());
        let refused = plaintext(b"x".to_vec(), Some(0)).unwrap_err();
        assert!(refused.message().starts_with("plaintext_crc32c: "), "{}", refused.message());
    }
}
