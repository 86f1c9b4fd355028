//! Passwords that are wrong, locked or spoken for: tried at most once, and an operator decides.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;
use tonic::Code;

use super::{node, ready};
use crate::rig::{Rig, kill, pb, reason, wait_async};

#[tokio::test]
async fn a_token_that_locks_is_asked_once_and_the_budget_outlives_the_daemon() {
    let (mut rig, mut clients, store, key) = ready().await;
    // The password is changed behind our back: what keyway has is wrong from now on, on this HSM.
    rig.faults("hsm-3").set([Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    let before = rig.faults("hsm-3").count(C_Login);
    kill(rig.workers_of("hsm-3")[0]);
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
async fn a_password_changed_by_another_process_leaves_the_running_worker_alone_and_is_refused_once_at_the_next() {
    let (rig, mut clients, store, key) = ready().await;
    rig.change_password("hsm-2", "another-password-of-32-characters");
    // SoftHSM2 goes on taking the old one in a running process: nothing has happened yet.
    let ciphertext = clients.encrypt(&key, b"x").await;
    let before = rig.faults("hsm-2").count(C_Login);
    kill(rig.workers_of("hsm-2")[0]);
    clients.until_health(&store, "hsm-2", pb::HsmHealth::LoginRefused).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), before + 1);
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
    let told = clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await.unwrap();
    assert_eq!(told.into_inner().key_stores[0].connection_state(), pb::ConnectionState::Connected);
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
