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

use crate::rig::{Clients, Rig, pb};

/// A connected cluster of HSMs that fail when told to, every one of them healthy, and a key.
async fn ready() -> (Rig, Clients, String, String) {
    let (rig, mut clients, store) = Rig::new().faulty().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    (rig, clients, store, key)
}

/// The HSM's node of a key store.
fn node<'a>(store: &'a pb::KeyStore, hsm: &str) -> &'a pb::NodeConnection {
    store.nodes.iter().find(|node| node.hsm_id == hsm).expect("one of its nodes")
}

impl Clients {
    /// Waits until one HSM is in this state of health, and tells the store.
    async fn until_health(&mut self, store: &str, hsm: &str, health: pb::HsmHealth) -> pb::KeyStore {
        self.watch_until(store, |store| node(store, hsm).health() == health).await
    }

    /// Waits until one HSM's worker was replaced so often, and every one is healthy.
    async fn until_replaced(&mut self, store: &str, hsm: &str, times: i32) -> pb::KeyStore {
        self.watch_until(store, |store| {
            node(store, hsm).worker_restarts >= times
                && store.nodes.iter().all(|node| node.health() == pb::HsmHealth::Healthy)
        })
        .await
    }
}
