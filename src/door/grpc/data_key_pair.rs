//! `CryptoService`'s GenerateDataKeyPair calls.

use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::keys::{Encrypted, NewDataKeyPair, Terms};
use crate::proto::v1 as pb;

use super::crypto::version;
use super::{Faces, convert, deadline, kinds, status};

pub(super) async fn generate(
    faces: &Faces,
    request: Request<pb::GenerateDataKeyPairRequest>,
) -> Result<Response<pb::GenerateDataKeyPairResponse>, Status> {
    let permit = faces.permit::<action::GenerateDataKeyPair, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let spec = kinds::asked_pair_spec(asked.key_pair_spec)?;
    let key = convert::key_ref(&asked.key_id)?;
    let context = convert::context(asked.encryption_context)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let made = faces.0.keys.generate_data_key_pair(permit, terms, (&key, spec), &context).await;
    let NewDataKeyPair { encrypted: Encrypted { ciphertext, key }, private_key, public_key } =
        made.map_err(status::key)?;
    Ok(Response::new(pb::GenerateDataKeyPairResponse {
        private_key_ciphertext_crc32c: crc32c::crc32c(&ciphertext),
        private_key_ciphertext: ciphertext,
        private_key_plaintext_crc32c: crc32c::crc32c(private_key.expose()),
        private_key_plaintext: private_key.into_exposed(),
        public_key_crc32c: crc32c::crc32c(public_key.as_der()),
        public_key: public_key.as_der().to_vec(),
        key_version: version(&key),
        key_id: key.name,
        key_pair_spec: kinds::key_spec(spec).into(),
    }))
}

pub(super) async fn generate_without_plaintext(
    faces: &Faces,
    request: Request<pb::GenerateDataKeyPairWithoutPlaintextRequest>,
) -> Result<Response<pb::GenerateDataKeyPairWithoutPlaintextResponse>, Status> {
    let permit = faces.permit::<action::GenerateDataKeyPairWithoutPlaintext, _>(&request)?;
    let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
    let asked = request.into_inner();
    let spec = kinds::asked_pair_spec(asked.key_pair_spec)?;
    let key = convert::key_ref(&asked.key_id)?;
    let context = convert::context(asked.encryption_context)?;
    let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
    let keys = &faces.0.keys;
    let made = keys.generate_data_key_pair_without_plaintext(permit, terms, (&key, spec), &context).await;
    let (Encrypted { ciphertext, key }, public_key) = made.map_err(status::key)?;
    Ok(Response::new(pb::GenerateDataKeyPairWithoutPlaintextResponse {
        private_key_ciphertext_crc32c: crc32c::crc32c(&ciphertext),
        private_key_ciphertext: ciphertext,
        public_key_crc32c: crc32c::crc32c(public_key.as_der()),
        public_key: public_key.as_der().to_vec(),
        key_version: version(&key),
        key_id: key.name,
        key_pair_spec: kinds::key_spec(spec).into(),
    }))
}
