//! Passwords proved, counted and held back; logins and their tokens.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use faulty_pkcs11::Function::C_Login;
use faulty_pkcs11::Rule;
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::*;
use crate::rig::{Faults, wait_async};

/// The request, with a login's token beside it.
pub(super) fn with_login<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-keyway-login", MetadataValue::try_from(token).expect("base64"));
    request
}

pub(super) async fn who(clients: &mut Clients, token: &str) -> Result<pb::WhoAmIResponse, Status> {
    Ok(clients.users.who_am_i(with_login(pb::WhoAmIRequest {}, token)).await?.into_inner())
}

pub(super) async fn log_out(clients: &mut Clients, token: &str) {
    clients.users.logout(with_login(pb::LogoutRequest {}, token)).await.expect("it ends");
}

pub(super) async fn failed(clients: &mut Clients, rig: &Rig, user: &str) -> BTreeMap<String, i32> {
    let user = clients.user(rig, user).await.expect("he is there");
    user.hsms.into_iter().map(|on| (on.hsm_id, on.failed_logins)).collect()
}

fn counts(one: i32, two: i32) -> BTreeMap<String, i32> {
    [("hsm-1".to_owned(), one), ("hsm-2".to_owned(), two)].into()
}

#[tokio::test]
async fn wrong_passwords_stop_short_of_the_lock_on_each_hsm_whoever_asks_until_a_reset() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    refused("a wrong one", clients.log_in(&rig, "alice", WRONG).await, "INVALID_CREDENTIALS", "");
    assert_eq!(failed(&mut clients, &rig, "alice").await, counts(1, 0), "one HSM was asked");
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap();
    assert_eq!(failed(&mut clients, &rig, "alice").await, counts(0, 0), "what is accepted forgets what was not");
    // Her own logins on the HSMs would forget more.
    log_out(&mut clients, &login.login_token).await;
    rig.nobody_is("alice");

    for tries in 0..6 {
        let answer = match tries % 2 {
            0 => clients.change_user_password(&rig, "alice", WRONG, SECOND).await.map(drop),
            _ => clients.log_in(&rig, "alice", WRONG).await.map(drop),
        };
        refused("a wrong one", answer, "INVALID_CREDENTIALS", "");
    }
    held_back(&mut clients, &rig).await;
    rig.kill_daemon();
    rig.start_daemon();
    clients = rig.clients().await;
    held_back(&mut clients, &rig).await;
    assert!(rig.user_opens("hsm-1", "alice", FIRST), "nothing was changed");

    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
    assert_eq!(failed(&mut clients, &rig, "alice").await, counts(0, 0));
    clients.log_in(&rig, "alice", SECOND).await.unwrap();
}

/// Not even the right password is looked at, and the user is not locked.
async fn held_back(clients: &mut Clients, rig: &Rig) {
    for password in [FIRST, WRONG] {
        refused("the next", clients.log_in(rig, "alice", password).await, "THROTTLING", "");
        refused("the next", clients.change_user_password(rig, "alice", password, SECOND).await, "THROTTLING", "");
    }
    let alice = clients.user(rig, "alice").await.unwrap();
    assert!(alice.hsms.iter().all(|on| on.failed_logins == 3 && !on.locked), "{alice:?}");
}

#[tokio::test]
async fn a_user_who_is_not_there_is_answered_as_one_whose_password_is_wrong_after_the_same_work() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let logins =
        |hsm: &str, user: &str| Faults::beside(&rig.user_token(hsm, user).join("softhsm2.conf")).count(C_Login);
    let answers = |status: Status| (status.code(), status.message().to_owned());
    for (tries, hsm) in [(1, "hsm-1"), (2, "hsm-1"), (3, "hsm-1"), (1, "hsm-2"), (2, "hsm-2"), (3, "hsm-2")] {
        let before = (logins(hsm, "alice"), logins(hsm, "(nobody)"));
        let real = refused("wrong password", clients.log_in(&rig, "alice", WRONG).await, "INVALID_CREDENTIALS", "");
        let made_up = refused("wrong user", clients.log_in(&rig, "mallory", WRONG).await, "INVALID_CREDENTIALS", "");
        assert_eq!(answers(real), answers(made_up));
        let after = (logins(hsm, "alice"), logins(hsm, "(nobody)"));
        assert_eq!(after.0 - before.0, 1, "{tries} on {hsm}");
        // The first time the token of nobody is made, before either is asked.
        assert!(after.1 > before.1, "{tries} on {hsm}: {before:?} {after:?}");
    }
    let real = refused("wrong password", clients.log_in(&rig, "alice", WRONG).await, "THROTTLING", "");
    let made_up = refused("wrong user", clients.log_in(&rig, "mallory", WRONG).await, "THROTTLING", "");
    assert_eq!(answers(real), answers(made_up));
    let changed = clients.change_user_password(&rig, "trudy", WRONG, SECOND).await;
    refused("to change it", changed, "INVALID_CREDENTIALS", "");
    assert_eq!(clients.list_users(&rig).await.len(), 2, "who is nobody is not listed");
}

#[tokio::test]
async fn a_login_is_its_callers_until_it_ends_by_itself_or_is_ended() {
    let rig = Rig::new().nodes(2).zones(2).seams().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap();
    let me = who(&mut clients, &login.login_token).await.unwrap();
    assert_eq!((me.cluster_id, me.username.as_str()), (rig.cluster_id(), "alice"));
    assert_eq!(me.expire_time, login.expire_time);

    // Another caller, who knows the token.
    let mut other = rig.clients_of_another_caller().await;
    refused("another's", who(&mut other, &login.login_token).await, "LOGIN_EXPIRED", "");
    log_out(&mut other, &login.login_token).await;
    let renewed = other.users.renew_login(with_login(pb::RenewLoginRequest {}, &login.login_token)).await;
    refused("another's", renewed, "LOGIN_EXPIRED", "");
    who(&mut clients, &login.login_token).await.expect("it is still there");

    let ahead = |seconds: u64| std::fs::write(rig.path("daemon/seams/clock-offset"), seconds.to_string()).unwrap();
    ahead(14 * 60);
    let renewed = clients.users.renew_login(with_login(pb::RenewLoginRequest {}, &login.login_token)).await;
    let renewed = renewed.unwrap().into_inner().expire_time.unwrap();
    assert!(renewed.seconds >= login.expire_time.unwrap().seconds + 13 * 60);
    ahead(28 * 60);
    who(&mut clients, &login.login_token).await.expect("as long again as when it was made");
    ahead(30 * 60);
    refused("late", who(&mut clients, &login.login_token).await, "LOGIN_EXPIRED", "");
    let late = clients.users.renew_login(with_login(pb::RenewLoginRequest {}, &login.login_token)).await;
    refused("late", late, "LOGIN_EXPIRED", "");
    log_out(&mut clients, &login.login_token).await;

    let login = clients.log_in(&rig, "alice", FIRST).await.unwrap();
    log_out(&mut clients, &login.login_token).await;
    refused("ended", who(&mut clients, &login.login_token).await, "LOGIN_EXPIRED", "");
    let none = clients.users.renew_login(pb::RenewLoginRequest {}).await;
    refused("no token", none, "LOGIN_REQUIRED", "");
    refused("no token", clients.users.logout(pb::LogoutRequest {}).await, "LOGIN_REQUIRED", "");
    refused("made up", who(&mut clients, "made-up").await, "VALIDATION", "x-keyway-login");
    let mut twice = with_login(pb::LogoutRequest {}, &login.login_token);
    twice.metadata_mut().append("x-keyway-login", MetadataValue::try_from(&login.login_token).unwrap());
    refused("two tokens", clients.users.logout(twice).await, "VALIDATION", "x-keyway-login");
    for seconds in [0, -1, 12 * 60 * 60 + 1] {
        let request = pb::LoginRequest {
            cluster_id: rig.cluster_id(),
            username: "alice".to_owned(),
            password: FIRST.to_owned(),
            ttl: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        refused("a length", clients.users.login(request).await, "VALIDATION", "ttl");
    }
}

#[tokio::test]
async fn a_logout_whose_caller_leaves_before_its_answer_ends_the_login_all_the_same() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let token = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    let other = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    list_keys(&clients, &rig, &token).await.expect("the daemon knows the login by now");

    let records = format!("sqlite://{}", rig.path("daemon/records.sqlite3").display());
    let held = sqlx::SqlitePool::connect(&records).await.unwrap().begin_with("BEGIN IMMEDIATE").await.unwrap();
    let mut logout = with_login(pb::LogoutRequest {}, &token);
    logout.set_timeout(Duration::from_secs(1));
    assert!(clients.users.logout(logout).await.is_err(), "nothing can be written just now");
    held.rollback().await.unwrap();

    let ended = || {
        let (mut clients, token) = (clients.clone(), token.clone());
        async move { who(&mut clients, &token).await.err() }
    };
    wait_async(ended).await;
    let answer = wait_async(|| async { list_keys(&clients, &rig, &token).await.err() }).await;
    refused("it was ended", Err::<(), _>(answer), "LOGIN_EXPIRED", "");
    list_keys(&clients, &rig, &other).await.expect("another login goes on");
}

#[tokio::test]
async fn a_login_whose_caller_leaves_before_its_token_comes_has_no_place() {
    let rig = Rig::new().nodes(1).zones(1).faulty().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let faults = Faults::beside(&rig.user_token("hsm-1", "alice").join("softhsm2.conf"));
    faults.set([Rule::block(C_Login).during("trouble")]);
    faults.mark("trouble");
    let mut login = Request::new(login_of_alice(&rig, FIRST));
    login.set_timeout(Duration::from_secs(1));
    assert!(clients.users.login(login).await.is_err(), "the HSM does not answer");
    faults.unmark("trouble");
    // Her password is proved again once that is over.
    let next = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    list_keys(&clients, &rig, &next).await.expect("she has workers");
    log_out(&mut clients, &next).await;
    rig.nobody_is("alice");
}

pub(super) fn login_of_alice(rig: &Rig, password: &str) -> pb::LoginRequest {
    let (cluster_id, username) = (rig.cluster_id(), "alice".to_owned());
    pb::LoginRequest { cluster_id, username, password: password.to_owned(), ttl: None }
}

pub(super) async fn list_keys(clients: &Clients, rig: &Rig, token: &str) -> Result<Vec<pb::Key>, Status> {
    let request = pb::ListKeysRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    Ok(clients.keys.clone().list_keys(with_login(request, token)).await?.into_inner().keys)
}

#[tokio::test]
async fn another_password_ends_the_users_logins_and_one_who_is_logged_in_is_not_deleted() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    for name in ["alice", "bob"] {
        clients.create_user(&rig, name, FIRST).await.unwrap();
    }
    let bob = clients.log_in(&rig, "bob", FIRST).await.unwrap().login_token;
    let first = clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token;
    refused("logged in", clients.delete_user(&rig, "alice").await, "USER_LOGGED_IN", "");
    rig.kill_daemon();
    rig.start_daemon();
    clients = rig.clients().await;
    who(&mut clients, &first).await.expect("a login outlives a daemon");
    assert!(clients.change_user_password(&rig, "alice", FIRST, SECOND).await.unwrap().is_empty());
    refused("after a change", who(&mut clients, &first).await, "LOGIN_EXPIRED", "");
    refused("the old one", clients.log_in(&rig, "alice", FIRST).await, "INVALID_CREDENTIALS", "");
    let second = clients.log_in(&rig, "alice", SECOND).await.unwrap().login_token;
    clients.reset_password(&rig, "alice", FIRST).await.unwrap();
    refused("after a reset", who(&mut clients, &second).await, "LOGIN_EXPIRED", "");
    clients.delete_user(&rig, "alice").await.unwrap();
    who(&mut clients, &bob).await.expect("another's goes on");
    let database = std::fs::read(rig.path("daemon/records.sqlite3")).unwrap();
    let log = std::fs::read(rig.path("daemon/records.sqlite3-wal")).unwrap_or_default();
    let holds = |bytes: &[u8]| [&database, &log].iter().any(|file| file.windows(bytes.len()).any(|at| at == bytes));
    let decoded = |token: &str| BASE64_URL_SAFE_NO_PAD.decode(token).unwrap();
    let texts = [FIRST, SECOND, &bob, &first].map(|text| text.as_bytes().to_vec());
    let secrets = texts.into_iter().chain([decoded(&bob), decoded(&first)]);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &decoded(&bob));
    assert!(holds(b"bob") && holds(hash.as_ref()), "the records are read as they are");
    assert_eq!(secrets.filter(|secret| holds(secret)).count(), 0, "no secret is in the records");
}

#[tokio::test]
async fn as_many_are_logged_in_at_once_as_the_daemon_allows() {
    let rig = Rig::new().nodes(1).zones(1).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let mut tokens = Vec::new();
    for _ in 0..32 {
        tokens.push(clients.log_in(&rig, "alice", FIRST).await.unwrap().login_token);
    }
    refused("one more", clients.log_in(&rig, "alice", FIRST).await, "LIMIT_EXCEEDED", "");
    log_out(&mut clients, &tokens[7]).await;
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
}

#[tokio::test]
async fn kmsuser_is_a_key_stores_or_somebodys_and_never_both_at_once() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let (kmsuser, right) = ("kmsuser", rig.password());
    let store = clients.store(&rig, "main").await;
    assert_eq!(clients.user(&rig, kmsuser).await.unwrap().key_store_id, store);
    let login = clients.log_in(&rig, kmsuser, &right).await.unwrap().login_token;

    clients.connect(&store).await;
    let settled = clients.settled(&store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Failed);
    assert_eq!(settled.connection_error_code(), pb::ConnectionErrorCode::UserLoggedIn);
    log_out(&mut clients, &login).await;
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;

    let before = failed(&mut clients, &rig, kmsuser).await;
    for password in [right.as_str(), "notthepassword1"] {
        let status = refused("in use", clients.log_in(&rig, kmsuser, password).await, "USER_LOGGED_IN", "");
        assert!(status.message().contains("disconnect it first"), "{}", status.message());
        refused("in use", clients.reset_password(&rig, kmsuser, "another4password").await, "USER_LOGGED_IN", "");
        let changed = clients.change_user_password(&rig, kmsuser, password, "another4password").await;
        refused("in use", changed, "USER_LOGGED_IN", "");
        refused("in use", clients.delete_user(&rig, kmsuser).await, "USER_LOGGED_IN", "");
    }
    assert_eq!(failed(&mut clients, &rig, kmsuser).await, before, "nobody was asked");
    clients.disconnect(&store).await;
    refused("a store's", clients.delete_user(&rig, kmsuser).await, "CUSTOM_KEY_STORE_INVALID_STATE", "");

    refused("wrong", clients.log_in(&rig, kmsuser, "notthepassword1").await, "INVALID_CREDENTIALS", "");
    for password in [right.as_str(), "notthepassword1"] {
        refused("one was enough", clients.log_in(&rig, kmsuser, password).await, "THROTTLING", "");
    }
    assert_eq!(failed(&mut clients, &rig, kmsuser).await, counts(1, 0));
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    assert_eq!(failed(&mut clients, &rig, kmsuser).await, counts(0, 0), "the store's own login was made all the same");
}

#[tokio::test]
async fn five_refused_passwords_lock_kmsuser_on_an_hsm_and_an_administrators_reset_unlocks() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let tell = |password: &str| pb::UpdateKeyStoreRequest {
        key_store_id: store.clone(),
        key_store_password: Some(password.to_owned()),
        ..Default::default()
    };
    // Each is told by an operator, and so has a try of its own, on whichever HSM is first.
    let mut locked = Vec::new();
    for tries in 0..12 {
        clients.stores.update_key_store(tell(&format!("notthepassword{tries}"))).await.unwrap();
        clients.connect(&store).await;
        let code = clients.settled(&store).await.connection_error_code();
        let kmsuser = clients.user(&rig, "kmsuser").await.unwrap();
        let was_locked = !locked.is_empty();
        locked = kmsuser.hsms.iter().filter(|on| on.locked).map(|on| on.hsm_id.clone()).collect();
        assert!(
            kmsuser.hsms.iter().all(|on| on.failed_logins <= 5 && on.locked == (on.failed_logins == 5)),
            "{kmsuser:?}"
        );
        clients.disconnect(&store).await;
        match code {
            pb::ConnectionErrorCode::InvalidCredentials => {}
            pb::ConnectionErrorCode::UserLockedOut if was_locked => break,
            other => panic!("{other:?} at try {tries}: {kmsuser:?}"),
        }
    }
    assert!(!locked.is_empty());
    for hsm in &locked {
        assert!(rig.opens(hsm, &rig.password()), "the HSM itself counts nothing: keyway does in its place");
    }
    let fresh = "another4password";
    assert!(clients.reset_password(&rig, "kmsuser", fresh).await.unwrap().is_empty());
    assert_eq!(failed(&mut clients, &rig, "kmsuser").await, counts(0, 0));
    clients.stores.update_key_store(tell(fresh)).await.unwrap();
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_key_store_does_not_connect_with_a_kmsuser_who_has_a_second_factor() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let make = |second_factor: bool| pb::CreateCryptoUserRequest {
        cluster_id: rig.cluster_id(),
        username: "kmsuser".to_owned(),
        password: rig.password(),
        require_second_factor: second_factor,
    };
    clients.delete_user(&rig, "kmsuser").await.unwrap();
    let made = clients.users.create_crypto_user(make(true)).await.unwrap().into_inner().user.unwrap();
    assert!(made.second_factor && made.hsms.iter().all(|on| on.present));
    let login = clients.log_in(&rig, "kmsuser", &rig.password()).await;
    refused("nobody can give a second factor", login, "UNSUPPORTED_OPERATION", "");

    let store = clients.store(&rig, "main").await;
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_state(), pb::ConnectionState::Failed);
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials);
    assert!(failed.connection_error_message.contains("second factor"), "{}", failed.connection_error_message);
    assert_eq!(rig.workers().iter().filter(|(_, slot)| !slot.ends_with(".trial")).count(), 0, "nobody was asked");

    clients.disconnect(&store).await;
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: store }).await.unwrap();
    clients.delete_user(&rig, "kmsuser").await.unwrap();
    assert!(clients.user(&rig, "kmsuser").await.is_none());
    clients.users.create_crypto_user(make(false)).await.unwrap();
    let store = clients.store(&rig, "again").await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    clients.key(&store).await;
}
