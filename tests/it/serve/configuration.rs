//! A configuration that cannot be served is refused before anything starts, all of it at once: file, key and fix.

use std::path::PathBuf;

use crate::rig::refused_configuration;

const BAD_CONFIGURATION: Option<i32> = Some(2);

/// A directory with one configuration file.
struct Written {
    home: tempfile::TempDir,
    file: PathBuf,
}

fn written(text: &str) -> Written {
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = home.path().join("keyway.toml");
    std::fs::write(&file, text).expect("our directory");
    Written { home, file }
}

/// What is said under a key, by whoever wrote it.
#[track_caller]
fn complaint<'a>(said: &'a str, origin: &str, key: &str) -> &'a str {
    let start = format!("{origin}: {key}: ");
    let line = said.lines().find_map(|line| line.strip_prefix(start.as_str()));
    line.unwrap_or_else(|| panic!("no line starts with {start:?}:\n{said}"))
}

const SOUND: &str = r#"
data_dir = "data"
sealing_key_file = "sealing.key"
[grpc]
unix_socket = "keyway.sock"
[authz]
admins = ["ops"]
"#;

#[test]
fn everything_that_is_wrong_is_told_at_once_with_file_key_and_fix() {
    let Written { home, file } = written(
        r#"
data_dir = "data"
sealing_key_file = "data/sealing.key"
log = { level = "loud" }
[grpc]
listen = "127.0.0.1"
max_connections = 0
drian_timeout = "5s"
[authz]
admins = []
[clusters.production]
region = "us-east-1"
[clusters.cluster-2abcdefghij]
region = "us-east-1"
account = "12"
trust_anchor = "nowhere.crt"
sync = "wrap"
profile = "softhsm2"
[clusters.cluster-2abcdefghij.subnets.subnet-1a]
zone = "us-east-1a"
[clusters.cluster-2abcdefghij.nodes.hsm-1]
subnet = "subnet-2b"
module = "nowhere.so"
token = { label = "a", serial = "b" }
"#,
    );
    let (code, said) = refused_configuration(&file, &[]);
    assert_eq!(code, BAD_CONFIGURATION, "{said}");
    let origin = file.display().to_string();
    let cluster = "clusters.cluster-2abcdefghij";
    let node = &format!("{cluster}.nodes.hsm-1");
    let told = [
        ("sealing_key_file", "keep it elsewhere"),
        ("log.level", "info"),
        ("grpc.listen", ":"),
        ("grpc.max_connections", "1"),
        ("grpc.drian_timeout", "did you mean drain_timeout?"),
        ("authz.admins", "name at least one"),
        ("clusters.production", "cluster-"),
        (&format!("{cluster}.account"), "12"),
        (&format!("{cluster}.trust_anchor"), "nowhere.crt"),
        (&format!("{node}.subnet"), "declare it there"),
        (&format!("{node}.module"), "nowhere.so"),
        (&format!("{node}.token"), "exactly one"),
        (&format!("{node}.so_pin_file"), "SO PIN"),
    ];
    for (key, fix) in told {
        let complaint = complaint(&said, &origin, key);
        assert!(complaint.contains(fix), "{key}: {complaint:?} says nothing of {fix:?}");
    }
    let begun = std::fs::read_dir(home.path()).expect("it is there").count();
    assert_eq!(begun, 1, "something was made although nothing was started");
}

#[test]
fn a_daemon_that_nobody_may_use_is_refused() {
    let Written { home: _home, file } = written(&SOUND.replace("admins = [\"ops\"]", ""));
    let (code, said) = refused_configuration(&file, &[]);
    assert_eq!(code, BAD_CONFIGURATION, "{said}");
    let why = complaint(&said, &file.display().to_string(), "authz.admins");
    assert!(why.contains("name at least one client certificate"), "{why}");
}

#[test]
fn a_variable_is_checked_like_the_file_and_named_when_it_is_wrong() {
    let Written { home: _home, file } = written(SOUND);
    let variables = [
        ("KEYWAY__GRPC__MAX_CONNECTIONS", "many"),
        ("KEYWAY__GRPC__MAX_CONECTIONS", "10"),
        ("KEYWAY__KEY_STORES__QUOTA", "0"),
        ("KEYWAY_PORT", "tcp://10.0.0.1:50051"),
    ];
    let (code, said) = refused_configuration(&file, &variables);
    assert_eq!(code, BAD_CONFIGURATION, "{said}");
    complaint(&said, "KEYWAY__GRPC__MAX_CONNECTIONS", "grpc.max_connections");
    complaint(&said, "KEYWAY__KEY_STORES__QUOTA", "key_stores.quota");
    let typo = complaint(&said, "KEYWAY__GRPC__MAX_CONECTIONS", "grpc.max_conections");
    assert!(typo.contains("did you mean max_connections?"), "{typo}");
    assert_eq!(said.lines().count(), 3, "KEYWAY_PORT is not ours to judge:\n{said}");
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_named() {
    let Written { home, file } = written("data_dir = \n[grpc");
    let (code, said) = refused_configuration(&file, &[]);
    assert_eq!(code, BAD_CONFIGURATION, "{said}");
    assert!(said.contains("keyway.toml") && said.contains("line 2"), "no file and line: {said}");
    let (code, said) = refused_configuration(&home.path().join("nowhere.toml"), &[]);
    assert_eq!(code, BAD_CONFIGURATION, "{said}");
    assert!(said.contains("nowhere.toml"), "{said}");
}
