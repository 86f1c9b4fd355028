//! HSMs that fail, each in its own way: callers notice nothing, nothing is lost, and nobody is locked out.
//!
//! What goes wrong is injected between keyway's worker and real SoftHSM2, by `tests/faulty-pkcs11`.
//! docs/reliability.md has the table of failures, the behaviour wanted, and the tests here that show it.

mod ceremony;
mod death;
mod keys;
mod login;
mod overload;
mod sessions;
mod slow;
mod token;
mod unproved;

use crate::rig::{Clients, Rig, pb, wait_async};

/// A connected cluster of HSMs that fail when told to, every one of them healthy, and a key.
pub(crate) async fn ready() -> (Rig, Clients, String, String) {
    let (rig, mut clients, store) = Rig::new().faulty().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    (rig, clients, store, key)
}

/// The HSM's node of a key store.
pub(crate) fn node<'a>(store: &'a pb::KeyStore, hsm: &str) -> &'a pb::NodeConnection {
    store.nodes.iter().find(|node| node.hsm_id == hsm).expect("one of its nodes")
}

impl Clients {
    /// Waits until one HSM is in this state of health, and tells the store.
    pub async fn until_health(&mut self, store: &str, hsm: &str, health: pb::HsmHealth) -> pb::KeyStore {
        self.watch_until(store, |store| node(store, hsm).health() == health).await
    }

    /// Waits until one HSM's worker was replaced so often, and every one is healthy.
    pub async fn until_replaced(&mut self, store: &str, hsm: &str, times: i32) -> pb::KeyStore {
        self.watch_until(store, |store| {
            node(store, hsm).worker_restarts >= times
                && store.nodes.iter().all(|node| node.health() == pb::HsmHealth::Healthy)
        })
        .await
    }

    /// Waits until one HSM is logged in and this is why it is not in use.
    pub async fn until_told(&mut self, store: &str, hsm: &str, reason: &str) -> pb::KeyStore {
        self.watch_until(store, |store| {
            let node = node(store, hsm);
            node.health() == pb::HsmHealth::Syncing && node.last_error.contains(reason)
        })
        .await
    }

    /// When a node that cannot be proved was tried: each try says anew what is wrong. The first may have been before.
    pub async fn tries(&mut self, store: &str, hsm: &str, wanted: usize) -> Vec<prost_types::Timestamp> {
        let time = |store: &pb::KeyStore| node(store, hsm).last_error_time.expect("something is wrong");
        let mut tries = Vec::new();
        while tries.len() < wanted {
            let last = tries.last().copied();
            let told = self.watch_until(store, |store| Some(time(store)) != last).await;
            tries.push(time(&told));
        }
        tries
    }

    /// A node is emptied and given everything back, which has every node that waits to be proved tried again.
    pub async fn empty_and_heal(&mut self, rig: &Rig, store: &str, hsm: &str) {
        let (mut watching, watched, name) = (self.clone(), store.to_owned(), hsm.to_owned());
        let noticed = tokio::spawn(async move {
            watching.until_health(&watched, &name, pb::HsmHealth::Syncing).await;
        });
        rig.empty_token(hsm);
        noticed.await.unwrap();
        self.until_health(store, hsm, pb::HsmHealth::Healthy).await;
    }

    /// Waits until the cluster's first HSM is told like this; all of them.
    pub async fn until_reach(&mut self, health: pb::HsmHealth, reason: &'static str) -> Vec<pb::Hsm> {
        wait_async(|| {
            let mut clients = self.clone();
            async move {
                let clusters =
                    clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.unwrap();
                let hsms = clusters.into_inner().clusters.remove(0).hsms;
                let so = hsms[0].health() == health && hsms[0].health_reason.contains(reason);
                (so && hsms.iter().skip(1).all(|hsm| hsm.health_reason.contains("reached"))).then_some(hsms)
            }
        })
        .await
    }
}
