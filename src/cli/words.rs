//! The contract's enums, times and durations as the short words of a table.

use prost_types::{Duration, Timestamp};

use crate::proto::v1;

use super::table::{Cell, Tone};

macro_rules! words {
    ($($name:ident($type:ident) = $prefix:literal;)*) => {
        $(pub(super) fn $name(value: i32) -> String {
            match v1::$type::try_from(value) {
                Ok(known) => short(known.as_str_name(), $prefix),
                Err(_) => value.to_string(), // a newer daemon's
            }
        })*
    };
}

words! {
    caller_source(CallerSource) = "CALLER_SOURCE_";
    check_phase(CheckPhase) = "CHECK_PHASE_";
    check_status(CheckStatus) = "CHECK_STATUS_";
    cluster_state(ClusterState) = "CLUSTER_STATE_";
    connect_phase(ConnectPhase) = "CONNECT_PHASE_";
    connection_error(ConnectionErrorCode) = "CONNECTION_ERROR_CODE_";
    connection_state(ConnectionState) = "CONNECTION_STATE_";
    drift_kind(DriftKind) = "DRIFT_KIND_";
    hsm_health(HsmHealth) = "HSM_HEALTH_";
    hsm_state(HsmState) = "HSM_STATE_";
    key_proof(KeyProof) = "KEY_PROOF_";
    key_spec(KeySpec) = "KEY_SPEC_";
    key_state(KeyState) = "KEY_STATE_";
    key_usage(KeyUsage) = "KEY_USAGE_";
    key_version_state(KeyVersionState) = "KEY_VERSION_STATE_";
    password_rotation(PasswordRotation) = "PASSWORD_ROTATION_";
    rule_direction(RuleDirection) = "RULE_DIRECTION_";
    sync_mode(SyncMode) = "SYNC_MODE_";
}

fn short(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => String::new(),
        word => word.to_owned(),
    }
}

/// A state's word in the colour of what it means.
pub(super) fn state(word: String) -> Cell {
    let tone = match word.as_str() {
        "CONNECTED" | "HEALTHY" | "ENABLED" | "ACTIVE" | "USED" | "VENDOR" | "PASSED" | "SERVING" | "CURRENT" => {
            Tone::Good
        }
        "FAILED" | "UNREACHABLE" | "LOGIN_REFUSED" | "WRONG_IDENTITY" | "MISSING" | "UNAVAILABLE" | "DEGRADED"
        | "DIFFERENT_MATERIAL" => Tone::Bad,
        "CONNECTING" | "DISCONNECTING" | "SLOW" | "SYNCING" | "DRAINED" | "CREATING" | "PENDING_DELETION"
        | "WARNING" => Tone::Passing,
        _ => Tone::Neutral,
    };
    Cell::toned(word, tone)
}

pub(super) fn time(time: &Option<Timestamp>) -> String {
    time.map(|time| Timestamp { nanos: 0, ..time }.to_string()).unwrap_or_default()
}

pub(super) fn latency(duration: &Option<Duration>) -> String {
    let millis = |d: &Duration| format!("{:.1} ms", d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6);
    duration.as_ref().map(millis).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_enum_without_its_type() {
        assert_eq!(connection_state(v1::ConnectionState::Failed.into()), "FAILED");
        assert_eq!(key_proof(v1::KeyProof::Used.into()), "USED");
        assert_eq!(hsm_health(0), "");
        assert_eq!(hsm_health(99), "99");
    }

    #[test]
    fn no_word_still_carries_its_type() {
        for value in 0..32 {
            for word in [
                connection_error(value),
                connect_phase(value),
                check_status(value),
                cluster_state(value),
                key_usage(value),
            ] {
                assert!(
                    !word.contains("CONNECT_PHASE") && !word.contains("CODE_") && !word.contains("KEY_USAGE"),
                    "{word}"
                );
                assert!(!word.contains("CHECK_STATUS") && !word.contains("CLUSTER_STATE"), "{word}");
            }
        }
    }

    #[test]
    fn times_are_told_to_the_second_and_latencies_in_milliseconds() {
        assert_eq!(time(&Some(Timestamp { seconds: 0, nanos: 7 })), "1970-01-01T00:00:00Z");
        assert_eq!(time(&None), "");
        assert_eq!(latency(&Some(Duration { seconds: 1, nanos: 260_000 })), "1000.3 ms");
    }
}
