//! The operator's own copy of every new password, which his private key alone opens.

use std::os::unix::fs::PermissionsExt;

use faulty_pkcs11::Function::C_SetPIN;

use super::{HSMS, node, served, versions};
use crate::rig::{Rig, openssl};

#[tokio::test]
async fn no_hsm_gets_a_password_that_cannot_be_kept_for_the_operator() {
    let (served, rig) = served(Rig::new().faulty(), |rig| {
        openssl(&["genrsa", "-out", "escrow.key", "2048"], rig.home.path());
        openssl(&["pkey", "-in", "escrow.key", "-pubout", "-out", "escrow.pem"], rig.home.path());
        "password_escrow = \"escrow.pem\"".to_owned()
    })
    .await;
    // A file where the directory is to be: not even root can make it.
    let in_the_way = served.data_dir().join("escrow");
    std::fs::write(&in_the_way, "").unwrap();
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.connected_store(&rig, "main").await;
    let told = clients.all_healthy(&store).await;
    assert_eq!(versions(&told), [1; 3], "the store connects with what it has");
    assert_eq!(HSMS.map(|hsm| rig.faults(hsm).count(C_SetPIN)), [0; 3]);
    for hsm in HSMS {
        let why = &node(&told, hsm).last_error;
        assert!(why.contains("the new password cannot be kept for the operator in"), "{hsm}: {why}");
    }
    std::fs::remove_file(&in_the_way).unwrap();
    assert!(versions(&clients.connect_again(&store).await).iter().all(|version| *version > 1));
    drop(served);
}

#[tokio::test]
async fn a_new_password_can_be_had_with_the_operators_private_key() {
    let (served, rig) = served(Rig::new(), |rig| {
        openssl(&["genrsa", "-out", "escrow.key", "2048"], rig.home.path());
        openssl(&["pkey", "-in", "escrow.key", "-pubout", "-out", "escrow.pem"], rig.home.path());
        "password_escrow = \"escrow.pem\"".to_owned()
    })
    .await;
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    clients.connect_again(&store).await;
    let kept = served.data_dir().join("escrow").join(rig.cluster_id());
    let mut files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    // As docs/passwords.md tells it, from here on.
    let der =
        openssl(&["pkey", "-pubin", "-in", "escrow.pem", "-outform", "DER", "-out", "escrow.der"], rig.home.path());
    assert!(der.is_empty());
    let digest = openssl(&["dgst", "-sha256", "-r", "escrow.der"], rig.home.path());
    let of_the_key = format!("-{}.bin", &String::from_utf8(digest).unwrap()[..16]);
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for (name, version) in names.iter().zip(["2-", "3-"]) {
        assert!(name.starts_with(version) && name.ends_with(&of_the_key), "{name}, {of_the_key}");
    }
    let file = &files[1];
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    let args = "pkeyutl -decrypt -inkey escrow.key -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -in";
    let args: Vec<_> = args.split(' ').chain([file.to_str().unwrap()]).collect();
    let password = String::from_utf8(openssl(&args, rig.home.path())).unwrap();
    assert_eq!(password.len(), 32);
    assert!(password.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{password}");
    for hsm in HSMS {
        assert!(rig.opens(hsm, &password), "{hsm}");
    }
    assert!(!served.log().contains(&password));
    drop(served);
}
