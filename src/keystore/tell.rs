//! Key stores and their HSMs in metrics: what is known of them now, and what was counted of each HSM.

use crate::cluster::Connection;
use crate::model::{ConnectionState, Username};
use crate::telemetry::{Page, catalogue};

use super::KeyStores;

impl KeyStores {
    pub fn tell(&self, page: &mut Page) {
        let states = ConnectionState::ALL.map(ConnectionState::as_str);
        for store in self.list() {
            let record = store.record();
            let (id, cluster) = (record.id.as_str(), record.cluster.as_str());
            page.state(
                &catalogue::KEY_STORE_STATE,
                |state| [id, cluster, state].map(str::to_owned),
                &states,
                record.state.as_str(),
            );
            page.count(&catalogue::KEY_STORE_ATTEMPTS, [id], record.connect_attempt.into());
        }
        let connections = self.0.connections.borrow().clone();
        connections.iter().for_each(|connection| tell_sessions(connection, page));
        let users = connections.iter().filter(|connection| !is_of_a_key_store(connection)).count();
        page.level(&catalogue::CRYPTO_USERS, [], users as f64);
        let clusters = self.0.clusters.all();
        let hsms = clusters.iter().flat_map(|(id, cluster)| cluster.nodes.keys().map(|hsm| (id.clone(), hsm.clone())));
        self.0.host.tallies().tell(page, hsms);
    }
}

/// kmsuser's, who is a key store's, or for a while a person's.
fn is_of_a_key_store(connection: &Connection) -> bool {
    connection.user().username == Username::kmsuser()
}

/// Crypto users' are added up: who they are is nobody's business here.
fn tell_sessions(connection: &Connection, page: &mut Page) {
    let owner = if is_of_a_key_store(connection) { "key_store" } else { "crypto_users" };
    for member in connection.members().iter() {
        let labels = [connection.cluster.as_str(), member.node.hsm().as_str(), owner];
        let load = member.node.load();
        let of_load = |number: Option<u32>| f64::from(number.unwrap_or(0));
        page.level(&catalogue::HSM_SESSIONS, labels, of_load(load.map(|load| load.sessions)));
        page.level(&catalogue::HSM_SESSIONS_BUSY, labels, of_load(load.map(|load| load.sessions_busy())));
        page.level(&catalogue::HSM_IN_FLIGHT, labels, of_load(load.map(|load| load.in_flight)));
        page.level(&catalogue::HSM_WAITING, labels, of_load(load.map(|load| load.waiting)));
        page.level(&catalogue::HSM_QUEUE_LIMIT, labels, f64::from(member.node.queue_limit()));
        page.level(&catalogue::HSM_KEYS_MISSING, labels, member.keys_missing() as f64);
    }
}
