//! Key pairs to use outside.

use super::*;
use crate::rig::{openssl, refused};

const SPECS: [pb::KeySpec; 8] = [
    pb::KeySpec::Rsa2048,
    pb::KeySpec::Rsa3072,
    pb::KeySpec::Rsa4096,
    pb::KeySpec::EccNistP256,
    pb::KeySpec::EccNistP384,
    pb::KeySpec::EccNistP521,
    pb::KeySpec::EccSecgP256k1,
    pb::KeySpec::EccNistEdwards25519,
];

#[tokio::test]
async fn a_data_key_pair_fits_together_and_decrypt_brings_its_private_half_back() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key_id = clients.key(&store).await.key_id;
    let here = rig.home.path();
    let mut crypto = clients.crypto.clone();
    let asked = |spec: pb::KeySpec| pb::GenerateDataKeyPairRequest {
        key_id: key_id.clone(),
        key_pair_spec: spec.into(),
        ..Default::default()
    };
    for spec in SPECS {
        let made = crypto.generate_data_key_pair(asked(spec)).await.unwrap().into_inner();
        assert_eq!((made.key_pair_spec(), made.key_version), (spec, 1));
        assert_eq!(made.public_key_crc32c, crc32c::crc32c(&made.public_key));
        assert_eq!(clients.decrypt(&made.private_key_ciphertext).await.unwrap(), made.private_key_plaintext);
        std::fs::write(here.join("private.der"), &made.private_key_plaintext).unwrap();
        let public = openssl(&["pkey", "-inform", "DER", "-in", "private.der", "-pubout", "-outform", "DER"], here);
        assert_eq!(public, made.public_key, "{spec:?}");
    }
    let without = pb::GenerateDataKeyPairWithoutPlaintextRequest {
        key_id: key_id.clone(),
        key_pair_spec: pb::KeySpec::EccNistP256.into(),
        ..Default::default()
    };
    let made = crypto.generate_data_key_pair_without_plaintext(without).await.unwrap().into_inner();
    let private = clients.decrypt(&made.private_key_ciphertext).await.unwrap();
    std::fs::write(here.join("private.der"), private).unwrap();
    let public = openssl(&["pkey", "-inform", "DER", "-in", "private.der", "-pubout", "-outform", "DER"], here);
    assert_eq!(public, made.public_key);

    let answer = crypto.generate_data_key_pair(asked(pb::KeySpec::Hmac256)).await;
    refused("no pair", answer, "VALIDATION", "key_pair_spec");
    let answer = crypto.generate_data_key_pair(asked(pb::KeySpec::Unspecified)).await;
    refused("none named", answer, "VALIDATION", "key_pair_spec");
    let answer = crypto.generate_data_key_pair(asked(pb::KeySpec::MlKem768)).await;
    refused("ML-KEM", answer, "UNSUPPORTED_OPERATION", "");
    let curve = key_of(&clients, &store, pb::KeySpec::EccNistP256, pb::KeyUsage::SignVerify).await.key_id;
    let under_it = pb::GenerateDataKeyPairRequest { key_id: curve, ..asked(pb::KeySpec::EccNistP256) };
    refused("under no AES key", crypto.generate_data_key_pair(under_it).await, "INVALID_KEY_USAGE", "key_id");
}
