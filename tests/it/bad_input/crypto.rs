//! What cannot be encrypted, made into a data key or drawn at random.

use std::collections::HashMap;

use crate::rig::{Holdings, Rig, pb, refused};

const UNKNOWN_ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

type Case<'a, R> = (&'a str, R, &'a str, &'a str);

/// The ways to misname a key, and what is said of each.
fn misnamed() -> [(&'static str, String, &'static str, &'static str); 11] {
    let arn = |tail: &str| format!("arn:aws:kms:us-east-1:000000000000:{tail}");
    [
        ("no key", String::new(), "VALIDATION", "key_id"),
        ("an unknown id", UNKNOWN_ID.into(), "NOT_FOUND", ""),
        ("an unknown ARN", arn(&format!("key/{UNKNOWN_ID}")), "NOT_FOUND", ""),
        ("an unknown alias", "alias/nobody".into(), "NOT_FOUND", ""),
        ("an unknown alias ARN", arn("alias/nobody"), "NOT_FOUND", ""),
        ("an ARN of no key", arn("key/1234"), "INVALID_ARN", "key_id"),
        ("an ARN of another service", "arn:aws:s3:::bucket".into(), "INVALID_ARN", "key_id"),
        ("half an ARN", "arn:aws:kms".into(), "INVALID_ARN", "key_id"),
        ("no id at all", "my key".into(), "VALIDATION", "key_id"),
        ("half an id", UNKNOWN_ID[..35].into(), "VALIDATION", "key_id"),
        ("a name longer than any", format!("alias/{}", "x".repeat(100_000)), "VALIDATION", "key_id"),
    ]
}

fn context(pairs: usize, length: usize) -> HashMap<String, String> {
    let pair = |n| (format!("{n:03}"), "v".repeat(length - 3));
    (0..pairs).map(pair).collect()
}

fn contexts() -> [(&'static str, HashMap<String, String>); 3] {
    [
        ("65 pairs of context", context(65, 4)),
        ("more than 8 KiB of context", context(8, 1_025)),
        ("a context without a name", HashMap::from([(String::new(), "v".to_owned())])),
    ]
}

#[tokio::test]
async fn what_cannot_be_encrypted_is_refused_field_by_field() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key_id = clients.key(&store).await.key_id;
    let before = Holdings::of(&rig, &mut clients).await;
    let good = pb::EncryptRequest { key_id, plaintext: b"attack at dawn".to_vec(), ..Default::default() };
    let but = |change: &dyn Fn(&mut pb::EncryptRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let mut cases: Vec<Case<'_, pb::EncryptRequest>> = vec![
        ("an empty plaintext", but(&|it| it.plaintext.clear()), "VALIDATION", "plaintext"),
        ("4,097 bytes", but(&|it| it.plaintext = vec![7; 4_097]), "VALIDATION", "plaintext"),
        ("500,000 bytes", but(&|it| it.plaintext = vec![7; 500_000]), "VALIDATION", "plaintext"),
        ("an algorithm that is none", but(&|it| it.encryption_algorithm = 77), "VALIDATION", "encryption_algorithm"),
        (
            "an algorithm for RSA",
            but(&|it| it.set_encryption_algorithm(pb::EncryptionAlgorithm::RsaesOaepSha256)),
            "INVALID_KEY_USAGE",
            "encryption_algorithm",
        ),
        (
            "bytes that changed on the way",
            but(&|it| it.plaintext_crc32c = Some(7)),
            "CHECKSUM_MISMATCH",
            "plaintext_crc32c",
        ),
        ("a dry run", but(&|it| it.dry_run = true), "DRY_RUN_OPERATION", ""),
    ];
    for (what, key_id, reason, field) in misnamed() {
        cases.push((what, but(&|it| it.key_id = key_id.clone()), reason, field));
    }
    for (what, context) in contexts() {
        let request = but(&|it| it.encryption_context = context.clone());
        cases.push((what, request, "VALIDATION", "encryption_context"));
    }
    for (what, request, reason, field) in cases {
        let status = refused(what, clients.crypto.encrypt(request).await, reason, field);
        assert!(!format!("{status:?}").contains("attack"), "{what}: the answer tells the plaintext");
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
    clients.crypto.encrypt(good).await.expect("what is right still works");
}

#[tokio::test]
async fn a_data_key_or_random_bytes_of_no_possible_length_are_refused() {
    use pb::generate_data_key_request::Length;
    use pb::generate_data_key_without_plaintext_request::Length as Withheld;
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key_id = clients.key(&store).await.key_id;
    let before = Holdings::of(&rig, &mut clients).await;
    let lengths = [
        (Some(Length::NumberOfBytes(0)), "number_of_bytes"),
        (Some(Length::NumberOfBytes(-1)), "number_of_bytes"),
        (Some(Length::NumberOfBytes(1_025)), "number_of_bytes"),
        (Some(Length::NumberOfBytes(i32::MIN)), "number_of_bytes"),
        (Some(Length::DataKeySpec(0)), "data_key_spec"),
        (Some(Length::DataKeySpec(99)), "data_key_spec"),
        (None, "data_key_spec"),
    ];
    for (length, field) in lengths {
        let what = format!("{length:?}");
        let withheld = length.map(|length| match length {
            Length::NumberOfBytes(number) => Withheld::NumberOfBytes(number),
            Length::DataKeySpec(spec) => Withheld::DataKeySpec(spec),
        });
        let request = pb::GenerateDataKeyRequest { key_id: key_id.clone(), length, ..Default::default() };
        let answer = clients.crypto.generate_data_key(request).await;
        refused(&what, answer, "VALIDATION", field);
        let request = pb::GenerateDataKeyWithoutPlaintextRequest {
            key_id: key_id.clone(),
            length: withheld,
            ..Default::default()
        };
        let answer = clients.crypto.generate_data_key_without_plaintext(request).await;
        refused(&what, answer, "VALIDATION", field);
    }
    for (what, key_id, reason, field) in misnamed() {
        let request =
            pb::GenerateDataKeyRequest { key_id, length: Some(Length::NumberOfBytes(32)), ..Default::default() };
        refused(what, clients.crypto.generate_data_key(request).await, reason, field);
    }
    let randoms = [
        (0, "", "VALIDATION", "number_of_bytes"),
        (-1, "", "VALIDATION", "number_of_bytes"),
        (1_025, "", "VALIDATION", "number_of_bytes"),
        (32, "my store", "VALIDATION", "key_store_id"),
        (32, "cks-0123456789abcdef0", "CUSTOM_KEY_STORE_NOT_FOUND", ""),
    ];
    for (number_of_bytes, key_store_id, reason, field) in randoms {
        let request = pb::GenerateRandomRequest { number_of_bytes, key_store_id: key_store_id.to_owned() };
        let what = format!("{number_of_bytes} bytes of {key_store_id:?}");
        refused(&what, clients.crypto.generate_random(request).await, reason, field);
    }
    assert_eq!(Holdings::of(&rig, &mut clients).await, before);
}
