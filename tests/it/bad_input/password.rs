//! A wrong password is tried on one HSM, once: three tries of an operator's typo must not lock a user out.

use crate::rig::{Clients, Rig, pb};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

#[tokio::test]
async fn a_wrong_password_is_tried_on_one_hsm_once_whatever_the_operator_does() {
    let mut rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "main".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: "mistyped1".to_owned(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let made = clients.stores.create_key_store(request).await.expect("its form is right");
    let store = made.into_inner().key_store_id;

    let failed = refused_connect(&mut clients, &store).await;
    assert_eq!(failed.connect_attempt, 1);
    let asked = refusals(&rig);
    assert_eq!(asked.len(), 1, "one HSM was asked: {asked:?}");
    assert_eq!(failed.last_connection_error.expect("told in full").hsm_id, asked[0]);
    // A right login wipes the mark of the wrong one: from here on, any further try would show.
    rig.objects(asked[0]);
    assert!(refusals(&rig).is_empty());

    clients.disconnect(&store).await;
    let failed = refused_connect(&mut clients, &store).await;
    assert_eq!(failed.connect_attempt, 2);
    assert_eq!(failed.last_connection_error.expect("told in full").hsm_id, asked[0]);
    assert!(refusals(&rig).is_empty(), "it was tried again: {:?}", refusals(&rig));

    clients.disconnect(&store).await;
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    refused_connect(&mut clients, &store).await;
    assert!(refusals(&rig).is_empty(), "it was tried after a restart: {:?}", refusals(&rig));

    clients.disconnect(&store).await;
    let request = pb::DeleteKeyStoreRequest { key_store_id: store };
    clients.stores.delete_key_store(request).await.expect("it has no keys");
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
}

/// Connects, is refused, and is told why and what to do.
async fn refused_connect(clients: &mut Clients, store: &str) -> pb::KeyStore {
    clients.connect(store).await;
    let failed = clients.settled(store).await;
    assert_eq!(failed.connection_state(), pb::ConnectionState::Failed, "{failed:?}");
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials, "{failed:?}");
    assert!(!failed.connection_error_message.is_empty() && !failed.connection_error_remedy.is_empty());
    let error = failed.last_connection_error.clone().expect("told in full");
    assert_eq!(error.code(), pb::ConnectionErrorCode::InvalidCredentials);
    assert!(error.remedy.contains("password") && error.help_url.ends_with("#INVALID_CREDENTIALS"), "{error:?}");
    assert!(!format!("{failed:?}").contains("mistyped1"), "the password is told");
    failed
}

/// The HSMs whose tokens remember a refused login as their latest.
fn refusals(rig: &Rig) -> Vec<&'static str> {
    HSMS.into_iter().filter(|hsm| rig.login_was_refused(hsm)).collect()
}
