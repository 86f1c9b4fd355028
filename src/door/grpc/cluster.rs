//! `ClusterService`.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::clock;
use crate::cluster::Settings;
use crate::keystore::{self, Logins};
use crate::model::ClusterId;
use crate::proto::v1 as pb;
use crate::proto::v1::cluster_service_server::ClusterService;

use super::key_store::next_move;
use super::{Faces, check, convert, drift, making, status, tell, topology};

/// Messages of a stream that wait for a slow reader.
const STREAM_DEPTH: usize = 16;

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

impl Service {
    fn told(&self, id: &ClusterId, settings: &Settings) -> pb::Cluster {
        topology::cluster(&self.0, id, settings)
    }

    fn cluster(&self, field: &str, id: &str) -> Result<(ClusterId, Arc<Settings>), Status> {
        let parsed: ClusterId = convert::parse(field, id)?;
        match self.0.0.clusters.get(&parsed) {
            Some(settings) => Ok((parsed, settings)),
            None => Err(status::key_store(keystore::Error::ClusterNotFound(parsed))),
        }
    }

    /// One that is declared, or whose HSMs serve a key store although it is not declared any more.
    fn cluster_in_service(&self, field: &str, id: &str) -> Result<ClusterId, Status> {
        let parsed: ClusterId = convert::parse(field, id)?;
        let serves = || {
            let store = self.0.0.key_stores.on_cluster(&parsed);
            store.is_some_and(|store| store.nodes().borrow().is_some())
        };
        if self.0.0.clusters.get(&parsed).is_some() || serves() {
            Ok(parsed)
        } else {
            Err(status::key_store(keystore::Error::ClusterNotFound(parsed)))
        }
    }
}

/// What was begun goes on when its caller has waited long enough.
async fn in_time<T>(
    deadline: tokio::time::Instant,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let done = tokio::time::timeout_at(deadline, work).await;
    done.unwrap_or_else(|_| Err(status::late())).map(Response::new)
}

#[tonic::async_trait]
impl ClusterService for Service {
    async fn describe_clusters(
        &self,
        request: Request<pb::DescribeClustersRequest>,
    ) -> Result<Response<pb::DescribeClustersResponse>, Status> {
        let _permit = self.0.permit::<action::DescribeClusters, _>(&request)?;
        let asked = request.into_inner();
        let limit = convert::page_size(asked.page_size)? as usize;
        let after = convert::page_token::<ClusterId>(&asked.page_token)?;
        let mut clusters: Vec<(ClusterId, Arc<Settings>)> = Vec::new();
        for id in &asked.cluster_ids {
            clusters.push(self.cluster("cluster_ids", id)?);
        }
        if asked.cluster_ids.is_empty() {
            let all = self.0.0.clusters.all();
            clusters.extend(all.iter().map(|(id, settings)| (id.clone(), settings.clone())));
        }
        // Pages go by the id, whatever order was asked in.
        clusters.sort_by(|(one, _), (other, _)| one.cmp(other));
        clusters.dedup_by(|(one, _), (other, _)| one == other);
        clusters.retain(|(id, _)| after.as_ref().is_none_or(|after| id > after));
        let more = clusters.len() > limit;
        clusters.truncate(limit);
        let next_page_token = match clusters.last() {
            Some((last, _)) if more => convert::next_page_token(last),
            Some(_) | None => String::new(),
        };
        let clusters = clusters.into_iter().map(|(id, settings)| self.told(&id, &settings)).collect();
        Ok(Response::new(pb::DescribeClustersResponse { clusters, next_page_token }))
    }

    async fn drain_hsm(&self, request: Request<pb::DrainHsmRequest>) -> Result<Response<pb::DrainHsmResponse>, Status> {
        let permit = self.0.permit::<action::DrainHsm, _>(&request)?;
        let asked = request.into_inner();
        let cluster = self.cluster_in_service("cluster_id", &asked.cluster_id)?;
        let hsm = convert::parse("hsm_id", &asked.hsm_id)?;
        let note = convert::note(asked.note)?;
        let limit = convert::drain_timeout(asked.drain_timeout)?;
        let key_stores = &self.0.0.key_stores;
        key_stores.drain_hsm(permit, &cluster, &hsm, note, limit).await.map_err(status::key_store)?;
        Ok(Response::new(pb::DrainHsmResponse { hsm: topology::hsm(&self.0, &cluster, &hsm) }))
    }

    async fn resume_hsm(
        &self,
        request: Request<pb::ResumeHsmRequest>,
    ) -> Result<Response<pb::ResumeHsmResponse>, Status> {
        let permit = self.0.permit::<action::ResumeHsm, _>(&request)?;
        let asked = request.into_inner();
        let cluster = self.cluster_in_service("cluster_id", &asked.cluster_id)?;
        let hsm = convert::parse("hsm_id", &asked.hsm_id)?;
        let logins = if asked.allow_one_login { Logins::AllowOne } else { Logins::AsBefore };
        let key_stores = &self.0.0.key_stores;
        key_stores.resume_hsm(permit, &cluster, &hsm, logins).await.map_err(status::key_store)?;
        Ok(Response::new(pb::ResumeHsmResponse { hsm: topology::hsm(&self.0, &cluster, &hsm) }))
    }

    async fn check_cluster(
        &self,
        request: Request<pb::CheckClusterRequest>,
    ) -> Result<Response<pb::CheckClusterResponse>, Status> {
        let permit = self.0.permit::<action::CheckCluster, _>(&request)?;
        let deadline = super::deadline(&request);
        let asked = request.into_inner();
        let (cluster, _) = self.cluster("cluster_id", &asked.cluster_id)?;
        in_time(deadline, check::check(&self.0, permit, &cluster, asked)).await
    }

    async fn watch_cluster(
        &self,
        request: Request<pb::WatchClusterRequest>,
    ) -> Result<Response<BoxStream<pb::WatchClusterResponse>>, Status> {
        let _permit = self.0.permit::<action::WatchCluster, _>(&request)?;
        let (id, _) = self.cluster("cluster_id", &request.get_ref().cluster_id)?;
        let (told, stream) = mpsc::channel(STREAM_DEPTH);
        tokio::spawn(watch(self.clone(), id, told));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_drift(
        &self,
        request: Request<pb::ListDriftRequest>,
    ) -> Result<Response<pb::ListDriftResponse>, Status> {
        let permit = self.0.permit::<action::ListDrift, _>(&request)?;
        let (id, _) = self.cluster("cluster_id", &request.get_ref().cluster_id)?;
        drift::list(&self.0, permit, &id, request.get_ref()).await.map(Response::new)
    }

    async fn sync_cluster(
        &self,
        request: Request<pb::SyncClusterRequest>,
    ) -> Result<Response<BoxStream<pb::SyncClusterResponse>>, Status> {
        let permit = self.0.permit::<action::SyncCluster, _>(&request)?;
        let (id, _) = self.cluster("cluster_id", &request.get_ref().cluster_id)?;
        let news = drift::sync(&self.0, permit, id, request.get_ref()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(news))))
    }

    async fn create_cluster(
        &self,
        request: Request<pb::CreateClusterRequest>,
    ) -> Result<Response<pb::CreateClusterResponse>, Status> {
        let permit = self.0.permit::<action::CreateCluster, _>(&request)?;
        let deadline = super::deadline(&request);
        in_time(deadline, making::create(&self.0, permit, request.into_inner())).await
    }

    async fn initialize_cluster(
        &self,
        request: Request<pb::InitializeClusterRequest>,
    ) -> Result<Response<pb::InitializeClusterResponse>, Status> {
        let permit = self.0.permit::<action::InitializeCluster, _>(&request)?;
        let deadline = super::deadline(&request);
        in_time(deadline, making::initialize(&self.0, permit, request.into_inner())).await
    }

    async fn add_hsm(&self, request: Request<pb::AddHsmRequest>) -> Result<Response<pb::AddHsmResponse>, Status> {
        let permit = self.0.permit::<action::AddHsm, _>(&request)?;
        let deadline = super::deadline(&request);
        in_time(deadline, making::add_hsm(&self.0, permit, request.into_inner())).await
    }

    async fn remove_hsm(
        &self,
        request: Request<pb::RemoveHsmRequest>,
    ) -> Result<Response<pb::RemoveHsmResponse>, Status> {
        let permit = self.0.permit::<action::RemoveHsm, _>(&request)?;
        let deadline = super::deadline(&request);
        in_time(deadline, making::remove_hsm(&self.0, permit, request.into_inner())).await
    }
}

/// Tells the cluster now and after each change of it or of an HSM, with what changed, until the daemon drains, the cluster
/// is declared no more, or nobody reads.
async fn watch(service: Service, id: ClusterId, told: mpsc::Sender<Result<pb::WatchClusterResponse, Status>>) {
    let faces = &service.0.0;
    let mut draining = faces.draining.clone();
    let mut exchanges = faces.clusters.exchanges();
    let mut listed = faces.key_stores.listed();
    let mut reached = faces.key_stores.reached();
    let mut before: Option<pb::Cluster> = None;
    loop {
        listed.borrow_and_update();
        reached.borrow_and_update();
        let Some(settings) = exchanges.borrow_and_update().get(&id).cloned() else {
            return;
        };
        let mut nodes = faces.key_stores.on_cluster(&id).map(|store| store.nodes());
        let connection = nodes.as_mut().and_then(|nodes| nodes.borrow_and_update().clone());
        let moved = next_move(connection.as_deref());
        let cluster = service.told(&id, &settings);
        let changes = before.as_ref().map(|before| health_changes(before, &cluster)).unwrap_or_default();
        if !changes.is_empty() || before.as_ref().is_none_or(|before| lasting(before) != lasting(&cluster)) {
            let message =
                pb::WatchClusterResponse { cluster: Some(cluster.clone()), changes, time: tell::time(clock::now()) };
            if told.send(Ok(message)).await.is_err() {
                return;
            }
        }
        before = Some(cluster);
        let reconnected = async {
            match &mut nodes {
                Some(nodes) => drop(nodes.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = draining.wait_for(|draining| *draining).map(drop) => {
                let _ = told.send(Err(status::draining())).await;
                return;
            }
            () = told.closed() => return,
            _ = exchanges.changed() => {}
            _ = listed.changed() => {}
            _ = reached.changed() => {}
            () = reconnected => {}
            () = moved => {}
        }
    }
}

/// The cluster without what is news of an HSM by itself, or changes all the time.
fn lasting(cluster: &pb::Cluster) -> pb::Cluster {
    let mut lasting = cluster.clone();
    lasting.key_specs.clear();
    for hsm in &mut lasting.hsms {
        *hsm = pb::Hsm {
            hsm_id: std::mem::take(&mut hsm.hsm_id),
            availability_zone: std::mem::take(&mut hsm.availability_zone),
            subnet_id: std::mem::take(&mut hsm.subnet_id),
            state: hsm.state,
            vendor_cluster: hsm.vendor_cluster,
            ..Default::default()
        };
    }
    lasting
}

/// The HSMs with another health, or with another note of the operator's.
fn health_changes(before: &pb::Cluster, after: &pb::Cluster) -> Vec<pb::HealthChange> {
    let noted_anew = |before: &pb::Hsm, after: &pb::Hsm| {
        after.health() == pb::HsmHealth::Drained && before.health_reason != after.health_reason
    };
    let pairs = after.hsms.iter().filter_map(|after| {
        let before = before.hsms.iter().find(|before| before.hsm_id == after.hsm_id)?;
        Some((before, after))
    });
    pairs
        .filter(|(before, after)| before.health != after.health || noted_anew(before, after))
        .map(|(before, after)| pb::HealthChange {
            hsm_id: after.hsm_id.clone(),
            before: before.health,
            after: after.health,
            reason: after.health_reason.clone(),
        })
        .collect()
}
