//! What a cluster must be like before a key store may use it, be connected, give keys and be used.
//!
//! Pure: what is known in, a finding for each rule out. Each rule stands once, in `rules`, and `TABLE` says in
//! which phases it holds. Whatever refuses (creating, moving, connecting, making a key) asks here; checking a cluster
//! shows the same findings without doing anything.

mod rules;
mod unmet;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::cluster::{self, Lineages};
use crate::model::{
    ClusterId, ConnectionErrorCode, ConnectionState, HsmId, KeyStoreId, KeyStoreName, Realm, SubnetId, TrustAnchor,
};

pub use rules::Rule;
pub use unmet::Unmet;

/// What a prerequisite is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckPhase {
    /// Making a key store.
    Create,
    /// Moving one to this cluster.
    Move,
    /// Connecting, before it begins.
    Connect,
    /// Connecting, once it has begun: the key store is FAILED.
    Connecting,
    CreateKey,
    Use,
}

/// Whether a rule stops anything by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    Refuses,
    /// What it speaks of is met with, or not, when the thing is done; the check only looks.
    Tells,
}

/// Which rule holds when, in the order in which they are asked.
const TABLE: &[(Rule, CheckPhase, Force)] = {
    use CheckPhase::{Connect, Connecting, Create, CreateKey, Move, Use};
    use Force::{Refuses, Tells};
    &[
        (Rule::PasswordForm, Create, Tells),
        (Rule::NameFree, Create, Refuses),
        (Rule::Quota, Create, Refuses),
        (Rule::ClusterFound, Create, Refuses),
        (Rule::ClusterFree, Create, Refuses),
        (Rule::Unrelated, Create, Refuses),
        (Rule::ClusterActive, Create, Refuses),
        (Rule::SubnetsInTwoZones, Create, Refuses),
        (Rule::Ingress, Create, Refuses),
        (Rule::Egress, Create, Refuses),
        (Rule::EnoughHsms, Create, Refuses),
        (Rule::TrustAnchor, Create, Refuses),
        (Rule::NoClientCertificates, Create, Tells),
        (Rule::StoreDisconnected, Move, Tells),
        (Rule::ClusterFound, Move, Refuses),
        (Rule::SameRealm, Move, Refuses),
        (Rule::ClusterFree, Move, Refuses),
        (Rule::Related, Move, Refuses),
        (Rule::ClusterActive, Move, Refuses),
        (Rule::SubnetsInTwoZones, Move, Refuses),
        (Rule::Ingress, Move, Refuses),
        (Rule::Egress, Move, Refuses),
        (Rule::EnoughHsms, Move, Refuses),
        (Rule::TrustAnchor, Move, Refuses),
        (Rule::ClusterActive, Connect, Refuses),
        (Rule::SubnetsInTwoZones, Connect, Refuses),
        (Rule::Ingress, Connect, Refuses),
        (Rule::Egress, Connect, Refuses),
        (Rule::AnyHsm, Connect, Refuses),
        (Rule::ClusterFound, Connecting, Refuses),
        (Rule::SubnetsPresent, Connecting, Refuses),
        (Rule::FreeAddresses, Connecting, Refuses),
        (Rule::HsmInService, Connecting, Refuses),
        (Rule::HsmReachable, Connecting, Tells),
        (Rule::NoSecondFactor, Connecting, Tells),
        (Rule::Login, Connecting, Tells),
        (Rule::EnoughHsms, CreateKey, Refuses),
        (Rule::StoreConnected, CreateKey, Tells),
        (Rule::EnoughAnswer, CreateKey, Tells),
        (Rule::ClusterFound, Use, Tells),
        (Rule::ClusterActive, Use, Tells),
        (Rule::StoreConnected, Use, Tells),
        (Rule::OneAnswers, Use, Tells),
    ]
};

/// All that the rules may know.
#[derive(Debug, Clone)]
pub struct Facts {
    pub id: ClusterId,
    /// `None` when it is not declared.
    pub cluster: Option<Arc<cluster::Settings>>,
    pub lineages: Lineages,
    /// Every key store there is.
    pub ties: Vec<TiedKeyStore>,
    pub quota: u32,
    /// How the HSMs are, as far as anybody knows.
    pub hsms: BTreeMap<HsmId, HsmStanding>,
    /// The name that a new key store is to have.
    pub name: Option<KeyStoreName>,
    /// The certificate that was shown, or what is wrong with it.
    pub trust_anchor: Option<Result<TrustAnchor, String>>,
    /// Nodes on other hosts that were asked who they are, and have no certificate under the trust anchor: why.
    pub strangers: BTreeMap<HsmId, String>,
    /// Whether the password that was given can be one.
    pub password: Option<Result<(), String>>,
    pub login: Login,
    /// The key store that is to be moved here.
    pub moving: Option<KeyStoreId>,
}

impl Facts {
    /// The key store that uses the cluster.
    fn tied(&self) -> Option<&TiedKeyStore> {
        self.ties.iter().find(|tie| tie.cluster == self.id)
    }

    /// The key store that uses a relative of the cluster.
    fn related(&self) -> Option<&TiedKeyStore> {
        self.ties.iter().find(|tie| tie.cluster != self.id && tie.lineages.are_related(&self.lineages))
    }
}

/// A key store, the cluster it is tied to, and that one's lineages.
#[derive(Debug, Clone)]
pub struct TiedKeyStore {
    pub store: KeyStoreId,
    pub name: KeyStoreName,
    pub state: ConnectionState,
    pub cluster: ClusterId,
    /// Where the key store was made, if that is known.
    pub realm: Option<Realm>,
    pub lineages: Lineages,
}

/// How an HSM is, as far as anybody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HsmStanding {
    Unknown,
    Reachable,
    Unreachable(String),
    Drained(String),
    /// Logged in and proved.
    Answers,
    /// Logged in, and not proved or not level yet; or waiting for an operator. Why.
    NotYet(String),
}

/// What came of a password that was to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Why nobody was asked.
    NotTried {
        why: String,
        remedy: Option<&'static str>,
    },
    Accepted(HsmId),
    Failed {
        hsm: Option<HsmId>,
        code: ConnectionErrorCode,
        message: String,
    },
}

impl Login {
    pub fn not_asked() -> Self {
        Self::NotTried { why: "no password was given".to_owned(), remedy: None }
    }
}

/// One rule, looked at in one phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub rule: Rule,
    pub phase: CheckPhase,
    pub subject: Subject,
    pub finding: Finding,
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    Subnet(SubnetId),
    Hsm(HsmId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    Passed,
    /// It does not apply, or nobody knows. Why, and what to do if there is anything.
    Skipped {
        why: String,
        remedy: Option<&'static str>,
    },
    Warning(Unmet),
    Failed(Unmet),
}

/// What refuses a phase: the first of its prerequisites that is not met. `Display` says what cannot be done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub cluster: ClusterId,
    pub phase: CheckPhase,
    pub unmet: Unmet,
}

impl Refusal {
    /// As `google.rpc.ErrorInfo` has it, or the connection error code where it shows only while connecting.
    pub fn reason(&self) -> &'static str {
        self.unmet.reason(self.phase)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, phase, unmet } = self;
        if !unmet.is_about_cluster() {
            return write!(f, "{unmet}");
        }
        let what = match phase {
            CheckPhase::Create => "take a key store",
            CheckPhase::Move => "take this key store",
            CheckPhase::Connect | CheckPhase::Connecting => "be connected to",
            CheckPhase::CreateKey => "take a new key",
            CheckPhase::Use => "be used",
        };
        write!(f, "cluster {cluster} cannot {what}: {unmet}")
    }
}

/// A key store could be made on the cluster.
pub fn to_create(facts: &Facts) -> Result<(), Refusal> {
    first_refusal(CheckPhase::Create, facts)
}

/// The key store `facts.moving` could be moved to the cluster.
pub fn to_move_to(facts: &Facts) -> Result<(), Refusal> {
    first_refusal(CheckPhase::Move, facts)
}

/// Connecting could begin. One HSM suffices.
pub fn to_connect(facts: &Facts) -> Result<(), Refusal> {
    first_refusal(CheckPhase::Connect, facts)
}

/// Connecting, which has begun, could go on.
pub fn while_connecting(facts: &Facts) -> Result<(), Refusal> {
    first_refusal(CheckPhase::Connecting, facts)
}

/// A key could be made, as far as the cluster's declaration goes. Whether enough HSMs answer is seen when it is made.
pub fn to_create_key(facts: &Facts) -> Result<(), Refusal> {
    first_refusal(CheckPhase::CreateKey, facts)
}

/// Every finding, in the order in which making a key store, or moving one here, connecting it, making a key in it and
/// using it would meet them.
///
/// Where a key store is tied already, what only a new one needs is skipped. Where one uses a related cluster, it
/// can be moved here, and that takes the place of making one.
pub fn survey(facts: &Facts) -> Vec<Check> {
    let later = [CheckPhase::Connect, CheckPhase::Connecting, CheckPhase::CreateKey, CheckPhase::Use];
    let first = match (facts.tied(), facts.related()) {
        (None, None) => checks(CheckPhase::Create, facts),
        (Some(tie), _) => {
            let why = format!("key store {} uses the cluster: no other is made here", tie.store);
            without_another(checks(CheckPhase::Create, facts), &why)
        }
        (None, Some(tie)) => {
            let (store, cluster) = (&tie.store, &tie.cluster);
            let why = format!("key store {store} on the related cluster {cluster} can be moved here; no other is made");
            let moving = Facts { moving: Some(store.clone()), ..facts.clone() };
            let of_making =
                checks(CheckPhase::Create, facts).into_iter().filter(|check| !holds(check.rule, CheckPhase::Move));
            let mut found = without_another(of_making, &why);
            found.extend(checks(CheckPhase::Move, &moving));
            found
        }
    };
    first.into_iter().chain(later.into_iter().flat_map(|phase| checks(phase, facts))).collect()
}

/// The findings, with those skipped that are only about one key store more.
fn without_another(found: impl IntoIterator<Item = Check>, why: &str) -> Vec<Check> {
    let skipped = || Finding::Skipped { why: why.to_owned(), remedy: None };
    let of_another = |rule| matches!(rule, Rule::NameFree | Rule::Quota | Rule::ClusterFree | Rule::Unrelated);
    let shown = |check: Check| if of_another(check.rule) { Check { finding: skipped(), ..check } } else { check };
    found.into_iter().map(shown).collect()
}

fn holds(rule: Rule, phase: CheckPhase) -> bool {
    TABLE.iter().any(|(held, in_phase, _)| (*held, *in_phase) == (rule, phase))
}

/// Every finding of a phase, in order.
fn checks(phase: CheckPhase, facts: &Facts) -> Vec<Check> {
    let held = TABLE.iter().filter(|(_, in_phase, _)| *in_phase == phase);
    held.flat_map(|(rule, phase, _)| rules::examine(*rule, *phase, facts)).collect()
}

fn first_refusal(phase: CheckPhase, facts: &Facts) -> Result<(), Refusal> {
    let refusing = TABLE.iter().filter(|(_, in_phase, force)| *in_phase == phase && *force == Force::Refuses);
    for (rule, phase, _) in refusing {
        for check in rules::examine(*rule, *phase, facts) {
            if let Finding::Failed(unmet) = check.finding {
                return Err(Refusal { cluster: facts.id.clone(), phase: *phase, unmet });
            }
        }
    }
    Ok(())
}
