//! The clusters that there are, as of now: those that the operator declares, and those that keyway made.
//!
//! A reload exchanges all of the former at once, and a change of one of the latter all of these.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{ClusterId, HsmState};
use crate::records::MadeClusterRecord;

use super::{MadeSettings, NodeSettings, Settings};

/// Every cluster that there is.
pub type Clusters = BTreeMap<ClusterId, Arc<Settings>>;

/// What everybody reads the clusters from. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Declared {
    all: watch::Sender<Arc<Clusters>>,
    /// `None`: keyway makes no clusters here.
    making: Option<Arc<MadeSettings>>,
}

/// What the configuration says contradicts what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undeclarable {
    #[error(
        "clusters.{0}: keyway made a cluster of this id, which stands in its records; remove it from the configuration"
    )]
    IsMade(ClusterId),
    #[error("made_clusters: is missing, and keyway made cluster {0}; write the section again")]
    NotToBeMade(ClusterId),
}

impl Declared {
    /// Those of the configuration, and those that were made.
    pub fn new(
        configured: BTreeMap<ClusterId, Settings>,
        making: Option<MadeSettings>,
        made: Vec<MadeClusterRecord>,
    ) -> Result<Self, Undeclarable> {
        if let (Some(made), None) = (made.first(), &making) {
            return Err(Undeclarable::NotToBeMade(made.id.clone()));
        }
        let this = Self { all: watch::Sender::default(), making: making.map(Arc::new) };
        this.exchange_made(made);
        this.exchange_configured(configured)?;
        Ok(this)
    }

    pub fn get(&self, id: &ClusterId) -> Option<Arc<Settings>> {
        self.all.borrow().get(id).cloned()
    }

    pub fn all(&self) -> Arc<Clusters> {
        self.all.borrow().clone()
    }

    /// What holds for clusters that keyway makes; `None` when it makes none.
    pub fn making(&self) -> Option<&MadeSettings> {
        self.making.as_deref()
    }

    /// Tells each exchange.
    pub fn exchanges(&self) -> watch::Receiver<Arc<Clusters>> {
        self.all.subscribe()
    }

    /// Whether these can be put in the place of the configured ones.
    pub fn allows(&self, configured: &BTreeMap<ClusterId, Settings>) -> Result<(), Undeclarable> {
        let all = self.all.borrow();
        let is_made = |id: &&ClusterId| all.get(*id).is_some_and(|cluster| cluster.made().is_some());
        match configured.keys().find(is_made) {
            Some(twin) => Err(Undeclarable::IsMade(twin.clone())),
            None => Ok(()),
        }
    }

    /// Puts these clusters in the place of the configured ones: all that there were before.
    pub fn exchange_configured(&self, clusters: BTreeMap<ClusterId, Settings>) -> Result<Arc<Clusters>, Undeclarable> {
        self.allows(&clusters)?;
        Ok(self.exchange(clusters, |cluster| cluster.made().is_some()))
    }

    /// Puts these clusters in the place of those that keyway made.
    pub fn exchange_made(&self, clusters: Vec<MadeClusterRecord>) {
        let making = self.making.as_deref();
        let settings =
            making.map(|making| clusters.into_iter().map(|it| (it.id.clone(), making.cluster(it))).collect());
        self.exchange(settings.unwrap_or_default(), |cluster| cluster.made().is_none());
    }

    fn exchange(&self, clusters: BTreeMap<ClusterId, Settings>, stays: fn(&Settings) -> bool) -> Arc<Clusters> {
        let mut before = Arc::default();
        let mut now = shared(clusters);
        self.all.send_modify(|all| {
            before = all.clone();
            now.extend(
                all.iter().filter(|(_, cluster)| stays(cluster)).map(|(id, cluster)| (id.clone(), cluster.clone())),
            );
            *all = Arc::new(now);
        });
        before
    }
}

fn shared(clusters: BTreeMap<ClusterId, Settings>) -> Clusters {
    clusters.into_iter().map(|(id, settings)| (id, Arc::new(settings))).collect()
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
                user_tokens: None,
            }),
            pool_size: NonZeroU32::MIN,
            queue_limit: NonZeroU32::MIN,
            patience: crate::link::Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) },
            memory_limit: 1 << 30,
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
            origin: crate::cluster::Origin::Configured,
        }
    }
}
