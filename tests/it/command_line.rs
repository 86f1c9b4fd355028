//! The client as people type it: one binary, over the same API.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::rig::Rig;

fn run(rig: &Rig, args: &[&str]) -> Output {
    rig.keyway(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that must succeed; what it printed.
fn ok(rig: &Rig, args: &[&str]) -> String {
    let output = run(rig, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(rig: &Rig, args: &[&str]) -> Value {
    let text = ok(rig, &[&["--output", "json"], args].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// Runs a command that reads `input`; the bytes it wrote.
fn pipe(rig: &Rig, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = rig.keyway(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    output.stdout
}

fn create_store(rig: &Rig, name: &str) {
    let (anchor, password) = (rig.path("customerCA.crt"), rig.path("kmsuser.password"));
    let cluster = rig.cluster_id();
    let args = ["key-store", "create", "--name", name, "--cluster-id", &cluster];
    let files = ["--trust-anchor-certificate", anchor.to_str().unwrap(), "--password-file", password.to_str().unwrap()];
    ok(rig, &[&args[..], &files].concat());
}

#[test]
fn the_whole_main_job_can_be_typed() {
    let rig = Rig::new().start();
    ok(&rig, &["wait"]);
    create_store(&rig, "typed");
    ok(&rig, &["key-store", "connect", "--name", "typed", "--wait"]);
    assert!(ok(&rig, &["key-store", "list"]).contains("CONNECTED"));
    let key = json(&rig, &["key", "create", "--key-store", "typed", "--alias", "alias/typed"]);
    let id = key["key"]["keyId"].as_str().unwrap().to_owned();
    assert!(ok(&rig, &["key", "describe", "alias/typed"]).contains(&id));
    assert!(ok(&rig, &["key", "list", "--key-store", "typed"]).contains(&id));
    ok(&rig, &["alias", "create", "alias/second", &id]);
    assert!(ok(&rig, &["alias", "list", "--key", &id]).contains("alias/second"));

    let secret = pipe(&rig, &["encrypt", "--key", "alias/typed", "--context", "for=me"], b"typed secret");
    assert_eq!(pipe(&rig, &["decrypt", "--context", "for=me"], &secret), b"typed secret");
    let args = ["re-encrypt", "--from-context", "for=me", "--to", "alias/second", "--to-context", "for=you"];
    let handed_on = pipe(&rig, &args, &secret);
    assert_eq!(pipe(&rig, &["decrypt", "--context", "for=you"], &handed_on), b"typed secret");
    let (sealed, clear) = (rig.home.path().join("sealed"), rig.home.path().join("clear"));
    let outputs = ["--ciphertext-out", sealed.to_str().unwrap(), "--plaintext-out", clear.to_str().unwrap()];
    ok(&rig, &[&["generate-data-key", "--key", "alias/typed"], &outputs[..]].concat());
    let opened = pipe(&rig, &["decrypt"], &std::fs::read(sealed).unwrap());
    assert_eq!(opened, std::fs::read(clear).unwrap());
    assert_eq!(pipe(&rig, &["random", "16"], b"").len(), 16);
    ok(&rig, &["health"]);
    assert!(ok(&rig, &["whoami"]).contains("uid:"));
    assert!(ok(&rig, &["cluster", "list"]).contains("hsm-3"));

    ok(&rig, &["key-store", "disconnect", "--name", "typed", "--wait"]);
    assert!(ok(&rig, &["key-store", "describe", "--name", "typed"]).contains("DISCONNECTED"));
}

#[test]
fn exit_codes_tell_a_refusal_from_bad_usage_from_a_daemon_out_of_reach() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let refused = run(&rig, &["--output", "json", "key-store", "connect", "--name", "nobody"]);
    assert_eq!(refused.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "CUSTOM_KEY_STORE_NOT_FOUND", "{error}");
    assert_eq!(run(&rig, &["key", "invent"]).status.code(), Some(2));
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_keyway"));
    let nobody = nobody.args(["--addr", "unix:/nonexistent/keyway.sock", "whoami"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(3), "{}", String::from_utf8_lossy(&nobody.stderr));
}

#[test]
fn a_wrong_password_ends_the_wait_with_the_reason_and_the_remedy() {
    let rig = Rig::new().nodes(2).zones(2).start();
    std::fs::write(rig.path("kmsuser.password"), "wrongpassword1\n").unwrap();
    create_store(&rig, "wrong");
    let failed = run(&rig, &["key-store", "connect", "--name", "wrong", "--wait"]);
    let told = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{told}");
    assert!(told.contains("INVALID_CREDENTIALS") && told.contains("password"), "{told}");
}

#[test]
fn dev_data_is_removed_by_reset_and_a_strangers_directory_is_not() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let before = rig.cluster_id();
    rig.stop_daemon();
    let stranger = rig.home.path().join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::write(stranger.join("thesis.txt"), b"three years of work").unwrap();
    let refused = Command::new(env!("CARGO_BIN_EXE_keyway"))
        .args(["dev", "--reset", "--grpc-addr", "off", "--http-addr", "off", "--data-dir"])
        .arg(&stranger)
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stranger.join("thesis.txt").exists());
    let other_shape = Command::new(env!("CARGO_BIN_EXE_keyway"))
        .args(["dev", "--nodes", "3", "--grpc-addr", "off", "--http-addr", "off", "--data-dir"])
        .arg(rig.data_dir())
        .output()
        .unwrap();
    assert_eq!(other_shape.status.code(), Some(2), "a cluster keeps its shape");
    rig.start_daemon_with(&["--reset"]);
    assert_ne!(rig.cluster_id(), before);
}

#[test]
fn the_whole_life_of_a_key_can_be_typed() {
    let rig = Rig::new().nodes(2).zones(2).deletion_day("300ms").start();
    create_store(&rig, "typed");
    ok(&rig, &["key-store", "connect", "--name", "typed", "--wait"]);
    let made = json(&rig, &["key", "create", "--key-store", "typed", "--alias", "alias/typed", "--tag", "team=red"]);
    let id = made["key"]["keyId"].as_str().unwrap();
    let other = json(&rig, &["key", "create", "--key-store", "typed"]);
    let other = other["key"]["keyId"].as_str().unwrap();

    assert!(ok(&rig, &["key", "disable", "alias/typed"]).contains("DISABLED"));
    assert!(ok(&rig, &["key", "enable", "alias/typed"]).contains("ENABLED"));
    ok(&rig, &["key", "update", id, "--description", "orders of the shop"]);
    ok(&rig, &["key", "tag", id, "stage=test", "team=blue"]);
    ok(&rig, &["key", "untag", id, "stage"]);
    let tags = ok(&rig, &["key", "tags", id]);
    assert!(tags.contains("blue") && !tags.contains("stage"), "{tags}");

    // As long as it is on its way to the last HSM, it is to be asked again.
    crate::rig::wait(|| run(&rig, &["key", "rotate", "alias/typed"]).status.success().then_some(()));
    let rotated = json(&rig, &["key", "describe", "alias/typed"]);
    assert_eq!(
        (&rotated["key"]["currentVersion"], &rotated["key"]["description"]),
        (&2.into(), &"orders of the shop".into())
    );
    let versions = ok(&rig, &["key", "versions", id]);
    assert!(versions.contains("CURRENT") && versions.contains("DECRYPT_ONLY"), "{versions}");
    let rotating = json(&rig, &["key", "enable-rotation", id, "--days", "90"]);
    assert_eq!(rotating["key"]["rotationPeriodDays"], 90);
    ok(&rig, &["key", "disable-rotation", id]);

    ok(&rig, &["alias", "update", "alias/typed", other]);
    assert!(ok(&rig, &["alias", "list", "--key", other]).contains("alias/typed"));
    ok(&rig, &["alias", "delete", "alias/typed"]);
    assert!(!ok(&rig, &["alias", "list"]).contains("alias/typed"));

    assert!(ok(&rig, &["key", "schedule-deletion", other]).contains("PENDING_DELETION"));
    assert!(ok(&rig, &["key", "cancel-deletion", other]).contains("DISABLED"));
    ok(&rig, &["key", "schedule-deletion", id, "--days", "7"]);
    crate::rig::wait(|| (!run(&rig, &["key", "describe", id]).status.success()).then_some(()));
    let refused = run(&rig, &["key", "schedule-deletion", other, "--days", "6"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}
