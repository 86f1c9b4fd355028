//! Clusters that keyway makes: what the operator lays down for all of them, and what one is by that and by its record.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::host::{HsmHome, Location, RemoteNode};
use crate::link::Patience;
use crate::model::{ClusterId, HsmId, HsmPlace, HsmState, Realm, SubnetId, Zone};
use crate::records::{MadeClusterRecord, MadeHsm};

use super::Rotation;
use super::settings::{MadeCluster, NodeSettings, Origin, Profile, Settings, SubnetSettings, SyncMode};

/// What holds for every cluster that keyway makes. Whoever asks for one says nothing of this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeSettings {
    /// Where one is that nobody asked to be elsewhere.
    pub realm: Realm,
    /// How many there may be.
    pub quota: u32,
    /// What the first one is called, where its maker wants to know that before; others go by random ids.
    pub first: Option<ClusterId>,
    /// SoftHSM2's library, for HSMs on this machine.
    pub module: PathBuf,
    /// Where those HSMs are: a directory for each cluster, and in it one for each HSM.
    pub directory: PathBuf,
    pub rotation: Rotation,
    pub min_hsms_to_create: NonZeroU32,
    /// Of each HSM, as of a declared one.
    pub pool_size: NonZeroU32,
    pub queue_limit: NonZeroU32,
    pub patience: Patience,
    pub memory_limit: u64,
}

impl MadeSettings {
    /// A cluster as its record has it, like one that was declared.
    pub fn cluster(&self, record: MadeClusterRecord) -> Settings {
        let MadeClusterRecord { id, realm, state, request, initialized, subnets, hsms } = record;
        let (certificate, trust_anchor) = initialized.unzip();
        let zone = |subnet: &SubnetId| subnets.get(subnet).cloned();
        let mut made = MadeCluster { request, awaited: BTreeMap::new() };
        let mut nodes = BTreeMap::new();
        for (hsm, MadeHsm { subnet, state, place }) in hsms {
            // A subnet outlives its HSMs.
            let Some(zone) = zone(&subnet) else { continue };
            let location = match (place, &trust_anchor) {
                (HsmPlace::Here, _) => Location::Here(self.home(&id, &hsm).token(&self.module)),
                (HsmPlace::There { address, ports }, Some(anchor)) => {
                    Location::There(RemoteNode { address, ports, trust_anchor: anchor.clone(), manages_users: true })
                }
                (HsmPlace::There { .. }, None) => {
                    made.awaited.insert(hsm, (subnet, zone));
                    continue;
                }
            };
            nodes.insert(hsm, self.node((subnet, zone), state, location));
        }
        Settings {
            region: realm.region,
            account: realm.account,
            state,
            state_message: String::new(),
            certificate,
            trust_anchor,
            backup_lineage: None,
            sync: SyncMode::Wrap,
            profile: Profile::SoftHsm2,
            rotation: self.rotation.clone(),
            subnets: subnets.into_iter().map(|(id, zone)| (id, present(zone))).collect(),
            security_group: None,
            min_hsms_to_create: self.min_hsms_to_create,
            nodes,
            origin: Origin::Made(made),
        }
    }

    /// Where an HSM on this machine has its tokens.
    pub fn home(&self, cluster: &ClusterId, hsm: &HsmId) -> HsmHome {
        HsmHome::new(self.directory.join(cluster.as_str()).join(hsm.as_str()))
    }

    fn node(&self, (subnet, zone): (SubnetId, Zone), state: HsmState, location: Location) -> NodeSettings {
        NodeSettings {
            subnet: Some(subnet),
            zone,
            state,
            vendor_cluster: false,
            location,
            pool_size: self.pool_size,
            queue_limit: self.queue_limit,
            patience: self.patience,
            memory_limit: self.memory_limit,
        }
    }
}

fn present(zone: Zone) -> SubnetSettings {
    SubnetSettings { zone, free_addresses: None, present: true }
}
