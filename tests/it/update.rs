//! A key store that is changed: its name, its password, its cluster.

mod by_command;
mod cluster;

use crate::rig::{Clients, Rig, pb, refused};

pub fn update(id: &str) -> pb::UpdateKeyStoreRequest {
    pb::UpdateKeyStoreRequest { key_store_id: id.to_owned(), ..Default::default() }
}

impl Clients {
    pub async fn update_store(&mut self, request: pb::UpdateKeyStoreRequest) -> pb::KeyStore {
        let answer = self.stores.update_key_store(request).await.expect("it can be changed");
        answer.into_inner().key_store.expect("it is told")
    }

    /// One key store as it is now.
    pub async fn describe_store(&mut self, id: &str) -> pb::KeyStore {
        let selector = Some(pb::describe_key_stores_request::Selector::KeyStoreId(id.to_owned()));
        let request = pb::DescribeKeyStoresRequest { selector, ..Default::default() };
        self.stores.describe_key_stores(request).await.expect("it is there").into_inner().key_stores.remove(0)
    }
}

#[tokio::test]
async fn a_store_is_renamed_while_disconnected_or_connected_and_its_work_goes_on() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "first").await;
    let renamed = |name: &str| pb::UpdateKeyStoreRequest { new_key_store_name: Some(name.into()), ..update(&store) };
    assert_eq!(clients.update_store(renamed("second")).await.key_store_name, "second");
    clients.connect(&store).await;
    clients.settled(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"under another name").await;
    let told = clients.update_store(renamed("third")).await;
    assert_eq!((told.key_store_name.as_str(), told.connection_state()), ("third", pb::ConnectionState::Connected));
    assert_eq!(clients.update_store(renamed("third")).await, clients.describe_store(&store).await, "no change");
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"under another name");

    for change in [
        pb::UpdateKeyStoreRequest { key_store_password: Some(rig.password()), ..renamed("fourth") },
        pb::UpdateKeyStoreRequest { cluster_id: Some(rig.cluster_id()), ..renamed("fourth") },
    ] {
        let answer = clients.stores.update_key_store(change).await;
        refused("a connected store", answer, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    }
    assert_eq!(clients.describe_store(&store).await.key_store_name, "third", "all of a request, or nothing");
}

#[tokio::test]
async fn a_store_whose_password_was_refused_connects_once_the_right_one_is_told() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "mistyped".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: "mistyped1".to_owned(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let store = clients.stores.create_key_store(request).await.unwrap().into_inner().key_store_id;
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials);
    let with =
        |password: &str| pb::UpdateKeyStoreRequest { key_store_password: Some(password.to_owned()), ..update(&store) };
    let answer = clients.stores.update_key_store(with(&rig.password())).await;
    refused("a FAILED store", answer, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    let rename = pb::UpdateKeyStoreRequest { new_key_store_name: Some("other".into()), ..update(&store) };
    let answer = clients.stores.update_key_store(rename).await;
    refused("renaming a FAILED store", answer, "CUSTOM_KEY_STORE_INVALID_STATE", "");

    clients.disconnect(&store).await;
    let told = clients.update_store(with(&rig.password())).await;
    let last = told.last_connection_error.as_ref().expect("it survives the disconnect");
    assert_eq!(last.code(), pb::ConnectionErrorCode::InvalidCredentials);
    assert_eq!(told.connection_error_code(), pb::ConnectionErrorCode::Unspecified, "it is not FAILED any more");
    clients.connect(&store).await;
    let connected = clients.all_healthy(&store).await;
    assert_eq!(connected.last_connection_error, None);
    clients.key(&store).await;
}

#[tokio::test]
async fn a_right_password_that_was_refused_is_tried_again_when_it_is_told_again() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in ["hsm-1", "hsm-2"] {
        rig.change_password(hsm, "anotherpasswordonthehsm");
    }
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials);
    clients.disconnect(&store).await;
    for hsm in ["hsm-1", "hsm-2"] {
        rig.restore_password(hsm, "anotherpasswordonthehsm");
    }
    // Without a word, nobody is asked again.
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials);
    clients.disconnect(&store).await;
    clients
        .update_store(pb::UpdateKeyStoreRequest { key_store_password: Some(rig.password()), ..update(&store) })
        .await;
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
}
