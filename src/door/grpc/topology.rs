//! Clusters in messages: as they are declared, and how their HSMs do.

use crate::cluster as clusters;
use crate::cluster::{Connection, Strategy};
use crate::keystore::prerequisites;
use crate::model::{ClusterId, ClusterState, HsmId, HsmState, SubnetId};
use crate::node::Health;
use crate::proto::v1 as pb;
use crate::telemetry::{Page, catalogue};

use super::{Faces, kinds, tell};

/// A cluster as it is now.
pub(super) fn cluster(faces: &Faces, id: &ClusterId, settings: &clusters::Settings) -> pb::Cluster {
    let key_stores = &faces.0.key_stores;
    let store = key_stores.on_cluster(id);
    let connection = store.as_ref().and_then(|store| store.nodes().borrow().clone());
    let certificate = settings.certificate.as_ref();
    // Nothing is known of a cluster that nobody has logged in to.
    let key_specs = connection.as_ref().map(|connection| connection.key_specs()).unwrap_or_default();
    let key_specs = key_specs.into_iter().map(|spec| kinds::key_spec(spec).into()).collect();
    pb::Cluster {
        cluster_id: id.to_string(),
        state: cluster_state(settings.state).into(),
        state_message: settings.state_message.clone(),
        account: settings.account.to_string(),
        region: settings.region.to_string(),
        certificate: certificate.map(|it| it.pem().to_owned()).unwrap_or_default(),
        certificate_fingerprint: certificate.map(|it| it.fingerprint()).unwrap_or_default(),
        backup_lineage: settings.lineage(id).to_string(),
        sync_mode: match settings.sync {
            clusters::SyncMode::Wrap => pb::SyncMode::Wrap.into(),
        },
        subnets: settings.subnets.iter().map(subnet).collect(),
        security_group: settings.security_group.as_ref().map(security_group),
        hsms: settings
            .nodes
            .iter()
            .map(|(hsm, node)| of_cluster(faces, id, hsm, node, connection.as_deref()))
            .chain(settings.made().into_iter().flat_map(|made| awaited(faces, id, made)))
            .collect(),
        profile: settings.profile.as_str().to_owned(),
        password_rotation: password_rotation(&settings.rotation.strategy).into(),
        trust_anchor_required: settings.profile.requires_trust_anchor(),
        manages_users: settings.manages_users(),
        key_store_id: store.map(|store| store.id().to_string()).unwrap_or_default(),
        ineligible_reason: match prerequisites::to_create(&key_stores.facts(id)) {
            Ok(()) => String::new(),
            Err(refusal) => refusal.unmet.to_string(),
        },
        key_specs,
        min_hsms_to_create: i32::try_from(settings.min_hsms_to_create.get()).unwrap_or(i32::MAX),
        cluster_csr: match settings.made().and_then(|made| made.request.as_ref()) {
            Some(request) => request.pem().to_owned(),
            None => String::new(),
        },
    }
}

/// Puts the HSMs' health on the page, as it is told to callers. The clusters that there are.
pub(super) fn tell(faces: &Faces, page: &mut Page) -> Vec<ClusterId> {
    let states = HEALTH.map(health_name);
    let mut clusters = Vec::new();
    for (id, settings) in faces.0.clusters.all().iter() {
        for hsm in cluster(faces, id, settings).hsms {
            let labels = [id.as_str(), &hsm.hsm_id];
            page.state(
                &catalogue::HSM_HEALTH,
                |state| [id.as_str(), &hsm.hsm_id, &hsm.availability_zone, state].map(str::to_owned),
                &states,
                health_name(hsm.health()),
            );
            if let Some(proof) = hsm.last_proof_time {
                page.level(&catalogue::HSM_LAST_PROOF, labels, proof.seconds as f64 + f64::from(proof.nanos) / 1e9);
            }
        }
        let store = faces.0.key_stores.on_cluster(id);
        let connection = store.and_then(|store| store.nodes().borrow().clone());
        for member in connection.iter().flat_map(|connection| connection.members().to_vec()) {
            let left = f64::from(u8::from(member.node.status().borrow().may_log_in()));
            page.level(&catalogue::HSM_LOGIN_ATTEMPTS_LEFT, [id.as_str(), member.node.hsm().as_str()], left);
        }
        clusters.push(id.clone());
    }
    clusters
}

/// Every health that there is.
const HEALTH: [pb::HsmHealth; 8] = [
    pb::HsmHealth::Healthy,
    pb::HsmHealth::Syncing,
    pb::HsmHealth::Slow,
    pb::HsmHealth::NotProbed,
    pb::HsmHealth::Drained,
    pb::HsmHealth::Unreachable,
    pb::HsmHealth::LoginRefused,
    pb::HsmHealth::WrongIdentity,
];

/// Without what every name of the enum begins with.
fn health_name(health: pb::HsmHealth) -> &'static str {
    health.as_str_name().splitn(3, '_').last().unwrap_or_default()
}

/// One HSM as it is now; `None` when it is neither declared nor logged in to.
pub(super) fn hsm(faces: &Faces, cluster: &ClusterId, hsm: &HsmId) -> Option<pb::Hsm> {
    let key_stores = &faces.0.key_stores;
    let store = key_stores.on_cluster(cluster);
    let connection = store.and_then(|store| store.nodes().borrow().clone());
    let declared = key_stores.declared().get(cluster);
    let made = declared.as_ref().and_then(|declared| declared.made());
    if let Some(awaited) = made.and_then(|made| awaited(faces, cluster, made).find(|it| it.hsm_id == hsm.as_str())) {
        return Some(awaited);
    }
    match declared.as_ref().and_then(|cluster| cluster.nodes.get(hsm)) {
        Some(settings) => Some(of_cluster(faces, cluster, hsm, settings, connection.as_deref())),
        None => connection?.member(hsm).as_deref().map(tell::hsm_left_over),
    }
}

/// HSMs that nobody can ask yet who they are.
fn awaited<'a>(
    faces: &'a Faces,
    cluster: &'a ClusterId,
    made: &'a clusters::MadeCluster,
) -> impl Iterator<Item = pb::Hsm> + 'a {
    made.awaited.iter().map(|(hsm, (subnet, zone))| pb::Hsm {
        hsm_id: hsm.to_string(),
        availability_zone: zone.to_string(),
        subnet_id: subnet.to_string(),
        state: hsm_state(HsmState::CreateInProgress).into(),
        health: tell::health(Health::NotProbed).into(),
        health_reason: faces.0.made_clusters.hindrance(cluster, hsm).unwrap_or_default(),
        ..Default::default()
    })
}

fn of_cluster(
    faces: &Faces,
    cluster: &ClusterId,
    hsm: &HsmId,
    settings: &clusters::NodeSettings,
    connection: Option<&Connection>,
) -> pb::Hsm {
    let told = declared(faces, cluster, hsm, settings, connection);
    match faces.0.made_clusters.why_kept(cluster, hsm) {
        Some(why) if told.health_reason.is_empty() => pb::Hsm { health_reason: why, ..told },
        Some(_) | None => told,
    }
}

fn declared(
    faces: &Faces,
    cluster: &ClusterId,
    hsm: &HsmId,
    settings: &clusters::NodeSettings,
    connection: Option<&Connection>,
) -> pb::Hsm {
    let key_stores = &faces.0.key_stores;
    let member = connection.and_then(|connection| connection.member(hsm));
    match (member, key_stores.drained(cluster, hsm)) {
        (Some(member), _) => tell::hsm(hsm, settings, &member),
        (None, Some(note)) => tell::hsm_at_rest(hsm, settings, Health::Drained, note),
        (None, None) if settings.state != HsmState::Active => {
            let nobody_looks = || format!("it is {}, so that nobody looks at it", settings.state);
            let why = faces.0.made_clusters.hindrance(cluster, hsm).unwrap_or_else(nobody_looks);
            tell::hsm_at_rest(hsm, settings, Health::NotProbed, why)
        }
        (None, None) if connection.is_some() => {
            let why = "it is about to join the key store's nodes, which it does not while the key store is connecting"
                .to_owned();
            tell::hsm_at_rest(hsm, settings, Health::NotProbed, why)
        }
        (None, None) => tell::hsm_looked_at(hsm, settings, key_stores.reach(cluster, hsm)),
    }
}

fn subnet((id, subnet): (&SubnetId, &clusters::SubnetSettings)) -> pb::Subnet {
    pb::Subnet {
        subnet_id: id.to_string(),
        availability_zone: subnet.zone.to_string(),
        free_addresses: subnet.free_addresses.map_or(-1, |free| i32::try_from(free).unwrap_or(i32::MAX)),
        present: subnet.present,
    }
}

fn security_group(group: &clusters::SecurityGroup) -> pb::SecurityGroup {
    let rule = |rule: &clusters::SecurityGroupRule| pb::SecurityGroupRule {
        direction: match rule.direction {
            clusters::Direction::Ingress => pb::RuleDirection::Ingress.into(),
            clusters::Direction::Egress => pb::RuleDirection::Egress.into(),
        },
        protocol: rule.protocol.to_string(),
        from_port: rule.from_port.into(),
        to_port: rule.to_port.into(),
        peer_security_group_id: rule.peer.to_string(),
    };
    pb::SecurityGroup { security_group_id: group.id.to_string(), rules: group.rules.iter().map(rule).collect() }
}

const fn cluster_state(state: ClusterState) -> pb::ClusterState {
    match state {
        ClusterState::CreateInProgress => pb::ClusterState::CreateInProgress,
        ClusterState::Uninitialized => pb::ClusterState::Uninitialized,
        ClusterState::InitializeInProgress => pb::ClusterState::InitializeInProgress,
        ClusterState::Initialized => pb::ClusterState::Initialized,
        ClusterState::Active => pb::ClusterState::Active,
        ClusterState::UpdateInProgress => pb::ClusterState::UpdateInProgress,
        ClusterState::ModifyInProgress => pb::ClusterState::ModifyInProgress,
        ClusterState::RollbackInProgress => pb::ClusterState::RollbackInProgress,
        ClusterState::DeleteInProgress => pb::ClusterState::DeleteInProgress,
        ClusterState::Deleted => pb::ClusterState::Deleted,
        ClusterState::Degraded => pb::ClusterState::Degraded,
    }
}

pub(super) const fn hsm_state(state: HsmState) -> pb::HsmState {
    match state {
        HsmState::CreateInProgress => pb::HsmState::CreateInProgress,
        HsmState::Active => pb::HsmState::Active,
        HsmState::Degraded => pb::HsmState::Degraded,
        HsmState::DeleteInProgress => pb::HsmState::DeleteInProgress,
        HsmState::Deleted => pb::HsmState::Deleted,
    }
}

const fn password_rotation(strategy: &Strategy) -> pb::PasswordRotation {
    match strategy {
        Strategy::None => pb::PasswordRotation::None,
        Strategy::SetPin => pb::PasswordRotation::SetPin,
        Strategy::Command(_) => pb::PasswordRotation::Command,
    }
}
