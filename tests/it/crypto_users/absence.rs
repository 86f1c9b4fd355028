//! HSMs that are away while something is done for a user.

use tonic_types::StatusExt;

use super::*;
use crate::rig::wait_async;

/// Waits until the user is on these HSMs and no others.
async fn until_on(clients: &Clients, rig: &Rig, user: &str, wanted: &[&str]) {
    wait_async(|| {
        let mut clients = clients.clone();
        async move {
            let on = clients.user(rig, user).await;
            let on = on.as_ref().map(present_on).unwrap_or_default();
            (on == wanted).then_some(())
        }
    })
    .await;
}

/// What an error names for programs.
fn detail(status: &Status, name: &str) -> String {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get(name).cloned()).unwrap_or_default()
}

#[tokio::test]
async fn an_hsm_that_was_away_gets_the_user_and_his_present_password_when_it_is_back() {
    let mut rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let away = rig.take_away("hsm-3");
    let alice = clients.create_user(&rig, "alice", FIRST).await.unwrap();
    assert_eq!(present_on(&alice), ["hsm-1", "hsm-2"], "one that is on some HSMs only is told as such");
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    assert!(!away.join("alice").exists() && !rig.path("hsms/hsm-3/users").exists(), "nothing is made in its place");
    let pending = clients.change_user_password(&rig, "alice", FIRST, SECOND).await.unwrap();
    assert_eq!(pending, ["hsm-3"]);

    rig.kill_daemon();
    rig.put_back("hsm-3");
    rig.start_daemon();
    clients = rig.clients().await;
    until_on(&clients, &rig, "alice", &["hsm-1", "hsm-2", "hsm-3"]).await;
    all_done(&mut clients, &rig, "alice").await;
    assert!(rig.user_opens("hsm-3", "alice", SECOND) && !rig.user_opens("hsm-3", "alice", FIRST));

    rig.take_away("hsm-1");
    assert_eq!(clients.reset_password(&rig, "alice", FIRST).await.unwrap(), ["hsm-1"]);
    clients.log_in(&rig, "alice", FIRST).await.unwrap();
    for hsm in ["hsm-2", "hsm-3"] {
        rig.take_away(hsm);
    }
    let nowhere = clients.log_in(&rig, "alice", FIRST).await;
    refused("no HSM with the present password", nowhere, "NO_NODE", "");
    rig.put_back("hsm-1");
    logs_in(&clients, &rig, "alice", FIRST).await.unwrap();
    for hsm in ["hsm-2", "hsm-3"] {
        rig.put_back(hsm);
    }
    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_hsm_that_is_out_of_use_is_left_alone_until_it_is_resumed() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let request = pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: "hsm-2".to_owned(),
        note: "new fans".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(request.clone()).await.unwrap();
    let alice = clients.create_user(&rig, "alice", FIRST).await.unwrap();
    assert_eq!(present_on(&alice), ["hsm-1"]);
    assert!(!rig.user_token("hsm-2", "alice").exists());
    let both = pb::DrainHsmRequest { hsm_id: "hsm-1".to_owned(), ..request };
    clients.clusters.drain_hsm(both).await.unwrap();
    let status = refused("nobody is there", clients.create_user(&rig, "bob", FIRST).await, "NO_NODE", "");
    assert!(status.message().contains("new fans"), "{}", status.message());
    assert_eq!(detail(&status, "clusterId"), rig.cluster_id());
    refused("nobody is there", clients.log_in(&rig, "alice", FIRST).await, "NO_NODE", "");
    refused("nobody is there", clients.reset_password(&rig, "alice", FIRST).await.map(drop), "NO_NODE", "");
    refused("nobody is there", clients.delete_user(&rig, "alice").await, "NO_NODE", "");
    for hsm in ["hsm-1", "hsm-2"] {
        clients.resume_hsm(&rig.cluster_id(), hsm, false).await;
    }
    until_on(&clients, &rig, "alice", &["hsm-1", "hsm-2"]).await;
    assert!(clients.user(&rig, "bob").await.is_none(), "what nobody could do was not begun");
}

#[tokio::test]
async fn a_deleted_user_stays_listed_until_the_last_hsm_has_removed_him() {
    let mut rig = Rig::new().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let away = rig.take_away("hsm-2");
    clients.delete_user(&rig, "alice").await.unwrap();
    let alice = clients.user(&rig, "alice").await.expect("one HSM still has him");
    assert_eq!(present_on(&alice), ["hsm-2"]);
    refused("half deleted", clients.log_in(&rig, "alice", FIRST).await, "INVALID_CREDENTIALS", "");
    let status = refused("half deleted", clients.create_user(&rig, "alice", SECOND).await, "CONFLICT", "");
    assert!(status.message().contains("hsm-2"), "{}", status.message());
    assert_eq!((detail(&status, "clusterId"), detail(&status, "hsmIds")), (rig.cluster_id(), "hsm-2".to_owned()));
    rig.kill_daemon();
    assert!(away.join("alice").exists());
    rig.put_back("hsm-2");
    rig.start_daemon();
    clients = rig.clients().await;
    until_on(&clients, &rig, "alice", &[]).await;
    assert!(!rig.user_token("hsm-2", "alice").exists());
    assert_eq!(present_on(&clients.create_user(&rig, "alice", SECOND).await.unwrap()).len(), 3);
}

#[tokio::test]
async fn a_key_store_made_while_kmsuser_is_being_deleted_does_not_connect_and_nothing_is_taken_from_it() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let request = pb::DrainHsmRequest {
        cluster_id: rig.cluster_id(),
        hsm_id: "hsm-3".to_owned(),
        note: "new fans".to_owned(),
        drain_timeout: None,
    };
    clients.clusters.drain_hsm(request).await.unwrap();
    clients.delete_user(&rig, "kmsuser").await.unwrap();
    let store = clients.store(&rig, "main").await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", false).await;
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::UserNotFound);
    assert!(failed.connection_error_message.contains("being deleted"), "{}", failed.connection_error_message);
    assert!(rig.opens("hsm-3", &rig.password()), "the token stays as long as a key store stands on it");

    clients.disconnect(&store).await;
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: store }).await.unwrap();
    until_on(&clients, &rig, "kmsuser", &[]).await;
}

#[tokio::test]
async fn a_user_whom_an_hsm_has_lost_is_told_missing_there_and_comes_back_with_a_reset() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    std::fs::remove_dir_all(rig.user_token("hsm-1", "alice")).unwrap();
    assert_eq!(present_on(&clients.user(&rig, "alice").await.unwrap()), ["hsm-2"]);
    clients.log_in(&rig, "alice", FIRST).await.expect("another HSM has him");
    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
    assert_eq!(present_on(&clients.user(&rig, "alice").await.unwrap()), ["hsm-1", "hsm-2"]);
    assert!(rig.user_opens("hsm-1", "alice", SECOND));

    // One whom the records do not know is not taken for a new one.
    clients.create_user(&rig, "bob", FIRST).await.unwrap();
    let (home, kept) = (rig.user_token("hsm-2", "bob"), rig.path("kept"));
    std::fs::rename(&home, &kept).unwrap();
    clients.delete_user(&rig, "bob").await.unwrap();
    std::fs::rename(&kept, &home).unwrap();
    let status = refused("a stranger", clients.create_user(&rig, "bob", SECOND).await, "ALREADY_EXISTS", "");
    assert!(status.message().contains("hsm-2"), "{}", status.message());
    assert_eq!(detail(&status, "hsmIds"), "hsm-2");

    // Nor when it comes with an HSM that was away.
    rig.take_away("hsm-2");
    assert_eq!(present_on(&clients.create_user(&rig, "bob", SECOND).await.unwrap()), ["hsm-1"]);
    rig.put_back("hsm-2");
    assert_eq!(clients.reset_password(&rig, "bob", SECOND).await.unwrap(), ["hsm-2"]);
    assert!(rig.user_opens("hsm-2", "bob", FIRST), "it has the password that it had");
    std::fs::remove_dir_all(&home).unwrap();
    assert!(clients.reset_password(&rig, "bob", SECOND).await.unwrap().is_empty());
    assert!(rig.user_opens("hsm-2", "bob", SECOND));
}

#[tokio::test]
async fn an_so_pin_that_is_refused_is_not_offered_again_without_an_administrators_act() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    let pin_file = rig.path("hsms/hsm-2/so-pin");
    let pin = std::fs::read(&pin_file).unwrap();
    std::fs::write(&pin_file, "not-the-pin").unwrap();
    assert_eq!(clients.reset_password(&rig, "alice", SECOND).await.unwrap(), ["hsm-2"]);
    let logins = || {
        let faults = crate::rig::Faults::beside(&rig.user_token("hsm-2", "alice").join("softhsm2.conf"));
        faults.count(faulty_pkcs11::Function::C_Login)
    };
    let tried = logins();
    std::fs::write(&pin_file, pin).unwrap();
    // Caught up with again and again, also when something else changes.
    for name in ["bob", "carol"] {
        clients.create_user(&rig, name, FIRST).await.unwrap();
    }
    clients.resume_hsm(&rig.cluster_id(), "hsm-1", false).await;
    assert_eq!(logins(), tried, "nobody offers it by himself");
    assert!(clients.reset_password(&rig, "alice", SECOND).await.unwrap().is_empty());
    assert!(rig.user_opens("hsm-2", "alice", SECOND));
}
