//! The rules, each once.

use std::collections::BTreeSet;

use crate::cluster::{self, Direction, Protocol, SecurityGroup, SecurityGroupRule};
use crate::keystore::lifecycle::{self, Event};
use crate::model::{ClusterState, HsmId, SubnetId};

use super::{Check, CheckPhase, Facts, Finding, HsmStanding, Login, Subject, TiedKeyStore, Unmet};

/// The ports on which HSMs of CloudHSM talk.
const PORTS: [u16; 3] = [2223, 2224, 2225];
/// A key store's subnets are in at least this many zones.
const SUBNET_ZONES: usize = 2;

/// What nobody can look at, and why.
const NO_CLIENT_CERTIFICATES: &str = "unknown: the HSMs' own library connects to them, and whether they require a client certificate of it is not declared";
const NO_SECOND_FACTOR: &str =
    "unknown: PKCS#11 does not tell; keyway logs in with a password alone, which a user with a second factor cannot do";

/// A prerequisite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    PasswordForm,
    NameFree,
    Quota,
    ClusterFound,
    SameRealm,
    ClusterFree,
    Unrelated,
    Related,
    ClusterActive,
    SubnetsInTwoZones,
    Ingress,
    Egress,
    EnoughHsms,
    TrustAnchor,
    NoClientCertificates,
    AnyHsm,
    HsmInService,
    SubnetsPresent,
    FreeAddresses,
    HsmReachable,
    NoSecondFactor,
    Login,
    StoreDisconnected,
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
            Self::SameRealm => "same-account-and-region",
            Self::ClusterFree => "cluster-free",
            Self::Unrelated => "no-relative-in-use",
            Self::Related => "cluster-related",
            Self::ClusterActive => "cluster-active",
            Self::SubnetsInTwoZones => "subnets-in-two-zones",
            Self::Ingress => "security-group-ingress",
            Self::Egress => "security-group-egress",
            Self::EnoughHsms => "active-hsms-in-two-zones",
            Self::TrustAnchor => "trust-anchor",
            Self::NoClientCertificates => "no-client-certificates-required",
            Self::AnyHsm => "active-hsm",
            Self::HsmInService => "hsm-in-service",
            Self::SubnetsPresent => "subnet-present",
            Self::FreeAddresses => "subnet-free-addresses",
            Self::HsmReachable => "hsm-reachable",
            Self::NoSecondFactor => "kmsuser-without-second-factor",
            Self::Login => "kmsuser-login",
            Self::StoreDisconnected => "key-store-disconnected",
            Self::StoreConnected => "key-store-connected",
            Self::EnoughAnswer => "hsms-answer-in-two-zones",
            Self::OneAnswers => "hsm-answers",
        }
    }
}

/// One rule in one phase: a finding for each thing that it looks at.
pub(super) fn examine(rule: Rule, phase: CheckPhase, facts: &Facts) -> Vec<Check> {
    let found = |subject, finding| Check { rule, phase, subject, finding };
    let whole = |finding| vec![found(Subject::Cluster, finding)];
    match (rule, facts.cluster.as_deref()) {
        (Rule::PasswordForm, _) => whole(password_form(facts)),
        // Who asks without a name asks about the cluster alone.
        (Rule::NameFree, _) => facts.name.iter().map(|_| found(Subject::Cluster, name_free(facts))).collect(),
        (Rule::Quota, _) => whole(quota(facts)),
        (Rule::ClusterFound, cluster) => whole(in_phase(phase, unless(cluster.is_some(), || Unmet::NotFound))),
        (Rule::ClusterFree, _) => whole(cluster_free(facts)),
        (Rule::Unrelated, _) => whole(unrelated(facts)),
        (Rule::Related, _) => whole(related(facts)),
        (Rule::StoreDisconnected, _) => whole(store_disconnected(facts)),
        (Rule::StoreConnected, _) => whole(store_connected(facts)),
        (Rule::Login, _) => {
            let (subject, finding) = login(facts);
            vec![found(subject, finding)]
        }
        // That it is not declared is a rule of its own.
        (_, None) => Vec::new(),
        (Rule::SameRealm, Some(cluster)) => whole(same_realm(cluster, facts)),
        (Rule::ClusterActive, Some(cluster)) => whole(in_phase(phase, active(cluster))),
        (Rule::SubnetsInTwoZones, Some(cluster)) => whole(subnets_in_two_zones(cluster)),
        (Rule::Ingress, Some(cluster)) => whole(open(cluster, Direction::Ingress)),
        (Rule::Egress, Some(cluster)) => whole(open(cluster, Direction::Egress)),
        (Rule::EnoughHsms, Some(cluster)) => whole(enough_hsms(cluster)),
        (Rule::TrustAnchor, Some(cluster)) => whole(trust_anchor(cluster, facts)),
        (Rule::NoClientCertificates, Some(_)) => whole(skipped(NO_CLIENT_CERTIFICATES)),
        (Rule::AnyHsm, Some(cluster)) => whole(any_hsm(cluster)),
        (Rule::HsmInService, Some(cluster)) => whole(hsm_in_service(cluster, facts)),
        (Rule::SubnetsPresent, Some(cluster)) => {
            of_each_subnet(cluster, found, |id, subnet| unless(subnet.present, || Unmet::SubnetGone(id.clone())))
        }
        (Rule::FreeAddresses, Some(cluster)) => {
            of_each_subnet(cluster, found, |id, subnet| match subnet.free_addresses {
                None => skipped("free addresses are not declared"),
                Some(0) => Finding::Failed(Unmet::NoFreeAddress(id.clone())),
                Some(1) => Finding::Warning(Unmet::OneFreeAddress(id.clone())),
                Some(_) => Finding::Passed,
            })
        }
        (Rule::HsmReachable, Some(cluster)) => reachable(cluster, facts, found),
        (Rule::NoSecondFactor, Some(_)) => whole(skipped(NO_SECOND_FACTOR)),
        (Rule::EnoughAnswer, Some(cluster)) => whole(enough_answer(cluster, facts)),
        (Rule::OneAnswers, Some(cluster)) => whole(one_answers(cluster, facts)),
    }
}

fn unless(met: bool, unmet: impl FnOnce() -> Unmet) -> Finding {
    if met { Finding::Passed } else { Finding::Failed(unmet()) }
}

/// Keys in use are the HSMs' to refuse: what is declared of the cluster meanwhile is a warning.
fn in_phase(phase: CheckPhase, finding: Finding) -> Finding {
    match finding {
        Finding::Failed(unmet) if phase == CheckPhase::Use => Finding::Warning(unmet),
        finding => finding,
    }
}

fn skipped(why: impl Into<String>) -> Finding {
    Finding::Skipped { why: why.into(), remedy: None }
}

fn password_form(facts: &Facts) -> Finding {
    match &facts.password {
        None => skipped("no password was given"),
        Some(Ok(())) => Finding::Passed,
        Some(Err(rule)) => Finding::Failed(Unmet::UnreadablePassword(rule.clone())),
    }
}

fn name_free(facts: &Facts) -> Finding {
    match &facts.name {
        Some(name) if facts.ties.iter().any(|tie| tie.name == *name) => Finding::Failed(Unmet::NameInUse(name.clone())),
        Some(_) | None => Finding::Passed,
    }
}

fn quota(facts: &Facts) -> Finding {
    let room = u32::try_from(facts.ties.len()).is_ok_and(|stores| stores < facts.quota);
    unless(room, || Unmet::QuotaReached(facts.quota))
}

/// A cluster carries one key store; the one that is being moved does not stand in its own way.
fn cluster_free(facts: &Facts) -> Finding {
    let mut others = facts.ties.iter().filter(|tie| facts.moving.as_ref() != Some(&tie.store));
    match others.find(|tie| tie.cluster == facts.id) {
        Some(tie) => Finding::Failed(Unmet::Tied(tie.store.clone())),
        None => Finding::Passed,
    }
}

fn unrelated(facts: &Facts) -> Finding {
    match facts.related() {
        Some(tie) => Finding::Failed(Unmet::RelativeTied { cluster: tie.cluster.clone(), store: tie.store.clone() }),
        None => Finding::Passed,
    }
}

/// The key store that is to be moved here.
fn moving(facts: &Facts) -> Option<&TiedKeyStore> {
    facts.ties.iter().find(|tie| facts.moving.as_ref() == Some(&tie.store))
}

fn store_disconnected(facts: &Facts) -> Finding {
    match moving(facts) {
        None => skipped("no key store is to be moved here"),
        Some(tie) => unless(lifecycle::next(tie.state, Event::Reconfigure).is_ok(), || Unmet::NotDisconnected {
            store: tie.store.clone(),
            state: tie.state,
        }),
    }
}

fn related(facts: &Facts) -> Finding {
    match moving(facts) {
        None => skipped("no key store is to be moved here"),
        Some(tie) => unless(tie.lineages.are_related(&facts.lineages), || Unmet::NotRelated(tie.cluster.clone())),
    }
}

/// A cluster of another account or Region is nobody's to see, as in AWS.
fn same_realm(cluster: &cluster::Settings, facts: &Facts) -> Finding {
    let here = cluster.realm();
    match moving(facts) {
        None => skipped("no key store is to be moved here"),
        Some(TiedKeyStore { realm: None, .. }) => skipped("the key store's account and Region are not known"),
        Some(TiedKeyStore { realm: Some(store), .. }) => {
            unless(*store == here, || Unmet::Elsewhere { here: here.clone(), store: store.clone() })
        }
    }
}

fn active(cluster: &cluster::Settings) -> Finding {
    unless(cluster.state == ClusterState::Active, || Unmet::NotActive {
        state: cluster.state,
        message: cluster.state_message.clone(),
    })
}

fn subnets_in_two_zones(cluster: &cluster::Settings) -> Finding {
    if cluster.subnets.is_empty() {
        return skipped("the cluster declares no subnets: its HSMs are in none");
    }
    let zones: BTreeSet<_> = cluster.subnets.values().map(|subnet| &subnet.zone).collect();
    unless(zones.len() >= SUBNET_ZONES, || Unmet::SubnetsInTooFewZones { zones: zones.len() })
}

/// The HSMs' ports, from the group itself or to it.
fn open(cluster: &cluster::Settings, direction: Direction) -> Finding {
    let Some(group) = &cluster.security_group else {
        return skipped("the cluster declares no security group");
    };
    let closed: Vec<_> = PORTS.iter().filter(|port| !lets_pass(group, direction, **port)).map(u16::to_string).collect();
    unless(closed.is_empty(), || Unmet::Closed { group: group.id.to_string(), direction, ports: closed.join(", ") })
}

fn lets_pass(group: &SecurityGroup, direction: Direction, port: u16) -> bool {
    let passes = |rule: &SecurityGroupRule| match rule.protocol {
        Protocol::All => true,
        Protocol::Tcp => (rule.from_port..=rule.to_port).contains(&port),
        Protocol::Other(_) => false,
    };
    group.rules.iter().any(|rule| rule.direction == direction && rule.peer == group.id && passes(rule))
}

fn enough_hsms(cluster: &cluster::Settings) -> Finding {
    let zones: BTreeSet<_> = cluster.active_nodes().map(|(_, node)| &node.zone).collect();
    let (hsms, zones, needed) = (cluster.active_nodes().count(), zones.len(), cluster.quorum());
    unless(needed.is_met_by(hsms, zones), || Unmet::TooFewHsms { hsms, zones, needed })
}

fn trust_anchor(cluster: &cluster::Settings, facts: &Facts) -> Finding {
    match (&cluster.trust_anchor, &facts.trust_anchor) {
        (_, Some(Err(rule))) => Finding::Failed(Unmet::UnreadableTrustAnchor(rule.clone())),
        (None, _) => skipped("the cluster declares no trust anchor"),
        (Some(own), Some(Ok(shown))) if own != shown => Finding::Failed(Unmet::IncorrectTrustAnchor),
        (Some(_), shown) => match (facts.strangers.first_key_value(), shown) {
            (Some((hsm, why)), _) => Finding::Failed(Unmet::NotUnderTrustAnchor { hsm: hsm.clone(), why: why.clone() }),
            (None, None) => skipped("no certificate was given"),
            (None, Some(_)) => Finding::Passed,
        },
    }
}

fn any_hsm(cluster: &cluster::Settings) -> Finding {
    unless(cluster.active_nodes().next().is_some(), || Unmet::NoActiveHsm)
}

/// An HSM that is ACTIVE, and that no operator has drained.
fn hsm_in_service(cluster: &cluster::Settings, facts: &Facts) -> Finding {
    if cluster.active_nodes().next().is_none() {
        return Finding::Failed(Unmet::NoActiveHsm);
    }
    let drained = |hsm| matches!(facts.hsms.get(hsm), Some(HsmStanding::Drained(_)));
    unless(!cluster.active_nodes().all(|(hsm, _)| drained(hsm)), || Unmet::AllDrained)
}

fn of_each_subnet(
    cluster: &cluster::Settings,
    found: impl Fn(Subject, Finding) -> Check,
    finding: impl Fn(&SubnetId, &cluster::SubnetSettings) -> Finding,
) -> Vec<Check> {
    if cluster.subnets.is_empty() {
        return vec![found(Subject::Cluster, skipped("the cluster declares no subnets: its HSMs are in none"))];
    }
    cluster.subnets.iter().map(|(id, subnet)| found(Subject::Subnet(id.clone()), finding(id, subnet))).collect()
}

/// One that cannot be reached stops nothing while another can.
fn reachable(cluster: &cluster::Settings, facts: &Facts, found: impl Fn(Subject, Finding) -> Check) -> Vec<Check> {
    let service = |hsm: &HsmId| facts.hsms.get(hsm).cloned().unwrap_or(HsmStanding::Unknown);
    let another = cluster
        .active_nodes()
        .any(|(hsm, _)| matches!(service(hsm), HsmStanding::Reachable | HsmStanding::Answers | HsmStanding::NotYet(_)));
    let of_one = |hsm: &HsmId| match service(hsm) {
        HsmStanding::Unknown => skipped("nobody has looked yet"),
        HsmStanding::Drained(note) => skipped(format!("it is drained: {note}")),
        HsmStanding::Reachable | HsmStanding::Answers | HsmStanding::NotYet(_) => Finding::Passed,
        HsmStanding::Unreachable(why) => {
            let unmet = Unmet::Unreachable { hsm: hsm.clone(), why };
            if another { Finding::Warning(unmet) } else { Finding::Failed(unmet) }
        }
    };
    cluster.active_nodes().map(|(hsm, _)| found(Subject::Hsm(hsm.clone()), of_one(hsm))).collect()
}

fn login(facts: &Facts) -> (Subject, Finding) {
    match &facts.login {
        Login::NotTried { why, remedy } => (Subject::Cluster, Finding::Skipped { why: why.clone(), remedy: *remedy }),
        Login::Accepted(hsm) => (Subject::Hsm(hsm.clone()), Finding::Passed),
        Login::Failed { hsm, code, message } => {
            let unmet = Unmet::LoginFailed { code: *code, message: message.clone() };
            (hsm.clone().map_or(Subject::Cluster, Subject::Hsm), Finding::Failed(unmet))
        }
    }
}

fn is_usable(tie: &TiedKeyStore) -> bool {
    lifecycle::next(tie.state, Event::Use).is_ok()
}

fn store_connected(facts: &Facts) -> Finding {
    match facts.tied() {
        None => skipped("no key store uses the cluster yet"),
        Some(tie) => unless(is_usable(tie), || Unmet::NotConnected { store: tie.store.clone(), state: tie.state }),
    }
}

fn enough_answer(cluster: &cluster::Settings, facts: &Facts) -> Finding {
    let Some(answering) = answering(cluster, facts) else {
        return skipped("no key store is connected here");
    };
    let zones: BTreeSet<_> = answering.iter().map(|node| &node.zone).collect();
    let (hsms, zones, needed) = (answering.len(), zones.len(), cluster.quorum());
    unless(needed.is_met_by(hsms, zones), || Unmet::TooFewAnswer { hsms, zones, needed })
}

fn one_answers(cluster: &cluster::Settings, facts: &Facts) -> Finding {
    match answering(cluster, facts) {
        None => skipped("no key store is connected here"),
        Some(answering) => unless(!answering.is_empty(), || Unmet::NobodyAnswers),
    }
}

/// The HSMs that serve; `None` while nobody is to be logged in to them.
fn answering<'a>(cluster: &'a cluster::Settings, facts: &Facts) -> Option<Vec<&'a cluster::NodeSettings>> {
    facts.tied().filter(|tie| is_usable(tie))?;
    let serves = |hsm| facts.hsms.get(hsm) == Some(&HsmStanding::Answers);
    // One that is no longer ACTIVE serves until it was drained.
    Some(cluster.nodes.iter().filter(|(hsm, _)| serves(hsm)).map(|(_, node)| node).collect())
}
