//! `KeyStoreService`.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::clock;
use crate::cluster::{Closing, Connection};
use crate::keystore::{Changes, NewKeyStore, Place, Selector, Store};
use crate::model::KeyStoreName;
use crate::proto::v1 as pb;
use crate::proto::v1::key_store_service_server::KeyStoreService;

use super::{Faces, convert, status, tell};

/// Messages of a stream that wait for a slow reader.
const STREAM_DEPTH: usize = 16;

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

impl Service {
    async fn told(&self, store: &Store) -> Result<pb::KeyStore, Status> {
        let keys = self.0.0.keys.count(&store.id()).await.map_err(status::key)?;
        let connection = store.nodes().borrow().clone();
        Ok(tell::key_store(&store.record(), connection.as_deref(), keys, &self.0.0.pages))
    }
}

#[tonic::async_trait]
impl KeyStoreService for Service {
    async fn create_key_store(
        &self,
        request: Request<pb::CreateKeyStoreRequest>,
    ) -> Result<Response<pb::CreateKeyStoreResponse>, Status> {
        let permit = self.0.permit::<action::CreateKeyStore, _>(&request)?;
        let asked = request.into_inner();
        let password = convert::key_store_password(asked.key_store_password)?;
        let new = NewKeyStore {
            name: convert::parse("key_store_name", &asked.key_store_name)?,
            cluster: convert::parse("cluster_id", &asked.cluster_id)?,
            password,
            trust_anchor: convert::trust_anchor(&asked.trust_anchor_certificate)
                .map_err(|why| status::field("trust_anchor_certificate", why))?,
        };
        let store = self.0.0.key_stores.create(permit, new).await.map_err(status::key_store)?;
        let key_store = Some(self.told(&store).await?);
        Ok(Response::new(pb::CreateKeyStoreResponse { key_store_id: store.id().to_string(), key_store }))
    }

    async fn describe_key_stores(
        &self,
        request: Request<pb::DescribeKeyStoresRequest>,
    ) -> Result<Response<pb::DescribeKeyStoresResponse>, Status> {
        let _permit = self.0.permit::<action::DescribeKeyStores, _>(&request)?;
        let asked = request.into_inner();
        let limit = convert::page_size(asked.page_size)? as usize;
        let after = convert::page_token::<Place>(&asked.page_token)?;
        use pb::describe_key_stores_request::Selector as Asked;
        let selector = match asked.selector {
            None => None,
            Some(Asked::KeyStoreId(id)) => Some(Selector::Id(convert::key_store_id(&id)?)),
            Some(Asked::KeyStoreName(name)) => {
                Some(Selector::Name(convert::parse::<KeyStoreName>("key_store_name", &name)?))
            }
        };
        let mut stores = match selector {
            None => self.0.0.key_stores.list(),
            Some(_) if after.is_some() => return Err(convert::strange_page_token()),
            Some(selector) => vec![self.0.0.key_stores.find(&selector).map_err(status::key_store)?],
        };
        stores.retain(|store| after.as_ref().is_none_or(|after| store.place() > *after));
        let more = stores.len() > limit;
        stores.truncate(limit);
        let next_page_token = match stores.last() {
            Some(last) if more => convert::next_page_token(last.place()),
            Some(_) | None => String::new(),
        };
        let mut key_stores = Vec::new();
        for store in &stores {
            key_stores.push(self.told(store).await?);
        }
        Ok(Response::new(pb::DescribeKeyStoresResponse { key_stores, next_page_token }))
    }

    async fn update_key_store(
        &self,
        request: Request<pb::UpdateKeyStoreRequest>,
    ) -> Result<Response<pb::UpdateKeyStoreResponse>, Status> {
        let permit = self.0.permit::<action::UpdateKeyStore, _>(&request)?;
        let asked = request.into_inner();
        let id = convert::key_store_id(&asked.key_store_id)?;
        let changes = Changes {
            name: convert::parse_given("new_key_store_name", asked.new_key_store_name.as_deref())?,
            password: asked.key_store_password.map(convert::key_store_password).transpose()?,
            cluster: convert::parse_given("cluster_id", asked.cluster_id.as_deref())?,
        };
        if changes.is_empty() {
            return Err(status::field("new_key_store_name", "or key_store_password or cluster_id is required"));
        }
        let store = self.0.0.key_stores.update(permit, &id, changes).await.map_err(status::key_store)?;
        Ok(Response::new(pb::UpdateKeyStoreResponse { key_store: Some(self.told(&store).await?) }))
    }

    async fn delete_key_store(
        &self,
        request: Request<pb::DeleteKeyStoreRequest>,
    ) -> Result<Response<pb::DeleteKeyStoreResponse>, Status> {
        let permit = self.0.permit::<action::DeleteKeyStore, _>(&request)?;
        let id = convert::key_store_id(&request.get_ref().key_store_id)?;
        self.0.0.key_stores.delete(permit, &id).await.map_err(status::key_store)?;
        Ok(Response::new(pb::DeleteKeyStoreResponse {}))
    }

    async fn connect_key_store(
        &self,
        request: Request<pb::ConnectKeyStoreRequest>,
    ) -> Result<Response<pb::ConnectKeyStoreResponse>, Status> {
        let permit = self.0.permit::<action::ConnectKeyStore, _>(&request)?;
        let id = convert::key_store_id(&request.get_ref().key_store_id)?;
        let store = self.0.0.key_stores.connect(permit, &id).await.map_err(status::key_store)?;
        Ok(Response::new(pb::ConnectKeyStoreResponse { key_store: Some(self.told(&store).await?) }))
    }

    async fn disconnect_key_store(
        &self,
        request: Request<pb::DisconnectKeyStoreRequest>,
    ) -> Result<Response<pb::DisconnectKeyStoreResponse>, Status> {
        let permit = self.0.permit::<action::DisconnectKeyStore, _>(&request)?;
        let asked = request.into_inner();
        let id = convert::key_store_id(&asked.key_store_id)?;
        let patience = convert::drain_timeout(asked.drain_timeout)?;
        let closing = if patience.is_zero() { Closing::Now } else { Closing::Drain(patience) };
        let store = self.0.0.key_stores.disconnect(permit, &id, closing).await.map_err(status::key_store)?;
        Ok(Response::new(pb::DisconnectKeyStoreResponse { key_store: Some(self.told(&store).await?) }))
    }

    async fn watch_key_store(
        &self,
        request: Request<pb::WatchKeyStoreRequest>,
    ) -> Result<Response<BoxStream<pb::WatchKeyStoreResponse>>, Status> {
        let _permit = self.0.permit::<action::WatchKeyStore, _>(&request)?;
        let id = convert::key_store_id(&request.get_ref().key_store_id)?;
        let store = self.0.0.key_stores.get(&id).map_err(status::key_store)?;
        let (told, stream) = mpsc::channel(STREAM_DEPTH);
        tokio::spawn(watch(self.clone(), store, told));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Tells the store now, and again after each change, until the daemon drains, the store is deleted, or nobody reads.
async fn watch(service: Service, store: Arc<Store>, told: mpsc::Sender<Result<pb::WatchKeyStoreResponse, Status>>) {
    let faces = &service.0.0;
    let mut record = store.record_changes();
    let mut nodes = store.nodes();
    let mut listed = faces.key_stores.listed();
    let mut draining = faces.draining.clone();
    loop {
        record.borrow_and_update();
        listed.borrow_and_update();
        if faces.key_stores.get(&store.id()).is_err() {
            return;
        }
        let connection = nodes.borrow_and_update().clone();
        let moved = next_move(connection.as_deref());
        let message = match service.told(&store).await {
            Ok(key_store) => Ok(pb::WatchKeyStoreResponse {
                key_store: Some(key_store),
                steps: tell::connect_steps(&store),
                time: tell::time(clock::now()),
            }),
            Err(status) => Err(status),
        };
        let broken = message.is_err();
        if told.send(message).await.is_err() || broken {
            return;
        }
        tokio::select! {
            () = draining.wait_for(|draining| *draining).map(drop) => {
                let _ = told.send(Err(status::draining())).await;
                return;
            }
            () = told.closed() => return,
            _ = record.changed() => {}
            _ = nodes.changed() => {}
            _ = listed.changed() => {}
            () = moved => {}
        }
    }
}

/// The Connection's next move. Never without one.
pub(super) fn next_move(connection: Option<&Connection>) -> impl Future<Output = ()> + Send + use<> {
    let moved = connection.map(Connection::next_move);
    async move {
        match moved {
            Some(moved) => moved.await,
            None => std::future::pending().await,
        }
    }
}
