//! A key store's whole life, by the command alone.

use crate::rig::{Rig, Served};

const RESTORED: &str = "cluster-2restored234";

/// What the command says when all is well.
#[track_caller]
fn says(served: &Served, args: &[&str]) -> String {
    let output = served.keyway(args).output().expect("it runs");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

#[tokio::test]
async fn a_key_store_is_made_checked_connected_rotated_moved_and_deleted_by_the_command() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    assert!(rig.stop_daemon().success());
    let mut served = Served::start_with(&rig, &["admin"], "backup_lineage = \"first\"");
    let cluster = rig.cluster_id();
    let [anchor, password] = ["customerCA.crt", "kmsuser.password"].map(|file| rig.path(file).display().to_string());
    let given = rig.password();

    let checked =
        says(&served, &["cluster", "check", &cluster, "--trust-anchor", &anchor, "--password-file", &password]);
    assert!(checked.contains("kmsuser-login") && !checked.contains("FAILED"), "{checked}");
    let create = ["key-store", "create", "--name", "orders", "--cluster-id", &cluster];
    let with = ["--trust-anchor-certificate", &anchor, "--password-file", &password];
    says(&served, &[&create[..], &with[..]].concat());
    let connected = says(&served, &["key-store", "connect", "--name", "orders", "--wait"]);
    assert!(connected.contains("CONNECTED"), "{connected}");
    assert!(!rig.opens("hsm-1", &given) && !rig.opens("hsm-2", &given), "the password is keyway's own now");

    let restored = rig.restore_elsewhere(RESTORED, "hsm-x");
    let declaration = restored.declaration(&rig, "first");
    served.restart_with(|text| text + &declaration).await;
    says(&served, &["key-store", "disconnect", "--name", "orders", "--wait"]);
    let dry_run = says(&served, &["cluster", "check", RESTORED, "--phase", "create"]);
    assert!(dry_run.contains("cluster-related"), "{dry_run}");
    says(&served, &["key-store", "update", "orders", "--cluster", RESTORED]);
    let connected = says(&served, &["key-store", "connect", "--name", "orders", "--wait"]);
    assert!(connected.contains("hsm-x1") && connected.contains("CONNECTED"), "{connected}");

    says(&served, &["key-store", "disconnect", "--name", "orders", "--wait"]);
    says(&served, &["key-store", "delete", "--name", "orders"]);
    assert!(!says(&served, &["key-store", "list"]).contains("orders"));
}
