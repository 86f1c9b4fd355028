//! `encrypt` and `decrypt` against a daemon whose cipher turns every bit.

use std::path::Path;

use tonic::{Request, Response, Status};

use crate::proto::v1::crypto_service_server::{CryptoService, CryptoServiceServer};
use crate::proto::v1::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse};

use super::{Failure, Server, typed};

/// How the daemon treats checksums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flipper {
    Careful,
    ForgetsOurs,
    SendsAWrongOne,
}

impl Flipper {
    fn verified(self, bytes: &[u8], sent: Option<u32>) -> bool {
        assert_eq!(sent, Some(crc32c::crc32c(bytes)));
        self != Self::ForgetsOurs
    }

    fn checksum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c(bytes) ^ u32::from(self == Self::SendsAWrongOne)
    }
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| !byte).collect()
}

#[tonic::async_trait]
impl CryptoService for Flipper {
    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let request = request.into_inner();
        let ciphertext = flipped(&request.plaintext);
        Ok(Response::new(EncryptResponse {
            ciphertext_crc32c: self.checksum(&ciphertext),
            verified_plaintext_crc32c: self.verified(&request.plaintext, request.plaintext_crc32c),
            ciphertext,
            ..Default::default()
        }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let request = request.into_inner();
        let plaintext = flipped(&request.ciphertext);
        Ok(Response::new(DecryptResponse {
            plaintext_crc32c: self.checksum(&plaintext),
            verified_ciphertext_crc32c: self.verified(&request.ciphertext, request.ciphertext_crc32c),
            plaintext,
            ..Default::default()
        }))
    }
}

/// Encrypts `folder/in` to `folder/out`, then that to `folder/back`, as base64 between.
async fn there_and_back(daemon: Flipper, folder: &Path) -> Result<(), Failure> {
    let services = || Server::builder().add_service(CryptoServiceServer::new(daemon));
    let at = |name: &str| folder.join(name).display().to_string();
    typed(services(), &format!("encrypt --key k --base64 {} {}", at("in"), at("out"))).await?;
    typed(services(), &format!("decrypt --base64 {} {}", at("out"), at("back"))).await
}

#[tokio::test]
async fn what_is_encrypted_to_a_file_is_decrypted_from_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), b"attack at dawn\x00\xff").unwrap();
    there_and_back(Flipper::Careful, folder.path()).await.unwrap();
    assert!(std::fs::read(folder.path().join("out")).unwrap().is_ascii());
    assert_eq!(std::fs::read(folder.path().join("back")).unwrap(), b"attack at dawn\x00\xff");
}

#[tokio::test]
async fn a_checksum_lost_or_wrong_stops_the_command_before_anything_is_written() {
    for daemon in [Flipper::ForgetsOurs, Flipper::SendsAWrongOne] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in"), b"attack at dawn").unwrap();
        let failure = there_and_back(daemon, folder.path()).await.unwrap_err();
        assert!(failure.text().contains("reason: CHECKSUM_MISMATCH"), "{}", failure.text());
        assert!(!folder.path().join("out").exists());
    }
}
