//! `KeyService`.

use aws_lc_rs::digest;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::keys::{self, Description, NewHome, NewKey, RequestClaim};
use crate::model::{AliasName, HsmKeyMark, HsmKeyName, KeyId, KeyRef, KeyVersion};
use crate::proto::v1 as pb;
use crate::proto::v1::key_service_server::KeyService;

use super::tell::Nodes;
use super::{Faces, convert, deadline, kinds, sign, status, tell};

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

#[tonic::async_trait]
impl KeyService for Service {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        let permit = self.0.permit::<action::CreateKey, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let caller = permit.caller().name().to_owned();
        let asked = request.into_inner();
        let request = convert::request_id(&asked.request_id)?.map(|request_id| RequestClaim {
            caller,
            request_id,
            body_sha256: fingerprint(&asked),
        });
        let new = NewKey {
            home: new_home(&asked)?,
            kind: kinds::new_kind(asked.key_spec, asked.key_usage)?,
            description: convert::description(asked.description)?,
            tags: convert::tags(asked.tags)?,
            alias: alias_name("alias", &asked.alias)?,
            request,
        };
        let key = self.0.0.keys.create(permit, &logins, new, deadline).await.map_err(status::key)?;
        let cluster = self.0.0.clusters.get(&key.record.cluster);
        Ok(Response::new(pb::CreateKeyResponse { key: Some(tell::key(&key, Nodes::Of(cluster.as_deref()))) }))
    }

    async fn describe_key(
        &self,
        request: Request<pb::DescribeKeyRequest>,
    ) -> Result<Response<pb::DescribeKeyResponse>, Status> {
        let permit = self.0.permit::<action::DescribeKey, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let key = convert::key_ref(&request.get_ref().key_id)?;
        let key = self.0.0.keys.describe(permit, &logins, &key, deadline).await.map_err(status::key)?;
        let cluster = self.0.0.clusters.get(&key.record.cluster);
        Ok(Response::new(pb::DescribeKeyResponse { key: Some(tell::key(&key, Nodes::Of(cluster.as_deref()))) }))
    }

    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Result<Response<pb::ListKeysResponse>, Status> {
        let permit = self.0.permit::<action::ListKeys, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let asked = request.into_inner();
        let store = convert::parse_optional("key_store_id", &asked.key_store_id)?;
        let cluster = convert::parse_optional("cluster_id", &asked.cluster_id)?;
        let limit = convert::page_size(asked.page_size)?;
        let keys = &self.0.0.keys;
        // One more than asked for tells whether there is a next page.
        let (found, next_page_token) = match (store, cluster) {
            (Some(_), Some(_)) => return Err(status::field("cluster_id", "is not given with key_store_id")),
            (store, None) => {
                let after = convert::page_token::<KeyId>(&asked.page_token)?;
                let found = keys.list(permit, store.as_ref(), after, limit + 1).await;
                cut(found.map_err(status::key)?, limit, |key| key.record.id.to_string())
            }
            (None, Some(cluster)) => {
                let after = convert::page_token::<HsmKeyMark>(&asked.page_token)?;
                let found = keys.list_users(permit, &logins, &cluster, (after.as_ref(), limit + 1), deadline).await;
                let mark = |key: &Description| key.mark().map(|mark| mark.to_string());
                cut(found.map_err(status::key)?, limit, |key| mark(key).unwrap_or_default())
            }
        };
        let keys = found.iter().map(|key| tell::key(key, Nodes::LeftOut)).collect();
        Ok(Response::new(pb::ListKeysResponse { keys, next_page_token }))
    }

    async fn update_key_description(
        &self,
        request: Request<pb::UpdateKeyDescriptionRequest>,
    ) -> Result<Response<pb::UpdateKeyDescriptionResponse>, Status> {
        let permit = self.0.permit::<action::UpdateKeyDescription, _>(&request)?;
        let asked = request.into_inner();
        let key = stores_key(&asked.key_id)?;
        let description = convert::description(asked.description)?;
        let changed = self.0.0.keys.update_description(permit, &key, &description).await;
        Ok(Response::new(pb::UpdateKeyDescriptionResponse { key: Some(self.told(changed)?) }))
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::EnableKeyResponse>, Status> {
        let permit = self.0.permit::<action::EnableKey, _>(&request)?;
        let changed = self.0.0.keys.enable_key(permit, &stores_key(&request.get_ref().key_id)?).await;
        Ok(Response::new(pb::EnableKeyResponse { key: Some(self.told(changed)?) }))
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::DisableKeyResponse>, Status> {
        let permit = self.0.permit::<action::DisableKey, _>(&request)?;
        let changed = self.0.0.keys.disable_key(permit, &stores_key(&request.get_ref().key_id)?).await;
        Ok(Response::new(pb::DisableKeyResponse { key: Some(self.told(changed)?) }))
    }

    async fn schedule_key_deletion(
        &self,
        request: Request<pb::ScheduleKeyDeletionRequest>,
    ) -> Result<Response<pb::ScheduleKeyDeletionResponse>, Status> {
        let permit = self.0.permit::<action::ScheduleKeyDeletion, _>(&request)?;
        let asked = request.into_inner();
        let key = stores_key(&asked.key_id)?;
        let window = convert::deletion_window(asked.pending_window_days)?;
        let changed = self.0.0.keys.schedule_deletion(permit, &key, window).await;
        Ok(Response::new(pb::ScheduleKeyDeletionResponse { key: Some(self.told(changed)?) }))
    }

    async fn cancel_key_deletion(
        &self,
        request: Request<pb::CancelKeyDeletionRequest>,
    ) -> Result<Response<pb::CancelKeyDeletionResponse>, Status> {
        let permit = self.0.permit::<action::CancelKeyDeletion, _>(&request)?;
        let changed = self.0.0.keys.cancel_deletion(permit, &stores_key(&request.get_ref().key_id)?).await;
        Ok(Response::new(pb::CancelKeyDeletionResponse { key: Some(self.told(changed)?) }))
    }

    async fn rotate_key_on_demand(
        &self,
        request: Request<pb::RotateKeyOnDemandRequest>,
    ) -> Result<Response<pb::RotateKeyOnDemandResponse>, Status> {
        let permit = self.0.permit::<action::RotateKeyOnDemand, _>(&request)?;
        let deadline = deadline(&request);
        let asked = request.into_inner();
        let (key, request_id) = (stores_key(&asked.key_id)?, convert::request_id(&asked.request_id)?);
        let rotated = self.0.0.keys.rotate_on_demand(permit, &key, request_id, deadline).await;
        Ok(Response::new(pb::RotateKeyOnDemandResponse { key: Some(self.told(rotated)?) }))
    }

    async fn enable_key_rotation(
        &self,
        request: Request<pb::EnableKeyRotationRequest>,
    ) -> Result<Response<pb::EnableKeyRotationResponse>, Status> {
        let permit = self.0.permit::<action::EnableKeyRotation, _>(&request)?;
        let asked = request.into_inner();
        let key = stores_key(&asked.key_id)?;
        let period = convert::rotation_period(asked.rotation_period_days)?;
        let changed = self.0.0.keys.enable_rotation(permit, &key, period).await;
        Ok(Response::new(pb::EnableKeyRotationResponse { key: Some(self.told(changed)?) }))
    }

    async fn disable_key_rotation(
        &self,
        request: Request<pb::DisableKeyRotationRequest>,
    ) -> Result<Response<pb::DisableKeyRotationResponse>, Status> {
        let permit = self.0.permit::<action::DisableKeyRotation, _>(&request)?;
        let changed = self.0.0.keys.disable_rotation(permit, &stores_key(&request.get_ref().key_id)?).await;
        Ok(Response::new(pb::DisableKeyRotationResponse { key: Some(self.told(changed)?) }))
    }

    async fn list_key_versions(
        &self,
        request: Request<pb::ListKeyVersionsRequest>,
    ) -> Result<Response<pb::ListKeyVersionsResponse>, Status> {
        let permit = self.0.permit::<action::ListKeyVersions, _>(&request)?;
        let asked = request.into_inner();
        let (key, limit) = (stores_key(&asked.key_id)?, convert::page_size(asked.page_size)?);
        let before = convert::page_token::<u32>(&asked.page_token)?.map(KeyVersion);
        let listed = self.0.0.keys.list_versions(permit, &key, before, limit + 1).await;
        let (record, found) = listed.map_err(status::key)?;
        let (found, next_page_token) = cut(found, limit, |version| version.version.0.to_string());
        let cluster = self.0.0.clusters.get(&record.cluster);
        let versions =
            found.iter().map(|version| tell::key_version(version, record.kind, cluster.as_deref())).collect();
        Ok(Response::new(pb::ListKeyVersionsResponse { versions, next_page_token }))
    }

    async fn tag_resource(
        &self,
        request: Request<pb::TagResourceRequest>,
    ) -> Result<Response<pb::TagResourceResponse>, Status> {
        let permit = self.0.permit::<action::TagResource, _>(&request)?;
        let asked = request.into_inner();
        let (key, tags) = (stores_key(&asked.key_id)?, convert::tags(asked.tags)?);
        self.0.0.keys.tag(permit, &key, &tags).await.map_err(status::key)?;
        Ok(Response::new(pb::TagResourceResponse {}))
    }

    async fn untag_resource(
        &self,
        request: Request<pb::UntagResourceRequest>,
    ) -> Result<Response<pb::UntagResourceResponse>, Status> {
        let permit = self.0.permit::<action::UntagResource, _>(&request)?;
        let asked = request.into_inner();
        let (key, names) = (stores_key(&asked.key_id)?, convert::tag_keys(asked.tag_keys)?);
        self.0.0.keys.untag(permit, &key, &names).await.map_err(status::key)?;
        Ok(Response::new(pb::UntagResourceResponse {}))
    }

    async fn list_resource_tags(
        &self,
        request: Request<pb::ListResourceTagsRequest>,
    ) -> Result<Response<pb::ListResourceTagsResponse>, Status> {
        let permit = self.0.permit::<action::ListResourceTags, _>(&request)?;
        let key = stores_key(&request.get_ref().key_id)?;
        let tags = self.0.0.keys.list_tags(permit, &key).await.map_err(status::key)?;
        Ok(Response::new(pb::ListResourceTagsResponse { tags: tags.into_iter().collect() }))
    }

    async fn destroy_hsm_key(
        &self,
        request: Request<pb::DestroyHsmKeyRequest>,
    ) -> Result<Response<pb::DestroyHsmKeyResponse>, Status> {
        let permit = self.0.permit::<action::DestroyHsmKey, _>(&request)?;
        let (deadline, logins) = (deadline(&request), convert::shown_logins(request.metadata())?);
        let KeyRef::Hsm(name) = convert::key_ref(&request.get_ref().key_id)? else {
            let why = "is a key of a key store, which is not destroyed but scheduled for deletion; name an hsm: key";
            return Err(status::field("key_id", why));
        };
        self.0.0.keys.destroy(permit, &logins, name, deadline).await.map_err(status::key)?;
        Ok(Response::new(pb::DestroyHsmKeyResponse {}))
    }

    async fn get_public_key(
        &self,
        request: Request<pb::GetPublicKeyRequest>,
    ) -> Result<Response<pb::GetPublicKeyResponse>, Status> {
        sign::get_public_key(&self.0, request).await
    }

    async fn create_alias(
        &self,
        request: Request<pb::CreateAliasRequest>,
    ) -> Result<Response<pb::CreateAliasResponse>, Status> {
        let permit = self.0.permit::<action::CreateAlias, _>(&request)?;
        let asked = request.into_inner();
        let (name, target) = (named_alias(&asked.alias_name)?, alias_target(&asked.target_key_id)?);
        let record = self.0.0.keys.create_alias(permit, name, &target).await.map_err(status::key)?;
        let arn = self.0.0.keys.alias_arn(&record).await.map_err(status::key)?;
        Ok(Response::new(pb::CreateAliasResponse { alias: Some(tell::alias(&record, arn)) }))
    }

    async fn update_alias(
        &self,
        request: Request<pb::UpdateAliasRequest>,
    ) -> Result<Response<pb::UpdateAliasResponse>, Status> {
        let permit = self.0.permit::<action::UpdateAlias, _>(&request)?;
        let asked = request.into_inner();
        let (name, target) = (named_alias(&asked.alias_name)?, alias_target(&asked.target_key_id)?);
        let record = self.0.0.keys.update_alias(permit, name, &target).await.map_err(status::key)?;
        let arn = self.0.0.keys.alias_arn(&record).await.map_err(status::key)?;
        Ok(Response::new(pb::UpdateAliasResponse { alias: Some(tell::alias(&record, arn)) }))
    }

    async fn delete_alias(
        &self,
        request: Request<pb::DeleteAliasRequest>,
    ) -> Result<Response<pb::DeleteAliasResponse>, Status> {
        let permit = self.0.permit::<action::DeleteAlias, _>(&request)?;
        let name = named_alias(&request.get_ref().alias_name)?;
        self.0.0.keys.delete_alias(permit, name).await.map_err(status::key)?;
        Ok(Response::new(pb::DeleteAliasResponse {}))
    }

    async fn list_aliases(
        &self,
        request: Request<pb::ListAliasesRequest>,
    ) -> Result<Response<pb::ListAliasesResponse>, Status> {
        let permit = self.0.permit::<action::ListAliases, _>(&request)?;
        let asked = request.into_inner();
        if HsmKeyName::is_meant_by(&asked.key_id) {
            return Err(status::field("key_id", "is a key store's key: hsm: keys have no aliases"));
        }
        let key = convert::key_ref_if_any("key_id", &asked.key_id)?;
        let limit = convert::page_size(asked.page_size)?;
        let after = convert::page_token::<AliasName>(&asked.page_token)?;
        let listed = self.0.0.keys.list_aliases(permit, key.as_ref(), after.as_ref(), limit + 1).await;
        let (found, next_page_token) = cut(listed.map_err(status::key)?, limit, |alias| alias.name.to_string());
        let mut aliases = Vec::new();
        for alias in &found {
            let arn = self.0.0.keys.alias_arn(alias).await.map_err(status::key)?;
            aliases.push(tell::alias(alias, arn));
        }
        Ok(Response::new(pb::ListAliasesResponse { aliases, next_page_token }))
    }
}

impl Service {
    /// A key that was changed, with its nodes.
    fn told(&self, changed: Result<Description, keys::Error>) -> Result<pb::Key, Status> {
        let key = changed.map_err(status::key)?;
        let cluster = self.0.0.clusters.get(&key.record.cluster);
        Ok(tell::key(&key, Nodes::Of(cluster.as_deref())))
    }
}

/// What calls take that are about key stores' keys alone.
fn stores_key(text: &str) -> Result<KeyRef, Status> {
    match convert::key_ref(text)? {
        KeyRef::Hsm(_) => Err(status::field("key_id", "is a key store's key: this call takes no hsm: keys")),
        key => Ok(key),
    }
}

fn named_alias(text: &str) -> Result<AliasName, Status> {
    let name = alias_name("alias_name", text)?;
    name.ok_or_else(|| status::field_reason("alias_name", "INVALID_ALIAS_NAME", "is required"))
}

/// Aliases stand for keys, not for one another.
fn alias_target(text: &str) -> Result<KeyRef, Status> {
    match text {
        alias if alias.starts_with("alias/") || alias.contains(":alias/") => {
            Err(status::field("target_key_id", "is a key id or key ARN, not an alias"))
        }
        hsm if HsmKeyName::is_meant_by(hsm) => {
            Err(status::field("target_key_id", "is a key store's key: hsm: keys have no aliases"))
        }
        id => convert::parse("target_key_id", id),
    }
}

/// Shortens what was found to a page, and tells where the next one begins.
fn cut<T>(mut found: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let is_last = found.len() <= limit as usize;
    found.truncate(limit as usize);
    let next = found.last().filter(|_| !is_last).map(|last| convert::next_page_token(cursor(last)));
    (found, next.unwrap_or_default())
}

/// A key store, or a cluster and a label there.
fn new_home(asked: &pb::CreateKeyRequest) -> Result<NewHome, Status> {
    match (asked.key_store_id.as_str(), asked.cluster_id.as_str(), asked.hsm_label.as_str()) {
        ("", "", "") => Err(status::field("key_store_id", "is required, or under a login cluster_id and hsm_label")),
        (store, "", "") => Ok(NewHome::KeyStore(convert::key_store_id(store)?)),
        ("", cluster, label) => {
            if !asked.alias.is_empty() {
                return Err(status::field("alias", "is for keys of key stores: hsm: keys have no aliases"));
            }
            let (cluster, label) = (convert::parse("cluster_id", cluster)?, convert::parse("hsm_label", label)?);
            Ok(NewHome::User { cluster, label })
        }
        (_, "", _) => Err(status::field("hsm_label", "is not given with key_store_id")),
        (_, _, _) => Err(status::field("cluster_id", "is not given with key_store_id")),
    }
}

fn alias_name(field: &str, text: &str) -> Result<Option<AliasName>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|why| status::field_reason(field, "INVALID_ALIAS_NAME", why))
}

/// What a request asks for, whatever its id and however its map was ordered: a repeat has the same.
fn fingerprint(asked: &pb::CreateKeyRequest) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut tags: Vec<_> = asked.tags.iter().collect();
    tags.sort();
    for part in tags.into_iter().flat_map(|(key, value)| [key, value]) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let rest = pb::CreateKeyRequest { request_id: String::new(), tags: Default::default(), ..asked.clone() };
    context.update(&rest.encode_to_vec());
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
