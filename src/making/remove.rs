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
        self.has_an_heir(id, hsm).await?;
        // A user who is made now is made on this one as well, or on the others alone.
        let _turn = self.0.users.turn(id).await;
        let quorum = cluster.min_hsms_to_create.get();
        match self.0.records.begin_removing_made_hsm(id, hsm, quorum).await? {
            BegunRemoval::Begun => {}
            BegunRemoval::NotFound => {
                return Err(Error::HsmNotFound { cluster: id.clone(), hsm: hsm.clone() });
            }
            BegunRemoval::LastOf(store) => return Err(Error::LastHsm { hsm: hsm.clone(), store }),
            BegunRemoval::KeysLeft { keys, needed } => {
                return Err(Error::KeysLeft { hsm: hsm.clone(), keys, needed });
            }
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-removal-written-down");
        self.0.key_stores.redeclare_made().await?;
        self.begin_to_settle(id, hsm);
        Ok(())
    }

    /// Another HSM has what the keys of the cluster's key store are copied under, or the store has no such thing yet. What
    /// nobody could prove now was proved when a key was copied there.
    async fn has_an_heir(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), Error> {
        let Some(store) = self.0.key_stores.on_cluster(id) else { return Ok(()) };
        if self.0.records.kek(id, &Username::kmsuser()).await?.is_none() {
            return Ok(());
        }
        let connection = store.nodes().borrow().clone();
        let is_proved = connection.is_some_and(|connection| {
            connection.members().iter().any(|member| member.node.hsm() != hsm && member.is_proved())
        });
        if is_proved || self.0.records.another_holds_keys(id, hsm).await? {
            return Ok(());
        }
        Err(Error::NoHeir { hsm: hsm.clone(), store: store.id() })
    }
}
