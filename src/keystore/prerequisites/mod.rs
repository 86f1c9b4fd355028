//! What a cluster must be like before a key store may stand on it, be connected, give keys and be used.
//!
//! Pure: what is known in, a verdict for each rule out. Each rule stands once, in `rules`, and `TABLE` says in
//! which phases it holds. Whatever refuses (creating, moving, connecting, making a key) asks here; checking a cluster
//! shows the same findings without doing anything.

mod rules;
mod unmet;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{self, Lineage};
use crate::model::{ClusterId, ConnectionErrorCode, ConnectionState, HsmId, KeyStoreId, KeyStoreName, TrustAnchor};

pub use rules::Rule;
pub use unmet::Unmet;

/// What a prerequisite is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
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
const TABLE: &[(Rule, Phase, Force)] = {
    use Force::{Refuses, Tells};
    use Phase::{Connect, Connecting, Create, CreateKey, Move, Use};
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
        (Rule::ClusterFound, Move, Refuses),
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
        (Rule::AnyHsm, Connecting, Refuses),
        (Rule::HsmReachable, Connecting, Tells),
        (Rule::Login, Connecting, Tells),
        (Rule::EnoughHsms, CreateKey, Refuses),
        (Rule::StoreConnected, CreateKey, Tells),
        (Rule::EnoughAnswer, CreateKey, Tells),
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
    pub lineage: Lineage,
    /// Every key store there is.
    pub ties: Vec<Tie>,
    pub quota: u32,
    /// How the HSMs are, as far as anybody knows.
    pub hsms: BTreeMap<HsmId, Service>,
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

/// A key store, the cluster it is tied to, and that one's lineage.
#[derive(Debug, Clone)]
pub struct Tie {
    pub store: KeyStoreId,
    pub name: KeyStoreName,
    pub state: ConnectionState,
    pub cluster: ClusterId,
    pub lineage: Lineage,
}

/// How an HSM is, as far as anybody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    Unknown,
    Reachable,
    Unreachable(String),
    OutOfUse(String),
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
        remedy: String,
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
        Self::NotTried { why: "no password was given".to_owned(), remedy: String::new() }
    }
}

/// One rule, looked at in one phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub rule: Rule,
    pub phase: Phase,
    /// What was looked at; empty for the cluster as a whole.
    pub subject: String,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// It does not apply, or nobody knows. Why, and what to do if there is anything.
    Skipped {
        why: String,
        remedy: String,
    },
    Warning(Unmet),
    Failed(Unmet),
}

/// A key store could be made on the cluster.
pub fn to_create(facts: &Facts) -> Result<(), Unmet> {
    first_refusal(Phase::Create, facts)
}

/// The key store `facts.moving` could be moved to the cluster.
pub fn to_move_to(facts: &Facts) -> Result<(), Unmet> {
    first_refusal(Phase::Move, facts)
}

/// Connecting could begin. One HSM suffices.
pub fn to_connect(facts: &Facts) -> Result<(), Unmet> {
    first_refusal(Phase::Connect, facts)
}

/// Connecting, which has begun, could go on.
pub fn while_connecting(facts: &Facts) -> Result<(), Unmet> {
    first_refusal(Phase::Connecting, facts)
}

/// A key could be made, as far as the cluster's declaration goes. Whether enough HSMs answer is seen when it is made.
pub fn to_create_key(facts: &Facts) -> Result<(), Unmet> {
    first_refusal(Phase::CreateKey, facts)
}

/// Every finding of a phase, in order.
pub fn checks(phase: Phase, facts: &Facts) -> Vec<Check> {
    let held = TABLE.iter().filter(|(_, in_phase, _)| *in_phase == phase);
    held.flat_map(|(rule, phase, _)| rules::examine(*rule, *phase, facts)).collect()
}

fn first_refusal(phase: Phase, facts: &Facts) -> Result<(), Unmet> {
    let refusing = TABLE.iter().filter(|(_, in_phase, force)| *in_phase == phase && *force == Force::Refuses);
    for (rule, phase, _) in refusing {
        for check in rules::examine(*rule, *phase, facts) {
            if let Verdict::Failed(unmet) = check.verdict {
                return Err(unmet);
            }
        }
    }
    Ok(())
}
