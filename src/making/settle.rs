//! HSMs on their way: brought into use, or removed. What cannot be done yet is tried again after a pause that grows, and at
//! once when a cluster has changed; what a former daemon left is taken up.
//!
//! Each step is to be repeated as often as one likes, and the records say what there is to do: one task for each HSM looks
//! there in each round, until there is nothing more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::host::{DialError, Location, OpeningError};
use crate::model::{ClusterId, HsmId, HsmPlace, HsmState, with_causes};
use crate::records::{MadeHsm, Unavailable};
use crate::users::Undone;

use super::{InHand, MadeClusters, Settling};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// So long others that are to have an HSM's keys as well may be out of service before it is destroyed.
const OTHERS: Duration = Duration::from_secs(60);

/// Why an HSM is still on its way.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("it is asked who it is once the cluster is initialized")]
    NoTrustAnchor,
    #[error("its directory cannot be made")]
    Directory(#[source] std::io::Error),
    #[error(transparent)]
    Host(#[from] DialError),
    #[error("kmsuser cannot be made on it")]
    Kmsuser(#[from] Undone),
    #[error("the key store's password on it is not certain")]
    NoPassword,
    #[error("the cluster's key store was changed meanwhile")]
    KeyStoreChanged,
    #[error("its directory cannot be removed")]
    Removal(#[source] OpeningError),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

impl MadeClusters {
    /// Takes up what a former daemon left.
    pub async fn take_up(&self) -> Result<(), Unavailable> {
        for cluster in self.0.records.made_clusters().await? {
            for (hsm, _) in cluster.hsms.iter().filter(|(_, hsm)| is_on_its_way(hsm.state)) {
                self.begin_to_settle(&cluster.id, hsm);
            }
        }
        Ok(())
    }

    /// Has the HSM brought into use, or removed, whichever the records say.
    pub(super) fn begin_to_settle(&self, cluster: &ClusterId, hsm: &HsmId) {
        drop(self.settle(cluster, hsm));
    }

    /// The same; tells when it was tried once.
    pub(super) fn settle(&self, cluster: &ClusterId, hsm: &HsmId) -> watch::Receiver<bool> {
        let here = (cluster.clone(), hsm.clone());
        match self.settling().entry(here.clone()) {
            Entry::Occupied(in_hand) => in_hand.get().tried.clone(),
            Entry::Vacant(nobodys) => {
                let (tried, told) = watch::channel(false);
                nobodys.insert(InHand { hindrance: None, tried: told.clone() });
                self.0.runtime.spawn(run(self.clone(), here, tried));
                told
            }
        }
    }

    pub(super) fn settling(&self) -> MutexGuard<'_, Settling> {
        self.0.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, BTreeMap<(ClusterId, HsmId), String>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what can be done for the HSM; `false` when there is nothing more to do.
    async fn round(&self, id: &ClusterId, hsm: &HsmId) -> Result<bool, NotYet> {
        let made = self.made_hsm(id, hsm).await?;
        self.declare(id, hsm, made.as_ref()).await?;
        let Some(made) = made else { return Ok(false) };
        match made.state {
            HsmState::CreateInProgress => self.bring_into_use(id, hsm).await?,
            HsmState::DeleteInProgress => self.give_up(id, hsm).await?,
            HsmState::Deleted => self.destroy(id, hsm, &made.place).await?,
            HsmState::Active | HsmState::Degraded => return Ok(false),
        }
        Ok(true)
    }

    /// Connections follow what is declared: whoever changed the records may not have come to it.
    async fn declare(&self, id: &ClusterId, hsm: &HsmId, made: Option<&MadeHsm>) -> Result<(), Unavailable> {
        let key_stores = &self.0.key_stores;
        let declared = key_stores.declared().get(id).and_then(|cluster| {
            let is_awaited = cluster.made().is_some_and(|made| made.awaited.contains_key(hsm));
            let node = cluster.nodes.get(hsm).map(|node| node.state);
            node.or_else(|| is_awaited.then(|| made.map_or(HsmState::Deleted, |made| made.state)))
        });
        if declared == made.map(|made| made.state) { Ok(()) } else { key_stores.redeclare_made().await }
    }

    async fn made_hsm(&self, id: &ClusterId, hsm: &HsmId) -> Result<Option<MadeHsm>, Unavailable> {
        let cluster = self.0.records.made_cluster(id).await?;
        Ok(cluster.and_then(|mut cluster| cluster.hsms.remove(hsm)))
    }

    async fn bring_into_use(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), NotYet> {
        let key_stores = &self.0.key_stores;
        let cluster = key_stores.declared().get(id);
        let node = cluster.as_ref().and_then(|cluster| cluster.nodes.get(hsm)).ok_or(NotYet::NoTrustAnchor)?;
        match &node.location {
            Location::Here(_) => self.make_home(id, hsm).await.map_err(NotYet::Directory)?,
            Location::There(node) => self.0.host.has(node, id, hsm).await?,
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-home-made");
        let store = key_stores.on_cluster(id).map(|store| (store.record(), store));
        if let Some((_, store)) = &store {
            let password = key_stores.settled_password(store, hsm).await?.ok_or(NotYet::NoPassword)?;
            self.0.users.give_kmsuser_to_new_hsm(id, hsm, node, &password).await?;
            #[cfg(debug_assertions)]
            crate::seams::stop_point("hsm-has-kmsuser");
        }
        let store = store.as_ref().map(|(record, _)| (&record.id, record.password_version));
        if !self.0.records.made_hsm_is_ready(id, hsm, store).await? {
            return Err(NotYet::KeyStoreChanged);
        }
        key_stores.redeclare_made().await?;
        tracing::info!(cluster = %id, %hsm, "an HSM was added");
        Ok(())
    }

    async fn make_home(&self, id: &ClusterId, hsm: &HsmId) -> std::io::Result<()> {
        let Some(settings) = self.0.key_stores.declared().making() else {
            return Err(std::io::Error::other("made_clusters is not configured"));
        };
        let home = settings.home(id, hsm);
        tokio::task::spawn_blocking(move || home.make()).await.map_err(std::io::Error::other)?
    }

    /// Connections leave it. Others may have gone out of service since the removal began, and a daemon that has just started
    /// finds them again: when they do not come, the HSM is kept.
    async fn give_up(&self, id: &ClusterId, hsm: &HsmId) -> Result<(), NotYet> {
        let key_stores = &self.0.key_stores;
        key_stores.left(id, hsm).await;
        let until = Instant::now() + OTHERS;
        loop {
            let in_service = key_stores.in_service(id);
            let keys = self.0.records.give_up_made_hsm(id, hsm, &in_service).await?;
            if keys == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                return self.keep(id, hsm, keys).await;
            }
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }

    async fn keep(&self, id: &ClusterId, hsm: &HsmId, keys: u64) -> Result<(), NotYet> {
        self.0.records.keep_made_hsm(id, hsm).await?;
        self.0.key_stores.redeclare_made().await?;
        tracing::error!(cluster = %id, %hsm, keys, "an HSM was not removed: keys are on no other HSM in service");
        let why = format!("it was not removed: {keys} keys were on no other HSM in service");
        self.kept().insert((id.clone(), hsm.clone()), why);
        Ok(())
    }

    async fn destroy(&self, id: &ClusterId, hsm: &HsmId, place: &HsmPlace) -> Result<(), NotYet> {
        let key_stores = &self.0.key_stores;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-given-up");
        if let (HsmPlace::Here, Some(settings)) = (place, key_stores.declared().making()) {
            let (home, patience) = (settings.home(id, hsm), settings.patience.longest());
            self.0.host.remove_hsm(id, hsm, home, patience).await.map_err(NotYet::Removal)?;
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("hsm-home-removed");
        self.0.records.forget_made_hsm(id, hsm).await?;
        key_stores.forget_hsm(id, hsm);
        key_stores.redeclare_made().await?;
        tracing::info!(cluster = %id, %hsm, "an HSM was removed");
        Ok(())
    }
}

async fn run(making: MadeClusters, here: (ClusterId, HsmId), tried: watch::Sender<bool>) {
    let (cluster, hsm) = &here;
    let mut exchanges = making.0.key_stores.declared().exchanges();
    let mut pause = FIRST_PAUSE;
    loop {
        exchanges.borrow_and_update();
        let round = making.round(cluster, hsm).await;
        match &round {
            Ok(true) => continue,
            // Whoever wants more of the HSM from here on begins anew; who wanted it just before is heard below.
            Ok(false) => drop(making.settling().remove(&here)),
            Err(why) => {
                let why = with_causes(why);
                tracing::info!(%cluster, %hsm, %why, "an HSM is still on its way");
                if let Some(in_hand) = making.settling().get_mut(&here) {
                    in_hand.hindrance = Some(why);
                }
            }
        }
        tried.send_replace(true);
        if round.is_ok() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            _ = exchanges.changed() => pause = FIRST_PAUSE,
        }
    }
    let asked_meanwhile =
        making.made_hsm(cluster, hsm).await.is_ok_and(|hsm| hsm.is_some_and(|hsm| is_on_its_way(hsm.state)));
    if asked_meanwhile {
        making.begin_to_settle(cluster, hsm);
    }
}

const fn is_on_its_way(state: HsmState) -> bool {
    matches!(state, HsmState::CreateInProgress | HsmState::DeleteInProgress | HsmState::Deleted)
}
