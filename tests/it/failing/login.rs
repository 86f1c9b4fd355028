//! Passwords that are wrong, locked or spoken for: tried at most once, and an operator decides.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;
use tonic::Code;

use super::{node, ready};
use crate::rig::{Rig, kill, pb, reason, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

#[tokio::test]
async fn a_token_that_locks_is_asked_once_and_the_budget_outlives_the_daemon() {
    let (mut rig, mut clients, store, key) = ready().await;
    // The password is changed behind our back: what keyway has is wrong from now on, on this HSM.
    rig.faults("hsm-3").set([Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    let before = rig.faults("hsm-3").count(C_Login);
    kill(rig.worker_of("hsm-3"));
    let told = clients.until_health(&store, "hsm-3", pb::HsmHealth::LoginRefused).await;
    assert_eq!(node(&told, "hsm-3").login_attempts_left, 0);
    assert_eq!(rig.faults("hsm-3").count(C_Login), before + 1);
    for _ in 0..2 {
        rig.kill_daemon();
        rig.start_daemon();
        clients = rig.clients().await;
        clients.until_health(&store, "hsm-3", pb::HsmHealth::LoginRefused).await;
    }
    assert_eq!(rig.faults("hsm-3").count(C_Login), before + 1, "it was tried again");
    clients.until_health(&store, "hsm-1", pb::HsmHealth::Healthy).await;
    let ciphertext = clients.encrypt(&key, b"by the others").await;
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"by the others");

    // The operator allows one more, which is refused as well: exactly one.
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", true).await;
    wait_async(|| async { (rig.faults("hsm-3").count(C_Login) == before + 2).then_some(()) }).await;
    clients.until_health(&store, "hsm-3", pb::HsmHealth::LoginRefused).await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", false).await;
    clients.until_health(&store, "hsm-3", pb::HsmHealth::LoginRefused).await;
    assert_eq!(rig.faults("hsm-3").count(C_Login), before + 2);

    // And with the right password again, one more brings it back.
    rig.faults("hsm-3").clear();
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", true).await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_store_with_one_hsm_that_refused_connects_again_with_the_others() {
    let (rig, mut clients, store, key) = ready().await;
    rig.faults("hsm-1").set([Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    kill(rig.worker_of("hsm-1"));
    clients.until_health(&store, "hsm-1", pb::HsmHealth::LoginRefused).await;
    let before = rig.faults("hsm-1").count(C_Login);
    for _ in 0..3 {
        clients.disconnect(&store).await;
        clients.connect(&store).await;
        let told = clients.settled(&store).await;
        assert_eq!(told.connection_state(), pb::ConnectionState::Connected, "{told:?}");
        let ciphertext = clients.encrypt(&key, b"x").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
    }
    assert_eq!(rig.faults("hsm-1").count(C_Login), before, "it was not asked again");
}

#[tokio::test]
async fn that_a_user_is_logged_in_already_proves_no_password() {
    let rig = Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "wrong".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: "mistyped1".to_owned(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let store = clients.stores.create_key_store(request).await.unwrap().into_inner().key_store_id;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::fail(C_Login, CKR_USER_ALREADY_LOGGED_IN)]);
    }
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_state(), pb::ConnectionState::Failed);
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::UserLoggedIn);
}

#[tokio::test]
async fn a_locked_user_is_told_as_such_and_only_one_hsm_was_asked() {
    let rig = Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let logins = || ["hsm-1", "hsm-2", "hsm-3"].map(|hsm| rig.faults(hsm).count(C_Login));
    let before = logins();
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::fail(C_Login, CKR_PIN_LOCKED)]);
    }
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::UserLockedOut);
    let asked: usize = logins().iter().zip(before).map(|(now, before)| now - before).sum();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn a_login_that_was_granted_is_made_though_others_refused_and_what_it_proves_wakes_those_not_tried() {
    let rig = Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let logins = || HSMS.map(|hsm| rig.faults(hsm).count(C_Login));
    let made_since = |before: [usize; 3]| -> Vec<&str> {
        let made = HSMS.into_iter().zip(logins()).zip(before);
        made.flat_map(|((hsm, now), before)| std::iter::repeat_n(hsm, now - before)).collect()
    };
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    }
    let before = logins();
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Failed);
    let first = made_since(before)[0];
    assert_eq!(made_since(before), [first], "one HSM was asked");

    // Another one, which nobody has asked yet, while nobody is connected: it is asked, and nobody else is.
    let [granted, waiting] = HSMS.into_iter().filter(|hsm| *hsm != first).collect::<Vec<_>>().try_into().unwrap();
    let before = logins();
    clients.disconnect(&store).await;
    clients.resume_hsm(&rig.cluster_id(), granted, true).await;
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Failed);
    assert_eq!(made_since(before), [granted]);
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Failed);
    assert_eq!(made_since(before), [granted], "exactly one");

    // Both have refused it. It was put right, and the one that is granted a login comes last.
    for hsm in HSMS {
        rig.faults(hsm).clear();
    }
    clients.disconnect(&store).await;
    rig.faults(granted).set([Rule::block(C_OpenSession).during("opening")]);
    rig.faults(granted).mark("opening");
    clients.resume_hsm(&rig.cluster_id(), granted, true).await;
    clients.connect(&store).await;
    let told = clients
        .watch_until(&store, |store| {
            !store.nodes.is_empty()
                && [first, waiting].iter().all(|hsm| node(store, hsm).health() == pb::HsmHealth::LoginRefused)
        })
        .await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connecting, "there is one more to be heard");
    assert!(node(&told, waiting).last_error.contains("another HSM refused the password first"), "{told:?}");
    assert_eq!(made_since(before), [granted]);
    rig.faults(granted).unmark("opening");
    for hsm in [granted, waiting] {
        clients.until_health(&store, hsm, pb::HsmHealth::Healthy).await;
    }
    let told = clients.settled(&store).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
    assert_eq!(node(&told, first).health(), pb::HsmHealth::LoginRefused, "nobody has granted it one");
}

#[tokio::test]
async fn a_password_changed_by_another_process_leaves_the_running_worker_alone_and_is_refused_once_at_the_next() {
    let (rig, mut clients, store, key) = ready().await;
    rig.change_password("hsm-2", "another-password-of-32-characters");
    // SoftHSM2 goes on taking the old one in a running process: nothing has happened yet.
    let ciphertext = clients.encrypt(&key, b"x").await;
    let before = rig.faults("hsm-2").count(C_Login);
    kill(rig.worker_of("hsm-2"));
    clients.until_health(&store, "hsm-2", pb::HsmHealth::LoginRefused).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), before + 1);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
    let told = clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await.unwrap();
    assert_eq!(told.into_inner().key_stores[0].connection_state(), pb::ConnectionState::Connected);
}

#[tokio::test]
async fn a_password_put_right_while_the_next_login_waits_is_not_refused() {
    let (rig, mut clients, store, _) = ready().await;
    // The pauses between logins grow, so that there is time.
    for times in 1..=5 {
        kill(rig.worker_of("hsm-2"));
        clients.until_replaced(&store, "hsm-2", times).await;
    }
    rig.change_password("hsm-2", "another-password-of-32-characters");
    let before = rig.faults("hsm-2").count(C_Login);
    kill(rig.worker_of("hsm-2"));
    // Its next worker has opened the token, and waits.
    clients.until_health(&store, "hsm-2", pb::HsmHealth::NotProbed).await;
    rig.restore_password("hsm-2", "another-password-of-32-characters");
    assert_eq!(rig.faults("hsm-2").count(C_Login), before, "it has waited long enough for this test");
    clients.until_replaced(&store, "hsm-2", 6).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), before + 1);
}

#[tokio::test]
async fn an_hsm_that_does_not_exist_can_be_neither_drained_nor_resumed() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let drain = pb::DrainHsmRequest { cluster_id: rig.cluster_id(), hsm_id: "hsm-9".into(), ..Default::default() };
    let refused = clients.clusters.drain_hsm(drain).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::NotFound, "NOT_FOUND".to_owned()));
    let resume = pb::ResumeHsmRequest { cluster_id: "cluster-22222222222".into(), ..Default::default() };
    let refused = clients.clusters.resume_hsm(resume).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::NotFound, "CLOUD_HSM_CLUSTER_NOT_FOUND".to_owned()));
}
