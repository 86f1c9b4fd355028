//! `ClusterService`.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::authz::action;
use crate::clock;
use crate::cluster as clusters;
use crate::cluster::Connection;
use crate::keystore::{Logins, prerequisites};
use crate::model::{ClusterId, HsmId};
use crate::node::Health;
use crate::proto::v1 as pb;
use crate::proto::v1::cluster_service_server::ClusterService;

use super::key_store::next_move;
use super::{Faces, convert, drift, status, tell};

/// Messages of a stream that wait for a slow reader.
const STREAM_DEPTH: usize = 16;

#[derive(Clone)]
pub(super) struct Service(pub(super) Faces);

impl Service {
    fn told(&self, id: &ClusterId, settings: &clusters::Settings) -> pb::Cluster {
        let store = self.0.0.key_stores.on_cluster(id);
        let connection = store.as_ref().and_then(|store| store.nodes().borrow().clone());
        let ineligible = prerequisites::to_create(settings).err().map(|unmet| unmet.to_string());
        pb::Cluster {
            cluster_id: id.to_string(),
            state: pb::ClusterState::Active.into(),
            account: settings.account.to_string(),
            region: settings.region.to_string(),
            certificate: settings.trust_anchor.clone(),
            sync_mode: pb::SyncMode::Wrap.into(),
            subnets: settings.subnets.iter().map(subnet).collect(),
            hsms: settings.nodes.iter().map(|(hsm, node)| self.hsm(id, hsm, node, connection.as_deref())).collect(),
            profile: settings.profile.as_str().to_owned(),
            password_rotation: password_rotation(&settings.rotation.strategy).into(),
            trust_anchor_required: true,
            key_specs: vec![pb::KeySpec::SymmetricDefault.into()],
            ineligible_reason: match (&store, ineligible) {
                (Some(store), _) => format!("tied to key store {}", store.id()),
                (None, Some(unmet)) => unmet,
                (None, None) => String::new(),
            },
            key_store_id: store.map(|store| store.id().to_string()).unwrap_or_default(),
            min_hsms_to_create: 2,
            ..Default::default()
        }
    }

    fn hsm(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        settings: &clusters::NodeSettings,
        connection: Option<&Connection>,
    ) -> pb::Hsm {
        let member = connection.and_then(|connection| connection.member(hsm));
        match (member, self.0.0.key_stores.drained(cluster, hsm)) {
            (Some(member), _) => tell::hsm(hsm, settings, member),
            (None, Some(note)) => tell::hsm_at_rest(hsm, settings, Health::Drained, note),
            (None, None) => tell::hsm_looked_at(hsm, settings, self.0.0.key_stores.reach(cluster, hsm)),
        }
    }

    /// One HSM as it is now.
    fn told_hsm(&self, cluster: &ClusterId, hsm: &HsmId) -> Option<pb::Hsm> {
        let settings = self.0.0.clusters.get(cluster)?.nodes.get(hsm)?;
        let store = self.0.0.key_stores.on_cluster(cluster);
        let connection = store.and_then(|store| store.nodes().borrow().clone());
        Some(self.hsm(cluster, hsm, settings, connection.as_deref()))
    }

    fn cluster(&self, field: &str, id: &str) -> Result<(ClusterId, &clusters::Settings), Status> {
        let parsed: ClusterId = convert::parse(field, id)?;
        match self.0.0.clusters.get(&parsed) {
            Some(settings) => Ok((parsed, settings)),
            None => Err(status::cluster_not_found(id)),
        }
    }
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
        let mut clusters: Vec<(ClusterId, &clusters::Settings)> = Vec::new();
        for id in &asked.cluster_ids {
            clusters.push(self.cluster("cluster_ids", id)?);
        }
        if asked.cluster_ids.is_empty() {
            clusters.extend(self.0.0.clusters.iter().map(|(id, settings)| (id.clone(), settings)));
        }
        clusters.retain(|(id, _)| after.as_ref().is_none_or(|after| id > after));
        let more = clusters.len() > limit;
        clusters.truncate(limit);
        let next_page_token = match clusters.last() {
            Some((last, _)) if more => convert::next_page_token(last),
            Some(_) | None => String::new(),
        };
        let clusters = clusters.into_iter().map(|(id, settings)| self.told(&id, settings)).collect();
        Ok(Response::new(pb::DescribeClustersResponse { clusters, next_page_token }))
    }

    async fn drain_hsm(&self, request: Request<pb::DrainHsmRequest>) -> Result<Response<pb::DrainHsmResponse>, Status> {
        let permit = self.0.permit::<action::DrainHsm, _>(&request)?;
        let asked = request.into_inner();
        let (cluster, _) = self.cluster("cluster_id", &asked.cluster_id)?;
        let hsm = convert::parse("hsm_id", &asked.hsm_id)?;
        let note = convert::note(asked.note)?;
        let limit = convert::drain_timeout(asked.drain_timeout)?;
        let key_stores = &self.0.0.key_stores;
        key_stores.drain_hsm(permit, &cluster, &hsm, note, limit).await.map_err(status::key_store)?;
        Ok(Response::new(pb::DrainHsmResponse { hsm: self.told_hsm(&cluster, &hsm) }))
    }

    async fn resume_hsm(
        &self,
        request: Request<pb::ResumeHsmRequest>,
    ) -> Result<Response<pb::ResumeHsmResponse>, Status> {
        let permit = self.0.permit::<action::ResumeHsm, _>(&request)?;
        let asked = request.into_inner();
        let (cluster, _) = self.cluster("cluster_id", &asked.cluster_id)?;
        let hsm = convert::parse("hsm_id", &asked.hsm_id)?;
        let logins = if asked.allow_one_login { Logins::AllowOne } else { Logins::AsBefore };
        let key_stores = &self.0.0.key_stores;
        key_stores.resume_hsm(permit, &cluster, &hsm, logins).await.map_err(status::key_store)?;
        Ok(Response::new(pb::ResumeHsmResponse { hsm: self.told_hsm(&cluster, &hsm) }))
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
}

/// Tells the cluster now and after each change of a node, with what changed, until the daemon drains or nobody reads.
async fn watch(service: Service, id: ClusterId, told: mpsc::Sender<Result<pb::WatchClusterResponse, Status>>) {
    let faces = &service.0.0;
    let Some(settings) = faces.clusters.get(&id) else {
        return;
    };
    let mut draining = faces.draining.clone();
    let mut listed = faces.key_stores.listed();
    let mut reached = faces.key_stores.reached();
    let mut before: Option<pb::Cluster> = None;
    loop {
        listed.borrow_and_update();
        reached.borrow_and_update();
        let mut nodes = faces.key_stores.on_cluster(&id).map(|store| store.nodes());
        let connection = nodes.as_mut().and_then(|nodes| nodes.borrow_and_update().clone());
        let moved = next_move(connection.as_deref());
        let cluster = service.told(&id, settings);
        let changes = before.as_ref().map(|before| health_changes(before, &cluster)).unwrap_or_default();
        let tied = |cluster: &pb::Cluster| (cluster.key_store_id.clone(), cluster.ineligible_reason.clone());
        if !changes.is_empty() || before.as_ref().is_none_or(|before| tied(before) != tied(&cluster)) {
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
            _ = draining.wait_for(|draining| *draining) => return,
            () = told.closed() => return,
            _ = listed.changed() => {}
            _ = reached.changed() => {}
            () = reconnected => {}
            () = moved => {}
        }
    }
}

fn health_changes(before: &pb::Cluster, after: &pb::Cluster) -> Vec<pb::HealthChange> {
    let pairs = before.hsms.iter().zip(&after.hsms);
    pairs
        .filter(|(before, after)| before.health != after.health)
        .map(|(before, after)| pb::HealthChange {
            hsm_id: after.hsm_id.clone(),
            before: before.health,
            after: after.health,
            reason: after.health_reason.clone(),
        })
        .collect()
}

const fn password_rotation(strategy: &clusters::Strategy) -> pb::PasswordRotation {
    match strategy {
        clusters::Strategy::None => pb::PasswordRotation::None,
        clusters::Strategy::SetPin => pb::PasswordRotation::SetPin,
        clusters::Strategy::Command(_) => pb::PasswordRotation::Command,
    }
}

fn subnet((id, subnet): (&clusters::SubnetId, &clusters::SubnetSettings)) -> pb::Subnet {
    pb::Subnet {
        subnet_id: id.to_string(),
        availability_zone: subnet.zone.to_string(),
        present: true,
        ..Default::default()
    }
}
