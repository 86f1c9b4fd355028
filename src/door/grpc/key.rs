//! `KeyService`.

use aws_lc_rs::digest;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::keys::{Description, NewHome, NewKey, RequestClaim};
use crate::model::{AliasName, HsmKeyMark, HsmKeyName, KeyId, KeyRef};
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
        let name = alias_name("alias_name", &asked.alias_name)?
            .ok_or_else(|| status::field_reason("alias_name", "INVALID_ALIAS_NAME", "is required"))?;
        let target: KeyRef = match asked.target_key_id.as_str() {
            alias if alias.starts_with("alias/") || alias.contains(":alias/") => {
                return Err(status::field("target_key_id", "is a key id or key ARN, not an alias"));
            }
            hsm if HsmKeyName::is_meant_by(hsm) => {
                return Err(status::field("target_key_id", "is a key store's key: hsm: keys have no aliases"));
            }
            id => convert::parse("target_key_id", id)?,
        };
        let record = self.0.0.keys.create_alias(permit, name, &target).await.map_err(status::key)?;
        let arn = self.0.0.keys.alias_arn(&record).await.map_err(status::key)?;
        Ok(Response::new(pb::CreateAliasResponse { alias: Some(tell::alias(&record, arn)) }))
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
        let key = if asked.key_id.is_empty() { None } else { Some(convert::key_ref(&asked.key_id)?) };
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
