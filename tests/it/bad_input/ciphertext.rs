//! What cannot be decrypted: any change to a ciphertext, its context or its key's name, and none of it harms a node.

use std::collections::HashMap;

use crate::rig::{Clients, Holdings, Rig, pb, refused};

const PLAINTEXT: &[u8] = b"attack at dawn";
/// Header, IV, what was encrypted, tag: `docs/formats.md`.
const HEADER: usize = 24;
const IV: usize = 12;
const TAG: usize = 16;
/// A ciphertext at most, as the public contract has it.
const LONGEST: usize = 6_144;

#[tokio::test]
async fn a_ciphertext_that_was_changed_anywhere_does_not_open_and_harms_no_node() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let good = clients.encrypt(&key, PLAINTEXT).await;
    assert_eq!(good.len(), HEADER + IV + PLAINTEXT.len() + TAG);
    let before = Holdings::of(&rig, &mut clients).await;

    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        unopened(&mut clients, &format!("byte {at} flipped"), flipped).await;
    }
    for length in (1..good.len()).step_by(7).chain([good.len() - 1]) {
        unopened(&mut clients, &format!("cut to {length} bytes"), good[..length].to_vec()).await;
    }
    let foreign = [
        ("another product's", b"AQICAHgwvRkxWlNg0sYr".to_vec()),
        ("zeros", vec![0; 100]),
        ("more at the end", [&good[..], b"x"].concat()),
        ("as long a tail as there can be", [&good[..], &vec![0; LONGEST - good.len()]].concat()),
        ("a header and nothing", good[..HEADER].to_vec()),
    ];
    for (what, ciphertext) in foreign {
        unopened(&mut clients, what, ciphertext).await;
    }

    let too_long = [&good[..], &[0; 500_000]].concat();
    refused("a longer tail", clients.decrypt(&too_long).await, "VALIDATION", "ciphertext");

    assert_eq!(clients.decrypt(&good).await.expect("the right one opens"), PLAINTEXT);
    let nodes = clients.settled(&store).await.nodes;
    for node in &nodes {
        assert_eq!(
            (node.health(), node.worker_restarts, node.last_error.as_str()),
            (pb::HsmHealth::Healthy, 0, ""),
            "{node:?}"
        );
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
}

async fn unopened(clients: &mut Clients, what: &str, ciphertext: Vec<u8>) {
    refused(what, clients.decrypt(&ciphertext).await, "INVALID_CIPHERTEXT", "ciphertext");
}

#[tokio::test]
async fn a_ciphertext_opens_neither_by_another_keys_name_nor_in_another_context() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let (key, other) = (clients.key(&store).await, clients.key(&store).await);
    let context = |value: &str| HashMap::from([("tenant".to_owned(), value.to_owned())]);
    let request = pb::EncryptRequest {
        key_id: key.key_id.clone(),
        plaintext: PLAINTEXT.to_vec(),
        encryption_context: context("blue"),
        ..Default::default()
    };
    let ciphertext = clients.crypto.encrypt(request).await.unwrap().into_inner().ciphertext;
    let good = pb::DecryptRequest {
        key_id: key.key_id.clone(),
        ciphertext,
        encryption_context: context("blue"),
        ..Default::default()
    };
    let but = |change: &dyn Fn(&mut pb::DecryptRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let cases = [
        ("nothing to decrypt", but(&|it| it.ciphertext.clear()), "VALIDATION", "ciphertext"),
        ("another key's name", but(&|it| it.key_id = other.key_id.clone()), "INCORRECT_KEY", "key_id"),
        ("another key's ARN", but(&|it| it.key_id = other.arn.clone()), "INCORRECT_KEY", "key_id"),
        ("nobody's name", but(&|it| it.key_id = "alias/nobody".to_owned()), "NOT_FOUND", ""),
        ("no name at all", but(&|it| it.key_id = "my key".to_owned()), "VALIDATION", "key_id"),
        ("another context", but(&|it| it.encryption_context = context("red")), "INVALID_CIPHERTEXT", "ciphertext"),
        ("no context", but(&|it| it.encryption_context.clear()), "INVALID_CIPHERTEXT", "ciphertext"),
        (
            "bytes that changed on the way",
            but(&|it| it.ciphertext_crc32c = Some(7)),
            "CHECKSUM_MISMATCH",
            "ciphertext_crc32c",
        ),
        ("an algorithm that is none", but(&|it| it.encryption_algorithm = 77), "VALIDATION", "encryption_algorithm"),
    ];
    for (what, request, reason, field) in cases {
        refused(what, clients.crypto.decrypt(request).await, reason, field);
    }
    let opened = clients.crypto.decrypt(good).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, PLAINTEXT);
}
