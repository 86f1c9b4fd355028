//! Signatures and MACs: the calls of `CryptoService` that make and check them, and `KeyService`'s GetPublicKey.

use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::keys::{Message, Signed, Terms};
use crate::proto::v1 as pb;

use super::crypto::version;
use super::{Faces, convert, deadline, kinds, status, tell};

/// AWS's bound on what is signed, or made a MAC of, as a whole.
const MAX_MESSAGE: usize = 4_096;
/// AWS's bound on signatures; the longest that a key here makes has 512 bytes.
const MAX_SIGNATURE: usize = 6_144;
/// The longest MAC.
const MAX_MAC: usize = 64;

pub(super) async fn sign(
    faces: &Faces,
    request: Request<pb::SignRequest>,
) -> Result<Response<pb::SignResponse>, Status> {
    let permit = faces.permit::<action::Sign, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let algorithm = kinds::asked_signing_algorithm(asked.signing_algorithm)?;
    let message = signable((asked.message, asked.message_crc32c), asked.message_type)?;
    let key = convert::key_ref(&asked.key_id)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let signed = faces.0.keys.sign(permit, terms, &key, (message, algorithm)).await;
    let Signed { bytes, key } = signed.map_err(status::key)?;
    Ok(Response::new(pb::SignResponse {
        signature_crc32c: crc32c::crc32c(&bytes),
        signature: bytes,
        key_version: version(&key),
        key_id: key.name,
        signing_algorithm: kinds::signing_algorithm(algorithm).into(),
        verified_message_crc32c: asked.message_crc32c.is_some(),
    }))
}

pub(super) async fn verify(
    faces: &Faces,
    request: Request<pb::VerifyRequest>,
) -> Result<Response<pb::VerifyResponse>, Status> {
    let permit = faces.permit::<action::Verify, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let algorithm = kinds::asked_signing_algorithm(asked.signing_algorithm)?;
    let message = signable((asked.message, asked.message_crc32c), asked.message_type)?;
    let signature = bounded("signature", asked.signature, asked.signature_crc32c, MAX_SIGNATURE)?;
    let key = convert::key_ref(&asked.key_id)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let keys = &faces.0.keys;
    let verified = keys.verify(permit, terms, &key, (message, algorithm), &signature).await;
    let key = verified.map_err(status::key)?;
    Ok(Response::new(pb::VerifyResponse {
        signature_valid: true,
        key_version: version(&key),
        key_id: key.name,
        signing_algorithm: kinds::signing_algorithm(algorithm).into(),
        verified_message_crc32c: asked.message_crc32c.is_some(),
        verified_signature_crc32c: asked.signature_crc32c.is_some(),
    }))
}

pub(super) async fn generate_mac(
    faces: &Faces,
    request: Request<pb::GenerateMacRequest>,
) -> Result<Response<pb::GenerateMacResponse>, Status> {
    let permit = faces.permit::<action::GenerateMac, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let algorithm = kinds::asked_mac_algorithm(asked.mac_algorithm)?;
    let message = bounded("message", asked.message, asked.message_crc32c, MAX_MESSAGE)?;
    let key = convert::key_ref(&asked.key_id)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let made = faces.0.keys.generate_mac(permit, terms, &key, (message, algorithm)).await;
    let Signed { bytes, key } = made.map_err(status::key)?;
    Ok(Response::new(pb::GenerateMacResponse {
        mac_crc32c: crc32c::crc32c(&bytes),
        mac: bytes,
        key_version: version(&key),
        key_id: key.name,
        mac_algorithm: kinds::mac_algorithm(algorithm).into(),
        verified_message_crc32c: asked.message_crc32c.is_some(),
    }))
}

pub(super) async fn verify_mac(
    faces: &Faces,
    request: Request<pb::VerifyMacRequest>,
) -> Result<Response<pb::VerifyMacResponse>, Status> {
    let permit = faces.permit::<action::VerifyMac, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let algorithm = kinds::asked_mac_algorithm(asked.mac_algorithm)?;
    let message = bounded("message", asked.message, asked.message_crc32c, MAX_MESSAGE)?;
    let mac = bounded("mac", asked.mac, asked.mac_crc32c, MAX_MAC)?;
    let key = convert::key_ref(&asked.key_id)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let keys = &faces.0.keys;
    let verified = keys.verify_mac(permit, terms, &key, (message, algorithm), &mac).await;
    let key = verified.map_err(status::key)?;
    Ok(Response::new(pb::VerifyMacResponse {
        mac_valid: true,
        key_version: version(&key),
        key_id: key.name,
        mac_algorithm: kinds::mac_algorithm(algorithm).into(),
        verified_message_crc32c: asked.message_crc32c.is_some(),
        verified_mac_crc32c: asked.mac_crc32c.is_some(),
    }))
}

pub(super) async fn get_public_key(
    faces: &Faces,
    request: Request<pb::GetPublicKeyRequest>,
) -> Result<Response<pb::GetPublicKeyResponse>, Status> {
    let permit = faces.permit::<action::GetPublicKey, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let key = convert::key_ref(&request.get_ref().key_id)?;
    let terms = Terms { logins: &logins, deadline, dry_run: false };
    let published = faces.0.keys.public_key(permit, terms, &key).await.map_err(status::key)?;
    let (kind, public_key) = (published.kind, published.public_key.as_der().to_vec());
    Ok(Response::new(pb::GetPublicKeyResponse {
        public_key_crc32c: crc32c::crc32c(&public_key),
        public_key,
        key_id: published.key.name,
        key_spec: kinds::key_spec(kind.spec()).into(),
        key_usage: kinds::key_usage(kind.usage()).into(),
        encryption_algorithms: tell::encryption_algorithms(kind),
        signing_algorithms: tell::signing_algorithms(kind),
    }))
}

/// What is to be signed, or was: how long a digest must be, the algorithm says.
fn signable((message, crc32c): (Vec<u8>, Option<u32>), message_type: i32) -> Result<Message, Status> {
    use pb::MessageType as T;
    let message = bounded("message", message, crc32c, MAX_MESSAGE)?;
    match T::try_from(message_type) {
        Ok(T::Unspecified | T::Raw) => Ok(Message::Raw(message)),
        Ok(T::Digest) => Ok(Message::Digest(message)),
        Ok(T::ExternalMu) => Err(status::field("message_type", "EXTERNAL_MU is for ML_DSA keys; name RAW or DIGEST")),
        Err(_) => Err(status::field("message_type", "is RAW or DIGEST")),
    }
}

fn bounded(field: &str, bytes: Vec<u8>, crc32c: Option<u32>, most: usize) -> Result<Vec<u8>, Status> {
    if bytes.is_empty() || bytes.len() > most {
        return Err(status::field(field, format!("has 1 to {most} bytes, not {}", bytes.len())));
    }
    convert::checksum(field, &bytes, crc32c)?;
    Ok(bytes)
}
