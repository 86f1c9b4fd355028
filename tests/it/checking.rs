//! `CheckCluster` and `keyway cluster check`: what a cluster lacks, without doing anything but one login when asked to.

use std::process::{Output, Stdio};

use faulty_pkcs11::Function::C_Login;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;
use serde_json::Value;

use crate::rig::{Clients, Rig, Validity, certificate_in, pb, refused};

const WRONG: &str = "notthepassword1";

async fn check(
    clients: &mut Clients,
    rig: &Rig,
    anchor: Option<String>,
    password: Option<&str>,
) -> pb::CheckClusterResponse {
    let request = pb::CheckClusterRequest {
        cluster_id: rig.cluster_id(),
        trust_anchor_certificate: anchor,
        key_store_password: password.map(str::to_owned),
    };
    clients.clusters.check_cluster(request).await.expect("what is lacking is no error").into_inner()
}

/// The one check of this name; of those of several subjects, the first that is not PASSED.
#[track_caller]
fn named<'a>(response: &'a pb::CheckClusterResponse, name: &str) -> &'a pb::Check {
    let mut of_it = response.checks.iter().filter(|check| check.name == name);
    let first = of_it.next().unwrap_or_else(|| panic!("no {name} among {response:?}"));
    [first].into_iter().chain(of_it).find(|check| check.status() != pb::CheckStatus::Passed).unwrap_or(first)
}

/// What came of a password: its status, reason, and the HSM that was asked.
async fn login(clients: &mut Clients, rig: &Rig, password: &str) -> (pb::CheckStatus, String, String) {
    let response = check(clients, rig, None, Some(password)).await;
    let login = named(&response, "kmsuser-login");
    (login.status(), login.reason.clone(), login.subject.clone())
}

/// Waits until somebody has looked at every HSM, and found it.
async fn reachable(clients: &mut Clients, rig: &Rig) {
    crate::rig::wait_async(|| {
        let mut clients = clients.clone();
        let rig = &rig;
        async move {
            let response = check(&mut clients, rig, None, None).await;
            let mut reached = response.checks.iter().filter(|check| check.name == "hsm-reachable");
            reached.all(|check| check.status() == pb::CheckStatus::Passed).then_some(())
        }
    })
    .await;
}

#[tokio::test]
async fn a_development_cluster_lacks_nothing() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    reachable(&mut clients, &rig).await;
    let (anchor, password) = (rig.trust_anchor(), rig.password());
    let response = check(&mut clients, &rig, Some(anchor), Some(&password)).await;
    assert!(response.passed, "{response:?}");
    for check in &response.checks {
        let unknown = ["no-client-certificates-required", "kmsuser-without-second-factor"];
        let nobody_yet = ["key-store-connected", "hsms-answer-in-two-zones", "hsm-answers"];
        // A cluster that keyway made has neither a network nor a firewall of its own.
        let not_declared = ["security-group-ingress", "security-group-egress", "subnet-free-addresses"];
        let name = check.name.as_str();
        let skipped = [&unknown[..], &nobody_yet, &not_declared].concat();
        let expected = if skipped.contains(&name) { pb::CheckStatus::Skipped } else { pb::CheckStatus::Passed };
        assert_eq!(check.status(), expected, "{check:?}");
    }
    assert_eq!(response.checks.first().map(|check| check.phase()), Some(pb::CheckPhase::Create));
    let trials = || rig.workers_and_lookouts().into_iter().filter(|(_, slot)| slot.ends_with(".trial")).count();
    assert_eq!(trials(), 0, "who tried the password has left");

    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let response = check(&mut clients, &rig, None, Some(&password)).await;
    assert!(response.passed, "its own key store is no fault of it: {response:?}");
    let free = named(&response, "cluster-free");
    assert_eq!(free.status(), pb::CheckStatus::Skipped, "{free:?}");
    assert!(free.problem.contains(&store), "{free:?}");
    let login = named(&response, "kmsuser-login");
    assert_eq!(login.status(), pb::CheckStatus::Skipped, "kmsuser is in use: {login:?}");
    assert!(login.problem.contains("CONNECTED"), "{login:?}");
    for name in ["key-store-connected", "hsms-answer-in-two-zones", "hsm-answers"] {
        assert_eq!(named(&response, name).status(), pb::CheckStatus::Passed, "{name}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_on_each_hsm_and_then_no_more() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    reachable(&mut clients, &rig).await;
    let failed = (pb::CheckStatus::Failed, "INVALID_CREDENTIALS".to_owned());
    let (status, reason, first) = login(&mut clients, &rig, WRONG).await;
    assert_eq!((status, reason), failed);
    let other = if first == "hsm-1" { "hsm-2" } else { "hsm-1" };
    assert!(rig.login_was_refused(&first) && !rig.login_was_refused(other), "one HSM was asked");
    let (status, reason, second) = login(&mut clients, &rig, WRONG).await;
    assert_eq!((status, reason), failed);
    assert_eq!(second, other, "the next check asks the next HSM");
    for password in [WRONG, &rig.password()] {
        let response = check(&mut clients, &rig, None, Some(password)).await;
        let login = named(&response, "kmsuser-login");
        assert_eq!(login.status(), pb::CheckStatus::Skipped, "{login:?}");
        assert!(login.remedy.contains("--allow-one-login"), "{login:?}");
        assert!(response.passed);
    }
    clients.resume_hsm(&rig.cluster_id(), other, true).await;
    let passed = (pb::CheckStatus::Passed, String::new(), other.to_owned());
    let right = rig.password();
    assert_eq!(login(&mut clients, &rig, &right).await, passed);
    assert_eq!(login(&mut clients, &rig, &right).await, passed, "what was accepted may be asked again");
    assert!(!rig.login_was_refused(other));

    // A key store's own login has a budget of its own, and its success forgives.
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    reachable(&mut clients, &rig).await;
    let (status, reason, _) = login(&mut clients, &rig, WRONG).await;
    assert_eq!((status, reason), failed);
    let (status, reason, _) = login(&mut clients, &rig, WRONG).await;
    assert_eq!((status, reason), failed, "both may be asked again");
}

#[tokio::test]
async fn what_an_hsm_says_to_the_login_is_told_as_connecting_would_tell_it() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    reachable(&mut clients, &rig).await;
    let right = rig.password();
    let asked = || ["hsm-1", "hsm-2"].map(|hsm| rig.faults(hsm).count(C_Login));
    let before = asked();
    let said = [
        ("hsm-1", Rule::fail(C_Login, CKR_USER_ALREADY_LOGGED_IN), "USER_LOGGED_IN"),
        ("hsm-1", Rule::fail(C_Login, CKR_USER_PIN_NOT_INITIALIZED), "USER_NOT_FOUND"),
        ("hsm-1", Rule::fail(C_Login, CKR_PIN_LOCKED), "USER_LOCKED_OUT"),
        ("hsm-2", Rule::crash(C_Login), "INTERNAL_ERROR"),
    ];
    for (hsm, rule, reason) in said {
        rig.faults(hsm).set([rule]);
        let told = login(&mut clients, &rig, &right).await;
        assert_eq!(told, (pb::CheckStatus::Failed, reason.to_owned(), hsm.to_owned()));
    }
    let (status, ..) = login(&mut clients, &rig, &right).await;
    assert_eq!(status, pb::CheckStatus::Skipped, "one has refused, the other did not answer");
    let [one, two] = asked();
    assert_eq!([one - before[0], two - before[1]], [3, 1], "what no HSM counts is asked again, and nothing else");
}

#[tokio::test]
async fn a_token_that_was_exchanged_is_sent_no_password_and_is_no_fault_of_the_network() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    for hsm in ["hsm-1", "hsm-2"] {
        rig.faults(hsm).set([Rule::serial("deadbeef")]);
    }
    let response = check(&mut clients, &rig, None, Some(&rig.password())).await;
    let login = named(&response, "kmsuser-login");
    assert_eq!((login.status(), login.reason.as_str()), (pb::CheckStatus::Failed, "INTERNAL_ERROR"), "{login:?}");
    assert!(login.problem.contains("no password is sent there"), "{login:?}");
}

#[tokio::test]
async fn a_check_that_is_cut_off_in_the_middle_counts_as_one_that_was_refused() {
    let mut rig = Rig::new().nodes(2).zones(2).seams().start();
    let mut clients = rig.clients().await;
    reachable(&mut clients, &rig).await;
    rig.stop_at("check-begun");
    let asking = tokio::spawn({
        let mut clients = clients.clone();
        let (cluster_id, password) = (rig.cluster_id(), rig.password());
        async move {
            let key_store_password = Some(password);
            let request = pb::CheckClusterRequest { cluster_id, key_store_password, ..Default::default() };
            clients.clusters.check_cluster(request).await
        }
    });
    rig.wait_until_stopped_at("check-begun").await;
    rig.kill_daemon();
    let _ = asking.await;
    rig.let_pass("check-begun");
    let mut rig = tokio::task::spawn_blocking(move || {
        rig.start_daemon();
        rig
    })
    .await
    .expect("it starts again");
    let mut clients = rig.clients().await;
    reachable(&mut clients, &rig).await;
    let right = rig.password();
    let (status, _, hsm) = login(&mut clients, &rig, &right).await;
    assert_eq!((status, hsm.as_str()), (pb::CheckStatus::Passed, "hsm-2"), "the first may have been asked");
    assert!(rig.stop_daemon().success());
}

#[tokio::test]
async fn a_certificate_or_password_that_is_none_is_a_failed_check_that_names_it() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let anchors = [
        ("", "VALIDATION"),
        ("hello", "VALIDATION"),
        (&rig.trust_anchor().repeat(2), "VALIDATION"),
        (&certificate_in(Validity::Past, true), "VALIDATION"),
        (&certificate_in(Validity::Now, false), "VALIDATION"),
        (&"x".repeat(5_001), "VALIDATION"),
        (&certificate_in(Validity::Now, true), "INCORRECT_TRUST_ANCHOR"),
    ];
    for (anchor, reason) in anchors {
        let response = check(&mut clients, &rig, Some(anchor.to_owned()), None).await;
        let found = named(&response, "trust-anchor");
        assert_eq!((found.status(), found.reason.as_str()), (pb::CheckStatus::Failed, reason), "{anchor:.20}");
        assert!(reason != "VALIDATION" || found.problem.starts_with("trust_anchor_certificate: "), "{found:?}");
    }
    for password in ["", "short1", "semi;colon1"] {
        let response = check(&mut clients, &rig, None, Some(password)).await;
        let found = named(&response, "password-form");
        assert_eq!((found.status(), found.reason.as_str()), (pb::CheckStatus::Failed, "VALIDATION"), "{password:?}");
        assert_eq!(named(&response, "kmsuser-login").status(), pb::CheckStatus::Skipped);
        assert!(password.is_empty() || !format!("{response:?}").contains(password), "it is told");
    }
    assert!(!rig.login_was_refused("hsm-1") && !rig.login_was_refused("hsm-2"));
    let ids = [
        ("", "VALIDATION", "cluster_id"),
        ("x", "VALIDATION", "cluster_id"),
        ("cluster-2abcdefghij", "CLOUD_HSM_CLUSTER_NOT_FOUND", ""),
    ];
    for (id, reason, field) in ids {
        let request = pb::CheckClusterRequest { cluster_id: id.to_owned(), ..Default::default() };
        refused(id, clients.clusters.check_cluster(request).await, reason, field);
    }
}

fn run(rig: &Rig, args: &[&str]) -> Output {
    rig.keyway(args).stdin(Stdio::null()).output().expect("the binary is built")
}

#[test]
fn the_command_exits_with_1_when_a_check_failed() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let id = rig.cluster_id();
    let (anchor, password) = (rig.path("customerCA.crt"), rig.path("kmsuser.password"));
    let (anchor, password) = (anchor.to_str().unwrap(), password.to_str().unwrap());
    let files = ["--trust-anchor", anchor, "--password-file", password];
    let all = run(&rig, &[&["cluster", "check", &id, "--wait"], &files[..]].concat());
    let text = String::from_utf8_lossy(&all.stdout).into_owned();
    assert_eq!(all.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&all.stderr));
    for word in ["CREATE\n", "CONNECT\n", "CREATE_KEY\n", "USE\n", "PASSED", "kmsuser-login"] {
        assert!(text.contains(word), "no {word}: {text}");
    }
    let wrong = rig.home.path().join("wrong");
    std::fs::write(&wrong, WRONG).unwrap();
    let refused = run(&rig, &["--output", "json", "cluster", "check", &id, "--password-file", wrong.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    let of_it = |check: &&Value| check["name"] == "kmsuser-login";
    let login = told["checks"].as_array().unwrap().iter().find(of_it).unwrap();
    assert_eq!(
        (login["status"].as_str(), login["reason"].as_str()),
        (Some("CHECK_STATUS_FAILED"), Some("INVALID_CREDENTIALS"))
    );
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "INVALID_CREDENTIALS", "{error}");

    let create = ["key-store", "create", "--name", "main", "--cluster-id", &id, "--trust-anchor-certificate", anchor];
    assert!(run(&rig, &[&create[..], &["--password-file", password]].concat()).status.success());
    let tied = run(&rig, &["--timeout", "1s", "cluster", "check", &id, "--wait"]);
    let text = String::from_utf8_lossy(&tied.stdout).into_owned();
    assert_eq!(tied.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED    key-store-connected") && text.contains("do: Connect the key store."), "{text}");
    assert!(run(&rig, &["key-store", "connect", "main", "--wait"]).status.success());
    let whole = run(&rig, &["cluster", "check", &id, "--wait"]);
    let text = String::from_utf8_lossy(&whole.stdout).into_owned();
    assert_eq!(whole.status.code(), Some(0), "{text}");
    assert!(run(&rig, &["key-store", "disconnect", "main", "--wait"]).status.success());
    assert_eq!(run(&rig, &["cluster", "check", &id, "--phase", "connect"]).status.code(), Some(0));
    assert_eq!(run(&rig, &["cluster", "check", "cluster-2abcdefghij"]).status.code(), Some(1));
    assert_eq!(run(&rig, &["cluster", "check", &id, "--phase", "never"]).status.code(), Some(2));
    let described = run(&rig, &["cluster", "describe", &id]);
    let text = String::from_utf8_lossy(&described.stdout).into_owned();
    assert!(described.status.success() && text.contains("subnet-dev1"), "{text}");
}
