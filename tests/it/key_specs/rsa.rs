//! RSA keys: signatures that OpenSSL verifies, and what OpenSSL has encrypted.

use super::signatures::{MESSAGE, openssl_verifies, sign, to_verify};
use super::*;
use crate::rig::{openssl, refused};

const SIGNED: [(pb::SigningAlgorithm, &str, bool); 6] = [
    (pb::SigningAlgorithm::RsassaPssSha256, "sha256", true),
    (pb::SigningAlgorithm::RsassaPssSha384, "sha384", true),
    (pb::SigningAlgorithm::RsassaPssSha512, "sha512", true),
    (pb::SigningAlgorithm::RsassaPkcs1V15Sha256, "sha256", false),
    (pb::SigningAlgorithm::RsassaPkcs1V15Sha384, "sha384", false),
    (pb::SigningAlgorithm::RsassaPkcs1V15Sha512, "sha512", false),
];
const PSS: [&str; 4] = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"];

#[tokio::test]
async fn every_size_of_rsa_signs_in_both_ways_with_every_hash_and_openssl_verifies() {
    let (rig, clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.clone().all_healthy(&store).await;
    for (spec, length) in [(pb::KeySpec::Rsa2048, 256), (pb::KeySpec::Rsa3072, 384), (pb::KeySpec::Rsa4096, 512)] {
        let key = key_of(&clients, &store, spec, pb::KeyUsage::SignVerify).await;
        assert_eq!(key.signing_algorithms().collect::<Vec<_>>(), SIGNED.map(|(algorithm, _, _)| algorithm));
        let public_key = public_key(&clients, &key.key_id).await.unwrap().public_key;
        for (algorithm, hash, is_pss) in SIGNED {
            for message_type in [None, Some(hash)] {
                let signature = sign(&clients, &key.key_id, algorithm, message_type).await.unwrap();
                assert_eq!(signature.len(), length);
                openssl_verifies(&rig, &public_key, hash, &signature, if is_pss { &PSS } else { &[] });
                let verified = clients.crypto.clone().verify(to_verify(&key.key_id, algorithm, &signature)).await;
                assert!(verified.unwrap().into_inner().signature_valid);
                let mut changed = to_verify(&key.key_id, algorithm, &signature);
                changed.signature[7] ^= 1;
                let verified = clients.crypto.clone().verify(changed).await;
                refused("a changed signature", verified, "KMS_INVALID_SIGNATURE", "signature");
            }
        }
    }
}

async fn decrypt(clients: &Clients, key_id: &str, ciphertext: &[u8]) -> Result<Vec<u8>, Status> {
    let (key_id, ciphertext) = (key_id.to_owned(), ciphertext.to_vec());
    let mut request = pb::DecryptRequest { key_id, ciphertext, ..Default::default() };
    request.set_encryption_algorithm(pb::EncryptionAlgorithm::RsaesOaepSha1);
    Ok(clients.crypto.clone().decrypt(request).await?.into_inner().plaintext)
}

#[tokio::test]
async fn what_openssl_or_keyway_encrypts_to_an_rsa_key_every_hsm_decrypts_and_nothing_else() {
    let (rig, clients, store) = Rig::new().connected().await;
    clients.clone().all_healthy(&store).await;
    let key = key_of(&clients, &store, pb::KeySpec::Rsa2048, pb::KeyUsage::EncryptDecrypt).await;
    let key_id = key.key_id;
    let published = public_key(&clients, &key_id).await.unwrap();
    let here = rig.home.path();
    std::fs::write(here.join("key.der"), &published.public_key).unwrap();
    std::fs::write(here.join("message"), MESSAGE).unwrap();
    let encrypt = ["pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", "key.der", "-in", "message"];
    let theirs = openssl(&[&encrypt[..], &["-pkeyopt", "rsa_padding_mode:oaep"]].concat(), here);
    let to_encrypt = |length: usize, algorithm| {
        let mut request =
            pb::EncryptRequest { key_id: key_id.clone(), plaintext: vec![7; length], ..Default::default() };
        request.set_encryption_algorithm(algorithm);
        request
    };
    let sha_1 = pb::EncryptionAlgorithm::RsaesOaepSha1;
    let mut crypto = clients.crypto.clone();
    let ours = crypto.encrypt(to_encrypt(214, sha_1)).await.unwrap().into_inner();
    assert_eq!((ours.encryption_algorithm(), ours.ciphertext.len()), (sha_1, 256));
    on_each_hsm_alone(&rig, &clients, &store, |hsm| {
        let (clients, key_id, theirs, ours) = (&clients, &key_id, theirs.clone(), ours.ciphertext.clone());
        async move {
            let opened = decrypt(clients, key_id, &theirs).await.unwrap_or_else(|status| panic!("{hsm}: {status}"));
            assert_eq!(opened, MESSAGE);
            assert_eq!(decrypt(clients, key_id, &ours).await.unwrap(), vec![7; 214]);
        }
    })
    .await;
    let mut bad = [theirs.clone(), theirs[..255].to_vec(), vec![0; 256], vec![0xff; 256], [&theirs[..], b"x"].concat()];
    bad[0][9] ^= 1;
    for bad in bad {
        let refusal =
            refused("a bad ciphertext", decrypt(&clients, &key_id, &bad).await, "INVALID_CIPHERTEXT", "ciphertext");
        assert_eq!(refusal.message(), keyway_says_of_a_bad_ciphertext());
    }
    clients.clone().all_healthy(&store).await;

    refused("a byte too long", crypto.encrypt(to_encrypt(215, sha_1)).await, "VALIDATION", "plaintext");
    let unsaid = to_encrypt(9, pb::EncryptionAlgorithm::Unspecified);
    refused("no algorithm", crypto.encrypt(unsaid).await, "VALIDATION", "encryption_algorithm");
    let symmetric = to_encrypt(9, pb::EncryptionAlgorithm::SymmetricDefault);
    refused("AES", crypto.encrypt(symmetric).await, "INVALID_KEY_USAGE", "encryption_algorithm");
    let mut bound = to_encrypt(9, sha_1);
    bound.encryption_context.insert("a".to_owned(), "b".to_owned());
    refused("a context", crypto.encrypt(bound).await, "VALIDATION", "encryption_context");
    // SoftHSM2 has SHA-1 alone: nothing is encrypted that could not be decrypted.
    let sha_256 = to_encrypt(9, pb::EncryptionAlgorithm::RsaesOaepSha256);
    refused("OAEP with SHA-256", crypto.encrypt(sha_256).await, "UNSUPPORTED_OPERATION", "");
    let mut nameless = pb::DecryptRequest { ciphertext: theirs, ..Default::default() };
    nameless.set_encryption_algorithm(sha_1);
    refused("no key", crypto.decrypt(nameless).await, "VALIDATION", "key_id");

    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        let drain = pb::DrainHsmRequest { cluster_id: rig.cluster_id(), hsm_id: hsm.to_owned(), ..Default::default() };
        clients.clusters.clone().drain_hsm(drain).await.expect("it is known");
    }
    let unheard = crypto.encrypt(to_encrypt(9, sha_1)).await;
    refused("no HSM says that it could undo it", unheard, "NO_NODE", "");
}

fn keyway_says_of_a_bad_ciphertext() -> &'static str {
    "the ciphertext was not made by the key, or with another encryption context, or was changed"
}
