//! Elliptic curve keys: what they sign, OpenSSL verifies.

use keyway::model::Hash;

use super::*;
use crate::rig::{openssl, refused};

const CURVES: [(pb::KeySpec, pb::SigningAlgorithm, &str); 4] = [
    (pb::KeySpec::EccNistP256, pb::SigningAlgorithm::EcdsaSha256, "sha256"),
    (pb::KeySpec::EccNistP384, pb::SigningAlgorithm::EcdsaSha384, "sha384"),
    (pb::KeySpec::EccNistP521, pb::SigningAlgorithm::EcdsaSha512, "sha512"),
    (pb::KeySpec::EccSecgP256k1, pb::SigningAlgorithm::EcdsaSha256, "sha256"),
];
pub(super) const MESSAGE: &[u8] = b"attack at dawn";

pub(super) fn digest(hash: &str) -> Vec<u8> {
    match hash {
        "sha256" => Hash::Sha256.of(MESSAGE),
        "sha384" => Hash::Sha384.of(MESSAGE),
        "sha512" => Hash::Sha512.of(MESSAGE),
        other => panic!("{other}"),
    }
}

/// As a message, or as its digest.
pub(super) async fn sign(
    clients: &Clients,
    key_id: &str,
    algorithm: pb::SigningAlgorithm,
    digest: Option<&str>,
) -> Result<Vec<u8>, Status> {
    let message = digest.map_or_else(|| MESSAGE.to_vec(), self::digest);
    let mut request = pb::SignRequest { key_id: key_id.to_owned(), message, ..Default::default() };
    request.set_signing_algorithm(algorithm);
    request.set_message_type(if digest.is_some() { pb::MessageType::Digest } else { pb::MessageType::Raw });
    let told = clients.crypto.clone().sign(request).await?.into_inner();
    assert_eq!((told.signature_crc32c, told.key_version), (crc32c::crc32c(&told.signature), 1));
    Ok(told.signature)
}

pub(super) fn to_verify(key_id: &str, algorithm: pb::SigningAlgorithm, signature: &[u8]) -> pb::VerifyRequest {
    let (key_id, signature) = (key_id.to_owned(), signature.to_vec());
    let mut request = pb::VerifyRequest { key_id, message: MESSAGE.to_vec(), signature, ..Default::default() };
    request.set_signing_algorithm(algorithm);
    request
}

/// Whether OpenSSL takes the signature of the message.
pub(super) fn openssl_verifies(rig: &Rig, public_key: &[u8], hash: &str, signature: &[u8], options: &[&str]) {
    let here = rig.home.path();
    for (file, bytes) in [("key.der", public_key), ("message", MESSAGE), ("signature", signature)] {
        std::fs::write(here.join(file), bytes).unwrap();
    }
    openssl(&["pkey", "-pubin", "-inform", "DER", "-in", "key.der", "-pubout", "-out", "key.pem"], here);
    let hash = format!("-{hash}");
    let verify = ["dgst", &hash, "-verify", "key.pem", "-signature", "signature"];
    let said = openssl(&[&verify[..], options, &["message"]].concat(), here);
    assert_eq!(said, b"Verified OK\n");
}

#[tokio::test]
async fn what_each_hsm_signs_on_each_curve_openssl_verifies_with_the_public_key_and_so_does_keyway() {
    let (rig, clients, store) = Rig::new().connected().await;
    clients.clone().all_healthy(&store).await;
    let mut made = Vec::new();
    for (spec, algorithm, hash) in CURVES {
        let key = key_of(&clients, &store, spec, pb::KeyUsage::SignVerify).await;
        assert_eq!(key.signing_algorithms().collect::<Vec<_>>(), [algorithm]);
        let published = public_key(&clients, &key.key_id).await.unwrap();
        assert_eq!((published.key_spec(), published.key_usage()), (spec, pb::KeyUsage::SignVerify));
        assert_eq!(published.public_key_crc32c, crc32c::crc32c(&published.public_key));
        made.push((key.key_id, algorithm, hash, published.public_key));
    }
    on_each_hsm_alone(&rig, &clients, &store, |hsm| {
        let (clients, made, rig) = (clients.clone(), made.clone(), &rig);
        async move {
            for (key_id, algorithm, hash, public_key) in made {
                for message_type in [None, Some(hash)] {
                    let signature = sign(&clients, &key_id, algorithm, message_type).await;
                    let signature = signature.unwrap_or_else(|status| panic!("{hsm} alone: {algorithm:?}: {status}"));
                    openssl_verifies(rig, &public_key, hash, &signature, &[]);
                    let verified = clients.crypto.clone().verify(to_verify(&key_id, algorithm, &signature)).await;
                    assert!(verified.unwrap().into_inner().signature_valid);
                }
            }
        }
    })
    .await;
    let mut crypto = clients.crypto.clone();
    for (key_id, algorithm, hash, _) in &made {
        let signature = sign(&clients, key_id, *algorithm, None).await.unwrap();
        let mut changed = to_verify(key_id, *algorithm, &signature);
        *changed.signature.last_mut().unwrap() ^= 1;
        refused("a changed signature", crypto.verify(changed).await, "KMS_INVALID_SIGNATURE", "signature");
        let mut other = to_verify(key_id, *algorithm, &signature);
        other.message.push(b'!');
        refused("another message", crypto.verify(other).await, "KMS_INVALID_SIGNATURE", "signature");
        let mut short = to_verify(key_id, *algorithm, &signature);
        short.message = digest(hash)[1..].to_vec();
        short.set_message_type(pb::MessageType::Digest);
        refused("a digest cut short", crypto.verify(short).await, "VALIDATION", "message");
    }
    // Two keys of one hash.
    let signature = sign(&clients, &made[0].0, made[0].1, None).await.unwrap();
    let others = to_verify(&made[3].0, made[3].1, &signature);
    refused("another key's signature", crypto.verify(others).await, "KMS_INVALID_SIGNATURE", "signature");
}

/// The private halves travel as AES keys do: to a token that comes back empty, and after a restart.
#[tokio::test]
async fn an_hsm_that_comes_back_empty_is_given_the_private_keys_again() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = key_of(&clients, &store, pb::KeySpec::EccNistP384, pb::KeyUsage::SignVerify).await.key_id;
    let mac = key_of(&clients, &store, pb::KeySpec::Hmac384, pb::KeyUsage::GenerateVerifyMac).await.key_id;
    rig.kill_daemon();
    rig.empty_token("hsm-2");
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.all_healthy(&store).await;
    for key_id in [&key, &mac] {
        let told = clients.describe_key(key_id).await;
        assert!(told.nodes.iter().all(|node| node.proof() == pb::KeyProof::Used), "{told:?}");
    }
    let drifts = pb::ListDriftRequest { cluster_id: rig.cluster_id(), ..Default::default() };
    let drifts = clients.clusters.list_drift(drifts).await.unwrap().into_inner().drifts;
    assert_eq!(drifts, [], "private keys are explained by their records like others");
    let algorithm = pb::SigningAlgorithm::EcdsaSha384;
    let signature = sign(&clients, &key, algorithm, None).await.unwrap();
    let verified = clients.crypto.verify(to_verify(&key, algorithm, &signature)).await;
    assert!(verified.unwrap().into_inner().signature_valid);
}
