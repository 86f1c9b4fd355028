//! Clusters that nobody is connected to: whether their HSMs can be reached, looked at without any login.
//!
//! As soon as a Connection is there, its nodes know more, and the lookout ends. HSMs that are out of use are left alone.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::model::{ClusterId, ClusterState, HsmId, Username};
use crate::node::{self, Reach};

use super::{KeyStores, cluster, worker_spec};

impl KeyStores {
    /// Looks after every declared cluster while it has no Connection, in tasks of their own.
    pub fn look_out(&self) {
        self.0.runtime.spawn(follow_all(self.clone()));
    }

    /// Whether an HSM that nobody is logged in to can be reached. `None` before anybody looked.
    pub fn reach(&self, cluster: &ClusterId, hsm: &HsmId) -> Option<Reach> {
        self.0.reach.borrow().get(&(cluster.clone(), hsm.clone())).cloned()
    }

    /// Tells each change of what [`KeyStores::reach`] says.
    pub fn reached(&self) -> watch::Receiver<BTreeMap<(ClusterId, HsmId), Reach>> {
        self.0.reach.subscribe()
    }

    fn note_reach(&self, cluster: &ClusterId, hsm: &HsmId, reach: Reach) {
        self.0.reach.send_if_modified(|known| {
            let place = (cluster.clone(), hsm.clone());
            let news = known.get(&place) != Some(&reach);
            known.insert(place, reach);
            news
        });
    }

    fn forget_cluster(&self, cluster: &ClusterId) {
        self.0.reach.send_if_modified(|known| {
            let before = known.len();
            known.retain(|(of, _), _| of != cluster);
            known.len() != before
        });
    }

    fn forget_reach(&self, cluster: &ClusterId, hsm: &HsmId) {
        self.0.reach.send_if_modified(|known| known.remove(&(cluster.clone(), hsm.clone())).is_some());
    }
}

/// A task for each cluster; a new one when its HSMs are declared otherwise.
async fn follow_all(stores: KeyStores) {
    let mut exchanges = stores.0.clusters.exchanges();
    let mut followed: BTreeMap<ClusterId, (Arc<cluster::Settings>, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let now = exchanges.borrow_and_update().clone();
        let stays = |id: &ClusterId, of: &cluster::Settings| {
            now.get(id).is_some_and(|now| now.nodes == of.nodes && is_begun(now) == is_begun(of))
        };
        let outdated = followed.extract_if(.., |id, (of, _)| !stays(id, of));
        for (id, (_, following)) in outdated.collect::<Vec<_>>() {
            following.abort();
            // Until then it may yet tell what it saw.
            let _ = following.await;
            stores.forget_cluster(&id);
        }
        for (id, settings) in &*now {
            followed.entry(id.clone()).or_insert_with(|| {
                let following = stores.0.runtime.spawn(follow(stores.clone(), id.clone(), settings.clone()));
                (settings.clone(), following)
            });
        }
        if exchanges.changed().await.is_err() {
            return;
        }
    }
}

async fn follow(stores: KeyStores, cluster: ClusterId, settings: Arc<cluster::Settings>) {
    loop {
        connected(&stores, &cluster, false).await;
        {
            let mut looking = pin!(look_at_all(&stores, &cluster, &settings));
            tokio::select! {
                () = connected(&stores, &cluster, true) => {}
                () = &mut looking => {}
            }
        }
        // What was seen says nothing any more.
        stores.forget_cluster(&cluster);
    }
}

/// Waits until there is a Connection on the cluster, or none.
async fn connected(stores: &KeyStores, cluster: &ClusterId, wanted: bool) {
    let mut listed = stores.listed();
    loop {
        listed.borrow_and_update();
        let mut nodes = stores.on_cluster(cluster).map(|store| store.nodes());
        let is = nodes.as_mut().is_some_and(|nodes| nodes.borrow_and_update().is_some());
        if is == wanted {
            return;
        }
        let opened_or_closed = async {
            match &mut nodes {
                Some(nodes) => drop(nodes.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = listed.changed() => {}
            () = opened_or_closed => {}
        }
    }
}

/// Before its first crypto user, a cluster that keyway made has no token to look for.
fn is_begun(cluster: &cluster::Settings) -> bool {
    let is_new = matches!(cluster.state, ClusterState::Uninitialized | ClusterState::Initialized);
    !is_new || cluster.made().is_none()
}

async fn look_at_all(stores: &KeyStores, id: &ClusterId, settings: &cluster::Settings) {
    if !is_begun(settings) {
        return std::future::pending().await;
    }
    let each = settings.active_nodes().map(|(hsm, node)| look_at(stores, id, hsm, node));
    futures_util::future::join_all(each).await;
}

/// Looks at one HSM while it is in use. Its library is not even loaded otherwise: an operator may be at work on it.
async fn look_at(stores: &KeyStores, id: &ClusterId, hsm: &HsmId, node: &cluster::NodeSettings) {
    let spec = worker_spec(id, hsm, node, &Username::kmsuser());
    loop {
        in_use(stores, id, hsm, true).await;
        let looking = node::look_out(spec.clone(), stores.0.host.clone(), |reach| stores.note_reach(id, hsm, reach));
        tokio::select! {
            () = in_use(stores, id, hsm, false) => {}
            () = looking => {}
        }
        stores.forget_reach(id, hsm);
    }
}

/// Waits until an HSM is in use, or out of it.
async fn in_use(stores: &KeyStores, id: &ClusterId, hsm: &HsmId, wanted: bool) {
    let mut listed = stores.listed();
    while stores.drained(id, hsm).is_none() != wanted && listed.changed().await.is_ok() {}
}
