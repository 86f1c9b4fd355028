//! A checksum that does not fit stops a request before an HSM hears of it; one that fits is told to have been looked at.

use faulty_pkcs11::Function::{C_Decrypt, C_Encrypt};
use faulty_pkcs11::Rule;

use crate::failing::ready;
use crate::rig::{pb, refused};

const PLAINTEXT: &[u8] = b"attack at dawn";

#[tokio::test]
async fn a_checksum_that_does_not_fit_never_reaches_an_hsm_and_every_answer_has_one() {
    let (rig, mut clients, store, key) = ready().await;
    let hsms = ["hsm-1", "hsm-2", "hsm-3"];
    let other = clients.key(&store).await.key_id;
    let good = clients.encrypt(&key, PLAINTEXT).await;
    for hsm in hsms {
        rig.faults(hsm).set([Rule::journal(C_Encrypt), Rule::journal(C_Decrypt)]);
    }
    // The canary asks, too, and is answered as quickly: what is counted is what these keys were asked for.
    let asked = || -> usize {
        let journals = hsms.iter().flat_map(|hsm| rig.faults(hsm).journal());
        journals.filter(|call| call.function == C_Encrypt).count()
    };
    let before = asked();
    let wrong = crc32c::crc32c(PLAINTEXT) ^ 1;
    let encrypt = |plaintext_crc32c| pb::EncryptRequest {
        key_id: key.clone(),
        plaintext: PLAINTEXT.to_vec(),
        plaintext_crc32c,
        ..Default::default()
    };
    let re_encrypt = |ciphertext_crc32c| pb::ReEncryptRequest {
        ciphertext: good.clone(),
        destination_key_id: other.clone(),
        ciphertext_crc32c,
        ..Default::default()
    };
    let decrypt =
        |ciphertext_crc32c| pb::DecryptRequest { ciphertext: good.clone(), ciphertext_crc32c, ..Default::default() };
    let crypto = &mut clients.crypto;
    refused("Encrypt", crypto.encrypt(encrypt(Some(wrong))).await, "CHECKSUM_MISMATCH", "plaintext_crc32c");
    refused("Decrypt", crypto.decrypt(decrypt(Some(wrong))).await, "CHECKSUM_MISMATCH", "ciphertext_crc32c");
    refused("ReEncrypt", crypto.re_encrypt(re_encrypt(Some(wrong))).await, "CHECKSUM_MISMATCH", "ciphertext_crc32c");
    assert_eq!(asked(), before, "nothing was encrypted");

    for sent in [true, false] {
        let sum = |bytes: &[u8]| sent.then(|| crc32c::crc32c(bytes));
        let told = crypto.encrypt(encrypt(sum(PLAINTEXT))).await.unwrap().into_inner();
        assert_eq!((told.verified_plaintext_crc32c, told.ciphertext_crc32c), (sent, crc32c::crc32c(&told.ciphertext)));
        let told = crypto.decrypt(decrypt(sum(&good))).await.unwrap().into_inner();
        assert_eq!((told.verified_ciphertext_crc32c, told.plaintext_crc32c), (sent, crc32c::crc32c(PLAINTEXT)));
        let told = crypto.re_encrypt(re_encrypt(sum(&good))).await.unwrap().into_inner();
        assert_eq!((told.verified_ciphertext_crc32c, told.ciphertext_crc32c), (sent, crc32c::crc32c(&told.ciphertext)));
    }
    assert_eq!(asked(), before + 4, "and then it was");
}
