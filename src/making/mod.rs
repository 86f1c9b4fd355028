//! Clusters that keyway makes: created, initialized under their owner's authority, given HSMs and relieved of them.
//!
//! What is to be is written down first, and then done; what a crash cut short, or an HSM that is away holds up, is done later
//! (`settle`). Who asks says what there is to be and never where on the daemon's machine: that is the operator's word. Keys
//! and Connections follow what is declared, and are never touched here.
//!
//! ```text
//!  create ──▶ UNINITIALIZED
//!  add the first HSM ──▶ a request to sign
//!  initialize ──▶ INITIALIZED ──▶ ACTIVE with the first crypto user (`users`)
//!
//!  add ──▶ records: CREATE_IN_PROGRESS ──▶ settle: its tokens are made, or its host answers ──▶ ACTIVE
//!  remove ──▶ records: DELETE_IN_PROGRESS ──▶ settle: Connections leave it
//!         ├─ others in service have its keys ──▶ DELETED ──▶ settle: its tokens go ──▶ nothing is left
//!         └─ else ──▶ ACTIVE again
//! ```

mod add;
mod create;
mod error;
mod initialize;
mod remove;
mod settle;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::cluster::{self, MadeSettings};
use crate::host::Host;
use crate::keystore::KeyStores;
use crate::model::{ClusterId, HsmId};
use crate::node::heard_out;
use crate::records::{MadeClusterRecord, Records};
use crate::users::Users;

pub use add::{AddedHsm, NewHsm, Whereabouts};
pub use create::NewCluster;
pub use error::{Certificate, Error};

/// Every cluster that keyway made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MadeClusters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    users: Users,
    key_stores: KeyStores,
    records: Records,
    host: Host,
    settling: Mutex<Settling>,
    /// HSMs that were to be removed last and were not, and why.
    kept: Mutex<BTreeMap<(ClusterId, HsmId), String>>,
    runtime: tokio::runtime::Handle,
}

/// HSMs that are being brought into use, or removed, by a task for each.
type Settling = BTreeMap<(ClusterId, HsmId), InHand>;

#[derive(Debug)]
struct InHand {
    /// What was in the way when it was tried last.
    hindrance: Option<String>,
    /// Whether it was tried.
    tried: watch::Receiver<bool>,
}

impl MadeClusters {
    /// Work goes on, and is taken up again, on the runtime this is called on.
    pub fn new(users: Users, key_stores: KeyStores, records: Records, host: Host) -> Self {
        Self(Arc::new(Inner {
            users,
            key_stores,
            records,
            host,
            settling: Mutex::default(),
            kept: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    /// What holds an HSM up that is being brought into use, or removed.
    pub fn hindrance(&self, cluster: &ClusterId, hsm: &HsmId) -> Option<String> {
        self.settling().get(&(cluster.clone(), hsm.clone())).and_then(|in_hand| in_hand.hindrance.clone())
    }

    /// Why an HSM that was to be removed is still there, until it is to be removed again.
    pub fn why_kept(&self, cluster: &ClusterId, hsm: &HsmId) -> Option<String> {
        self.kept().get(&(cluster.clone(), hsm.clone())).cloned()
    }

    fn settings(&self) -> Result<&MadeSettings, Error> {
        self.0.key_stores.declared().making().ok_or(Error::NotConfigured)
    }

    /// A cluster that keyway made, as it is declared and as its record has it.
    async fn made(&self, id: &ClusterId) -> Result<(Arc<cluster::Settings>, MadeClusterRecord), Error> {
        let declared = self.0.key_stores.declared().get(id).ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        if declared.made().is_none() {
            return Err(Error::NotMade(id.clone()));
        }
        let record = self.0.records.made_cluster(id).await?.ok_or_else(|| Error::ClusterNotFound(id.clone()))?;
        Ok((declared, record))
    }

    /// Runs work to its end even when the caller leaves.
    async fn outlive<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        heard_out(self.0.runtime.spawn(work)).await
    }
}
