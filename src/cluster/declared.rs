//! The clusters that the operator declares, as of now. A reload exchanges all of them at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{ClusterId, HsmState};

use super::{NodeSettings, Settings};

/// Every declared cluster.
pub type Clusters = BTreeMap<ClusterId, Arc<Settings>>;

/// What everybody reads the declared clusters from. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Declared(watch::Sender<Arc<Clusters>>);

impl Declared {
    pub fn new(clusters: BTreeMap<ClusterId, Settings>) -> Self {
        Self(watch::Sender::new(shared(clusters)))
    }

    pub fn get(&self, id: &ClusterId) -> Option<Arc<Settings>> {
        self.0.borrow().get(id).cloned()
    }

    pub fn all(&self) -> Arc<Clusters> {
        self.0.borrow().clone()
    }

    /// Tells each exchange.
    pub fn exchanges(&self) -> watch::Receiver<Arc<Clusters>> {
        self.0.subscribe()
    }

    /// Puts these clusters in the place of all that there were, which are returned.
    pub fn exchange(&self, clusters: BTreeMap<ClusterId, Settings>) -> Arc<Clusters> {
        self.0.send_replace(shared(clusters))
    }
}

fn shared(clusters: BTreeMap<ClusterId, Settings>) -> Arc<Clusters> {
    Arc::new(clusters.into_iter().map(|(id, settings)| (id, Arc::new(settings))).collect())
}

/// What an exchange changed, a line for people each, and what comes of it for whoever is logged in.
pub fn differences(before: &Clusters, after: &Clusters) -> Vec<String> {
    let gone = before.keys().filter(|id| !after.contains_key(*id));
    let mut lines: Vec<_> = gone
        .map(|id| {
            format!("cluster {id} is no longer declared; a key store connected on it stays so until it is disconnected")
        })
        .collect();
    for (id, now) in after {
        match before.get(id) {
            None => lines.push(format!("cluster {id} is declared")),
            Some(was) if was == now => {}
            Some(was) => lines.extend(within(was, now).into_iter().map(|line| format!("cluster {id}: {line}"))),
        }
    }
    lines
}

fn within(was: &Settings, now: &Settings) -> Vec<String> {
    let mut lines = Vec::new();
    if was.state != now.state {
        lines.push(format!("its state is {}, no longer {}", now.state, was.state));
    }
    let at_once = Settings { state: was.state, nodes: was.nodes.clone(), ..now.clone() } != *was;
    if at_once {
        lines.push("what is declared of it as a whole has changed, from now on".to_owned());
    }
    for (hsm, node) in &now.nodes {
        match was.nodes.get(hsm) {
            None => lines.push(format!("{hsm} was added; {}", follows(None, node.state))),
            Some(before) => {
                if before.state != node.state {
                    let follows = follows(Some(before.state), node.state);
                    lines.push(format!("{hsm} is {}, no longer {}; {follows}", node.state, before.state));
                }
                if *before != (NodeSettings { state: before.state, ..node.clone() }) {
                    let follows = "where it is logged in to by what has changed, it is drained and joins anew";
                    lines.push(format!("{hsm}'s declaration changed; {follows}"));
                }
            }
        }
    }
    let gone = was.nodes.keys().filter(|hsm| !now.nodes.contains_key(*hsm));
    lines.extend(gone.map(|hsm| format!("{hsm} was removed; {DRAINED}")));
    lines
}

const DRAINED: &str = "whoever is logged in to it drains it and logs out";

/// What comes of an HSM's state for those who are logged in to its cluster.
fn follows(was: Option<HsmState>, now: HsmState) -> &'static str {
    match (was, now) {
        (_, HsmState::Active) => "whoever is logged in to the cluster logs in to it",
        (Some(HsmState::Active), _) => DRAINED,
        (_, _) => "nobody logs in to it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClusterState;

    #[test]
    fn what_an_exchange_changed_says_from_when() {
        let id: ClusterId = "cluster-2abcdefghij".parse().unwrap();
        let was = settings();
        let differences = |now: Option<Settings>| {
            let before = shared([(id.clone(), was.clone())].into());
            differences(&before, &shared(now.map(|now| (id.clone(), now)).into_iter().collect()))
        };
        assert!(differences(Some(was.clone())).is_empty());
        assert!(differences(None)[0].contains("no longer declared"));
        let told = differences(Some(Settings { state: ClusterState::Degraded, ..was.clone() }));
        assert_eq!(told, [format!("cluster {id}: its state is DEGRADED, no longer ACTIVE")]);
        let mut now = was.clone();
        now.backup_lineage = Some("orders".parse().unwrap());
        now.nodes.get_mut(&"hsm-1".parse().unwrap()).unwrap().state = HsmState::Degraded;
        let added = now.nodes[&"hsm-1".parse().unwrap()].clone();
        now.nodes.insert("hsm-2".parse().unwrap(), added);
        let told = differences(Some(now)).join("\n");
        for part in [
            "from now on",
            "hsm-1 is DEGRADED, no longer ACTIVE; whoever is logged in to it drains it",
            "hsm-2 was added; nobody logs in to it",
        ] {
            assert!(told.contains(part), "no {part:?}: {told}");
        }
        assert!(!told.contains("declaration changed"), "{told}");
    }

    fn settings() -> Settings {
        use crate::host::{LocalToken, Location, TokenName};
        use std::num::NonZeroU32;
        use std::time::Duration;

        let node = NodeSettings {
            subnet: None,
            zone: "us-east-1a".parse().unwrap(),
            state: HsmState::Active,
            vendor_cluster: false,
            location: Location::Here(LocalToken {
                module: "/lib.so".into(),
                name: TokenName::Label("one".to_owned()),
                environment: BTreeMap::new(),
                so_pin_file: None,
                locks_user: false,
            }),
            pool_size: NonZeroU32::MIN,
            queue_limit: NonZeroU32::MIN,
            patience: crate::link::Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) },
            memory_limit: 1 << 30,
            user_tokens: None,
        };
        Settings {
            region: "us-east-1".parse().unwrap(),
            account: "000000000000".parse().unwrap(),
            state: ClusterState::Active,
            state_message: String::new(),
            certificate: None,
            trust_anchor: None,
            backup_lineage: None,
            sync: crate::cluster::SyncMode::Wrap,
            profile: crate::cluster::Profile::SoftHsm2,
            rotation: crate::cluster::Rotation::NEVER,
            subnets: BTreeMap::new(),
            security_group: None,
            min_hsms_to_create: NonZeroU32::MIN,
            nodes: [("hsm-1".parse().unwrap(), node)].into(),
        }
    }
}
