mod rotation;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::cluster::NodeSettings;
use crate::door::Protection;
use crate::host::{LocalToken, Location, TokenName};
use crate::model::{ClusterState, HsmState};

/// A configuration's directory, with every file that [`GOOD`] names.
struct Site(TempDir);

/// The least that is accepted, with two nodes.
const GOOD: &str = r#"
data_dir = "data"
sealing_key_file = "sealing.key"
[grpc]
unix_socket = "keyway.sock"
[authz]
admins = ["ops"]
[clusters.cluster-2abcdefghij]
region = "us-east-1"
account = "000000000000"
trust_anchor = "customerCA.crt"
sync = "wrap"
profile = "softhsm2"
subnets.subnet-1a.zone = "us-east-1a"
subnets.subnet-1b.zone = "us-east-1b"
[clusters.cluster-2abcdefghij.nodes.hsm-1]
subnet = "subnet-1a"
module = "pkcs11.so"
token.label = "one"
so_pin_file = "so-pin"
[clusters.cluster-2abcdefghij.nodes.hsm-2]
subnet = "subnet-1b"
module = "pkcs11.so"
token.label = "two"
environment.SOFTHSM2_CONF = "two.conf"
so_pin_file = "so-pin"
"#;

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        for name in ["server.crt", "server.key", "clients-ca.crt", "pkcs11.so", "so-pin"] {
            site.put(name, "");
        }
        for name in ["daemon.crt", "daemon.key", "node.crt", "node.key", "daemons-ca.crt"] {
            site.put(name, "");
        }
        site.put("customerCA.crt", &certificate());
        let own = rcgen::generate_simple_self_signed(["cluster".to_owned()]).unwrap();
        site.put("cluster.crt", &own.cert.pem());
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a file that only its owner can read.
    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn load(&self, toml: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
        self.put("keyway.toml", toml);
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(&self.path("keyway.toml"), environment)
    }

    /// The lines that are printed, without the directory.
    fn problems(&self, toml: &str, environment: &[(&str, &str)]) -> Vec<String> {
        let directory = format!("{}/", self.0.path().display());
        let problems = self.load(toml, environment).expect_err("the configuration was accepted");
        problems.to_string().replace(&directory, "").lines().map(str::to_owned).collect()
    }
}

fn certificate() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// [`GOOD`] with one of its lines exchanged.
fn with(line: &str, other: &str) -> String {
    assert!(GOOD.contains(line), "{line:?} is not there");
    GOOD.replacen(line, other, 1)
}

#[test]
fn what_is_left_out_gets_its_default_and_paths_start_from_the_files_directory() {
    let site = Site::new();
    let config = site.load(GOOD, &[]).unwrap();
    assert_eq!(config.data_dir, site.path("data"));
    assert_eq!(config.grpc.unix_socket, Some(site.path("keyway.sock")));
    assert_eq!(config.grpc.tcp, None);
    assert_eq!(config.grpc.drain_timeout, Duration::from_secs(10));
    assert_eq!(config.grpc.pipeline_in_flight, 1_024);
    assert_eq!(config.key_stores.quota, 10);
    assert_eq!(config.log, telemetry::Settings { level: telemetry::Level::Info, format: telemetry::Format::Text });
    let cluster = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()];
    assert!(cluster.trust_anchor.as_ref().unwrap().pem().starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!((cluster.state, cluster.min_hsms_to_create.get()), (ClusterState::Active, 2));
    assert_eq!((&cluster.certificate, &cluster.security_group), (&None, &None));
    let subnet = &cluster.subnets[&"subnet-1a".parse().unwrap()];
    assert_eq!((subnet.free_addresses, subnet.present), (None, true));
    let node = &cluster.nodes[&"hsm-2".parse().unwrap()];
    assert_eq!(node.zone.as_str(), "us-east-1b");
    assert_eq!((node.state, node.vendor_cluster), (HsmState::Active, false));
    assert_eq!(local(node).name, TokenName::Label("two".to_owned()));
    assert_eq!(local(node).environment["SOFTHSM2_CONF"], "two.conf");
    assert_eq!((node.pool_size.get(), node.queue_limit.get()), (2, 1024));
    assert_eq!((node.patience.quick, node.patience.slow), (Duration::from_secs(5), Duration::from_secs(30)));
    assert_eq!(local(node).so_pin_file, Some(site.path("so-pin")));
}

fn local(node: &NodeSettings) -> &LocalToken {
    match &node.location {
        Location::Here(token) => token,
        Location::There(node) => panic!("it is on {}", node.address),
    }
}

#[test]
fn a_port_is_protected_by_client_certificates() {
    let tls = "listen = \"[::1]:1\"\ntls = { certificate = \"server.crt\", private_key = \"server.key\", client_ca = \"clients-ca.crt\" }";
    let site = Site::new();
    let config = site.load(&with("unix_socket = \"keyway.sock\"", tls), &[]).unwrap();
    let tcp = config.grpc.tcp.unwrap();
    assert_eq!(tcp.listen, "[::1]:1".parse().unwrap());
    let Protection::MutualTls(files) = tcp.protection else { panic!("{:?}", tcp.protection) };
    assert_eq!(files.client_ca, site.path("clients-ca.crt"));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let toml = r#"
data_dir = ""
sealing_key_file = 7
log = { level = "loud" }
max_connections = 5
[grpc]
listen = "everywhere"
max_message_bytes = "1048576"
drain_timeout = "10 s"
tls.certificate = "nowhere.crt"
[authz]
admins = ["ops", "", " x"]
[key_stores]
quota = 0
qouta = 1
[clusters.cluster-1]
[clusters.cluster-2abcdefghij]
region = "US East"
account = 123456789012
trust_anchor = "server.crt"
sync = "native"
profile = "cloudhsm"
subnets.subnet-1a.zone = "us-east-1a"
[clusters.cluster-2abcdefghij.nodes.hsm-1]
subnet = "subnet-1b"
module = "nowhere.so"
token = { label = "a", serial = "b" }
environment = { N = 1 }
pool_size = 0
patience = "1h"
so_pin_file = "so-pin"
"#;
    let site = Site::new();
    fs::set_permissions(site.path("so-pin"), fs::Permissions::from_mode(0o640)).unwrap();
    let problems = site.problems(toml, &[]);
    let expected = [
        "data_dir: must be a path, not \"\"",
        "sealing_key_file: must be text in quotes, not 7",
        "log.level: a level is `off`, `error`, `warn`, `info`, `debug` or `trace`, not \"loud\"",
        "grpc.listen: must be an IP address and a port, such as \"0.0.0.0:50051\", not \"everywhere\"",
        "grpc.tls.certificate: there is no file nowhere.crt",
        "grpc.tls.private_key: is missing: name the server's private key (PEM)",
        "grpc.tls.client_ca: is missing: name the CA that client certificates come from (PEM)",
        "grpc.max_message_bytes: must be a whole number from 16384 to 4194304, not \"1048576\"",
        "grpc.drain_timeout: must be a duration such as \"10s\", from 0s to 10m, not \"10 s\"",
        "authz.admins: a caller's name has 1 to 256 bytes, no control characters and no space at either end, not \"\"; a caller's name has 1 to 256 bytes, no control characters and no space at either end, not \" x\"",
        "key_stores.quota: must be a whole number from 1 to 1000, not 0",
        "clusters.cluster-1: a cluster id is `cluster-` and 11 to 16 characters of 2-7 and a-z, not \"cluster-1\"",
        "clusters.cluster-1.region: is missing: name the cluster's region, such as \"us-east-1\"",
        "clusters.cluster-1.account: is missing: give 12 digits, such as \"000000000000\"",
        "clusters.cluster-1.sync: is missing: write \"wrap\"",
        "clusters.cluster-1.profile: is missing: write \"softhsm2\"",
        "clusters.cluster-1.trust_anchor: is missing: name the cluster's customerCA.crt",
        "clusters.cluster-1.nodes: is empty: a cluster has at least one node",
        "clusters.cluster-2abcdefghij.region: a region is 1 to 64 lower-case letters, digits or hyphens, not \"US East\"",
        "clusters.cluster-2abcdefghij.account: must be text in quotes, not 123456789012",
        "clusters.cluster-2abcdefghij.sync: must be `wrap` in this release (`native` comes in a later one), not \"native\"",
        "clusters.cluster-2abcdefghij.profile: must be `softhsm2`, the only profile supported yet, not \"cloudhsm\"",
        "clusters.cluster-2abcdefghij.trust_anchor: server.crt must be one X.509 certificate in PEM (-----BEGIN CERTIFICATE-----), at most 5000 characters, not an empty text",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.subnet: there is no subnet-1b among the cluster's subnets: declare it there",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.module: there is no file nowhere.so",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.token: must have exactly one of label and serial",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.environment.N: must be text in quotes",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.so_pin_file: so-pin is open to others than its owner (mode 640): chmod 600 so-pin",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.pool_size: must be a whole number from 1 to 256, not 0",
        "clusters.cluster-2abcdefghij.nodes.hsm-1.patience: must be a duration such as \"10s\", from 100ms to 5m, not \"1h\"",
        "key_stores.qouta: unknown key; did you mean quota?",
        "max_connections: unknown key; did you mean grpc.max_connections?",
    ];
    let expected: Vec<_> = expected.iter().map(|problem| format!("keyway.toml: {problem}")).collect();
    assert_eq!(problems, expected);
}

#[test]
fn unknown_keys_and_sections_are_reported_with_a_suggestion() {
    let toml = format!("{GOOD}pool_siez = 3\n[\"a b\"]\nx = 1\n[grcp]\nlisten = \"x\"\n[ports]\n");
    let problems = Site::new().problems(&toml, &[]);
    assert_eq!(
        problems,
        [
            "keyway.toml: clusters.cluster-2abcdefghij.nodes.hsm-2.pool_siez: unknown key; did you mean pool_size?",
            "keyway.toml: \"a b\": unknown key; remove it",
            "keyway.toml: grcp: unknown key; did you mean grpc?",
            "keyway.toml: ports: unknown key; remove it",
        ]
    );
}

#[test]
fn without_an_admin_nothing_starts() {
    let site = Site::new();
    for (line, other) in [("admins = [\"ops\"]", ""), ("[authz]\nadmins = [\"ops\"]", ""), ("[\"ops\"]", "[]")] {
        let problems = site.problems(&with(line, other), &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("keyway.toml: authz.admins: "), "{problems:?}");
    }
}

#[test]
fn without_a_listener_nothing_starts() {
    let problems = Site::new().problems(&with("unix_socket = \"keyway.sock\"", ""), &[]);
    assert_eq!(problems, ["keyway.toml: grpc: has no listener: set unix_socket, or listen and tls, or all three"]);
}

#[test]
fn tls_without_a_port_and_a_port_without_tls_are_refused() {
    let site = Site::new();
    let listen = with("unix_socket", "listen = \"127.0.0.1:1\"\nunix_socket");
    assert_eq!(site.problems(&listen, &[]).len(), 3);
    let tls = "tls = { certificate = \"server.crt\", private_key = \"server.key\", client_ca = \"clients-ca.crt\" }\nunix_socket";
    let problems = site.problems(&with("unix_socket", tls), &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("keyway.toml: grpc.listen: is missing"), "{problems:?}");
}

#[test]
fn the_sealing_key_is_kept_out_of_the_data_directory_unless_allowed() {
    let site = Site::new();
    fs::create_dir(site.path("data")).unwrap();
    std::os::unix::fs::symlink(site.path("data"), site.path("elsewhere")).unwrap();
    for path in ["data/sealing.key", "elsewhere/sealing.key", "./data/x/sealing.key", "data/x/../sealing.key"] {
        let toml = with("\"sealing.key\"", &format!("{path:?}"));
        let problems = site.problems(&toml, &[]);
        assert!(problems[0].contains("sealing_key_file: must not be in data_dir"), "{path}: {problems:?}");
        let allowed = format!("allow_sealing_key_in_data_dir = true\n{toml}");
        assert!(site.load(&allowed, &[]).is_ok(), "{path}");
    }
}

#[test]
fn two_nodes_on_one_token_are_refused() {
    let toml = with("token.label = \"two\"\nenvironment.SOFTHSM2_CONF = \"two.conf\"", "token.label = \"one\"");
    let problems = Site::new().problems(&toml, &[]);
    assert_eq!(
        problems,
        [
            "keyway.toml: clusters.cluster-2abcdefghij.nodes.hsm-2: is the same token as clusters.cluster-2abcdefghij.nodes.hsm-1: each node needs one of its own"
        ]
    );
}

#[test]
fn a_wrong_subnet_is_reported_once_and_not_again_for_each_node() {
    let problems = Site::new().problems(&with("\"us-east-1b\"", "\"US\""), &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn a_cluster_says_all_that_the_prerequisites_speak_of() {
    let more = r#"
state = "UPDATE_IN_PROGRESS"
state_message = "an HSM is being added"
certificate = "cluster.crt"
backup_lineage = "prod"
security_group.id = "sg-1"
security_group.rules.in = { direction = "ingress", from_port = 2223, to_port = 2225 }
security_group.rules.out = { direction = "egress", protocol = "-1", from_port = 0, to_port = 65535, peer = "sg-2" }
subnets.subnet-1a.free_addresses = 1
subnets.subnet-1a.present = false
"#;
    let toml = with("profile = \"softhsm2\"", &format!("profile = \"softhsm2\"{more}"));
    let site = Site::new();
    let config = site.load(&toml, &[]).unwrap();
    let cluster = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()];
    assert_eq!(
        (cluster.state, cluster.state_message.as_str()),
        (ClusterState::UpdateInProgress, "an HSM is being added")
    );
    let group = cluster.security_group.as_ref().unwrap();
    let peers: Vec<_> = group.rules.iter().map(|rule| (rule.peer.to_string(), rule.protocol.to_string())).collect();
    assert_eq!(peers, [("sg-1".to_owned(), "tcp".to_owned()), ("sg-2".to_owned(), "-1".to_owned())]);
    let problems = site.problems(&toml.replace("\"-1\"", "\"TCP\""), &[]);
    assert!(problems.len() == 1 && problems[0].contains("protocol"), "{problems:?}");
    let subnet = &cluster.subnets[&"subnet-1a".parse().unwrap()];
    assert_eq!((subnet.free_addresses, subnet.present), (Some(1), false));
    let id = "cluster-2abcdefghij".parse().unwrap();
    assert_eq!(cluster.lineage(&id).to_string(), "prod");
    let fingerprint = cluster.certificate.as_ref().unwrap().fingerprint();
    let lineages: std::collections::BTreeSet<_> = cluster.lineages(&id).iter().map(ToString::to_string).collect();
    assert_eq!(lineages, ["prod".to_owned(), fingerprint].into(), "either makes it a relative");
    let unsaid = site.load(&toml.replace("backup_lineage = \"prod\"", ""), &[]).unwrap();
    let by_certificate = unsaid.clusters[&id].lineage(&id);
    assert_eq!(by_certificate.to_string(), cluster.certificate.as_ref().unwrap().fingerprint());
    let alone = site.load(GOOD, &[]).unwrap();
    assert_eq!(
        alone.clusters[&id].lineage(&id).to_string(),
        id.as_str(),
        "one trust anchor may stand above many clusters"
    );
}

#[test]
fn what_a_cluster_says_of_itself_is_checked() {
    let site = Site::new();
    let cases = [
        ("state = \"active\"", "state: a cluster's state is one of CREATE_IN_PROGRESS, "),
        ("backup_lineage = \"\"", "backup_lineage: a backup lineage is "),
        ("certificate = \"so-pin\"", "certificate: so-pin must be one X.509 certificate"),
        ("min_hsms_to_create = 1", "min_hsms_to_create: may be 1 only where every node has vendor_cluster = true"),
        ("min_hsms_to_create = 0", "min_hsms_to_create: must be a whole number from 1 to 64"),
        ("security_group.rules = {}", "security_group.id: is missing"),
        (
            "security_group = { id = \"sg-1\", rules.x = { direction = \"in\", from_port = 9, to_port = 8 } }",
            "security_group.rules.x.direction: must be `ingress` or `egress`",
        ),
        ("subnets.subnet-1a.free_addresses = -1", "subnets.subnet-1a.free_addresses: must be a whole number"),
    ];
    for (line, complaint) in cases {
        let toml = with("profile = \"softhsm2\"", &format!("profile = \"softhsm2\"\n{line}"));
        let problems = site.problems(&toml, &[]);
        let complaint = format!("keyway.toml: clusters.cluster-2abcdefghij.{complaint}");
        assert!(problems[0].starts_with(&complaint), "{line}: {problems:?}");
    }
    let no_authority = with("\"customerCA.crt\"", "\"cluster.crt\"");
    let problems = site.problems(&no_authority, &[]);
    assert!(problems[0].contains("trust_anchor: cluster.crt must be a certificate authority's"), "{problems:?}");
}

#[test]
fn a_node_is_in_a_subnet_or_in_a_zone_without_one() {
    let site = Site::new();
    let no_subnets = GOOD
        .replace("subnets.subnet-1a.zone = \"us-east-1a\"\nsubnets.subnet-1b.zone = \"us-east-1b\"\n", "")
        .replace("subnet = \"subnet-1", "zone = \"us-east-1");
    let config = site.load(&no_subnets, &[]).unwrap();
    let node = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()].nodes[&"hsm-2".parse().unwrap()];
    assert_eq!((node.subnet.as_ref(), node.zone.as_str()), (None, "us-east-1b"));
    let both = with("subnet = \"subnet-1a\"", "subnet = \"subnet-1a\"\nzone = \"us-east-1a\"");
    assert!(site.problems(&both, &[])[0].contains("hsm-1.zone: is its subnet's"));
    assert!(site.problems(&with("subnet = \"subnet-1a\"", ""), &[])[0].contains("hsm-1.subnet: is missing"));
}

#[test]
fn one_hsm_may_hold_a_key_where_the_vendor_keeps_the_copies() {
    let toml = with("profile = \"softhsm2\"", "profile = \"softhsm2\"\nmin_hsms_to_create = 1")
        .replace("token.label", "vendor_cluster = true\ntoken.label");
    let config = Site::new().load(&toml, &[]).unwrap();
    assert_eq!(config.clusters[&"cluster-2abcdefghij".parse().unwrap()].min_hsms_to_create.get(), 1);
}

#[test]
fn a_managed_token_needs_its_so_pin() {
    let problems = Site::new().problems(&with("so_pin_file = \"so-pin\"\n", ""), &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("hsm-1.so_pin_file: is missing"), "{problems:?}");
}

#[test]
fn users_have_a_directory_on_every_node_of_a_cluster_or_on_none() {
    let site = Site::new();
    let id = "cluster-2abcdefghij".parse().unwrap();
    let users = |one: &str, two: &str| {
        let first = with("token.label = \"one\"", &format!("token.label = \"one\"\n{one}"));
        first.replace("token.label = \"two\"", &format!("token.label = \"two\"\n{two}"))
    };
    let without = &site.load(GOOD, &[]).unwrap().clusters[&id];
    assert!(!without.manages_users());
    assert!(without.nodes.values().all(|node| !local(node).locks_user()), "nobody could unlock him there");
    let both = users("user_tokens = \"users-1\"", "user_tokens = \"users-2\"");
    let cluster = &site.load(&both, &[]).unwrap().clusters[&id];
    assert!(cluster.manages_users());
    assert!(cluster.nodes.values().all(|node| local(node).locks_user()));
    assert_eq!(local(&cluster.nodes[&"hsm-1".parse().unwrap()]).user_tokens, Some(site.path("users-1")));
    let half = site.problems(&users("user_tokens = \"users-1\"", ""), &[]);
    assert!(half.len() == 1 && half[0].contains("hsm-2 has no user_tokens"), "{half:?}");
    let elsewhere = format!("{NODE_CLIENT}{both}{REMOTE_NODE}");
    assert!(!site.load(&format!("{NODE_CLIENT}{GOOD}{REMOTE_NODE}"), &[]).unwrap().clusters[&id].manages_users());
    assert!(site.load(&format!("{elsewhere}manages_users = true\n"), &[]).unwrap().clusters[&id].manages_users());
    let half = site.problems(&elsewhere, &[]);
    assert!(half.len() == 1 && half[0].contains("hsm-9 has no manages_users = true"), "{half:?}");
    let shared = site.problems(&users("user_tokens = \"users\"", "user_tokens = \"./users\""), &[]);
    assert!(shared.len() == 1 && shared[0].contains("hsm-2.user_tokens: is that of"), "{shared:?}");
    let first = "user_tokens = \"users-1\"\nenvironment.SOFTHSM2_CONF = \"two.conf\"";
    let one_configuration = users(first, "user_tokens = \"users-2\"");
    let shared = site.problems(&one_configuration, &[]);
    assert!(shared.len() == 1 && shared[0].contains("hsm-2.environment: SOFTHSM2_CONF is that of"), "{shared:?}");
}

#[test]
fn a_missing_file_and_a_broken_one_are_named() {
    let site = Site::new();
    let problems = load(&site.path("none.toml"), std::iter::empty()).unwrap_err().to_string();
    let none = site.path("none.toml").display().to_string();
    assert_eq!(problems, format!("{none}: there is no file {none}"));
    let problems = site.problems("data_dir = \"x\"\n\n[grpc\n", &[]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("keyway.toml: TOML parse error at line 3, column 6: "), "{problems:?}");
    let problems = site.problems("[keys]\nper_key_store = 99999999999999999999\n", &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn a_variable_overrides_a_nodes_key() {
    let environment = [
        ("KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_1__POOL_SIZE", "8"),
        ("KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_2__ENVIRONMENT__SOFTHSM2_CONF", "/other.conf"),
        ("KEYWAY__AUTHZ__ADMINS", "alice, bob"),
        ("KEYWAY__log__level", "debug"),
        ("KEYWAY__ALLOW_SEALING_KEY_IN_DATA_DIR", "true"),
        ("KEYWAY_LOG__LEVEL", "not ours"),
        ("HOME", "/root"),
    ];
    let config = Site::new().load(GOOD, &environment).unwrap();
    let nodes = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()].nodes;
    assert_eq!(nodes[&"hsm-1".parse().unwrap()].pool_size.get(), 8);
    assert_eq!(nodes[&"hsm-2".parse().unwrap()].pool_size.get(), 2);
    assert_eq!(local(&nodes[&"hsm-2".parse().unwrap()]).environment["SOFTHSM2_CONF"], "/other.conf");
    assert_eq!(config.authz.admins, ["alice", "bob"]);
    assert_eq!(config.log.level, telemetry::Level::Debug);
}

#[test]
fn variables_can_add_a_node_that_the_file_does_not_have() {
    let site = Site::new();
    let of = |key: &str| format!("KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_3__{key}");
    let names = ["SUBNET", "MODULE", "TOKEN__SERIAL", "SO_PIN_FILE", "ENVIRONMENT__Some_Name"].map(of);
    let values = ["subnet-1a", "pkcs11.so", "0123456789abcdef", "so-pin", "x"];
    let environment: Vec<_> = names.iter().map(String::as_str).zip(values).collect();
    let config = site.load(GOOD, &environment).unwrap();
    let node = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()].nodes[&"hsm-3".parse().unwrap()];
    assert_eq!(local(node).name, TokenName::Serial("0123456789abcdef".to_owned()));
    assert_eq!(local(node).environment["Some_Name"], "x");
}

#[test]
fn a_variable_that_is_wrong_is_reported_by_its_name() {
    let environment = [
        ("KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_1__POOL_SIEZ", "8"),
        ("KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_1__POOL_SIZE", "many"),
        ("KEYWAY__GRCP__LISTEN", "x"),
        ("KEYWAY__GRPC", "x"),
        ("KEYWAY__DATA_DIR__X", "x"),
        ("KEYWAY__KEYS__PER_KEY_STORE", "1"),
        ("KEYWAY__KEYS__per_key_store", "2"),
        ("KEYWAY____X", "x"),
    ];
    let problems = Site::new().problems(GOOD, &environment);
    assert_eq!(
        problems,
        [
            "KEYWAY__DATA_DIR__X: data_dir: is a value, not a section with keys of its own",
            "KEYWAY__GRPC: grpc: is a section: name one of its keys after another `__`",
            "KEYWAY__KEYS__per_key_store: keys.per_key_store: is set by KEYWAY__KEYS__PER_KEY_STORE too: keep one of the two",
            "KEYWAY____X: \".x\": no key is named like this",
            "KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_1__POOL_SIZE: clusters.cluster-2abcdefghij.nodes.hsm-1.pool_size: must be a whole number from 1 to 256, not \"many\"",
            "KEYWAY__CLUSTERS__CLUSTER_2ABCDEFGHIJ__NODES__HSM_1__POOL_SIEZ: clusters.cluster-2abcdefghij.nodes.hsm-1.pool_siez: unknown key; did you mean pool_size?",
            "KEYWAY__GRCP__LISTEN: grcp.listen: unknown key; did you mean grpc?",
        ]
    );
}

#[test]
fn a_file_as_deep_or_as_long_as_can_be_is_refused_and_nothing_overflows() {
    let site = Site::new();
    for toml in [
        format!("a = {}", "[".repeat(500_000)),
        format!("a = {}1{}", "[".repeat(200_000), "]".repeat(200_000)),
        format!("{}a = 1", "a.".repeat(400_000)),
        format!("[{}a]", "a.".repeat(400_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        "#".repeat(2 << 20),
    ] {
        assert_eq!(site.problems(&toml, &[]).len(), 1, "{:?}", &toml[..20]);
    }
}

#[test]
fn what_holds_for_clusters_that_keyway_makes_has_defaults_and_bounds() {
    let site = Site::new();
    let of_made = |more: &str| {
        let realm = "region = \"us-east-1\"\naccount = \"000000000000\"\nsofthsm2 = \"pkcs11.so\"";
        format!("{GOOD}\n[made_clusters]\n{realm}\n{more}")
    };
    assert_eq!(site.load(GOOD, &[]).unwrap().made_clusters, None);
    let made = site.load(&of_made(""), &[]).unwrap().made_clusters.unwrap();
    assert_eq!((made.quota, made.min_hsms_to_create.get(), made.pool_size.get()), (10, 2, 2));
    assert_eq!((made.directory, made.module), (site.path("data/clusters"), site.path("pkcs11.so")));
    for (line, complaint) in [
        ("min_hsms_to_create = 1", "made_clusters.min_hsms_to_create: must be a whole number from 2 to 64"),
        ("quota = 0", "made_clusters.quota: must be a whole number from 1 to 1000"),
        ("directory = \"so-pin\"", "is not a directory"),
        ("module = \"pkcs11.so\"", "made_clusters.module: unknown key"),
    ] {
        let problems = site.problems(&of_made(line), &[]);
        assert!(problems.len() == 1 && problems[0].contains(complaint), "{line}: {problems:?}");
    }
}

const EXAMPLE: &str = include_str!("../../deploy/keyway.example.toml");
const NODE_EXAMPLE: &str = include_str!("../../deploy/node.example.toml");

/// An example as it would be installed in the directory: its absolute paths start there, and every file is there.
fn installed(site: &Site, example: &str) -> String {
    let private = ["etc/keyway/hsm-1/so-pin", "etc/keyway/hsm-2/so-pin", "etc/keyway-node/so-pin"];
    for name in private.into_iter().chain(["usr/lib/softhsm/libsofthsm2.so"]) {
        site.put(name, "");
    }
    example.replace("\"/", &format!("\"{}/", site.0.path().display()))
}

#[test]
fn the_example_is_accepted_and_its_values_marked_as_defaults_are_the_defaults() {
    let site = Site::new();
    let example = installed(&site, EXAMPLE);
    let config = site.load(&example, &[]).unwrap();
    let without = |line: &&str| !line.contains("# default");
    let shorter = example.lines().filter(without).collect::<Vec<_>>().join("\n");
    assert!(shorter.len() < example.len());
    assert_eq!(site.load(&shorter, &[]).unwrap(), config);
}

#[test]
fn the_example_and_the_documentation_have_every_key_and_no_other() {
    let site = Site::new();
    site.put("keyway.toml", &installed(&site, EXAMPLE));
    let (mut report, tree) = read(&site.path("keyway.toml"), std::iter::empty());
    section::read(&mut report, tree.unwrap(), daemon::config).unwrap();
    let documented = documented(include_str!("../../docs/configuration.md"));
    assert_eq!(documented, *report.known());
    let example = EXAMPLE;
    for key in report.known().iter().filter(|key| !key.ends_with('>')) {
        let name = key.rsplit('.').next().unwrap();
        assert!(example.contains(&format!("{name} = ")), "the example has no {key}");
    }
}

#[test]
fn the_nodes_example_is_accepted_and_it_and_its_documentation_have_every_key_and_no_other() {
    let site = Site::new();
    site.put("keyway.toml", &installed(&site, NODE_EXAMPLE));
    let load = || load_node(&site.path("keyway.toml"), std::iter::empty()).unwrap();
    let config = load();
    assert_eq!(config.node.ports, crate::model::Ports::USUAL);
    assert_eq!((config.node.daemons.len(), config.node.max_links, config.node.hsms.len()), (1, 256, 1));
    let without = |line: &&str| !line.contains("# default");
    site.put("keyway.toml", &installed(&site, &NODE_EXAMPLE.lines().filter(without).collect::<Vec<_>>().join("\n")));
    assert_eq!(load(), config);
    let (mut report, tree) = read(&site.path("keyway.toml"), std::iter::empty());
    section::read(&mut report, tree.unwrap(), node::config).unwrap();
    assert_eq!(documented(include_str!("../../docs/nodes.md")), *report.known());
    for key in report.known().iter().filter(|key| !key.ends_with('>') && !key.ends_with("serial")) {
        let name = key.rsplit('.').next().unwrap();
        assert!(NODE_EXAMPLE.contains(&format!("{name} = ")), "the example has no {key}");
    }
}

const NODE_CLIENT: &str = "node_client = { certificate = \"daemon.crt\", private_key = \"daemon.key\" }\n";
const REMOTE_NODE: &str =
    "\n[clusters.cluster-2abcdefghij.nodes.hsm-9]\nsubnet = \"subnet-1a\"\naddress = \"hsm.example\"\n";

#[test]
fn a_node_on_another_host_has_an_address_in_place_of_a_library_and_a_token() {
    let site = Site::new();
    let config = site.load(&format!("{NODE_CLIENT}{GOOD}{REMOTE_NODE}identity_port = 7\n"), &[]).unwrap();
    let cluster = &config.clusters[&"cluster-2abcdefghij".parse().unwrap()];
    let Location::There(node) = &cluster.nodes[&"hsm-9".parse().unwrap()].location else { panic!("it is elsewhere") };
    assert_eq!((node.address.as_str(), node.ports.sessions, node.ports.identity), ("hsm.example", 2223, 7));
    assert_eq!(Some(&node.trust_anchor), cluster.trust_anchor.as_ref());
    let problem = |text: String| site.problems(&text, &[]).join("\n");
    assert!(problem(format!("{GOOD}{REMOTE_NODE}")).contains("node_client: is missing"));
    assert!(
        problem(format!("{NODE_CLIENT}{GOOD}{REMOTE_NODE}module = \"pkcs11.so\"\n"))
            .contains("hsm-9.module: is for a token")
    );
    let with_a_port = REMOTE_NODE.replace("hsm.example", "hsm.example:2223");
    assert!(problem(format!("{NODE_CLIENT}{GOOD}{with_a_port}")).contains("hsm-9.address: must be a DNS name"));
}

/// The first column of the tables under the heading "Keys", each with its section's heading before it.
fn documented(text: &str) -> std::collections::BTreeSet<String> {
    let (_, keys) = text.split_once("\n## Keys\n").unwrap();
    let mut section = String::new();
    let mut found = std::collections::BTreeSet::new();
    for line in keys.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            section = heading.strip_prefix('`').map_or(String::new(), |name| name.replace('`', "."));
        } else if let Some((key, _)) = line.strip_prefix("| `").and_then(|row| row.split_once('`')) {
            found.insert(format!("{section}{key}"));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_file_and_no_variable_makes_it_panic(
        lines in prop::collection::vec("[a-z_.-]{1,12}( = |=)(\"[a-z/.]{0,8}\"|[0-9]{1,20}|\\[\\]|\\{\\}|true)", 0..8),
        section in "(clusters\\.cluster-2abcdefghij|grpc|authz|x\\.y)",
        variable in "(GRPC|CLUSTERS__CLUSTER_2ABCDEFGHIJ|_)(__[A-Z_]{0,6}){0,20}",
        value in any::<String>(),
    ) {
        let toml = format!("[{section}]\n{}\n", lines.join("\n"));
        let site = Site(tempfile::tempdir().unwrap());
        let variable = format!("KEYWAY__{variable}");
        let outcome = site.load(&toml, &[(&variable, &value)]);
        prop_assert!(outcome.is_err());
    }
}
