//! A dry run is refused as the work would be, and where that would be done, with a reason of its own; nothing is done.

use faulty_pkcs11::Function::{C_Decrypt, C_Encrypt, C_GenerateRandom};
use faulty_pkcs11::Rule;
use tonic::Status;

use crate::failing::ready;
use crate::rig::{Clients, pb, refused};

/// Every call that can be made dry, made so.
async fn dry(
    clients: &mut Clients,
    key: &str,
    other: &str,
    ciphertext: &[u8],
) -> [(&'static str, Result<(), Status>); 5] {
    use pb::generate_data_key_request::Length;
    use pb::generate_data_key_without_plaintext_request::Length as Withheld;
    let (key_id, dry_run) = (key.to_owned(), true);
    let (crypto, ciphertext) = (&mut clients.crypto, ciphertext.to_vec());
    let encrypt = pb::EncryptRequest { key_id: key_id.clone(), plaintext: vec![7], dry_run, ..Default::default() };
    let decrypt = pb::DecryptRequest { ciphertext: ciphertext.clone(), dry_run, ..Default::default() };
    let re_encrypt =
        pb::ReEncryptRequest { ciphertext, destination_key_id: other.to_owned(), dry_run, ..Default::default() };
    let both = pb::GenerateDataKeyRequest {
        key_id: key_id.clone(),
        length: Some(Length::NumberOfBytes(32)),
        dry_run,
        ..Default::default()
    };
    let withheld = pb::GenerateDataKeyWithoutPlaintextRequest {
        key_id,
        length: Some(Withheld::NumberOfBytes(32)),
        dry_run,
        ..Default::default()
    };
    [
        ("Encrypt", crypto.encrypt(encrypt).await.map(drop)),
        ("Decrypt", crypto.decrypt(decrypt).await.map(drop)),
        ("ReEncrypt", crypto.re_encrypt(re_encrypt).await.map(drop)),
        ("GenerateDataKey", crypto.generate_data_key(both).await.map(drop)),
        ("GenerateDataKeyWithoutPlaintext", crypto.generate_data_key_without_plaintext(withheld).await.map(drop)),
    ]
}

#[tokio::test]
async fn a_dry_run_says_what_would_become_of_the_call_and_asks_no_hsm() {
    const NOBODY: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    let (rig, mut clients, store, key) = ready().await;
    let other = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"attack at dawn").await;
    // An HSM that was asked would not answer. Its canary is asked about in a while, which is not waited for.
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([C_Encrypt, C_Decrypt, C_GenerateRandom].map(Rule::block));
    }
    for (what, answer) in dry(&mut clients, &key, &other, &ciphertext).await {
        refused(what, answer, "DRY_RUN_OPERATION", "");
    }
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    for (what, answer) in dry(&mut clients, NOBODY, NOBODY, &ciphertext).await {
        // The ciphertext's own key is there.
        let reason = if what == "Decrypt" { "DRY_RUN_OPERATION" } else { "NOT_FOUND" };
        refused(what, answer, reason, "");
    }
    clients.disconnect(&store).await;
    for (what, answer) in dry(&mut clients, &key, &other, &ciphertext).await {
        refused(what, answer, "KMS_INVALID_STATE", "");
    }
}
