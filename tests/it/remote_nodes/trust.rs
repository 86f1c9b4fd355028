//! Who believes whom: the nodes' certificates under the cluster's trust anchor, and the daemon's.

use tonic::Code;

use crate::rig::{Clients, Rig, pb, reason};

/// What a check says of the trust anchor.
async fn checked(rig: &Rig, clients: &mut Clients) -> pb::Check {
    let request = pb::CheckClusterRequest {
        cluster_id: rig.cluster_id(),
        trust_anchor_certificate: Some(rig.trust_anchor()),
        ..Default::default()
    };
    let checks = clients.clusters.check_cluster(request).await.unwrap().into_inner().checks;
    checks.into_iter().find(|check| check.name == "trust-anchor").expect("it is checked")
}

#[tokio::test]
async fn a_node_whose_certificate_another_ca_signed_is_told_when_a_store_is_made_and_never_connected_to() {
    let mut rig = Rig::new().nodes(2).zones(2).remote().start();
    let mut clients = rig.clients().await;
    assert_eq!(checked(&rig, &mut clients).await.status(), pb::CheckStatus::Passed);
    let store = clients.store(&rig, "main").await;

    // Both nodes show what another cluster's CA has signed from now on, without a restart.
    for hsm in ["hsm-1", "hsm-2"] {
        rig.host(hsm).show_a_strangers_certificate();
        rig.host(hsm).reads_its_certificates_again().await;
    }
    let check = checked(&rig, &mut clients).await;
    assert_eq!((check.status(), check.reason.as_str()), (pb::CheckStatus::Failed, "INCORRECT_TRUST_ANCHOR"));
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::NetworkErrors, "{failed:?}");
    assert!(failed.connection_error_message.contains("certificate"), "{failed:?}");
    clients.disconnect(&store).await;
    let deletion = pb::DeleteKeyStoreRequest { key_store_id: store };
    clients.stores.delete_key_store(deletion).await.unwrap();
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "another".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let refused = clients.stores.create_key_store(request).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INCORRECT_TRUST_ANCHOR".to_owned()), "{refused}");

    for hsm in ["hsm-1", "hsm-2"] {
        rig.host(hsm).show_its_own_certificate();
        rig.host(hsm).reads_its_certificates_again().await;
    }
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
}
