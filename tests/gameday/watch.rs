//! What an operator sees meanwhile: each HSM's health as WatchKeyStore tells it, and how many keys are out of step.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::recording::Sighting;
use crate::rig::pb::{ConnectionState, HsmHealth};
use crate::rig::{Clients, pb};

/// How often the list of drift is read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A stream that ended is begun anew after this long.
const WATCH_AGAIN: Duration = Duration::from_millis(50);

pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    now: BTreeMap<String, Option<HsmHealth>>,
    connected: bool,
    sightings: Vec<Sighting>,
    drift: Vec<(Duration, usize)>,
}

impl Watch {
    /// `hsms` are known before the first message: they are told of whoever tells.
    pub fn start(clients: &Clients, store: &str, cluster: &str, hsms: &[String], began: Instant) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        seen.lock().unwrap().now = hsms.iter().map(|hsm| (hsm.clone(), None)).collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_health(clients.clone(), store.to_owned(), seen.clone(), began));
        tasks.spawn(watch_drift(clients.clone(), cluster.to_owned(), seen.clone(), began));
        Self { seen, _tasks: tasks }
    }

    /// Connected, and every HSM HEALTHY.
    pub fn all_is_well(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.connected && seen.now.values().all(|health| *health == Some(HsmHealth::Healthy))
    }

    /// How many keys were last seen out of step.
    pub fn out_of_step(&self) -> Option<usize> {
        self.seen.lock().unwrap().drift.last().map(|(_, count)| *count)
    }

    pub fn told(self) -> (Vec<Sighting>, Vec<(Duration, usize)>) {
        let mut seen = self.seen.lock().unwrap();
        (std::mem::take(&mut seen.sightings), std::mem::take(&mut seen.drift))
    }
}

impl Seen {
    fn tell(&mut self, at: Duration, told: impl Fn(&str) -> Option<HsmHealth>) {
        for (hsm, now) in &mut self.now {
            let health = told(hsm);
            if *now != health || at.is_zero() {
                *now = health;
                self.sightings.push(Sighting { at, hsm: hsm.clone(), health });
            }
        }
    }
}

async fn watch_health(mut clients: Clients, store: String, seen: Arc<Mutex<Seen>>, began: Instant) {
    loop {
        let request = pb::WatchKeyStoreRequest { key_store_id: store.clone() };
        if let Ok(stream) = clients.stores.watch_key_store(request).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(message)) = stream.message().await {
                let store = message.key_store.expect("every message has it");
                let mut seen = seen.lock().unwrap();
                seen.connected = store.connection_state() == ConnectionState::Connected;
                let health = |hsm: &str| store.nodes.iter().find(|node| node.hsm_id == hsm).map(|node| node.health());
                seen.tell(began.elapsed(), health);
            }
        }
        {
            let mut seen = seen.lock().unwrap();
            seen.connected = false;
            seen.tell(began.elapsed(), |_| None);
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

async fn watch_drift(mut clients: Clients, cluster: String, seen: Arc<Mutex<Seen>>, began: Instant) {
    loop {
        let request = pb::ListDriftRequest { cluster_id: cluster.clone(), page_size: 1_000, ..Default::default() };
        if let Ok(page) = clients.clusters.list_drift(request).await {
            let count = page.into_inner().drifts.len();
            seen.lock().unwrap().drift.push((began.elapsed(), count));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
