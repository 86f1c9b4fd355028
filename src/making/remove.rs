//! An HSM leaves its cluster, when nothing is lost with it.

use crate::authz::{Permit, action};
use crate::model::{ClusterId, HsmId, Username};
use crate::records::BegunRemoval;

use super::{Error, MadeClusters};

impl MadeClusters {
    /// Begins to remove an HSM: answers when DELETE_IN_PROGRESS is written down. Running calls end first.
    pub async fn remove_hsm(
        &self,
        _permit: Permit<action::RemoveHsm>,
        cluster: &ClusterId,
        hsm: &HsmId,
    ) -> Result<(), Error> {
        let (this, cluster, hsm) = (self.clone(), cluster.clone(), hsm.clone());
        self.outlive(async move { this.remove_now(&cluster, &hsm).await }).await
    }

    async fn remove_now(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), Error> {
        let (cluster, _) = self.made(id).await?;
        // A user who is made now is made on this one as well, or on the others alone. Nor does another HSM go meanwhile.
        let _turn = self.0.users.turn(id).await;
        let in_service = self.0.key_stores.in_service(id);
        self.has_an_heir(id, hsm, &in_service).await?;
        let quorum = cluster.min_hsms_to_create.get();
        match self.0.records.begin_removing_made_hsm(id, hsm, quorum, &in_service).await? {
            BegunRemoval::Begun => {}
            BegunRemoval::NotFound => {
                return Err(Error::HsmNotFound { cluster: id.clone(), hsm: hsm.clone() });
            }
            BegunRemoval::LastOf(store) => return Err(Error::LastHsm { hsm: hsm.clone(), store }),
            BegunRemoval::KeysLeft { keys, needed } => {
                return Err(Error::KeysLeft { hsm: hsm.clone(), keys, needed });
            }
        }
        self.kept().remove(&(id.clone(), hsm.clone()));
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-removal-written-down");
        self.begin_to_settle(id, hsm);
        Ok(self.0.key_stores.redeclare_made().await?)
    }

    /// Another HSM that stays has what the keys of the cluster's key store are copied under, or the store has no such thing
    /// yet.
    async fn has_an_heir(&self, id: &ClusterId, hsm: &HsmId, in_service: &[HsmId]) -> Result<(), Error> {
        let Some(store) = self.0.key_stores.on_cluster(id) else { return Ok(()) };
        if self.0.records.kek(id, &Username::kmsuser()).await?.is_none() {
            return Ok(());
        }
        if in_service.iter().any(|other| other != hsm) {
            return Ok(());
        }
        Err(Error::NoHeir { hsm: hsm.clone(), store: store.id() })
    }
}
