//! Every metric that there is. `docs/metrics.md` has the same table, and a test that holds the two together.
//!
//! No label has a value that callers choose: each is one of the API's names, of the operator's own clusters and HSMs, or
//! of a list in this code.

use super::metric::{Counter, Described, Gauge, Histogram, Kind, metrics};

metrics! {
    BUILD: Gauge "keyway_build_info" ["version", "commit"]
        "1, for the build that runs";
    READY: Gauge "keyway_ready" []
        "1 while /readyz answers 200, else 0";

    REQUESTS: Counter "keyway_requests_total" ["rpc", "code", "reason"]
        "Calls that have ended, by gRPC code and the reason of docs/errors.md; a stream is counted when it begins to answer, an item of a Pipeline as the call it is, and a caller who left as CANCELLED";
    REQUEST_SECONDS: Histogram "keyway_request_duration_seconds" ["rpc"]
        "Time from a call's headers to its answer, without what the network took, and of an item of a Pipeline from when it is read; streams are not measured";
    REQUESTS_IN_FLIGHT: Gauge "keyway_requests_in_flight" ["rpc"]
        "Calls that have not been answered yet, and streams that have not ended";
    CONNECTIONS: Gauge "keyway_connections" []
        "gRPC connections that are open";
    CONNECTIONS_LIMIT: Gauge "keyway_connections_limit" []
        "How many there may be (grpc.max_connections)";
    HELD_BACK: Counter "keyway_requests_held_back_total" []
        "Calls that were refused since calls like them did harm";
    SUSPECTS: Gauge "keyway_held_back" []
        "Callers' operations that are held back at the moment";

    KEY_STORE_STATE: Gauge "keyway_key_store_state" ["key_store", "cluster", "state"]
        "1 for the connection state that the key store is in";
    KEY_STORE_KEYS: Gauge "keyway_key_store_keys" ["key_store"]
        "Keys of the key store, in any state";
    KEY_STORE_ATTEMPTS: Counter "keyway_key_store_connect_attempts_total" ["key_store"]
        "Times that it was told to connect since it was made, also before the process began";
    CRYPTO_USERS: Gauge "keyway_crypto_users_connected" []
        "Crypto users whom keyway is logged in as";

    DRIFT: Gauge "keyway_cluster_drift" ["cluster", "kind"]
        "Where records and HSMs disagree about keys, as ListDrift tells it; at most 1,000 of a cluster are counted";
    HSM_HEALTH: Gauge "keyway_hsm_health" ["cluster", "hsm", "zone", "state"]
        "1 for the health that DescribeClusters tells of the HSM";
    HSM_SESSIONS: Gauge "keyway_hsm_sessions" ["cluster", "hsm", "owner"]
        "Sessions that are open, for the key store or for crypto users";
    HSM_SESSIONS_BUSY: Gauge "keyway_hsm_sessions_busy" ["cluster", "hsm", "owner"]
        "Those that have a request";
    HSM_IN_FLIGHT: Gauge "keyway_hsm_requests_in_flight" ["cluster", "hsm", "owner"]
        "Requests that the HSM's workers were given and have not answered";
    HSM_WAITING: Gauge "keyway_hsm_requests_waiting" ["cluster", "hsm", "owner"]
        "Requests that wait for a free place";
    HSM_QUEUE_LIMIT: Gauge "keyway_hsm_queue_limit" ["cluster", "hsm", "owner"]
        "How many may wait (queue_limit)";
    HSM_KEYS_MISSING: Gauge "keyway_hsm_keys_missing" ["cluster", "hsm", "owner"]
        "Keys that the HSM lacks";
    HSM_LAST_PROOF: Gauge "keyway_hsm_last_proof_timestamp_seconds" ["cluster", "hsm"]
        "When the key store's canary last answered there";
    HSM_LOGIN_ATTEMPTS_LEFT: Gauge "keyway_hsm_login_attempts_left" ["cluster", "hsm"]
        "0 when no login of the key store is tried there before an operator allows one, else 1";
    HSM_LOGINS: Counter "keyway_hsm_logins_total" ["cluster", "hsm", "outcome"]
        "Logins that were tried, whoever for: accepted, refused, or failed otherwise";
    HSM_OPERATIONS: Counter "keyway_hsm_operations_total" ["cluster", "hsm", "operation", "outcome"]
        "What the HSM's workers were asked to do, and what came of it";
    HSM_OPERATION_SECONDS: Histogram "keyway_hsm_operation_duration_seconds" ["cluster", "hsm", "operation"]
        "Time from handing a request over until its answer, without the wait for a place";
    HSM_CANARY_SECONDS: Histogram "keyway_hsm_canary_duration_seconds" ["cluster", "hsm"]
        "What the canary's own call took in the HSM's library";
    HSM_RESTARTS: Counter "keyway_hsm_worker_restarts_total" ["cluster", "hsm"]
        "Workers that served and are gone, crashed, killed or replaced; one that an operator drained, or that was logged out, is none";
    HSM_MOVED: Counter "keyway_hsm_requests_moved_total" ["cluster", "hsm"]
        "Requests that went on to another HSM since this one failed them, or did not answer in time";

    RECORDS_WRITE_SECONDS: Histogram "keyway_records_write_duration_seconds" []
        "Time for which a change of the records had their one writer, until it was on the disk; the rate of its sum is the share of time that the writer is busy";

    NODE_LINKS: Gauge "keyway_node_links" []
        "On keyway node: session links that are open, each with a worker";
    NODE_LINKS_LIMIT: Gauge "keyway_node_links_limit" []
        "On keyway node: how many there may be (max_links)";

    PROCESS_CPU: Counter "process_cpu_seconds_total" []
        "Processor time of this process, without its workers";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes" []
        "Resident memory of this process, without its workers";
    PROCESS_ADDRESSES: Gauge "process_virtual_memory_bytes" []
        "Virtual memory of this process";
    PROCESS_THREADS: Gauge "process_threads" []
        "Threads of this process";
    PROCESS_FILES: Gauge "process_open_fds" []
        "Descriptors that are open";
    PROCESS_FILES_LIMIT: Gauge "process_max_fds" []
        "How many there may be";
    PROCESS_START: Gauge "process_start_time_seconds" []
        "When the process was started";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn names_follow_the_conventions_and_no_two_are_the_same() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("keyway_") || metric.name.starts_with("process_"), "{metric:?}");
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{metric:?}");
            assert_eq!(metric.kind == Kind::Histogram, metric.name.ends_with("_duration_seconds"), "{metric:?}");
            assert!(!metric.help.ends_with('.'), "{metric:?}");
        }
    }

    fn read(path: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
    }

    #[test]
    fn the_document_has_every_metric_and_no_other() {
        let document = read("docs/metrics.md");
        let told: Vec<_> = document.lines().filter(|line| is_row(line)).collect();
        let wanted: Vec<_> = ALL.iter().map(row).collect();
        assert_eq!(told, wanted, "the table in docs/metrics.md is to be:\n{}\n", wanted.join("\n"));
    }

    fn is_row(line: &str) -> bool {
        line.starts_with("| `keyway_") || line.starts_with("| `process_")
    }

    fn row(metric: &Described) -> String {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", metric.kind).to_lowercase();
        format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help)
    }

    /// Of the rules: whether Prometheus would take them, only Prometheus knows.
    #[test]
    fn every_alert_speaks_of_metrics_and_labels_that_there_are_and_is_explained() {
        let (rules, document) = (read("deploy/prometheus/alerts.yaml"), read("docs/metrics.md"));
        let mut words = rules.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').peekable();
        let (mut alerts, mut metrics) = (0, 0);
        while let Some(word) = words.next() {
            if word.starts_with("keyway_") || word.starts_with("process_") {
                let is_it = |metric: &&Described| {
                    let parts = ["_bucket", "_sum", "_count"].map(|part| word.strip_suffix(part));
                    word == metric.name
                        || metric.kind == Kind::Histogram && parts.into_iter().flatten().any(|it| it == metric.name)
                };
                assert!(ALL.iter().any(|metric| is_it(&metric)), "{word} is no metric");
                metrics += 1;
            }
            if word == "alert" {
                let name = words.find(|word| !word.is_empty()).unwrap();
                assert!(document.contains(&format!("| {name} | ")), "{name} is not explained");
                alerts += 1;
            }
        }
        assert_eq!(alerts, document.lines().filter(|line| line.starts_with("| Keyway")).count());
        assert!(metrics > alerts, "{metrics} {alerts}");
        let labels: BTreeSet<_> = ALL.iter().flat_map(|metric| metric.labels).copied().collect();
        for label in rules.split("$labels.").skip(1).filter_map(|rest| rest.split([' ', '}']).next()) {
            assert!(label == "instance" || labels.contains(label), "{label} is no label");
        }
    }
}
