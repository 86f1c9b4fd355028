//! Every row of the checklist, in every phase: what refuses, with which reason, and what only tells.

use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::cluster::{
    Direction, NodeSettings, Profile, Protocol, SecurityGroup, SecurityGroupRule, Settings, SubnetSettings, SyncMode,
};
use crate::host::{LocalToken, Location, TokenName};
use crate::link::Patience;
use crate::model::{Certificate, ClusterState, HsmState, SubnetId};

const ID: &str = "cluster-2abcdefghij";
const OTHER: &str = "cluster-2klmnopqrst";

/// Two ACTIVE HSMs and two subnets in two zones, an open security group, nothing tied.
fn good() -> Facts {
    let id: ClusterId = ID.parse().unwrap();
    let cluster = cluster();
    Facts {
        lineages: cluster.lineages(&id),
        id,
        cluster: Some(Arc::new(cluster)),
        ties: Vec::new(),
        quota: 2,
        hsms: [hsm(1), hsm(2)].map(|hsm| (hsm, HsmStanding::Reachable)).into(),
        name: Some("main".parse().unwrap()),
        trust_anchor: Some(Ok(authority())),
        strangers: BTreeMap::new(),
        password: Some(Ok(())),
        login: Login::Accepted(hsm(1)),
        moving: None,
    }
}

fn hsm(number: u8) -> HsmId {
    format!("hsm-{number}").parse().unwrap()
}

fn subnet(letter: char) -> SubnetId {
    format!("subnet-{letter}").parse().unwrap()
}

fn cluster() -> Settings {
    let group: crate::cluster::SecurityGroupId = "sg-1".parse().unwrap();
    let rule = |direction| SecurityGroupRule {
        direction,
        protocol: Protocol::Tcp,
        from_port: 2223,
        to_port: 2225,
        peer: group.clone(),
    };
    let rules = [Direction::Ingress, Direction::Egress].map(rule).into();
    let on = |letter| SubnetSettings { zone: zone(letter), free_addresses: Some(250), present: true };
    Settings {
        region: "us-east-1".parse().unwrap(),
        account: "000000000000".parse().unwrap(),
        state: ClusterState::Active,
        state_message: String::new(),
        certificate: None,
        trust_anchor: Some(authority()),
        backup_lineage: None,
        sync: SyncMode::Wrap,
        profile: Profile::SoftHsm2,
        rotation: cluster::Rotation::NEVER,
        subnets: ['a', 'b'].map(|letter| (subnet(letter), on(letter))).into(),
        security_group: Some(SecurityGroup { id: group, rules }),
        min_hsms_to_create: NonZeroU32::new(2).unwrap(),
        nodes: [(hsm(1), node('a')), (hsm(2), node('b'))].into(),
        origin: crate::cluster::Origin::Configured,
    }
}

fn zone(letter: char) -> crate::model::Zone {
    format!("us-east-1{letter}").parse().unwrap()
}

fn node(letter: char) -> NodeSettings {
    NodeSettings {
        subnet: Some(subnet(letter)),
        zone: zone(letter),
        state: HsmState::Active,
        vendor_cluster: false,
        location: Location::Here(LocalToken {
            module: "/lib.so".into(),
            name: TokenName::Label(letter.to_string()),
            environment: BTreeMap::new(),
            so_pin_file: None,
            user_tokens: None,
        }),
        pool_size: NonZeroU32::MIN,
        queue_limit: NonZeroU32::MIN,
        patience: Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) },
        memory_limit: 1 << 30,
    }
}

/// Always the same one.
fn authority() -> TrustAnchor {
    static PEM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TrustAnchor::parse(PEM.get_or_init(another_authority)).unwrap()
}

fn another_authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

/// A key store on a cluster.
fn tie(name: &str, on: &str, lineages: &[&str]) -> TiedKeyStore {
    TiedKeyStore {
        store: KeyStoreId::random(),
        name: name.parse().unwrap(),
        state: ConnectionState::Disconnected,
        cluster: on.parse().unwrap(),
        realm: Some(cluster().realm()),
        lineages: lineages.iter().map(|lineage| lineage.parse().unwrap()).collect(),
    }
}

/// [`good`] with something changed in the cluster's declaration.
fn declared(change: impl FnOnce(&mut Settings)) -> Facts {
    let mut cluster = cluster();
    change(&mut cluster);
    Facts { cluster: Some(Arc::new(cluster)), ..good() }
}

/// [`good`] with a key store on it that is to be moved to another cluster: here, to this one.
fn moving(mut facts: Facts, lineages: &[&str]) -> Facts {
    let own = tie("moving", OTHER, lineages);
    facts.moving = Some(own.store.clone());
    facts.ties.push(own);
    facts
}

/// A reason for each phase that refuses, `-` where the row stops nothing: Create, Move, Connect, Connecting, CreateKey;
/// and what is told of Use, which the prerequisites do not refuse.
#[track_caller]
fn row(what: &str, facts: &Facts, expected: [&str; 6]) {
    let lineages: Vec<_> = facts.lineages.iter().map(ToString::to_string).collect();
    let lineages: Vec<_> = lineages.iter().map(String::as_str).collect();
    let moved = if facts.moving.is_some() { facts.clone() } else { moving(facts.clone(), &lineages) };
    let reason = |outcome: Result<(), Refusal>| outcome.err().map_or("-", |refusal| refusal.reason());
    let found = [
        reason(to_create(facts)),
        reason(to_move_to(&moved)),
        reason(to_connect(facts)),
        reason(while_connecting(facts)),
        reason(to_create_key(facts)),
        told_of_use(facts),
    ];
    assert_eq!(found, expected, "{what}");
}

fn told_of_use(facts: &Facts) -> &'static str {
    let told = |check: Check| match check.finding {
        Finding::Failed(unmet) | Finding::Warning(unmet) => Some(unmet.reason(check.phase)),
        Finding::Passed | Finding::Skipped { .. } => None,
    };
    checks(CheckPhase::Use, facts).into_iter().find_map(told).unwrap_or("-")
}

type Change<T> = fn(&mut T);

/// What nobody can look at.
const UNKNOWN: [Rule; 2] = [Rule::NoClientCertificates, Rule::NoSecondFactor];
const NONE: [&str; 6] = ["-", "-", "-", "-", "-", "-"];
const ACTIVE: &str = "CLOUD_HSM_CLUSTER_NOT_ACTIVE";
const INVALID: &str = "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION";
const IN_USE: &str = "CLOUD_HSM_CLUSTER_IN_USE";

#[test]
fn a_cluster_with_everything_stops_nothing() {
    row("good", &good(), NONE);
    for phase in [CheckPhase::Create, CheckPhase::Connect, CheckPhase::Connecting] {
        let checks = checks(phase, &good());
        let passed = |check: &Check| check.finding == Finding::Passed || UNKNOWN.contains(&check.rule);
        assert!(checks.iter().all(passed), "{checks:?}");
    }
}

#[test]
fn row_1_the_cluster_is_declared() {
    let facts = Facts { cluster: None, ..good() };
    let missing = "CLOUD_HSM_CLUSTER_NOT_FOUND";
    row("undeclared", &facts, [missing, missing, "-", "CLUSTER_NOT_FOUND", "-", "KMS_INVALID_STATE"]);
}

#[test]
fn row_1_a_key_store_stays_in_its_account_and_region() {
    let changes: [Change<Settings>; 2] = [
        |cluster| cluster.region = "eu-west-1".parse().unwrap(),
        |cluster| cluster.account = "999999999999".parse().unwrap(),
    ];
    for change in changes {
        let elsewhere = declared(change);
        row("elsewhere", &elsewhere, ["-", "CLOUD_HSM_CLUSTER_NOT_FOUND", "-", "-", "-", "-"]);
        let mut from_before = moving(elsewhere, &[ID]);
        from_before.ties[0].realm = None;
        row("nobody knows where it was made", &from_before, [IN_USE, "-", "-", "-", "-", "-"]);
    }
}

#[test]
fn row_2_the_cluster_is_active() {
    for state in ClusterState::ALL {
        let facts = declared(|cluster| cluster.state = *state);
        let expected =
            if *state == ClusterState::Active { NONE } else { [ACTIVE, ACTIVE, ACTIVE, "-", "-", "KMS_INVALID_STATE"] };
        row(state.as_str(), &facts, expected);
    }
    let said = declared(|cluster| {
        cluster.state = ClusterState::UpdateInProgress;
        cluster.state_message = "an HSM is being added".to_owned();
    });
    let unmet = to_create(&said).unwrap_err().unmet;
    assert_eq!(unmet.to_string(), "it is UPDATE_IN_PROGRESS, not ACTIVE: an HSM is being added");
}

/// The HSMs decide whether keys in use work: the declaration only warns.
#[test]
fn rows_1_and_2_are_warnings_while_keys_are_used() {
    let degraded = declared(|cluster| cluster.state = ClusterState::Degraded);
    for facts in [Facts { cluster: None, ..good() }, degraded] {
        let found = checks(CheckPhase::Use, &facts);
        let warned: Vec<_> = found.iter().filter(|check| matches!(check.finding, Finding::Warning(_))).collect();
        assert_eq!(warned.len(), 1, "{found:?}");
        assert!(!found.iter().any(|check| matches!(check.finding, Finding::Failed(_))), "{found:?}");
    }
}

#[test]
fn rows_3_and_14_are_shown_as_what_nobody_can_look_at() {
    let found = survey(&good());
    for rule in UNKNOWN {
        let check = found.iter().find(|check| check.rule == rule).unwrap();
        assert!(matches!(&check.finding, Finding::Skipped { why, .. } if why.starts_with("unknown: ")), "{check:?}");
    }
}

#[test]
fn a_survey_names_each_check_once_in_a_phase_that_is_shown() {
    let found = survey(&declared(|it| it.nodes.values_mut().for_each(|node| node.state = HsmState::Degraded)));
    let connecting = |check: &&Check| matches!(check.phase, CheckPhase::Connect | CheckPhase::Connecting);
    let names: Vec<_> =
        found.iter().filter(connecting).filter(|it| it.subject == Subject::Cluster).map(|it| it.rule.name()).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
}

#[test]
fn row_4_its_subnets_are_in_two_zones() {
    let facts = declared(|cluster| drop(cluster.subnets.remove(&subnet('b'))));
    row("one subnet", &facts, [INVALID, INVALID, INVALID, "-", "-", "-"]);
    let facts = declared(|cluster| cluster.subnets.values_mut().for_each(|subnet| subnet.zone = zone('a')));
    row("two subnets in one zone", &facts, [INVALID, INVALID, INVALID, "-", "-", "-"]);
}

#[test]
fn row_5_its_subnets_are_there() {
    let facts = declared(|cluster| cluster.subnets.get_mut(&subnet('b')).unwrap().present = false);
    row("a subnet is gone", &facts, ["-", "-", "-", "SUBNET_NOT_FOUND", "-", "-"]);
    assert!(while_connecting(&facts).unwrap_err().to_string().contains("subnet-b"));
}

#[test]
fn row_6_its_subnets_have_free_addresses() {
    let with = |free| declared(|cluster| cluster.subnets.get_mut(&subnet('b')).unwrap().free_addresses = free);
    row("none", &with(Some(0)), ["-", "-", "-", "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET", "-", "-"]);
    for free in [Some(1), Some(2), None] {
        row("some", &with(free), NONE);
    }
    let finding = |free| {
        let checks = checks(CheckPhase::Connecting, &with(free));
        let found =
            checks.into_iter().find(|it| it.rule == Rule::FreeAddresses && it.subject == Subject::Subnet(subnet('b')));
        found.unwrap().finding
    };
    assert!(matches!(finding(Some(1)), Finding::Warning(Unmet::OneFreeAddress(_))));
    assert_eq!(finding(Some(2)), Finding::Passed);
    assert!(matches!(finding(None), Finding::Skipped { .. }));
}

#[test]
fn row_7_its_security_group_lets_the_hsms_ports_pass_to_itself() {
    let closed: [(&str, Change<SecurityGroup>); 6] = [
        ("nothing in", |group| drop(group.rules.remove(0))),
        ("nothing out", |group| drop(group.rules.remove(1))),
        ("one port short", |group| group.rules[0].to_port = 2224),
        ("udp", |group| group.rules[1].protocol = Protocol::Other("udp".to_owned())),
        ("another group", |group| group.rules[0].peer = "sg-2".parse().unwrap()),
        ("both in", |group| group.rules[1].direction = Direction::Ingress),
    ];
    for (what, close) in closed {
        let facts = declared(|cluster| close(cluster.security_group.as_mut().unwrap()));
        row(what, &facts, [INVALID, INVALID, INVALID, "-", "-", "-"]);
    }
    let open: [(&str, Change<SecurityGroup>); 3] = [
        ("every protocol", |group| {
            group.rules[0] =
                SecurityGroupRule { protocol: Protocol::All, from_port: 0, to_port: 0, ..group.rules[0].clone() }
        }),
        ("every port", |group| (group.rules[1].from_port, group.rules[1].to_port) = (0, 65_535)),
        ("port by port", |group| {
            let one = group.rules.remove(0);
            group.rules.extend([2223, 2224, 2225].map(|port| SecurityGroupRule {
                from_port: port,
                to_port: port,
                ..one.clone()
            }));
        }),
    ];
    for (what, open) in open {
        row(what, &declared(|cluster| open(cluster.security_group.as_mut().unwrap())), NONE);
    }
    let facts = declared(|cluster| cluster.security_group.as_mut().unwrap().rules[0].to_port = 2223);
    let unmet = to_create(&facts).unwrap_err().unmet;
    assert_eq!(unmet.to_string(), "its security group sg-1 does not allow inbound TCP 2224, 2225 from itself");
}

#[test]
fn row_8_two_active_hsms_in_two_zones_and_one_to_connect() {
    let cases: [(&str, Change<Settings>, [&str; 6]); 5] = [
        ("one HSM", |it| drop(it.nodes.remove(&hsm(2))), [INVALID, INVALID, "-", "-", INVALID, "-"]),
        (
            "one zone",
            |it| it.nodes.get_mut(&hsm(2)).unwrap().zone = zone('a'),
            [INVALID, INVALID, "-", "-", INVALID, "-"],
        ),
        (
            "one ACTIVE",
            |it| it.nodes.get_mut(&hsm(2)).unwrap().state = HsmState::Degraded,
            [INVALID, INVALID, "-", "-", INVALID, "-"],
        ),
        (
            "none ACTIVE",
            |it| it.nodes.values_mut().for_each(|node| node.state = HsmState::DeleteInProgress),
            [INVALID, INVALID, INVALID, "INSUFFICIENT_CLOUDHSM_HSMS", INVALID, "-"],
        ),
        (
            "three wanted",
            |it| it.min_hsms_to_create = NonZeroU32::new(3).unwrap(),
            [INVALID, INVALID, "-", "-", INVALID, "-"],
        ),
    ];
    for (what, change, expected) in cases {
        row(what, &declared(change), expected);
    }
    let drained = [hsm(1), hsm(2)].map(|hsm| (hsm, HsmStanding::Drained("moving house".to_owned())));
    let facts = Facts { hsms: drained.into(), ..good() };
    row("all drained", &facts, ["-", "-", "-", "INSUFFICIENT_CLOUDHSM_HSMS", "-", "-"]);
}

#[test]
fn one_hsm_is_enough_where_the_vendor_keeps_the_copies() {
    let facts = declared(|cluster| {
        cluster.nodes.remove(&hsm(2));
        cluster.nodes.get_mut(&hsm(1)).unwrap().vendor_cluster = true;
        cluster.min_hsms_to_create = NonZeroU32::MIN;
    });
    row("a vendor's cluster", &facts, NONE);
}

#[test]
fn row_9_no_other_key_store_is_tied_to_the_cluster() {
    let facts = Facts { ties: vec![tie("other", ID, &[ID])], ..good() };
    // It is not connected, either: row 18.
    row("tied", &facts, [IN_USE, IN_USE, "-", "-", "-", "KMS_INVALID_STATE"]);
    let unmet = to_create(&facts).unwrap_err().unmet;
    assert!(matches!(unmet, Unmet::Tied(_)), "{unmet:?}");
}

#[test]
fn row_10_no_relative_is_tied_and_a_key_store_moves_only_to_a_relative() {
    let facts = Facts { ties: vec![tie("other", OTHER, &[ID])], ..good() };
    assert!(matches!(to_create(&facts).unwrap_err().unmet, Unmet::RelativeTied { .. }));
    row("a relative is tied", &facts, [IN_USE, "-", "-", "-", "-", "-"]);
    let stranger = moving(good(), &[OTHER]);
    let not_related = "CLOUD_HSM_CLUSTER_NOT_RELATED";
    row("no relative", &stranger, ["-", not_related, "-", "-", "-", "-"]);
}

#[test]
fn row_10_equal_certificates_mean_a_relative_whatever_else_is_said_of_either() {
    let certificate = Certificate::parse(&another_authority()).unwrap();
    let fingerprint = certificate.fingerprint();
    let mut facts = declared(|cluster| {
        cluster.certificate = Some(certificate);
        cluster.backup_lineage = Some("restored".parse().unwrap());
    });
    facts.lineages = facts.cluster.as_ref().unwrap().lineages(&facts.id);
    for relative in [&[fingerprint.as_str()][..], &[&fingerprint, "original"], &["restored"]] {
        let tied = Facts { ties: vec![tie("other", OTHER, relative)], ..facts.clone() };
        row("a relative is tied", &tied, [IN_USE, "-", "-", "-", "-", "-"]);
        row("a relative is moved", &moving(facts.clone(), relative), [IN_USE, "-", "-", "-", "-", "-"]);
    }
    row("no relative", &moving(facts, &["original"]), ["-", "CLOUD_HSM_CLUSTER_NOT_RELATED", "-", "-", "-", "-"]);
}

#[test]
fn row_11_the_trust_anchor_is_the_clusters() {
    let wrong = TrustAnchor::parse(&another_authority()).unwrap();
    let facts = Facts { trust_anchor: Some(Ok(wrong)), ..good() };
    row("another CA", &facts, ["INCORRECT_TRUST_ANCHOR", "INCORRECT_TRUST_ANCHOR", "-", "-", "-", "-"]);
    let facts = Facts { strangers: [(hsm(1), "unknown issuer".to_owned())].into(), trust_anchor: None, ..good() };
    row("a node of another CA", &facts, ["INCORRECT_TRUST_ANCHOR", "INCORRECT_TRUST_ANCHOR", "-", "-", "-", "-"]);
    let facts = Facts { trust_anchor: Some(Err("is garbled".to_owned())), ..good() };
    row("garbled", &facts, ["VALIDATION", "VALIDATION", "-", "-", "-", "-"]);
    let facts = Facts { trust_anchor: None, ..good() };
    let finding =
        checks(CheckPhase::Create, &facts).into_iter().find(|it| it.rule == Rule::TrustAnchor).unwrap().finding;
    assert!(matches!(finding, Finding::Skipped { .. }));
}

#[test]
fn rows_12_to_15_a_login_that_fails_is_told_with_its_connection_error_code() {
    use ConnectionErrorCode as C;
    for code in [C::UserNotFound, C::InvalidCredentials, C::UserLoggedIn, C::UserLockedOut, C::NetworkErrors] {
        let login = Login::Failed { hsm: Some(hsm(2)), code, message: "so it said".to_owned() };
        let facts = Facts { login, ..good() };
        row(code.as_str(), &facts, NONE);
        let check = checks(CheckPhase::Connecting, &facts).pop().unwrap();
        assert_eq!((check.rule, check.subject), (Rule::Login, Subject::Hsm(hsm(2))));
        let Finding::Failed(unmet) = check.finding else { panic!("{:?}", check.finding) };
        assert_eq!(unmet.reason(CheckPhase::Connecting), code.as_str());
    }
    let facts = Facts { password: Some(Err("is too short".to_owned())), ..good() };
    let check = checks(CheckPhase::Create, &facts).into_iter().find(|it| it.rule == Rule::PasswordForm).unwrap();
    let Finding::Failed(unmet) = check.finding else { panic!("{:?}", check.finding) };
    assert_eq!(unmet.reason(CheckPhase::Create), "VALIDATION");
}

#[test]
fn rows_16_and_17_the_name_is_free_and_the_quota_not_reached() {
    let facts = Facts { ties: vec![tie("main", OTHER, &[OTHER])], ..good() };
    row("the name is taken", &facts, ["CUSTOM_KEY_STORE_NAME_IN_USE", "-", "-", "-", "-", "-"]);
    let facts = Facts { ties: vec![tie("one", OTHER, &[OTHER])], quota: 1, ..good() };
    row("the quota is reached", &facts, ["LIMIT_EXCEEDED", "-", "-", "-", "-", "-"]);
}

#[test]
fn row_18_the_key_store_is_connected_and_enough_hsms_answer() {
    let reasons = |facts: &Facts| -> Vec<(CheckPhase, &str, Option<&str>)> {
        let told = |check: Check| {
            let reason = match &check.finding {
                Finding::Failed(unmet) => Some(unmet.reason(check.phase)),
                Finding::Passed => Some("PASSED"),
                Finding::Skipped { .. } | Finding::Warning(_) => None,
            };
            (check.phase, check.rule.name(), reason)
        };
        [CheckPhase::CreateKey, CheckPhase::Use].into_iter().flat_map(|phase| checks(phase, facts)).map(told).collect()
    };
    let with = |state, hsms: [HsmStanding; 2]| {
        let store = TiedKeyStore { state, ..tie("main", ID, &[ID]) };
        let [one, two] = hsms;
        reasons(&Facts { ties: vec![store], hsms: [(hsm(1), one), (hsm(2), two)].into(), ..good() })
    };
    let table = |enough, store, answer, used, one| {
        vec![
            (CheckPhase::CreateKey, "active-hsms-in-two-zones", enough),
            (CheckPhase::CreateKey, "key-store-connected", store),
            (CheckPhase::CreateKey, "hsms-answer-in-two-zones", answer),
            (CheckPhase::Use, "cluster-found", Some("PASSED")),
            (CheckPhase::Use, "cluster-active", Some("PASSED")),
            (CheckPhase::Use, "key-store-connected", used),
            (CheckPhase::Use, "hsm-answers", one),
        ]
    };
    let passed = Some("PASSED");
    assert_eq!(reasons(&good()), table(passed, None, None, None, None), "no key store yet");
    let invalid = Some("CUSTOM_KEY_STORE_INVALID_STATE");
    let found = with(ConnectionState::Disconnected, [HsmStanding::Reachable, HsmStanding::Reachable]);
    assert_eq!(found, table(passed, invalid, None, Some("KMS_INVALID_STATE"), None));
    let found = with(ConnectionState::Connected, [HsmStanding::Answers, HsmStanding::Answers]);
    assert_eq!(found, table(passed, passed, passed, passed, passed));
    let found = with(ConnectionState::Connected, [HsmStanding::Answers, HsmStanding::Unreachable("gone".to_owned())]);
    assert_eq!(found, table(passed, passed, Some("NO_NODE"), passed, passed));
    let found =
        with(ConnectionState::Connected, [HsmStanding::NotYet("x".to_owned()), HsmStanding::Drained("y".to_owned())]);
    assert_eq!(found, table(passed, passed, Some("NO_NODE"), passed, Some("NO_NODE")));
}

#[test]
fn an_hsm_that_cannot_be_reached_is_a_warning_while_another_can() {
    let with = |services: [HsmStanding; 2]| {
        let [one, two] = services;
        let facts = Facts { hsms: [(hsm(1), one), (hsm(2), two)].into(), ..good() };
        let found = checks(CheckPhase::Connecting, &facts);
        found
            .into_iter()
            .filter(|check| check.rule == Rule::HsmReachable)
            .map(|check| check.finding)
            .collect::<Vec<_>>()
    };
    let gone = || HsmStanding::Unreachable("no slot has this token".to_owned());
    assert!(matches!(with([gone(), HsmStanding::Reachable])[..], [Finding::Warning(_), Finding::Passed]));
    assert!(matches!(with([gone(), gone()])[..], [Finding::Failed(_), Finding::Failed(_)]));
    assert!(matches!(with([HsmStanding::Unknown, gone()])[..], [Finding::Skipped { .. }, Finding::Failed(_)]));
}

#[test]
fn what_is_not_declared_is_skipped_and_never_made_up() {
    let facts = declared(|cluster| {
        cluster.subnets.clear();
        cluster.security_group = None;
        cluster.nodes.values_mut().for_each(|node| node.subnet = None);
    });
    row("no subnets, no security group", &facts, NONE);
    let about = [Rule::SubnetsInTwoZones, Rule::Ingress, Rule::Egress, Rule::SubnetsPresent, Rule::FreeAddresses];
    for phase in [CheckPhase::Create, CheckPhase::Connect, CheckPhase::Connecting] {
        for check in checks(phase, &facts).into_iter().filter(|check| about.contains(&check.rule)) {
            assert!(matches!(check.finding, Finding::Skipped { .. }), "{check:?}");
        }
    }
}

/// The rules of making and moving, as a survey finds them.
fn of_making(facts: &Facts) -> Vec<(&'static str, &'static str)> {
    let found = survey(facts).into_iter().filter(|check| matches!(check.phase, CheckPhase::Create | CheckPhase::Move));
    let told = |check: Check| match check.finding {
        Finding::Passed => (check.rule.name(), "passed"),
        Finding::Skipped { .. } => (check.rule.name(), "skipped"),
        Finding::Warning(_) => (check.rule.name(), "warning"),
        Finding::Failed(unmet) => (check.rule.name(), unmet.reason(check.phase)),
    };
    found.map(told).collect()
}

#[test]
fn where_a_key_store_stands_nothing_fails_for_want_of_room_for_another() {
    let facts = Facts { ties: vec![tie("main", ID, &[ID])], quota: 1, name: None, ..good() };
    let found = of_making(&facts);
    for about_another in ["key-store-quota", "cluster-free", "no-relative-in-use"] {
        assert!(found.contains(&(about_another, "skipped")), "{about_another}: {found:?}");
    }
    assert!(found.iter().all(|(_, how)| matches!(*how, "passed" | "skipped")), "{found:?}");
    assert!(survey(&facts).iter().all(|check| check.phase != CheckPhase::Move));
}

#[test]
fn where_a_relative_carries_a_key_store_a_survey_is_the_dry_run_of_moving_it() {
    let facts = Facts { ties: vec![tie("main", OTHER, &[ID])], quota: 1, name: None, ..good() };
    let found = of_making(&facts);
    assert_eq!(
        found,
        [
            ("password-form", "passed"),
            ("key-store-quota", "skipped"),
            ("no-relative-in-use", "skipped"),
            ("no-client-certificates-required", "skipped"),
            ("key-store-disconnected", "passed"),
            ("cluster-found", "passed"),
            ("same-account-and-region", "passed"),
            ("cluster-free", "passed"),
            ("cluster-related", "passed"),
            ("cluster-active", "passed"),
            ("subnets-in-two-zones", "passed"),
            ("security-group-ingress", "passed"),
            ("security-group-egress", "passed"),
            ("active-hsms-in-two-zones", "passed"),
            ("trust-anchor", "passed"),
        ]
    );
    let connected = TiedKeyStore { state: ConnectionState::Connected, ..tie("main", OTHER, &[ID]) };
    let found = of_making(&Facts { ties: vec![connected], ..facts.clone() });
    assert!(found.contains(&("key-store-disconnected", "CUSTOM_KEY_STORE_INVALID_STATE")), "{found:?}");
    let degraded = declared(|cluster| cluster.state = ClusterState::Degraded);
    let found = of_making(&Facts { cluster: degraded.cluster, ..facts });
    assert_eq!(found.iter().filter(|(_, how)| *how == ACTIVE).count(), 1, "told once: {found:?}");
}

/// Each is wrong in everything that comes after it, too.
#[test]
fn what_is_wrong_first_is_told_first() {
    let mut facts = declared(|cluster| {
        cluster.state = ClusterState::Degraded;
        cluster.subnets.remove(&subnet('b'));
        cluster.security_group.as_mut().unwrap().rules.clear();
        cluster.nodes.remove(&hsm(2));
    });
    facts.trust_anchor = Some(Ok(TrustAnchor::parse(&another_authority()).unwrap()));
    facts.ties = vec![tie("main", OTHER, &[ID]), tie("other", ID, &[ID])];
    let undeclared = Facts { cluster: None, ..facts.clone() };
    let reason = |facts: &Facts| to_create(facts).unwrap_err().reason();
    assert_eq!(reason(&undeclared), "CUSTOM_KEY_STORE_NAME_IN_USE");
    facts.name = Some("free".parse().unwrap());
    assert_eq!(reason(&Facts { name: facts.name.clone(), ..undeclared.clone() }), "LIMIT_EXCEEDED");
    facts.quota = 10;
    assert_eq!(reason(&Facts { cluster: None, ..facts.clone() }), "CLOUD_HSM_CLUSTER_NOT_FOUND");
    assert!(matches!(to_create(&facts).unwrap_err().unmet, Unmet::Tied(_)));
    facts.ties.pop();
    assert!(matches!(to_create(&facts).unwrap_err().unmet, Unmet::RelativeTied { .. }));
    facts.ties.clear();
    type Is = fn(&Unmet) -> bool;
    let fixes: [(Change<Settings>, Is); 4] = [
        (|_| (), |it| matches!(it, Unmet::NotActive { .. })),
        (|it| it.state = ClusterState::Active, |it| matches!(it, Unmet::SubnetsInTooFewZones { .. })),
        (|it| it.subnets = cluster().subnets, |it| matches!(it, Unmet::Closed { direction: Direction::Ingress, .. })),
        (|it| it.security_group = cluster().security_group, |it| matches!(it, Unmet::TooFewHsms { .. })),
    ];
    for (fix, expected) in fixes {
        fix(Arc::make_mut(facts.cluster.as_mut().unwrap()));
        let unmet = to_create(&facts).unwrap_err().unmet;
        assert!(expected(&unmet), "{unmet:?}");
    }
    Arc::make_mut(facts.cluster.as_mut().unwrap()).nodes = cluster().nodes;
    assert_eq!(to_create(&facts).unwrap_err().unmet, Unmet::IncorrectTrustAnchor);
    facts.trust_anchor = Some(Ok(authority()));
    assert_eq!(to_create(&facts), Ok(()));
}

#[test]
fn every_unmet_prerequisite_says_what_is_wrong_what_to_do_and_which_error_it_is() {
    for unmet in Unmet::one_of_each() {
        assert!(unmet.remedy().ends_with('.'), "{unmet:?}: {:?}", unmet.remedy());
        assert!(!unmet.to_string().ends_with('.'), "{unmet:?}: {unmet}");
        for (_, phase, _) in TABLE {
            assert!(!unmet.reason(*phase).is_empty(), "{unmet:?}");
        }
    }
}
