//! The calls of `ClusterService` that make clusters, initialize them, add HSMs and remove them.

use std::collections::BTreeMap;

use tonic::Status;

use crate::authz::{Permit, action};
use crate::making::{AddedHsm, Certificate, NewCluster, NewHsm, Whereabouts};
use crate::model::{self, ClusterId, HsmId, HsmPlace, Ports, SubnetId, Username, Zone};
use crate::proto::v1 as pb;

use super::{Faces, convert, status, topology};

const MOST_SUBNETS: usize = 10;

pub(super) async fn create(
    faces: &Faces,
    permit: Permit<action::CreateCluster>,
    asked: pb::CreateClusterRequest,
) -> Result<pb::CreateClusterResponse, Status> {
    let new = NewCluster {
        subnets: subnets(&asked.subnets)?,
        region: convert::parse_optional("region", &asked.region)?,
        account: convert::parse_optional("account", &asked.account)?,
        request_id: convert::request_id(&asked.request_id)?,
    };
    let made = faces.0.made_clusters.create(permit, new).await.map_err(status::making)?;
    Ok(pb::CreateClusterResponse { cluster: told(faces, &made) })
}

pub(super) async fn initialize(
    faces: &Faces,
    permit: Permit<action::InitializeCluster>,
    asked: pb::InitializeClusterRequest,
) -> Result<pb::InitializeClusterResponse, Status> {
    let id: ClusterId = convert::parse("cluster_id", &asked.cluster_id)?;
    let refused = |which: Certificate, why: String| status::field(which.field(), why);
    let signed = model::Certificate::parse(&asked.signed_certificate)
        .map_err(|rule| refused(Certificate::Signed, rule.to_string()))?;
    let anchor =
        convert::trust_anchor(&asked.trust_anchor_certificate).map_err(|why| refused(Certificate::TrustAnchor, why))?;
    faces.0.made_clusters.initialize(permit, &id, signed, anchor).await.map_err(status::making)?;
    Ok(pb::InitializeClusterResponse { cluster: told(faces, &id) })
}

pub(super) async fn add_hsm(
    faces: &Faces,
    permit: Permit<action::AddHsm>,
    asked: pb::AddHsmRequest,
) -> Result<pb::AddHsmResponse, Status> {
    let cluster: ClusterId = convert::parse("cluster_id", &asked.cluster_id)?;
    let new = NewHsm {
        whereabouts: whereabouts(&asked)?,
        id: convert::parse_optional("hsm_id", &asked.hsm_id)?,
        place: place(&asked)?,
    };
    if let (None, HsmPlace::There { .. }) = (&new.id, &new.place) {
        return Err(status::field("hsm_id", "is required with an address: give the one in its node.toml"));
    }
    let AddedHsm { id, missing } =
        faces.0.made_clusters.add_hsm(permit, &cluster, new).await.map_err(status::making)?;
    Ok(pb::AddHsmResponse {
        hsm: topology::hsm(faces, &cluster, &id),
        missing_usernames: missing.iter().map(Username::to_string).collect(),
    })
}

pub(super) async fn remove_hsm(
    faces: &Faces,
    permit: Permit<action::RemoveHsm>,
    asked: pb::RemoveHsmRequest,
) -> Result<pb::RemoveHsmResponse, Status> {
    let cluster: ClusterId = convert::parse("cluster_id", &asked.cluster_id)?;
    let hsm: HsmId = convert::parse("hsm_id", &asked.hsm_id)?;
    faces.0.made_clusters.remove_hsm(permit, &cluster, &hsm).await.map_err(status::making)?;
    Ok(pb::RemoveHsmResponse { hsm: topology::hsm(faces, &cluster, &hsm) })
}

fn told(faces: &Faces, id: &ClusterId) -> Option<pb::Cluster> {
    let settings = faces.0.clusters.get(id)?;
    Some(topology::cluster(faces, id, &settings))
}

fn subnets(asked: &[pb::NewSubnet]) -> Result<BTreeMap<SubnetId, Zone>, Status> {
    if asked.is_empty() || asked.len() > MOST_SUBNETS {
        return Err(status::field("subnets", format!("are 1 to {MOST_SUBNETS}, not {}", asked.len())));
    }
    let mut subnets = BTreeMap::new();
    for (index, subnet) in asked.iter().enumerate() {
        let field = format!("subnets[{index}].subnet_id");
        let id: SubnetId = convert::parse(&field, &subnet.subnet_id)?;
        let zone = convert::parse(&format!("subnets[{index}].availability_zone"), &subnet.availability_zone)?;
        if subnets.insert(id, zone).is_some() {
            return Err(status::field(&field, "stands there twice: name each subnet once"));
        }
    }
    Ok(subnets)
}

fn whereabouts(asked: &pb::AddHsmRequest) -> Result<Whereabouts, Status> {
    match (asked.subnet_id.as_str(), asked.availability_zone.as_str()) {
        ("", "") => Err(status::field("subnet_id", "or availability_zone is required")),
        ("", zone) => Ok(Whereabouts::Zone(convert::parse("availability_zone", zone)?)),
        (subnet, "") => Ok(Whereabouts::Subnet(convert::parse("subnet_id", subnet)?)),
        (_, _) => Err(status::field("availability_zone", "is the subnet's: leave it empty, or subnet_id")),
    }
}

fn place(asked: &pb::AddHsmRequest) -> Result<HsmPlace, Status> {
    let ports = [
        ("session_port", asked.session_port, Ports::USUAL.sessions),
        ("identity_port", asked.identity_port, Ports::USUAL.identity),
        ("administration_port", asked.administration_port, Ports::USUAL.administration),
    ];
    if asked.address.is_empty() {
        return match ports.iter().find(|(_, port, _)| *port != 0) {
            Some((field, _, _)) => Err(status::field(field, "goes with an address: leave it out, or give one")),
            None => Ok(HsmPlace::Here),
        };
    }
    let address = convert::parse("address", &asked.address)?;
    let [sessions, identity, administration] = ports.map(|(field, port, usual)| match u16::try_from(port) {
        Ok(0) => Ok(usual),
        Ok(port) => Ok(port),
        Err(_) => Err(status::field(field, format!("is 1 to 65535, or 0 for {usual}, not {port}"))),
    });
    let ports = Ports { sessions: sessions?, identity: identity?, administration: administration? };
    Ok(HsmPlace::There { address, ports })
}
