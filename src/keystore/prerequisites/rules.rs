//! The rules, each once.

use std::collections::BTreeSet;

use crate::cluster::{self, Direction, SecurityGroup, SecurityGroupRule};
use crate::keystore::lifecycle::{self, Event};
use crate::model::{ClusterState, HsmId};

use super::{Check, Facts, Login, Phase, Service, Tie, Unmet, Verdict};

/// The ports on which HSMs of CloudHSM talk.
const PORTS: [u16; 3] = [2223, 2224, 2225];
/// A key store's subnets are in so many zones.
const SUBNET_ZONES: usize = 2;

/// A prerequisite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    PasswordForm,
    NameFree,
    Quota,
    ClusterFound,
    ClusterFree,
    Unrelated,
    Related,
    ClusterActive,
    SubnetsInTwoZones,
    Ingress,
    Egress,
    EnoughHsms,
    TrustAnchor,
    AnyHsm,
    SubnetsPresent,
    FreeAddresses,
    HsmReachable,
    Login,
    StoreConnected,
    EnoughAnswer,
    OneAnswers,
}

impl Rule {
    /// As it shows outside; it does not change between releases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PasswordForm => "password-form",
            Self::NameFree => "name-free",
            Self::Quota => "key-store-quota",
            Self::ClusterFound => "cluster-found",
            Self::ClusterFree => "cluster-free",
            Self::Unrelated => "no-relative-in-use",
            Self::Related => "cluster-related",
            Self::ClusterActive => "cluster-active",
            Self::SubnetsInTwoZones => "subnets-in-two-zones",
            Self::Ingress => "security-group-ingress",
            Self::Egress => "security-group-egress",
            Self::EnoughHsms => "active-hsms-in-two-zones",
            Self::TrustAnchor => "trust-anchor",
            Self::AnyHsm => "active-hsm",
            Self::SubnetsPresent => "subnet-present",
            Self::FreeAddresses => "subnet-free-addresses",
            Self::HsmReachable => "hsm-reachable",
            Self::Login => "kmsuser-login",
            Self::StoreConnected => "key-store-connected",
            Self::EnoughAnswer => "hsms-answer-in-two-zones",
            Self::OneAnswers => "hsm-answers",
        }
    }
}

/// One rule in one phase: a finding for each thing that it looks at.
pub(super) fn examine(rule: Rule, phase: Phase, facts: &Facts) -> Vec<Check> {
    let found = |subject: String, verdict| Check { rule, phase, subject, verdict };
    let whole = |verdict| vec![found(String::new(), verdict)];
    match (rule, facts.cluster.as_deref()) {
        (Rule::PasswordForm, _) => whole(password_form(facts)),
        // Who asks without a name asks about the cluster alone.
        (Rule::NameFree, _) => facts.name.iter().map(|_| found(String::new(), name_free(facts))).collect(),
        (Rule::Quota, _) => whole(quota(facts)),
        (Rule::ClusterFound, cluster) => whole(unless(cluster.is_some(), || Unmet::NotFound)),
        (Rule::ClusterFree, _) => whole(cluster_free(facts)),
        (Rule::Unrelated, _) => whole(unrelated(facts)),
        (Rule::Related, _) => whole(related(facts)),
        (Rule::StoreConnected, _) => whole(store_connected(facts)),
        (Rule::Login, _) => login(facts).into_iter().map(|(subject, verdict)| found(subject, verdict)).collect(),
        // That it is not declared is a rule of its own.
        (_, None) => Vec::new(),
        (Rule::ClusterActive, Some(cluster)) => whole(active(cluster)),
        (Rule::SubnetsInTwoZones, Some(cluster)) => whole(subnets_in_two_zones(cluster)),
        (Rule::Ingress, Some(cluster)) => whole(open(cluster, Direction::Ingress)),
        (Rule::Egress, Some(cluster)) => whole(open(cluster, Direction::Egress)),
        (Rule::EnoughHsms, Some(cluster)) => whole(enough_hsms(cluster)),
        (Rule::TrustAnchor, Some(cluster)) => whole(trust_anchor(cluster, facts)),
        (Rule::AnyHsm, Some(cluster)) => whole(any_hsm(cluster, phase, facts)),
        (Rule::SubnetsPresent, Some(cluster)) => {
            of_each_subnet(cluster, found, |id, subnet| unless(subnet.present, || Unmet::SubnetGone(id.clone())))
        }
        (Rule::FreeAddresses, Some(cluster)) => {
            of_each_subnet(cluster, found, |id, subnet| match subnet.free_addresses {
                None => skipped("nobody says how many addresses are free"),
                Some(0) => Verdict::Failed(Unmet::NoFreeAddress(id.clone())),
                Some(1) => Verdict::Warning(Unmet::OneFreeAddress(id.clone())),
                Some(_) => Verdict::Passed,
            })
        }
        (Rule::HsmReachable, Some(cluster)) => reachable(cluster, facts, found),
        (Rule::EnoughAnswer, Some(cluster)) => whole(enough_answer(cluster, facts)),
        (Rule::OneAnswers, Some(cluster)) => whole(one_answers(cluster, facts)),
    }
}

fn unless(met: bool, unmet: impl FnOnce() -> Unmet) -> Verdict {
    if met { Verdict::Passed } else { Verdict::Failed(unmet()) }
}

fn skipped(why: impl Into<String>) -> Verdict {
    Verdict::Skipped { why: why.into(), remedy: String::new() }
}

fn password_form(facts: &Facts) -> Verdict {
    match &facts.password {
        None => skipped("no password was given"),
        Some(Ok(())) => Verdict::Passed,
        Some(Err(rule)) => Verdict::Failed(Unmet::UnreadablePassword(rule.clone())),
    }
}

fn name_free(facts: &Facts) -> Verdict {
    match &facts.name {
        Some(name) if facts.ties.iter().any(|tie| tie.name == *name) => Verdict::Failed(Unmet::NameInUse(name.clone())),
        Some(_) | None => Verdict::Passed,
    }
}

fn quota(facts: &Facts) -> Verdict {
    let room = u32::try_from(facts.ties.len()).is_ok_and(|stores| stores < facts.quota);
    unless(room, || Unmet::QuotaReached(facts.quota))
}

/// A cluster carries one key store; the one that is being moved does not stand in its own way.
fn cluster_free(facts: &Facts) -> Verdict {
    let mut others = facts.ties.iter().filter(|tie| facts.moving.as_ref() != Some(&tie.store));
    match others.find(|tie| tie.cluster == facts.id) {
        Some(tie) => Verdict::Failed(Unmet::Tied(tie.store.clone())),
        None => Verdict::Passed,
    }
}

fn unrelated(facts: &Facts) -> Verdict {
    let relative = |tie: &&Tie| tie.cluster != facts.id && tie.lineage == facts.lineage;
    match facts.ties.iter().find(relative) {
        Some(tie) => Verdict::Failed(Unmet::RelativeTied { cluster: tie.cluster.clone(), store: tie.store.clone() }),
        None => Verdict::Passed,
    }
}

fn related(facts: &Facts) -> Verdict {
    let moving = facts.ties.iter().find(|tie| facts.moving.as_ref() == Some(&tie.store));
    match moving {
        None => skipped("no key store is to be moved here"),
        Some(tie) => unless(tie.lineage == facts.lineage, || Unmet::NotRelated(tie.cluster.clone())),
    }
}

fn active(cluster: &cluster::Settings) -> Verdict {
    unless(cluster.state == ClusterState::Active, || Unmet::NotActive {
        state: cluster.state,
        message: cluster.state_message.clone(),
    })
}

fn subnets_in_two_zones(cluster: &cluster::Settings) -> Verdict {
    if cluster.subnets.is_empty() {
        return skipped("the cluster declares no subnets: its HSMs are in none");
    }
    let zones: BTreeSet<_> = cluster.subnets.values().map(|subnet| &subnet.zone).collect();
    unless(zones.len() >= SUBNET_ZONES, || Unmet::SubnetsInTooFewZones { zones: zones.len() })
}

/// The HSMs' ports, from the group itself or to it.
fn open(cluster: &cluster::Settings, direction: Direction) -> Verdict {
    let Some(group) = &cluster.security_group else {
        return skipped("the cluster declares no security group");
    };
    let closed: Vec<_> = PORTS.iter().filter(|port| !lets_pass(group, direction, **port)).map(u16::to_string).collect();
    unless(closed.is_empty(), || Unmet::Closed { group: group.id.to_string(), direction, ports: closed.join(", ") })
}

fn lets_pass(group: &SecurityGroup, direction: Direction, port: u16) -> bool {
    let passes = |rule: &SecurityGroupRule| match rule.protocol.as_str() {
        // AWS's word for every protocol, whatever ports stand beside it.
        "-1" => true,
        "tcp" | "6" => (rule.from_port..=rule.to_port).contains(&port),
        _ => false,
    };
    group.rules.iter().any(|rule| rule.direction == direction && rule.peer == group.id && passes(rule))
}

fn enough_hsms(cluster: &cluster::Settings) -> Verdict {
    let zones: BTreeSet<_> = cluster.active_nodes().map(|(_, node)| &node.zone).collect();
    let (hsms, zones, needed) = (cluster.active_nodes().count(), zones.len(), cluster.quorum());
    unless(needed.is_met_by(hsms, zones), || Unmet::TooFewHsms { hsms, zones, needed })
}

fn trust_anchor(cluster: &cluster::Settings, facts: &Facts) -> Verdict {
    match (&cluster.trust_anchor, &facts.trust_anchor) {
        (_, Some(Err(rule))) => Verdict::Failed(Unmet::UnreadableTrustAnchor(rule.clone())),
        (None, _) => skipped("the cluster declares no trust anchor"),
        (Some(own), Some(Ok(shown))) if own != shown => Verdict::Failed(Unmet::IncorrectTrustAnchor),
        (Some(_), shown) => match (facts.strangers.first_key_value(), shown) {
            (Some((hsm, why)), _) => Verdict::Failed(Unmet::NotUnderTrustAnchor { hsm: hsm.clone(), why: why.clone() }),
            (None, None) => skipped("no certificate was given"),
            (None, Some(_)) => Verdict::Passed,
        },
    }
}

/// An HSM that is ACTIVE, and when it comes to logging in, one that no operator took out of use.
fn any_hsm(cluster: &cluster::Settings, phase: Phase, facts: &Facts) -> Verdict {
    if cluster.active_nodes().next().is_none() {
        return Verdict::Failed(Unmet::NoActiveHsm);
    }
    let out_of_use = |hsm| matches!(facts.hsms.get(hsm), Some(Service::OutOfUse(_)));
    let all_out = cluster.active_nodes().all(|(hsm, _)| out_of_use(hsm));
    unless(phase != Phase::Connecting || !all_out, || Unmet::AllOutOfUse)
}

fn of_each_subnet(
    cluster: &cluster::Settings,
    found: impl Fn(String, Verdict) -> Check,
    verdict: impl Fn(&cluster::SubnetId, &cluster::SubnetSettings) -> Verdict,
) -> Vec<Check> {
    if cluster.subnets.is_empty() {
        return vec![found(String::new(), skipped("the cluster declares no subnets: its HSMs are in none"))];
    }
    cluster.subnets.iter().map(|(id, subnet)| found(id.to_string(), verdict(id, subnet))).collect()
}

/// One that cannot be reached stops nothing while another can.
fn reachable(cluster: &cluster::Settings, facts: &Facts, found: impl Fn(String, Verdict) -> Check) -> Vec<Check> {
    let service = |hsm: &HsmId| facts.hsms.get(hsm).cloned().unwrap_or(Service::Unknown);
    let another = cluster
        .active_nodes()
        .any(|(hsm, _)| matches!(service(hsm), Service::Reachable | Service::Answers | Service::NotYet(_)));
    let of_one = |hsm: &HsmId| match service(hsm) {
        Service::Unknown => skipped("nobody has looked yet"),
        Service::OutOfUse(note) => skipped(format!("it is out of use: {note}")),
        Service::Reachable | Service::Answers | Service::NotYet(_) => Verdict::Passed,
        Service::Unreachable(why) => {
            let unmet = Unmet::Unreachable { hsm: hsm.clone(), why };
            if another { Verdict::Warning(unmet) } else { Verdict::Failed(unmet) }
        }
    };
    cluster.active_nodes().map(|(hsm, _)| found(hsm.to_string(), of_one(hsm))).collect()
}

fn login(facts: &Facts) -> Vec<(String, Verdict)> {
    let (subject, verdict) = match &facts.login {
        Login::NotTried { why, remedy } => {
            (String::new(), Verdict::Skipped { why: why.clone(), remedy: remedy.clone() })
        }
        Login::Accepted(hsm) => (hsm.to_string(), Verdict::Passed),
        Login::Failed { hsm, code, message } => {
            let unmet = Unmet::LoginFailed { code: *code, message: message.clone() };
            (hsm.as_ref().map(ToString::to_string).unwrap_or_default(), Verdict::Failed(unmet))
        }
    };
    vec![(subject, verdict)]
}

/// The key store that stands on the cluster.
fn tied(facts: &Facts) -> Option<&Tie> {
    facts.ties.iter().find(|tie| tie.cluster == facts.id)
}

fn is_usable(tie: &Tie) -> bool {
    lifecycle::next(tie.state, Event::Use).is_ok()
}

fn store_connected(facts: &Facts) -> Verdict {
    match tied(facts) {
        None => skipped("no key store stands on the cluster yet"),
        Some(tie) => unless(is_usable(tie), || Unmet::NotConnected { store: tie.store.clone(), state: tie.state }),
    }
}

fn enough_answer(cluster: &cluster::Settings, facts: &Facts) -> Verdict {
    let Some(answering) = answering(cluster, facts) else {
        return skipped("no key store is connected here");
    };
    let zones: BTreeSet<_> = answering.iter().map(|node| &node.zone).collect();
    let (hsms, zones, needed) = (answering.len(), zones.len(), cluster.quorum());
    unless(needed.is_met_by(hsms, zones), || Unmet::TooFewAnswer { hsms, zones, needed })
}

fn one_answers(cluster: &cluster::Settings, facts: &Facts) -> Verdict {
    match answering(cluster, facts) {
        None => skipped("no key store is connected here"),
        Some(answering) => unless(!answering.is_empty(), || Unmet::NobodyAnswers),
    }
}

/// The HSMs that serve; `None` while nobody is to be logged in to them.
fn answering<'a>(cluster: &'a cluster::Settings, facts: &Facts) -> Option<Vec<&'a cluster::NodeSettings>> {
    tied(facts).filter(|tie| is_usable(tie))?;
    let serves = |hsm| facts.hsms.get(hsm) == Some(&Service::Answers);
    // One that is no longer ACTIVE serves until the key store is next connected.
    Some(cluster.nodes.iter().filter(|(hsm, _)| serves(hsm)).map(|(_, node)| node).collect())
}
