//! The cluster that a plan is played on, as plans speak of it.

use tokio::runtime::Handle;

use crate::rig::{Clients, HostOfOne, Rig};

pub struct Stage {
    pub rig: Rig,
    pub clients: Clients,
    pub store: String,
}

impl Stage {
    pub fn host(&mut self, hsm: &str) -> &mut HostOfOne {
        self.rig.host(hsm)
    }

    /// The key store is disconnected, and connected again.
    pub fn reconnect(&mut self) {
        let Self { clients, store, .. } = self;
        Handle::current().block_on(async {
            clients.disconnect(store).await;
            clients.connect(store).await;
            clients.settled(store).await;
        });
    }
}
