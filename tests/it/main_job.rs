//! The main job: a key store on three HSMs in three zones, connected; a key that is in the HSMs and nowhere else.

use crate::rig::{Clients, Rig, pb, reason, wait_async};
use std::collections::HashMap;

#[tokio::test]
async fn a_key_made_in_one_hsm_is_in_all_three_and_encrypts_and_decrypts() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    let connected = clients.all_healthy(&store).await;
    let zones: Vec<_> = connected.nodes.iter().map(|node| node.availability_zone.as_str()).collect();
    assert_eq!(zones, ["us-east-1a", "us-east-1b", "us-east-1c"]);

    let key = clients.key(&store).await;
    assert_eq!(key.state(), pb::KeyState::Enabled);
    assert!(key.arn.starts_with("arn:aws:kms:us-east-1:000000000000:key/"), "{}", key.arn);

    let ciphertext = clients.encrypt(&key.key_id, b"attack at dawn").await;
    assert!(!ciphertext.windows(6).any(|part| part == b"attack"));
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"attack at dawn");

    let proven_everywhere = wait_async(|| {
        let (mut clients, id) = (clients.clone(), key.key_id.clone());
        async move {
            let key = clients.describe_key(&id).await;
            let used = key.nodes.iter().filter(|node| node.proof() == pb::KeyProof::Used).count();
            (used == 3).then_some(key)
        }
    });
    proven_everywhere.await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        let labels: Vec<_> = rig.objects(hsm).into_iter().map(|object| object.label).collect();
        assert_eq!(labels.len(), 3, "{hsm} holds the KEK, the canary and the key, and nothing else: {labels:?}");
        assert!(labels.contains(&format!("keyway:{}:1", key.key_id)), "{hsm}: {labels:?}");
    }
}

#[tokio::test]
async fn any_one_hsm_can_serve_what_another_encrypted() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await;
    // Idle nodes take turns: six calls in a row meet each of three nodes twice.
    for round in 0..6u8 {
        let ciphertext = clients.encrypt(&key.key_id, &[round]).await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), [round]);
    }
    drop(rig);
}

#[tokio::test]
async fn a_ciphertext_opens_only_in_the_context_it_was_made_in() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await;
    let context = HashMap::from([("tenant".to_owned(), "blue".to_owned()), ("purpose".to_owned(), "test".to_owned())]);
    let request = pb::EncryptRequest {
        key_id: key.arn.clone(),
        plaintext: b"for blue".to_vec(),
        encryption_context: context.clone(),
        ..Default::default()
    };
    let ciphertext = clients.crypto.encrypt(request).await.unwrap().into_inner().ciphertext;
    let decrypt = |context| pb::DecryptRequest {
        ciphertext: ciphertext.clone(),
        encryption_context: context,
        key_id: key.arn.clone(),
        ..Default::default()
    };
    let opened = clients.crypto.decrypt(decrypt(context)).await.unwrap().into_inner();
    assert_eq!((opened.plaintext.as_slice(), opened.key_version), (&b"for blue"[..], 1));
    let refused = clients.crypto.decrypt(decrypt(HashMap::new())).await.unwrap_err();
    assert_eq!(reason(&refused), (tonic::Code::InvalidArgument, "INVALID_CIPHERTEXT".to_owned()));
}

#[tokio::test]
async fn a_data_key_comes_in_the_clear_and_encrypted_or_encrypted_alone() {
    use pb::generate_data_key_request::Length;
    use pb::generate_data_key_without_plaintext_request::Length as Withheld;
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await;
    let request = pb::GenerateDataKeyRequest {
        key_id: key.key_id.clone(),
        length: Some(Length::DataKeySpec(pb::DataKeySpec::Aes256.into())),
        ..Default::default()
    };
    let made = clients.crypto.generate_data_key(request).await.unwrap().into_inner();
    assert_eq!(made.plaintext.len(), 32);
    assert_eq!(made.plaintext_crc32c, crc32c::crc32c(&made.plaintext));
    assert_eq!(clients.decrypt(&made.ciphertext).await.unwrap(), made.plaintext);

    let request = pb::GenerateDataKeyWithoutPlaintextRequest {
        key_id: key.key_id.clone(),
        length: Some(Withheld::NumberOfBytes(64)),
        ..Default::default()
    };
    let made = clients.crypto.generate_data_key_without_plaintext(request).await.unwrap().into_inner();
    assert_eq!(clients.decrypt(&made.ciphertext).await.unwrap().len(), 64);
}

#[tokio::test]
async fn random_bytes_come_from_the_hsms_and_differ() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let ask = |store: &str| pb::GenerateRandomRequest { number_of_bytes: 32, key_store_id: store.to_owned() };
    let one = clients.crypto.generate_random(ask(&store)).await.unwrap().into_inner().plaintext;
    let two = clients.crypto.generate_random(ask("")).await.unwrap().into_inner().plaintext;
    assert_eq!((one.len(), two.len()), (32, 32));
    assert_ne!(one, two);
}

#[tokio::test]
async fn a_key_is_named_by_id_arn_or_alias() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await;
    let request = pb::CreateAliasRequest { alias_name: "alias/orders".to_owned(), target_key_id: key.key_id.clone() };
    let alias = clients.keys.create_alias(request).await.unwrap().into_inner().alias.unwrap();
    assert_eq!(alias.target_key_id, key.key_id);
    for name in [key.key_id.as_str(), &key.arn, "alias/orders", &alias.alias_arn] {
        let ciphertext = clients.encrypt(name, b"x").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x", "{name}");
    }
    let request = pb::ListAliasesRequest { key_id: key.key_id.clone(), ..Default::default() };
    let listed = clients.keys.list_aliases(request).await.unwrap().into_inner().aliases;
    assert_eq!(listed.len(), 1);
}

#[tokio::test]
async fn the_same_create_key_request_makes_one_key() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let request = pb::CreateKeyRequest {
        key_store_id: store.clone(),
        request_id: "3c2a-one".to_owned(),
        description: "the only one".to_owned(),
        alias: "alias/only".to_owned(),
        ..Default::default()
    };
    let first = clients.keys.create_key(request.clone()).await.unwrap().into_inner().key.unwrap();
    let again = clients.keys.create_key(request.clone()).await.unwrap().into_inner().key.unwrap();
    assert_eq!(first.key_id, again.key_id);
    let other = pb::CreateKeyRequest { description: "another".to_owned(), ..request };
    let refused = clients.keys.create_key(other).await.unwrap_err();
    assert_eq!(reason(&refused), (tonic::Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned()));
    assert_eq!(listed(&mut clients, &store).await.len(), 1);
}

#[tokio::test]
async fn keys_are_listed_page_by_page_each_once() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(clients.key(&store).await.key_id);
    }
    made.sort();
    assert_eq!(listed(&mut clients, &store).await, made);
}

async fn listed(clients: &mut Clients, store: &str) -> Vec<String> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            pb::ListKeysRequest { key_store_id: store.to_owned(), page_size: 2, page_token, ..Default::default() };
        let page = clients.keys.list_keys(request).await.unwrap().into_inner();
        assert!(page.keys.len() <= 2);
        found.extend(page.keys.into_iter().map(|key| key.key_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}
