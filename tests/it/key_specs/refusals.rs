//! What cannot be made or done, and what callers are told.

use tonic_types::StatusExt as _;

use super::*;
use crate::rig::{Holdings, refused};

#[tokio::test]
async fn what_the_hsms_cannot_make_copy_and_use_is_refused_with_what_is_missing_and_nothing_is_begun() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let before = Holdings::of(&rig, &mut clients).await;
    use pb::{KeySpec as S, KeyUsage as U};
    let cases = [
        (S::EccNistEdwards25519, U::SignVerify, "C_WrapKey, which returns CKR_KEY_NOT_WRAPPABLE"),
        (S::MlDsa44, U::SignVerify, "CKM_ML_DSA_KEY_PAIR_GEN (0x1c)"),
        (S::MlKem1024, U::EncapsulateDecapsulate, "CKM_ML_KEM_KEY_PAIR_GEN (0xf)"),
    ];
    for (spec, usage, missing) in cases {
        let answer = try_key_of(&clients, &store, spec, usage).await;
        let refusal = refused(spec.as_str_name(), answer, "UNSUPPORTED_OPERATION", "");
        let told = refusal.get_error_details().error_info().unwrap().metadata.clone();
        assert_eq!(told["missingMechanism"], missing);
        assert!(told["hsmId"].starts_with("hsm-"), "{told:?}");
        assert!(refusal.message().contains(missing), "{}", refusal.message());
    }
    let agreement = try_key_of(&clients, &store, S::EccNistP256, U::KeyAgreement).await;
    let refusal = refused("key agreement", agreement, "UNSUPPORTED_OPERATION", "");
    assert!(refusal.message().contains("CKA_DERIVE"), "{}", refusal.message());
    for (spec, usage, reason) in [
        (S::Hmac256, U::Unspecified, "VALIDATION"),
        (S::Rsa2048, U::KeyAgreement, "INVALID_KEY_USAGE"),
        (S::EccSecgP256k1, U::KeyAgreement, "INVALID_KEY_USAGE"),
        (S::Hmac256, U::EncryptDecrypt, "INVALID_KEY_USAGE"),
    ] {
        refused("a usage", try_key_of(&clients, &store, spec, usage).await, reason, "key_usage");
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
}

#[tokio::test]
async fn a_key_does_what_it_is_for_with_the_algorithms_it_has_and_nothing_else() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let aes = clients.key(&store).await.key_id;
    let mac = key_of(&clients, &store, pb::KeySpec::Hmac256, pb::KeyUsage::GenerateVerifyMac).await.key_id;
    let curve = key_of(&clients, &store, pb::KeySpec::EccNistP256, pb::KeyUsage::SignVerify).await.key_id;
    let mut crypto = clients.crypto.clone();

    let sign = |key_id: &str, algorithm, message: usize| {
        let mut request =
            pb::SignRequest { key_id: key_id.to_owned(), message: vec![7; message], ..Default::default() };
        request.set_signing_algorithm(algorithm);
        request
    };
    let (ecdsa, other) = (pb::SigningAlgorithm::EcdsaSha256, pb::SigningAlgorithm::EcdsaSha384);
    refused("an AES key signs", crypto.sign(sign(&aes, ecdsa, 5)).await, "INVALID_KEY_USAGE", "key_id");
    refused("an HMAC key signs", crypto.sign(sign(&mac, ecdsa, 5)).await, "INVALID_KEY_USAGE", "key_id");
    refused("another hash", crypto.sign(sign(&curve, other, 5)).await, "INVALID_KEY_USAGE", "signing_algorithm");
    let none = pb::SigningAlgorithm::Unspecified;
    refused("no algorithm", crypto.sign(sign(&curve, none, 5)).await, "VALIDATION", "signing_algorithm");
    refused("an empty message", crypto.sign(sign(&curve, ecdsa, 0)).await, "VALIDATION", "message");
    refused("4,097 bytes", crypto.sign(sign(&curve, ecdsa, 4_097)).await, "VALIDATION", "message");
    crypto.sign(sign(&curve, ecdsa, 4_096)).await.unwrap();
    for (length, kind, field) in [
        (31, pb::MessageType::Digest, "message"),
        (33, pb::MessageType::Digest, "message"),
        (64, pb::MessageType::ExternalMu, "message_type"),
    ] {
        let mut request = sign(&curve, ecdsa, length);
        request.set_message_type(kind);
        refused("another length", crypto.sign(request).await, "VALIDATION", field);
    }
    let mut torn = sign(&curve, ecdsa, 5);
    torn.message_crc32c = Some(1);
    refused("a checksum", crypto.sign(torn).await, "CHECKSUM_MISMATCH", "message_crc32c");

    let mac_with = |key_id: &str, algorithm: pb::MacAlgorithm, message: usize| pb::GenerateMacRequest {
        key_id: key_id.to_owned(),
        message: vec![7; message],
        mac_algorithm: algorithm.into(),
        ..Default::default()
    };
    let (sha_256, sha_512) = (pb::MacAlgorithm::HmacSha256, pb::MacAlgorithm::HmacSha512);
    refused("an AES key", crypto.generate_mac(mac_with(&aes, sha_256, 5)).await, "INVALID_KEY_USAGE", "key_id");
    let longer = crypto.generate_mac(mac_with(&mac, sha_512, 5)).await;
    refused("a longer MAC", longer, "INVALID_KEY_USAGE", "mac_algorithm");
    refused("4,097 bytes", crypto.generate_mac(mac_with(&mac, sha_256, 4_097)).await, "VALIDATION", "message");
    crypto.generate_mac(mac_with(&mac, sha_256, 4_096)).await.unwrap();

    for key_id in [&mac, &curve] {
        let encrypt = pb::EncryptRequest { key_id: key_id.clone(), plaintext: vec![7], ..Default::default() };
        refused("no AES key", crypto.encrypt(encrypt).await, "INVALID_KEY_USAGE", "key_id");
        let mut data_key = pb::GenerateDataKeyRequest { key_id: key_id.clone(), ..Default::default() };
        data_key.length = Some(pb::generate_data_key_request::Length::NumberOfBytes(32));
        refused("no AES key", crypto.generate_data_key(data_key).await, "INVALID_KEY_USAGE", "key_id");
    }
    for key_id in [&aes, &mac] {
        refused("no public half", public_key(&clients, key_id).await, "UNSUPPORTED_OPERATION", "key_id");
    }
}

#[tokio::test]
async fn a_key_of_another_kind_is_disabled_like_any_is_never_rotated_and_its_alias_stays_with_its_kind() {
    let (_rig, clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.clone().all_healthy(&store).await;
    let mac = key_of(&clients, &store, pb::KeySpec::Hmac256, pb::KeyUsage::GenerateVerifyMac).await.key_id;
    let curve = key_of(&clients, &store, pb::KeySpec::EccNistP256, pb::KeyUsage::SignVerify).await.key_id;
    let (mut keys, mut crypto) = (clients.keys.clone(), clients.crypto.clone());

    for key_id in [&mac, &curve] {
        let rotate = pb::RotateKeyOnDemandRequest { key_id: key_id.clone(), ..Default::default() };
        refused("to rotate", keys.rotate_key_on_demand(rotate).await, "UNSUPPORTED_OPERATION", "key_id");
        let period = pb::EnableKeyRotationRequest { key_id: key_id.clone(), ..Default::default() };
        refused("to rotate by itself", keys.enable_key_rotation(period).await, "UNSUPPORTED_OPERATION", "key_id");
    }
    let (alias_name, target_key_id) = ("alias/signer".to_owned(), curve.clone());
    keys.create_alias(pb::CreateAliasRequest { alias_name: alias_name.clone(), target_key_id }).await.unwrap();
    let moved = pb::UpdateAliasRequest { alias_name, target_key_id: mac.clone() };
    refused("an alias of another kind", keys.update_alias(moved).await, "INVALID_KEY_USAGE", "target_key_id");

    let mut sign = pb::SignRequest { key_id: curve.clone(), message: vec![7], ..Default::default() };
    sign.set_signing_algorithm(pb::SigningAlgorithm::EcdsaSha256);
    let signature = crypto.sign(sign.clone()).await.unwrap().into_inner().signature;
    let mut verify = pb::VerifyRequest { key_id: curve.clone(), message: vec![7], signature, ..Default::default() };
    verify.set_signing_algorithm(pb::SigningAlgorithm::EcdsaSha256);
    let mut make_mac = pb::GenerateMacRequest { key_id: mac.clone(), message: vec![7], ..Default::default() };
    make_mac.set_mac_algorithm(pb::MacAlgorithm::HmacSha256);
    for key_id in [&mac, &curve] {
        keys.disable_key(pb::DisableKeyRequest { key_id: key_id.clone() }).await.unwrap();
    }
    refused("to sign", crypto.sign(sign).await, "DISABLED", "");
    refused("to verify", crypto.verify(verify).await, "DISABLED", "");
    refused("to make a MAC", crypto.generate_mac(make_mac).await, "DISABLED", "");
    refused("its public half", public_key(&clients, &curve).await, "DISABLED", "");
}
