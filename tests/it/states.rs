//! What the states of a key store refuse, in those that are passed through or need an operator. The rest of AWS's table is
//! in `lifecycle`, `update` and `disconnecting`.

use std::time::Duration;

use faulty_pkcs11::Function::*;
use faulty_pkcs11::{On, Rule, ckr};
use tonic_types::StatusExt as _;

use crate::disconnecting::{HSMS, disconnect, ready, running};
use crate::rig::{Clients, Rig, pb, refused};
use crate::update::update;

impl Clients {
    /// Each change of the store is refused, and the refusal names this state.
    async fn refuses_to_change(&mut self, rig: &Rig, store: &str, state: &str) {
        let named = |what: &str, status: tonic::Status| {
            let details = status.get_error_details();
            let told = &details.error_info().expect("it has one").metadata["connectionState"];
            assert_eq!(told, state, "{what}: {status}");
        };
        let changes = [
            ("a name", pb::UpdateKeyStoreRequest { new_key_store_name: Some("other".to_owned()), ..update(store) }),
            ("a password", pb::UpdateKeyStoreRequest { key_store_password: Some(rig.password()), ..update(store) }),
            ("a cluster", pb::UpdateKeyStoreRequest { cluster_id: Some(rig.cluster_id()), ..update(store) }),
        ];
        for (what, change) in changes {
            let answer = self.stores.update_key_store(change).await;
            named(what, refused(what, answer, "CUSTOM_KEY_STORE_INVALID_STATE", ""));
        }
        let delete = pb::DeleteKeyStoreRequest { key_store_id: store.to_owned() };
        let answer = self.stores.delete_key_store(delete).await;
        named("deleting", refused("deleting", answer, "CUSTOM_KEY_STORE_INVALID_STATE", ""));
    }

    async fn refuses_to_connect(&mut self, store: &str) {
        let connect = pb::ConnectKeyStoreRequest { key_store_id: store.to_owned() };
        let answer = self.stores.connect_key_store(connect).await;
        refused("connecting", answer, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    }
}

#[tokio::test]
async fn a_connecting_store_is_not_changed_and_connects_no_second_time() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).mark("hang");
        rig.faults(hsm).set([Rule::block(C_Login).during("hang")]);
    }
    clients.connect(&store).await;
    clients.refuses_to_change(&rig, &store, "CONNECTING").await;
    clients.connect(&store).await;
    let told = clients.describe_store(&store).await;
    assert_eq!((told.connection_state(), told.connect_attempt), (pb::ConnectionState::Connecting, 1));
    HSMS.iter().for_each(|hsm| rig.faults(hsm).unmark("hang"));
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
}

#[tokio::test]
async fn a_disconnecting_store_is_neither_changed_nor_connected_nor_disconnected_again() {
    let (rig, mut clients, store, key) = ready().await;
    HSMS.iter().for_each(|hsm| rig.faults(hsm).mark("hang"));
    let call = running(&rig, &clients, &key, Rule::block(C_Encrypt).during("hang")).await;
    let told = disconnect(&mut clients, &store, Duration::from_secs(60)).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Disconnecting);
    clients.refuses_to_change(&rig, &store, "DISCONNECTING").await;
    clients.refuses_to_connect(&store).await;
    let again = pb::DisconnectKeyStoreRequest { key_store_id: store.clone(), drain_timeout: None };
    let answer = clients.stores.disconnect_key_store(again).await;
    refused("disconnecting again", answer, "CUSTOM_KEY_STORE_INVALID_STATE", "");
    HSMS.iter().for_each(|hsm| rig.faults(hsm).unmark("hang"));
    let _ = call.await.expect("it ends");
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);
}

#[tokio::test]
async fn a_failed_store_is_only_disconnected() {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::fail(On::all(), ckr::CKR_DEVICE_REMOVED)]);
    }
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Failed);
    clients.refuses_to_change(&rig, &store, "FAILED").await;
    clients.refuses_to_connect(&store).await;
    clients.disconnect(&store).await;
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: store }).await.expect("nothing is in it");
}
