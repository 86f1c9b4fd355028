//! Another HSM for a cluster.

use crate::authz::{Permit, action};
use crate::host::Location;
use crate::model::{CertificateRequest, ClusterId, HsmId, HsmPlace, HsmState, SubnetId, Username, Zone, with_causes};
use crate::pki::{Holder, PkiError, PrivateKey, Purpose};
use crate::records::{self, MadeClusterRecord, MadeHsm};

use super::{Error, MadeClusters};

/// As many as AWS allows in a cluster.
const MOST_HSMS: usize = 28;

/// What somebody gives to add an HSM.
#[derive(Debug)]
pub struct NewHsm {
    pub whereabouts: Whereabouts,
    /// What it is to be called.
    pub id: Option<HsmId>,
    pub place: HsmPlace,
}

/// Where in its cluster an HSM is to be.
#[derive(Debug)]
pub enum Whereabouts {
    Subnet(SubnetId),
    /// In the cluster's first subnet there.
    Zone(Zone),
}

/// An HSM that was added.
#[derive(Debug)]
pub struct AddedHsm {
    pub id: HsmId,
    /// Crypto users of the cluster who are not on it: nobody knows their passwords any more.
    pub missing: Vec<Username>,
}

impl MadeClusters {
    /// Adds an HSM and brings it into use, now or, when it cannot be reached yet, later. One that was added before under the
    /// same id and in the same place is that one.
    pub async fn add_hsm(
        &self,
        _permit: Permit<action::AddHsm>,
        cluster: &ClusterId,
        new: NewHsm,
    ) -> Result<AddedHsm, Error> {
        let (this, cluster) = (self.clone(), cluster.clone());
        self.outlive(async move { this.add_now(&cluster, new).await }).await
    }

    async fn add_now(&self, id: &ClusterId, new: NewHsm) -> Result<AddedHsm, Error> {
        let (_, record) = self.made(id).await?;
        let subnet = subnet(&record, &new.whereabouts)?;
        self.is_free(&new.place)?;
        let hsm = new.id.unwrap_or_else(HsmId::random);
        let added = MadeHsm { subnet, state: HsmState::CreateInProgress, place: new.place };
        let request = request(id)?;
        {
            // A user who is made now is made on this one as well.
            let _turn = self.0.users.turn(id).await;
            match self.0.records.add_made_hsm(id, &hsm, &added, &request, MOST_HSMS).await? {
                records::AddedHsm::Added => {}
                records::AddedHsm::Exists(MadeHsm {
                    state: state @ (HsmState::DeleteInProgress | HsmState::Deleted),
                    ..
                }) => return Err(Error::IsGoing { hsm, state }),
                records::AddedHsm::Exists(twin) if twin == (MadeHsm { state: twin.state, ..added }) => {}
                records::AddedHsm::Exists(_) => return Err(Error::HsmExists { cluster: id.clone(), hsm }),
                records::AddedHsm::AddressTaken(cluster, hsm) => return Err(Error::AddressTaken { cluster, hsm }),
                records::AddedHsm::Full => return Err(Error::TooManyHsms(MOST_HSMS)),
                records::AddedHsm::NoCluster => return Err(Error::ClusterNotFound(id.clone())),
            }
            // What cannot be declared now is declared by whoever settles it.
            self.begin_to_settle(id, &hsm);
            self.0.key_stores.redeclare_made().await?;
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-written-down");
        // It is no matter what came of it: what could not be done now is done later.
        let _ = self.settle(id, &hsm).wait_for(|tried| *tried).await;
        let missing = self.missing_on(id, &hsm).await?;
        Ok(AddedHsm { id: hsm, missing })
    }

    /// No HSM that the operator declares is behind this address. Of those that keyway added the records know.
    fn is_free(&self, place: &HsmPlace) -> Result<(), Error> {
        let HsmPlace::There { address, ports } = place else { return Ok(()) };
        if !self.0.host.has_identity() {
            return Err(Error::NoNodeClient);
        }
        for (cluster, settings) in &*self.0.key_stores.declared().all() {
            let is_behind_it = |location: &Location| match location {
                Location::Here(_) => false,
                Location::There(node) => node.address == *address && node.ports.sessions == ports.sessions,
            };
            let configured = settings.made().is_none();
            let taken = settings.nodes.iter().find(|(_, node)| configured && is_behind_it(&node.location));
            if let Some((hsm, _)) = taken {
                return Err(Error::AddressTaken { cluster: cluster.clone(), hsm: hsm.clone() });
            }
        }
        Ok(())
    }

    /// Users of the cluster who neither are on the HSM nor will be.
    async fn missing_on(&self, id: &ClusterId, hsm: &HsmId) -> Result<Vec<Username>, Error> {
        let users = self.0.records.crypto_users(id).await?.into_iter();
        let of_a_store = |user: &Username| *user == Username::kmsuser() && self.0.key_stores.on_cluster(id).is_some();
        let missing = users.filter(|user| !user.hsms.contains_key(hsm) && !of_a_store(&user.username));
        Ok(missing.map(|user| user.username).collect())
    }
}

fn subnet(record: &MadeClusterRecord, wanted: &Whereabouts) -> Result<SubnetId, Error> {
    let subnets = &record.subnets;
    match wanted {
        Whereabouts::Subnet(subnet) if subnets.contains_key(subnet) => Ok(subnet.clone()),
        Whereabouts::Subnet(subnet) => Err(Error::SubnetNotFound {
            cluster: record.id.clone(),
            subnet: subnet.clone(),
            subnets: subnets.keys().cloned().collect(),
        }),
        Whereabouts::Zone(zone) => {
            let found = subnets.iter().find(|(_, of)| *of == zone).map(|(subnet, _)| subnet.clone());
            found.ok_or_else(|| Error::ZoneNotFound {
                cluster: record.id.clone(),
                zone: zone.clone(),
                zones: subnets.values().cloned().collect(),
            })
        }
    }
}

/// The key goes at once: nobody shows the cluster's certificate in a handshake. What it says is whose the cluster is.
fn request(cluster: &ClusterId) -> Result<CertificateRequest, Error> {
    let refused = |why: &PkiError| Error::NoRequest(with_causes(why));
    let name = cluster.as_str().parse().expect("a cluster's id is a common name");
    let holder = Holder { name, alternatives: Vec::new() };
    let key = PrivateKey::generate().map_err(|why| refused(&why))?;
    let pem = key.request(&holder, Purpose::Cluster).map_err(|why| refused(&why))?;
    CertificateRequest::parse(&pem).map_err(|why| Error::NoRequest(why.to_string()))
}
