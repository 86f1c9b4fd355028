//! HSMs on which the change fails, is lost, or is not what they say it is.

use faulty_pkcs11::Function::{C_Login, C_SetPIN};
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::*;

use super::{HSMS, node, versions};
use crate::rig::{Clients, Rig, kill, pb};

/// A key store on HSMs that fail as `rules` say, told to connect; and what came of it, once every HSM is healthy.
async fn connected_with(hsms: &[&str], rule: impl Fn() -> Rule) -> (Rig, Clients, String, pb::KeyStore) {
    let rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in hsms {
        rig.faults(hsm).set([rule()]);
    }
    clients.connect(&store).await;
    let settled = clients.settled(&store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "{settled:?}");
    let healthy = clients.all_healthy(&store).await;
    clients.a_key_works(&store).await;
    (rig, clients, store, healthy)
}

#[tokio::test]
async fn an_hsm_that_refuses_the_change_keeps_its_password_and_the_store_connects() {
    for refuser in ["hsm-1", "hsm-2"] {
        let refuse = || Rule::fail(C_SetPIN, CKR_FUNCTION_NOT_SUPPORTED);
        let (rig, mut clients, store, told) = connected_with(&[refuser], refuse).await;
        let expected = HSMS.map(|hsm| if hsm == refuser { 1 } else { 2 });
        assert_eq!(versions(&told), expected);
        let why = &node(&told, refuser).last_error;
        assert!(why.contains("password was not changed") && why.contains("C_SetPIN"), "{why}");
        assert!(rig.opens(refuser, &rig.password()));
        rig.faults(refuser).clear();
        assert_eq!(versions(&clients.connect_again(&store).await), [3; 3]);
        assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
    }
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_found_out_by_a_login() {
    let lost = || Rule::fail(C_SetPIN, CKR_GENERAL_ERROR).after();
    let (rig, _, _, told) = connected_with(&HSMS, lost).await;
    assert_eq!(versions(&told), [2; 3]);
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
}

#[tokio::test]
async fn a_library_that_crashes_in_the_change_costs_one_refused_login_or_none() {
    for (rule, version, refusals) in
        [(Rule::crash(C_SetPIN).once(), 1, 1), (Rule::crash(C_SetPIN).after().once(), 2, 0)]
    {
        let (rig, mut clients, store, told) = connected_with(&["hsm-2"], || rule.clone()).await;
        assert_eq!(versions(&told), [2, version, 2]);
        assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0, refusals, 0]);
        assert_eq!(versions(&clients.connect_again(&store).await), [3; 3]);
    }
}

#[tokio::test]
async fn an_hsm_that_says_it_took_the_new_password_and_did_not_is_the_only_one_that_was_asked() {
    let (rig, _, _, told) = connected_with(&HSMS, || Rule::fail(C_SetPIN, CKR_OK)).await;
    assert_eq!(versions(&told), [1; 3]);
    let sum = |of: fn(&Rig, &str) -> usize| HSMS.iter().map(|hsm| of(&rig, hsm)).sum::<usize>();
    assert_eq!(sum(|rig, hsm| rig.faults(hsm).count(C_SetPIN)), 1);
    assert_eq!(sum(Rig::refusals), 1);
    assert_eq!(told.password_rotate_time, None);
}

#[tokio::test]
async fn a_change_that_is_refused_for_the_old_password_counts_as_a_refused_login() {
    let refuse = || Rule::fail(C_SetPIN, CKR_PIN_INCORRECT);
    let (rig, mut clients, store, told) = connected_with(&["hsm-2"], refuse).await;
    assert_eq!(versions(&told), [2, 1, 2]);
    let before = rig.faults("hsm-2").count(C_Login);
    kill(rig.workers_of("hsm-2")[0]);
    let refused = |store: &pb::KeyStore| node(store, "hsm-2").health() == pb::HsmHealth::LoginRefused;
    clients.watch_until(&store, refused).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), before, "it was tried again");
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.faults("hsm-2").count(C_Login), before + 1);
}

#[tokio::test]
async fn a_password_that_somebody_else_has_changed_costs_one_hsm_an_attempt_and_no_other() {
    let (rig, _, _, told) = connected_with(&HSMS, || Rule::fail(C_SetPIN, CKR_PIN_INCORRECT)).await;
    assert_eq!(versions(&told), [1; 3]);
    assert_eq!(HSMS.iter().map(|hsm| rig.faults(hsm).count(C_SetPIN)).sum::<usize>(), 1);
}

#[tokio::test]
async fn a_change_that_hangs_has_its_worker_killed_and_is_found_out_by_a_login() {
    let (rig, _, _, told) = connected_with(&["hsm-3"], || Rule::block(C_SetPIN).once()).await;
    assert_eq!(versions(&told), [2, 2, 1]);
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0, 0, 1]);
}
