//! A user's own keys of other kinds than AES.

use super::*;

#[tokio::test]
async fn a_user_makes_uses_and_destroys_a_signing_key_that_is_in_his_own_tokens_alone() {
    let rig = Rig::new().start();
    let clients = rig.clients().await;
    let (alice, bob) = (User::new(&rig, &clients, "alice").await, User::new(&rig, &clients, "bob").await);
    let request = pb::CreateKeyRequest {
        cluster_id: rig.cluster_id(),
        hsm_label: "releases".to_owned(),
        key_spec: pb::KeySpec::EccNistP256.into(),
        key_usage: pb::KeyUsage::SignVerify.into(),
        ..Default::default()
    };
    let made = alice.create_as(request).await.unwrap();
    let name = alice.named("releases");
    assert_eq!((made.key_id, made.key_spec), (name.clone(), pb::KeySpec::EccNistP256.into()));
    alice.until_on(&name, &HSMS).await;
    for hsm in HSMS {
        let labels: Vec<_> = rig.user_objects(hsm, "alice").into_iter().map(|object| object.label).collect();
        assert_eq!(labels, ["releases"], "one object for each key, on {hsm}");
    }

    let algorithm = pb::SigningAlgorithm::EcdsaSha256.into();
    let (key_id, message) = (name.clone(), b"hers".to_vec());
    let sign = pb::SignRequest { key_id, message, signing_algorithm: algorithm, ..Default::default() };
    let signed = alice.clients.crypto.clone().sign(alice.with_login(sign.clone())).await.unwrap().into_inner();
    assert_eq!((&signed.key_id, signed.key_version), (&name, 0));
    let verify = pb::VerifyRequest {
        key_id: name.clone(),
        message: sign.message.clone(),
        signing_algorithm: algorithm,
        signature: signed.signature,
        ..Default::default()
    };
    let verified = alice.clients.crypto.clone().verify(alice.with_login(verify)).await.unwrap().into_inner();
    assert!(verified.signature_valid);
    let his = bob.clients.crypto.clone().sign(bob.with_login(sign)).await;
    refused("another's key", his, "NOT_FOUND", "");

    let destroy = pb::DestroyHsmKeyRequest { key_id: name.clone() };
    alice.clients.keys.clone().destroy_hsm_key(alice.with_login(destroy)).await.unwrap();
    for hsm in HSMS {
        assert_eq!(rig.user_objects(hsm, "alice"), [], "{hsm}");
    }
}
