//! A user who is logged in has workers on the HSMs, as long as one of his logins lasts.

use faulty_pkcs11::Function::C_Login;
use faulty_pkcs11::Rule;
use tonic::Request;

use super::logins::{failed, list_keys, log_out, login_of_alice, who, with_login};
use super::*;
use crate::rig::{Declaring, Faults, Served, kill, wait_async, with_line_for, without};

const BOTH: [&str; 2] = ["hsm-1", "hsm-2"];

async fn log_in_for(clients: &mut Clients, rig: &Rig, seconds: i64) -> String {
    let request = pb::LoginRequest {
        cluster_id: rig.cluster_id(),
        username: "alice".to_owned(),
        password: FIRST.to_owned(),
        ttl: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    clients.users.login(request).await.expect("it is right").into_inner().login_token
}

async fn renew(clients: &mut Clients, token: &str) {
    let request: Request<_> = with_login(pb::RenewLoginRequest {}, token);
    clients.users.renew_login(request).await.expect("it has not ended");
}

async fn with_alice(rig: &Rig) -> Clients {
    let mut clients = rig.clients().await;
    clients.create_user(rig, "alice", FIRST).await.unwrap();
    clients
}

fn with_user_tokens(rig: &Rig, configuration: String) -> String {
    BOTH.iter().fold(configuration, |text, hsm| {
        let users = format!("user_tokens = {:?}", rig.path(&format!("hsms/{hsm}/users")));
        with_line_for(&text, hsm, &users)
    })
}

#[tokio::test]
async fn who_is_logged_in_has_a_worker_on_every_hsm_until_the_last_of_his_logins_ends() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = with_alice(&rig).await;
    let first = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    let workers = rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    let second = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    refused("a wrong one", clients.log_in(&rig, "alice", WRONG).await, "INVALID_CREDENTIALS", "");
    log_out(&mut clients, &first).await;
    who(&mut clients, &second).await.unwrap();
    assert_eq!(rig.workers_as("alice"), workers, "one for all logins, and no login disturbs it");
    log_out(&mut clients, &second).await;
    rig.nobody_is("alice");

    log_in_for(&mut clients, &rig, 2).await;
    let renewed = log_in_for(&mut clients, &rig, 2).await;
    rig.until_workers_as("alice", &BOTH);
    renew(&mut clients, &renewed).await;
    rig.nobody_is("alice");
    refused("expired", who(&mut clients, &renewed).await, "LOGIN_EXPIRED", "");

    for change in 0..2 {
        let (old, new) = if change == 0 { (FIRST, SECOND) } else { (SECOND, FIRST) };
        clients.log_in(&rig, "alice", old).await.unwrap();
        rig.until_workers_as("alice", &BOTH);
        let pending = match change {
            0 => clients.change_user_password(&rig, "alice", old, new).await,
            _ => clients.reset_password(&rig, "alice", new).await,
        };
        assert!(pending.unwrap().is_empty());
        assert!(rig.workers_as("alice").is_empty(), "they were gone before the password was given");
    }

    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_workers_as("alice", &BOTH);
    log_out(&mut clients, &login).await;
    clients.delete_user(&rig, "alice").await.unwrap();
    rig.nobody_is("alice");

    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    rig.until_workers_as("alice", &BOTH);
    assert!(rig.stop_daemon().success());
    rig.nobody_is("alice");
}

#[tokio::test]
async fn a_login_goes_on_with_the_next_daemon_without_the_password() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = with_alice(&rig).await;
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    let before = rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    rig.kill_daemon();
    rig.nobody_is("alice");
    rig.start_daemon();
    clients = rig.clients().await;
    who(&mut clients, &login).await.expect("the records know it");
    assert!(rig.workers_as("alice").is_empty(), "nobody can log her in without her token");
    renew(&mut clients, &login).await;
    let after = rig.until_workers_as("alice", &BOTH);
    assert!(before.values().all(|pid| !after.values().any(|now| now == pid)));
    log_out(&mut clients, &login).await;
    rig.nobody_is("alice");
}

#[tokio::test]
async fn a_users_worker_that_dies_is_replaced_and_no_login_counts_as_failed() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = with_alice(&rig).await;
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    let before = rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    for pid in before.values() {
        kill(*pid);
    }
    wait(|| {
        let now = rig.workers_as("alice");
        BOTH.iter().all(|hsm| now.get(*hsm).is_some_and(|pid| *pid != before[*hsm])).then_some(())
    });
    // While they are at work she is proved beside them.
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    assert!(failed(&mut clients, &rig, "alice").await.values().all(|failed| *failed == 0));
}

#[tokio::test]
async fn logins_that_an_hsm_never_answers_do_not_lock_a_user_whose_password_it_has_accepted() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = with_alice(&rig).await;
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    let before = rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    let faults = Faults::beside(&rig.user_token("hsm-1", "alice").join("softhsm2.conf"));
    let logins = faults.count(C_Login);
    faults.set([Rule::crash(C_Login).during("trouble")]);
    faults.mark("trouble");
    kill(before["hsm-1"]);
    wait(|| (faults.count(C_Login) >= logins + 6).then_some(()));
    faults.unmark("trouble");
    rig.until_workers_as("alice", &BOTH);
    assert!(failed(&mut clients, &rig, "alice").await.values().all(|failed| *failed == 0));
}

#[tokio::test]
async fn an_hsm_that_was_away_is_logged_in_to_once_it_has_the_users_password() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    rig.take_away("hsm-3");
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_workers_as("alice", &BOTH);
    rig.put_back("hsm-3");
    rig.until_workers_as("alice", &["hsm-1", "hsm-2", "hsm-3"]);
    rig.until_proved("alice", &["hsm-1", "hsm-2", "hsm-3"]);
    who(&mut clients, &login).await.expect("the login is the same");

    // One that has an older password is not asked for the present one.
    log_out(&mut clients, &login).await;
    rig.nobody_is("alice");
    rig.take_away("hsm-1");
    assert_eq!(clients.reset_password(&rig, "alice", SECOND).await.unwrap(), ["hsm-1"]);
    clients.log_in(&rig, "alice", SECOND).await.unwrap();
    rig.until_workers_as("alice", &["hsm-2", "hsm-3"]);
    rig.put_back("hsm-1");
    rig.until_workers_as("alice", &["hsm-1", "hsm-2", "hsm-3"]);
    assert!(failed(&mut clients, &rig, "alice").await.values().all(|failed| *failed == 0));
}

#[tokio::test]
async fn an_hsm_that_is_taken_out_of_use_is_left_by_users_as_well_until_it_is_resumed() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = with_alice(&rig).await;
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    let request = pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: "hsm-1".to_owned(),
        note: "new fans".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(request).await.unwrap();
    rig.until_workers_as("alice", &["hsm-2"]);
    log_out(&mut clients, &login).await;
    rig.nobody_is("alice");
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    rig.until_workers_as("alice", &["hsm-2"]);
    clients.resume_hsm(&rig.cluster_id(), "hsm-1", false).await;
    rig.until_workers_as("alice", &BOTH);
}

#[tokio::test]
async fn who_is_logged_in_as_kmsuser_has_its_workers_and_leaves_them_to_the_key_store() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let login = clients.log_in(&rig, "kmsuser", &rig.password()).await.unwrap().login_token;
    let people = rig.until_workers_as("kmsuser", &BOTH);
    log_out(&mut clients, &login).await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    let stores = rig.until_workers_as("kmsuser", &BOTH);
    assert!(people.values().all(|pid| !stores.values().any(|now| now == pid)));
    clients.key(&store).await;
    clients.disconnect(&store).await;
    clients.log_in(&rig, "kmsuser", &rig.password()).await.unwrap();
    rig.until_workers_as("kmsuser", &BOTH);
}

#[tokio::test]
async fn a_login_that_others_wrong_passwords_would_make_the_next_to_count_is_not_made_on_that_hsm() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = with_alice(&rig).await;
    for _ in 0..3 {
        refused("a wrong one", clients.log_in(&rig, "alice", WRONG).await, "INVALID_CREDENTIALS", "");
    }
    let logins = || Faults::beside(&rig.user_token("hsm-1", "alice").join("softhsm2.conf")).count(C_Login);
    let before = logins();
    clients.log_in(&rig, "alice", FIRST).await.expect("another HSM is asked");
    rig.until_proved("alice", &["hsm-2"]);
    wait(|| rig.log().contains("too many wrong passwords were given for the crypto user").then_some(()));
    rig.until_workers_as("alice", &["hsm-2"]);
    assert_eq!(logins(), before, "it would count, were it wrong");
    assert_eq!(failed(&mut clients, &rig, "alice").await["hsm-1"], 3);
    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
    clients.log_in(&rig, "alice", SECOND).await.unwrap();
    rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
}

#[tokio::test]
async fn a_password_that_an_hsm_refuses_is_tried_there_once_until_an_operator_says_so() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = with_alice(&rig).await;
    let token = rig.user_token("hsm-2", "alice").join("softhsm2.conf");
    crate::rig::set_password_as_so(&token, &rig.path("hsms/hsm-2/so-pin"), "alice", SECOND);
    let first = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_proved("alice", &["hsm-1"]);
    wait(|| rig.log().contains("the token refused the password").then_some(()));
    rig.until_workers_as("alice", &["hsm-1"]);
    log_out(&mut clients, &first).await;
    rig.nobody_is("alice");
    let logins = || Faults::beside(&token).count(C_Login);
    let before = logins();
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    rig.until_workers_as("alice", &["hsm-1"]);
    rig.until_proved("alice", &["hsm-1"]);
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    rig.until_workers_as("alice", &["hsm-1"]);
    assert_eq!(logins(), before, "it was refused once");
    assert_eq!(failed(&mut clients, &rig, "alice").await["hsm-2"], 1);

    crate::rig::set_password_as_so(&token, &rig.path("hsms/hsm-2/so-pin"), "alice", FIRST);
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    assert_eq!(failed(&mut clients, &rig, "alice").await["hsm-2"], 0);
}

#[tokio::test]
async fn whoever_has_a_wrong_password_tried_keeps_no_call_of_the_user_waiting() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = with_alice(&rig).await;
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    let unused = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_proved("alice", &BOTH);
    let faults = Faults::beside(&rig.user_token("hsm-1", "alice").join("softhsm2.conf"));
    faults.set([Rule::block(C_Login).during("trouble")]);
    let before = faults.count(C_Login);
    faults.mark("trouble");
    let (mut another, wrong) = (clients.clone(), login_of_alice(&rig, WRONG));
    let tried = tokio::spawn(async move { another.users.login(wrong).await });
    wait_async(|| async { (faults.count(C_Login) > before).then_some(()) }).await;
    list_keys(&clients, &rig, &unused).await.expect("she is logged in");
    assert!(!tried.is_finished(), "it is still being tried");
    faults.unmark("trouble");
    refused("a wrong one", tried.await.unwrap(), "INVALID_CREDENTIALS", "");
}

#[tokio::test]
async fn an_hsm_that_has_refused_kmsusers_password_is_not_asked_again_at_the_next_login() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    rig.set_password_as_so("hsm-2", SECOND);
    let login = clients.log_in(&rig, "kmsuser", &rig.password()).await.unwrap().login_token;
    wait(|| rig.log().contains("the token refused the password").then_some(()));
    log_out(&mut clients, &login).await;
    rig.nobody_is("kmsuser");
    let login = clients.log_in(&rig, "kmsuser", &rig.password()).await.unwrap().login_token;
    wait(|| rig.log().contains("too many wrong passwords were given for the crypto user").then_some(()));
    assert_eq!(failed(&mut clients, &rig, "kmsuser").await["hsm-2"], 1);

    rig.set_password_as_so("hsm-2", &rig.password());
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    rig.until_workers_as("kmsuser", &BOTH);
    wait(|| rig.opens("hsm-2", &rig.password()).then_some(()));
    who(&mut clients, &login).await.unwrap();
}

#[tokio::test]
async fn who_is_logged_in_on_a_cluster_that_is_not_declared_any_more_is_so_again_when_it_is() {
    let (rig, served, _) = Served::over_two_hsms().await;
    let mut clients = served.clients_on_the_socket().await;
    let good = with_user_tokens(&rig, served.configuration());
    served.reload(&good).await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    rig.until_workers_as("alice", &BOTH);
    rig.until_proved("alice", &BOTH);
    served.reload(&good.replace(&rig.cluster_id(), "cluster-2zzzzzzzzzz")).await;
    rig.nobody_is("alice");
    served.reload(&good).await;
    renew(&mut clients, &login).await;
    rig.until_workers_as("alice", &BOTH);
}

#[tokio::test]
async fn who_is_logged_in_leaves_an_hsm_that_is_declared_no_more_and_comes_back_when_it_is() {
    let (declaring, mut clients) = Declaring::over(Rig::new().nodes(2).zones(2)).await;
    let all = with_user_tokens(&declaring.rig, declaring.configuration());
    declaring.reload(&all).await;
    clients.create_user(&declaring.rig, "alice", FIRST).await.unwrap();
    let login = clients.log_in(&declaring.rig, "alice", FIRST).await.unwrap().login_token;
    declaring.rig.until_workers_as("alice", &BOTH);
    declaring.reload(&without(&all, "hsm-2")).await;
    declaring.rig.until_workers_as("alice", &["hsm-1"]);
    who(&mut clients, &login).await.unwrap();
    declaring.reload(&all).await;
    declaring.rig.until_workers_as("alice", &BOTH);
    who(&mut clients, &login).await.unwrap();
}
