//! A new cluster, without HSMs.

use std::collections::BTreeMap;

use crate::authz::{Permit, action};
use crate::clock;
use crate::model::{AccountId, ClusterId, Realm, Region, SubnetId, Zone};
use crate::records::{self, AddedCluster};

use super::{Error, MadeClusters};

/// What somebody gives to make a cluster.
#[derive(Debug)]
pub struct NewCluster {
    pub subnets: BTreeMap<SubnetId, Zone>,
    /// Where it is to be, unless where the operator has them.
    pub region: Option<Region>,
    pub account: Option<AccountId>,
    pub request_id: Option<String>,
}

impl MadeClusters {
    /// Makes a cluster, UNINITIALIZED; or finds the one that the same request made before.
    pub async fn create(&self, permit: Permit<action::CreateCluster>, new: NewCluster) -> Result<ClusterId, Error> {
        let (this, caller) = (self.clone(), permit.caller().name().to_owned());
        self.outlive(async move { this.create_now(caller, new).await }).await
    }

    async fn create_now(&self, caller: String, new: NewCluster) -> Result<ClusterId, Error> {
        let settings = self.settings()?;
        let realm = Realm {
            region: new.region.unwrap_or_else(|| settings.realm.region.clone()),
            account: new.account.unwrap_or_else(|| settings.realm.account.clone()),
        };
        let is_first = self.0.records.made_clusters().await?.is_empty();
        let record = records::NewCluster {
            id: settings.first.clone().filter(|_| is_first).unwrap_or_else(ClusterId::random),
            realm,
            subnets: new.subnets,
            created: clock::now(),
            caller,
            request_id: new.request_id,
        };
        match self.0.records.add_made_cluster(&record, settings.quota).await? {
            AddedCluster::Added => {}
            AddedCluster::Repeated(former) if former.realm == record.realm && former.subnets == record.subnets => {
                return Ok(former.id);
            }
            AddedCluster::Repeated(_) => return Err(Error::RequestReused),
            AddedCluster::Full => return Err(Error::TooManyClusters(settings.quota)),
        }
        self.0.key_stores.redeclare_made().await?;
        tracing::info!(cluster = %record.id, "a cluster was made");
        Ok(record.id)
    }
}
