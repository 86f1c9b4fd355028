//! `CryptoService`.

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::authz::action;
use crate::keys::{Destination, Encrypted, Source, Terms, Used};
use crate::proto::v1 as pb;
use crate::proto::v1::crypto_service_server::CryptoService;

use super::{Faces, convert, data_key_pair, deadline, kinds, pipeline, sign, status};

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

#[tonic::async_trait]
impl CryptoService for Service {
    async fn encrypt(&self, request: Request<pb::EncryptRequest>) -> Result<Response<pb::EncryptResponse>, Status> {
        let permit = self.0.permit::<action::Encrypt, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let plaintext = convert::plaintext(asked.plaintext, asked.plaintext_crc32c)?;
        let key = convert::key_ref(&asked.key_id)?;
        let context = convert::context(asked.encryption_context)?;
        let algorithm = kinds::asked_encryption_algorithm(asked.encryption_algorithm)?;
        let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
        let encrypted = self.0.0.keys.encrypt(permit, terms, &key, (plaintext, algorithm), &context).await;
        let Encrypted { ciphertext, key } = encrypted.map_err(status::key)?;
        Ok(Response::new(pb::EncryptResponse {
            ciphertext_crc32c: crc32c::crc32c(&ciphertext),
            ciphertext,
            key_version: version(&key),
            key_id: key.name,
            encryption_algorithm: kinds::encryption_algorithm(algorithm.unwrap_or_default()).into(),
            verified_plaintext_crc32c: asked.plaintext_crc32c.is_some(),
        }))
    }

    async fn decrypt(&self, request: Request<pb::DecryptRequest>) -> Result<Response<pb::DecryptResponse>, Status> {
        let permit = self.0.permit::<action::Decrypt, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let ciphertext = convert::ciphertext(asked.ciphertext, asked.ciphertext_crc32c)?;
        let key = convert::key_ref_if_any("key_id", &asked.key_id)?;
        let context = convert::context(asked.encryption_context)?;
        let algorithm = kinds::asked_encryption_algorithm(asked.encryption_algorithm)?;
        let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
        let (key, ciphertext) = (key.as_ref(), &ciphertext[..]);
        let decrypted = self.0.0.keys.decrypt(permit, terms, key, (ciphertext, algorithm), &context).await;
        let decrypted = decrypted.map_err(status::key)?;
        Ok(Response::new(pb::DecryptResponse {
            plaintext_crc32c: crc32c::crc32c(decrypted.plaintext.expose()),
            plaintext: decrypted.plaintext.into_exposed(),
            key_version: version(&decrypted.key),
            key_id: decrypted.key.name,
            encryption_algorithm: kinds::encryption_algorithm(algorithm.unwrap_or_default()).into(),
            verified_ciphertext_crc32c: asked.ciphertext_crc32c.is_some(),
        }))
    }

    async fn re_encrypt(
        &self,
        request: Request<pb::ReEncryptRequest>,
    ) -> Result<Response<pb::ReEncryptResponse>, Status> {
        let from = self.0.permit::<action::ReEncryptFrom, _>(&request)?;
        let to = self.0.permit::<action::ReEncryptTo, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let ciphertext = convert::ciphertext(asked.ciphertext, asked.ciphertext_crc32c)?;
        let source_key = convert::key_ref_if_any("source_key_id", &asked.source_key_id)?;
        let source_context = convert::context_in("source_encryption_context", asked.source_encryption_context)?;
        kinds::asked_symmetric_algorithm("source_encryption_algorithm", asked.source_encryption_algorithm)?;
        let key = convert::key_ref_in("destination_key_id", &asked.destination_key_id)?;
        let context = convert::context_in("destination_encryption_context", asked.destination_encryption_context)?;
        kinds::asked_symmetric_algorithm("destination_encryption_algorithm", asked.destination_encryption_algorithm)?;
        let source = Source { ciphertext: &ciphertext, key: source_key.as_ref(), context: &source_context };
        let destination = Destination { key: &key, context: &context };
        let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
        let made = self.0.0.keys.re_encrypt((from, to), terms, source, destination).await;
        let made = made.map_err(status::re_encrypt)?;
        let Encrypted { ciphertext, key } = made.encrypted;
        Ok(Response::new(pb::ReEncryptResponse {
            ciphertext_crc32c: crc32c::crc32c(&ciphertext),
            ciphertext,
            source_key_version: version(&made.source),
            source_key_id: made.source.name,
            key_version: version(&key),
            key_id: key.name,
            source_encryption_algorithm: pb::EncryptionAlgorithm::SymmetricDefault.into(),
            destination_encryption_algorithm: pb::EncryptionAlgorithm::SymmetricDefault.into(),
            verified_ciphertext_crc32c: asked.ciphertext_crc32c.is_some(),
        }))
    }

    async fn generate_data_key(
        &self,
        request: Request<pb::GenerateDataKeyRequest>,
    ) -> Result<Response<pb::GenerateDataKeyResponse>, Status> {
        use pb::generate_data_key_request::Length;
        let permit = self.0.permit::<action::GenerateDataKey, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let (spec, number) = match asked.length {
            Some(Length::DataKeySpec(spec)) => (Some(spec), None),
            Some(Length::NumberOfBytes(number)) => (None, Some(number)),
            None => (None, None),
        };
        let length = convert::data_key_length(spec, number)?;
        let key = convert::key_ref(&asked.key_id)?;
        let context = convert::context(asked.encryption_context)?;
        let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
        let made = self.0.0.keys.generate_data_key(permit, terms, &key, length, &context).await;
        let made = made.map_err(status::key)?;
        Ok(Response::new(pb::GenerateDataKeyResponse {
            ciphertext_crc32c: crc32c::crc32c(&made.encrypted.ciphertext),
            plaintext_crc32c: crc32c::crc32c(made.plaintext.expose()),
            ciphertext: made.encrypted.ciphertext,
            plaintext: made.plaintext.into_exposed(),
            key_version: version(&made.encrypted.key),
            key_id: made.encrypted.key.name,
        }))
    }

    async fn generate_data_key_without_plaintext(
        &self,
        request: Request<pb::GenerateDataKeyWithoutPlaintextRequest>,
    ) -> Result<Response<pb::GenerateDataKeyWithoutPlaintextResponse>, Status> {
        use pb::generate_data_key_without_plaintext_request::Length;
        let permit = self.0.permit::<action::GenerateDataKeyWithoutPlaintext, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let (spec, number) = match asked.length {
            Some(Length::DataKeySpec(spec)) => (Some(spec), None),
            Some(Length::NumberOfBytes(number)) => (None, Some(number)),
            None => (None, None),
        };
        let length = convert::data_key_length(spec, number)?;
        let key = convert::key_ref(&asked.key_id)?;
        let context = convert::context(asked.encryption_context)?;
        let terms = Terms { logins: &logins, deadline, dry_run: asked.dry_run };
        let keys = &self.0.0.keys;
        let made = keys.generate_data_key_without_plaintext(permit, terms, &key, length, &context).await;
        let made = made.map_err(status::key)?;
        Ok(Response::new(pb::GenerateDataKeyWithoutPlaintextResponse {
            ciphertext_crc32c: crc32c::crc32c(&made.ciphertext),
            ciphertext: made.ciphertext,
            key_version: version(&made.key),
            key_id: made.key.name,
        }))
    }

    async fn sign(&self, request: Request<pb::SignRequest>) -> Result<Response<pb::SignResponse>, Status> {
        sign::sign(&self.0, request).await
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        sign::verify(&self.0, request).await
    }

    async fn generate_mac(
        &self,
        request: Request<pb::GenerateMacRequest>,
    ) -> Result<Response<pb::GenerateMacResponse>, Status> {
        sign::generate_mac(&self.0, request).await
    }

    async fn verify_mac(
        &self,
        request: Request<pb::VerifyMacRequest>,
    ) -> Result<Response<pb::VerifyMacResponse>, Status> {
        sign::verify_mac(&self.0, request).await
    }

    async fn generate_data_key_pair(
        &self,
        request: Request<pb::GenerateDataKeyPairRequest>,
    ) -> Result<Response<pb::GenerateDataKeyPairResponse>, Status> {
        data_key_pair::generate(&self.0, request).await
    }

    async fn generate_data_key_pair_without_plaintext(
        &self,
        request: Request<pb::GenerateDataKeyPairWithoutPlaintextRequest>,
    ) -> Result<Response<pb::GenerateDataKeyPairWithoutPlaintextResponse>, Status> {
        data_key_pair::generate_without_plaintext(&self.0, request).await
    }

    async fn generate_random(
        &self,
        request: Request<pb::GenerateRandomRequest>,
    ) -> Result<Response<pb::GenerateRandomResponse>, Status> {
        let permit = self.0.permit::<action::GenerateRandom, _>(&request)?;
        let deadline = deadline(&request);
        let asked = request.into_inner();
        let number = convert::number_of_random_bytes(asked.number_of_bytes)?;
        let store = convert::parse_optional("key_store_id", &asked.key_store_id)?;
        let bytes = self.0.0.keys.generate_random(permit, store.as_ref(), number, deadline).await;
        let bytes = bytes.map_err(status::key)?;
        Ok(Response::new(pb::GenerateRandomResponse {
            plaintext_crc32c: crc32c::crc32c(bytes.expose()),
            plaintext: bytes.into_exposed(),
        }))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<pb::PipelineRequest>>,
    ) -> Result<Response<BoxStream<pb::PipelineResponse>>, Status> {
        pipeline::serve(self.clone(), request)
    }
}

/// 0 for a key that has no versions to tell apart.
pub(super) fn version(key: &Used) -> i32 {
    key.version.map_or(0, |version| version.0.cast_signed())
}
