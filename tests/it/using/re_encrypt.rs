//! From one key to another, wherever the two are.

use std::collections::HashMap;

use crate::rig::{Clients, Maker, Rig, pb, refused};

const PLAINTEXT: &[u8] = b"attack at dawn";

fn context(value: &str) -> HashMap<String, String> {
    HashMap::from([("order".to_owned(), value.to_owned())])
}

async fn encrypted(clients: &mut Clients, key: &str, value: &str) -> Vec<u8> {
    let request = pb::EncryptRequest {
        key_id: key.to_owned(),
        plaintext: PLAINTEXT.to_vec(),
        encryption_context: context(value),
        ..Default::default()
    };
    clients.crypto.encrypt(request).await.expect("the key encrypts").into_inner().ciphertext
}

async fn opened(clients: &mut Clients, ciphertext: &[u8], value: &str) -> pb::DecryptResponse {
    let (ciphertext, encryption_context) = (ciphertext.to_vec(), context(value));
    let request = pb::DecryptRequest { ciphertext, encryption_context, ..Default::default() };
    clients.crypto.decrypt(request).await.expect("it opens").into_inner()
}

#[tokio::test]
async fn a_ciphertext_goes_from_key_to_key_and_from_context_to_context_and_what_is_wrong_is_told_by_its_side() {
    let (_rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let (from, to) = (clients.key(&store).await, clients.key(&store).await);
    let good = pb::ReEncryptRequest {
        ciphertext: encrypted(&mut clients, &from.key_id, "1").await,
        source_encryption_context: context("1"),
        destination_key_id: to.key_id.clone(),
        destination_encryption_context: context("2"),
        ..Default::default()
    };
    let but = |change: &dyn Fn(&mut pb::ReEncryptRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    for named in ["", &from.key_id, &from.arn] {
        let made =
            clients.crypto.re_encrypt(but(&|it| it.source_key_id = named.to_owned())).await.unwrap().into_inner();
        assert_eq!((&made.source_key_id, &made.key_id), (&from.arn, &to.arn));
        assert_eq!((made.source_key_version, made.key_version), (1, 1));
        let opened = opened(&mut clients, &made.ciphertext, "2").await;
        assert_eq!((opened.plaintext.as_slice(), &opened.key_id), (PLAINTEXT, &to.arn));
    }
    let same = clients.crypto.re_encrypt(but(&|it| it.destination_key_id = from.key_id.clone())).await.unwrap();
    assert_eq!(
        opened(&mut clients, &same.get_ref().ciphertext, "2").await.plaintext,
        PLAINTEXT,
        "the same key will do"
    );

    let algorithm = pb::EncryptionAlgorithm::RsaesOaepSha256;
    let cases = [
        ("nothing", but(&|it| it.ciphertext.clear()), "VALIDATION", "ciphertext"),
        ("a changed ciphertext", but(&|it| it.ciphertext[40] ^= 1), "INVALID_CIPHERTEXT", "ciphertext"),
        ("a stranger's ciphertext", but(&|it| it.ciphertext = vec![7; 80]), "INVALID_CIPHERTEXT", "ciphertext"),
        ("another context", but(&|it| it.source_encryption_context = context("3")), "INVALID_CIPHERTEXT", "ciphertext"),
        ("another source", but(&|it| it.source_key_id = to.key_id.clone()), "INCORRECT_KEY", "source_key_id"),
        ("no key's name", but(&|it| it.source_key_id = "my key".to_owned()), "VALIDATION", "source_key_id"),
        ("no destination", but(&|it| it.destination_key_id.clear()), "VALIDATION", "destination_key_id"),
        (
            "an ARN of nothing",
            but(&|it| it.destination_key_id = "arn:x".to_owned()),
            "INVALID_ARN",
            "destination_key_id",
        ),
        ("an unknown destination", but(&|it| it.destination_key_id = "alias/nobody".to_owned()), "NOT_FOUND", ""),
        (
            "a context without a name",
            but(&|it| it.destination_encryption_context = HashMap::from([(String::new(), "x".to_owned())])),
            "VALIDATION",
            "destination_encryption_context",
        ),
        (
            "an algorithm of other keys",
            but(&|it| it.set_destination_encryption_algorithm(algorithm)),
            "VALIDATION",
            "destination_encryption_algorithm",
        ),
        (
            "the same at the source",
            but(&|it| it.set_source_encryption_algorithm(algorithm)),
            "VALIDATION",
            "source_encryption_algorithm",
        ),
        // Both sides are wrong: the source is told.
        (
            "two wrong keys",
            but(&|it| {
                it.source_key_id = to.key_id.clone();
                it.destination_key_id = "alias/nobody".to_owned();
            }),
            "INCORRECT_KEY",
            "source_key_id",
        ),
        // What the HSM alone can tell comes after what is known before it is asked.
        (
            "a changed ciphertext for an unknown key",
            but(&|it| {
                it.ciphertext[40] ^= 1;
                it.destination_key_id = "alias/nobody".to_owned();
            }),
            "NOT_FOUND",
            "",
        ),
    ];
    for (what, request, reason, field) in cases {
        let status = refused(what, clients.crypto.re_encrypt(request).await, reason, field);
        assert!(!format!("{status:?}").contains("attack"), "{what}: the answer tells the plaintext");
    }
}

#[tokio::test]
async fn keys_of_different_clusters_are_mixed_and_the_one_that_cannot_is_named() {
    let maker = Maker::start();
    let mut clients = maker.clients().await;
    let (_, here) = maker.connected(&mut clients, 2).await;
    let (_, there) = maker.connected(&mut clients, 2).await;
    let (from, to) = (clients.key(&here).await, clients.key(&there).await);
    assert_ne!(from.cluster_id, to.cluster_id);
    let request = pb::ReEncryptRequest {
        ciphertext: encrypted(&mut clients, &from.key_id, "1").await,
        source_encryption_context: context("1"),
        destination_key_id: to.key_id.clone(),
        destination_encryption_context: context("1"),
        ..Default::default()
    };
    let made = clients.crypto.re_encrypt(request.clone()).await.unwrap().into_inner();
    let told = opened(&mut clients, &made.ciphertext, "1").await;
    assert_eq!((told.plaintext.as_slice(), &told.key_id), (PLAINTEXT, &to.arn));

    clients.disconnect(&there).await;
    let status = refused("no destination", clients.crypto.re_encrypt(request.clone()).await, "KMS_INVALID_STATE", "");
    assert!(status.message().contains(&to.key_id), "{status}");
    clients.disconnect(&here).await;
    let status = refused("neither", clients.crypto.re_encrypt(request).await, "KMS_INVALID_STATE", "");
    assert!(status.message().contains(&from.key_id), "{status}");
}
