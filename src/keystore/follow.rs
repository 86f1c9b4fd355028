//! Connections follow what is declared of their clusters, whoever changed that and however.
//!
//! ```text
//!   ┌─▶ declared, the user's, and not here: they join, at once
//!   │        │
//!   │        ▼
//!   │   one that is declared otherwise, or no more ─none─▶ wait for an exchange
//!   │        │ its turn comes: the others are level, or     (and before each step: for leave to take it)
//!   │        │ nothing is to be hoped of them
//!   │        ▼
//!   └─── it is drained and leaves; declared otherwise, it joins anew
//! ```
//!
//! What is declared is obeyed, also where nobody else has a key: that is said, and nothing more. But an HSM that is only
//! declared otherwise, and serves, stays as long as one that is as declared already does not: a declaration that is wrong
//! costs one HSM, and not all of them. A Connection whose cluster is not declared at all any more stays as it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{self, Connection, Member, Members};
use crate::host::WorkerSpec;
use crate::model::{ClusterId, CryptoUser, HsmId};
use crate::node::{Blueprint, Common, Health, Node, Passwords, Reach};
use crate::records::Unavailable;

use super::{DRAIN_TIMEOUT, KeyStores};

/// Before a node leaves, the others get this long to come level; and again, as long as they take keys in.
const OTHERS: Duration = Duration::from_secs(60);
/// Records that cannot be reached are asked again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// Whose Connection it is, as far as its nodes go by that.
pub trait Owner: Send + Sync + 'static {
    /// What the workers of its crypto user need to know on a node; `None` where he cannot log in.
    fn worker_spec(&self, cluster: &ClusterId, hsm: &HsmId, settings: &cluster::NodeSettings) -> Option<WorkerSpec>;

    /// Resolves when he can log in on others than before.
    fn others(&mut self) -> impl Future<Output = ()> + Send;

    /// Resolves when nodes may join and leave.
    fn may_exchange(&self) -> impl Future<Output = ()> + Send;
}

/// Why there is no Connection.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    #[error("cluster {0} is not declared")]
    Undeclared(ClusterId),
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// Why a node is to leave. Whoever does not come back goes first: what takes its place may be what others wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// It is not declared any more, or not as ACTIVE.
    Gone,
    /// Another one is to take its place.
    Changed,
}

impl Why {
    const fn reason(self) -> &'static str {
        match self {
            Self::Gone => "it is not declared as an ACTIVE HSM of the cluster any more",
            Self::Changed => "it is declared otherwise, and is logged in to anew",
        }
    }
}

/// A node that is not what is declared, and how long it waits for the others. The wait goes on through further exchanges.
struct Outdated {
    member: Arc<Member>,
    why: Why,
    wait: Option<Wait>,
}

/// For others to come level.
#[derive(Clone, Copy)]
struct Wait {
    until: Instant,
    /// How many keys these lacked when it began.
    missing: usize,
}

impl Wait {
    fn for_others(missing: usize) -> Self {
        Self { until: Instant::now() + OTHERS, missing }
    }
}

impl KeyStores {
    /// A Connection whose nodes are at rest, one for each HSM that is declared ACTIVE and has the user. Until it is closed it
    /// follows what is declared, and keys are kept level with the records.
    pub async fn make_connection(
        &self,
        cluster: &ClusterId,
        passwords: Passwords,
        owner: impl Owner,
    ) -> Result<Arc<Connection>, NotMade> {
        // Had before anything is made: an attempt that is given up while it waits leaves no Connection that nobody has.
        let place = self.0.opened.reserve().await;
        let _maintenance = self.0.maintenance.lock().await;
        let settings = self.0.clusters.get(cluster).ok_or_else(|| NotMade::Undeclared(cluster.clone()))?;
        let mut nodes = Vec::new();
        for blueprint in blueprints(cluster, &settings, &owner) {
            nodes.push(self.node(blueprint, &passwords).await?);
        }
        let common = Common::new(self.0.host.clone(), self.0.records.clone(), passwords);
        let (zone, learnt) = (self.0.settings.zone.clone(), self.0.learnt.clone());
        let connection = Connection::new(cluster.clone(), nodes, common, zone, learnt);
        self.0.connections.send_modify(|connections| connections.push(connection.clone()));
        let (this, followed) = (self.clone(), connection.clone());
        self.0.runtime.spawn(async move { this.follow(followed, owner).await });
        match place {
            Ok(place) => place.send(connection.clone()),
            Err(_) => tracing::error!("nobody keeps keys level with the records"),
        }
        Ok(connection)
    }

    /// Resolves when the HSM is no node of any Connection. For whoever has had it declared no more before: it is drained then.
    /// Where a Connection was closed without patience, its worker may still be on its way out. One whose cluster is not
    /// declared at all stays until its key store is disconnected.
    pub async fn left(&self, cluster: &ClusterId, hsm: &HsmId) {
        // Who made a Connection, or let a node join, by what was declared before has done so when this is had.
        drop(self.0.maintenance.lock().await);
        let mut connections = self.0.connections.subscribe();
        loop {
            let here =
                |connection: &&Arc<Connection>| connection.cluster == *cluster && connection.member(hsm).is_some();
            let Some(connection) = connections.borrow_and_update().iter().find(here).cloned() else { return };
            tokio::select! {
                () = connection.left(hsm) => {}
                _ = connections.changed() => {}
            }
        }
    }

    /// The HSM's members of all Connections.
    pub(super) fn members_on(&self, cluster: &ClusterId, hsm: &HsmId) -> Vec<Arc<Member>> {
        self.connections_on(cluster).iter().filter_map(|connection| connection.member(hsm)).collect()
    }

    /// The cluster's Connections, key stores' and people's, that are not closed yet.
    pub(super) fn connections_on(&self, cluster: &ClusterId) -> Vec<Arc<Connection>> {
        let connections = self.0.connections.borrow();
        connections.iter().filter(|connection| connection.cluster == *cluster).cloned().collect()
    }

    /// HSMs in use that hold what was proved of them: the key store's Connection, or without a key store anybody's, has proved
    /// who logs in there now. Where nobody can, for want of a key store, those that can be reached.
    pub fn in_service(&self, cluster: &ClusterId) -> Vec<HsmId> {
        let Some(settings) = self.0.clusters.get(cluster) else { return Vec::new() };
        let store = self.on_cluster(cluster);
        let of_store = store.as_ref().and_then(|store| store.nodes().borrow().clone());
        let connections = if store.is_some() { of_store.into_iter().collect() } else { self.connections_on(cluster) };
        let is_proved = |hsm: &HsmId| {
            connections.iter().any(|connection| connection.member(hsm).is_some_and(|member| member.is_proved()))
        };
        let is_reached = |hsm: &HsmId| store.is_none() && matches!(self.reach(cluster, hsm), Some(Reach::Reached(_)));
        let in_service = settings.active_nodes().filter(|(hsm, _)| is_proved(hsm) || is_reached(hsm));
        in_service.map(|(hsm, _)| hsm.clone()).collect()
    }

    /// For who holds the lock of maintenance.
    async fn node(&self, blueprint: Blueprint, passwords: &Passwords) -> Result<Arc<Node>, Unavailable> {
        let drained = self.drained(&blueprint.spec.cluster, &blueprint.spec.hsm);
        let node = Node::new(blueprint, drained);
        let password = passwords.on(node.hsm()).await?;
        node.has_password(password.candidate.is_none().then_some(password.confirmed));
        Ok(node)
    }

    async fn follow(&self, connection: Arc<Connection>, mut owner: impl Owner) {
        tokio::select! {
            () = self.keep_as_declared(&connection, &mut owner) => {}
            () = connection.closed() => {}
        }
        connection.ended().await;
        self.0.connections.send_modify(|connections| connections.retain(|other| !Arc::ptr_eq(other, &connection)));
    }

    async fn keep_as_declared(&self, connection: &Arc<Connection>, owner: &mut impl Owner) {
        let mut exchanges = self.0.clusters.exchanges();
        let mut outdated = Vec::new();
        loop {
            owner.may_exchange().await;
            connection.passwords().changes_ended().await;
            exchanges.borrow_and_update();
            if let Err(error) = self.let_join(connection, owner).await {
                tracing::error!(cluster = %connection.cluster, %error, "HSMs that are declared cannot join; trying again");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            outdated = self.outdated(connection, owner, outdated);
            let others = as_declared(connection, &outdated);
            let Some(first) = outdated.first_mut() else {
                tokio::select! {
                    changed = exchanges.changed() => if changed.is_err() { return },
                    () = owner.others() => {}
                }
                continue;
            };
            tokio::select! {
                () = its_turn_comes(connection, first, &others) => {}
                // It may be to stay after all.
                _ = exchanges.changed() => continue,
                () = owner.others() => continue,
            }
            owner.may_exchange().await;
            connection.passwords().changes_ended().await;
            if !exchanges.has_changed().unwrap_or(false) {
                self.let_go(connection, &first.member, first.why).await;
            }
        }
    }

    /// HSMs that are declared and have no node in the Connection.
    async fn let_join(&self, connection: &Arc<Connection>, owner: &impl Owner) -> Result<(), Unavailable> {
        let _maintenance = self.0.maintenance.lock().await;
        let Some(settings) = self.0.clusters.get(&connection.cluster) else { return Ok(()) };
        for blueprint in blueprints(&connection.cluster, &settings, owner) {
            if connection.member(&blueprint.spec.hsm).is_none() {
                let node = self.node(blueprint, connection.passwords()).await?;
                tracing::info!(cluster = %connection.cluster, hsm = %node.hsm(), "an HSM that is declared joins");
                connection.join(node).await?;
            }
        }
        Ok(())
    }

    /// The nodes that are not what is declared, in the order in which they go. `before` is how it was when last looked at.
    fn outdated(&self, connection: &Connection, owner: &impl Owner, before: Vec<Outdated>) -> Vec<Outdated> {
        let Some(settings) = self.0.clusters.get(&connection.cluster) else { return Vec::new() };
        let declared: Vec<_> = blueprints(&connection.cluster, &settings, owner).collect();
        let why = |member: &Member| match declared.iter().find(|blueprint| blueprint.spec.hsm == *member.node.hsm()) {
            None => Some(Why::Gone),
            Some(blueprint) if !member.node.is_of(blueprint) => Some(Why::Changed),
            Some(_) => None,
        };
        let wait = |member: &Arc<Member>| before.iter().find(|it| Arc::ptr_eq(&it.member, member))?.wait;
        let members = connection.members();
        let outdated = members
            .iter()
            .filter_map(|member| Some(Outdated { member: member.clone(), why: why(member)?, wait: wait(member) }));
        let mut outdated: Vec<_> = outdated.collect();
        // Those that serve nobody cost nothing.
        outdated.sort_by_key(|it| (it.member.is_proved(), it.why));
        outdated
    }

    async fn let_go(&self, connection: &Connection, member: &Arc<Member>, why: Why) {
        let (cluster, hsm) = (&connection.cluster, member.node.hsm());
        self.tell_what_goes(connection, member).await;
        tracing::info!(%cluster, %hsm, why = why.reason(), "an HSM is drained");
        connection.part_with(member, why.reason(), DRAIN_TIMEOUT).await;
        tracing::info!(%cluster, %hsm, why = why.reason(), "an HSM has left");
    }

    /// Says loudly what nobody can use once the member is gone.
    async fn tell_what_goes(&self, connection: &Connection, member: &Arc<Member>) {
        let (user, hsm, others) = (connection.user(), member.node.hsm(), others(connection, member));
        let CryptoUser { cluster, username } = &user;
        let serving = others.iter().filter(|other| other.is_proved());
        let serving: Vec<_> = serving.map(|other| other.node.hsm().clone()).collect();
        match self.0.records.count_keys_only_on(&user, hsm, &serving).await {
            Ok(0) => {}
            Ok(keys) => {
                tracing::error!(%cluster, %hsm, user = %username, keys, "an HSM goes, as it is declared, with keys that are on no other HSM in service");
            }
            Err(error) => {
                tracing::error!(%cluster, %hsm, user = %username, %error, "an HSM goes, as it is declared; whether others have its keys cannot be read");
            }
        }
    }
}

/// What the nodes are to be made of.
fn blueprints<'a>(
    cluster: &'a ClusterId,
    settings: &'a cluster::Settings,
    owner: &'a impl Owner,
) -> impl Iterator<Item = Blueprint> + 'a {
    settings.active_nodes().filter_map(move |(hsm, node)| {
        let spec = owner.worker_spec(cluster, hsm, node)?;
        Some(Blueprint { spec, zone: node.zone.clone(), queue_limit: node.queue_limit })
    })
}

fn others(connection: &Connection, member: &Arc<Member>) -> Members {
    connection.members().iter().filter(|other| !Arc::ptr_eq(other, member)).cloned().collect()
}

/// The members that are what is declared.
fn as_declared(connection: &Connection, outdated: &[Outdated]) -> Members {
    let is_outdated = |member: &Arc<Member>| outdated.iter().any(|it| Arc::ptr_eq(&it.member, member));
    connection.members().iter().filter(|member| !is_outdated(member)).cloned().collect()
}

/// Resolves when the node may leave, as far as the others go.
async fn its_turn_comes(connection: &Connection, leaving: &mut Outdated, as_declared: &Members) {
    let (member, why) = (leaving.member.clone(), leaving.why);
    let in_its_way = || match why {
        Why::Changed if member.is_proved() => {
            let is_drained = |other: &Member| other.node.status().borrow().health == Health::Drained;
            as_declared.iter().find(|other| !other.is_proved() && !is_drained(other))
        }
        Why::Changed | Why::Gone => None,
    };
    loop {
        if let Some(other) = in_its_way() {
            let (cluster, hsm, waits_for) = (&connection.cluster, member.node.hsm(), other.node.hsm());
            tracing::info!(%cluster, %hsm, %waits_for, "an HSM is declared otherwise, and stays as it is until another one serves or is drained");
            connection.until(|| in_its_way().is_none()).await;
        }
        others_come_level(connection, leaving).await;
        if in_its_way().is_none() {
            return;
        }
    }
}

/// Waits for those that may take over what the member serves, as long as something is to be hoped of them.
async fn others_come_level(connection: &Connection, leaving: &mut Outdated) {
    let (member, others) = (&leaving.member, others(connection, &leaving.member));
    let missing = || others.iter().map(|other| other.keys_missing()).sum::<usize>();
    let may_take_over = |other: &Arc<Member>| !other.is_level() && !other.is_hopeless();
    let has_nothing_to_leave = || match leaving.why {
        // What it holds may be on no other, also while its worker is away.
        Why::Gone => member.is_hopeless(),
        Why::Changed => !member.is_proved(),
    };
    let nothing_to_wait_for = || has_nothing_to_leave() || !others.iter().any(may_take_over);
    loop {
        let wait = *leaving.wait.get_or_insert_with(|| Wait::for_others(missing()));
        let waiting = connection.until(nothing_to_wait_for);
        if tokio::time::timeout_at(wait.until, waiting).await.is_ok() || missing() >= wait.missing {
            return;
        }
        leaving.wait = Some(Wait::for_others(missing()));
    }
}
