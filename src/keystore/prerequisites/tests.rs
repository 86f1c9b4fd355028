//! Every row of the checklist, in every phase: what refuses, with which reason, and what only tells.

use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::cluster::{
    Direction, NodeSettings, Profile, SecurityGroup, SecurityGroupRule, Settings, SubnetId, SubnetSettings, SyncMode,
    TokenName,
};
use crate::link::Patience;
use crate::model::{ClusterState, HsmState};

const ID: &str = "cluster-2abcdefghij";
const OTHER: &str = "cluster-2klmnopqrst";

/// Two ACTIVE HSMs and two subnets in two zones, an open security group, nothing tied.
fn good() -> Facts {
    let id: ClusterId = ID.parse().unwrap();
    let cluster = cluster();
    Facts {
        lineage: cluster.lineage(&id),
        id,
        cluster: Some(Arc::new(cluster)),
        ties: Vec::new(),
        quota: 2,
        hsms: [hsm(1), hsm(2)].map(|hsm| (hsm, Service::Reachable)).into(),
        name: Some("main".parse().unwrap()),
        trust_anchor: Some(Ok(authority())),
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
        protocol: "tcp".to_owned(),
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
        module: "/lib.so".into(),
        token: TokenName::Label(letter.to_string()),
        environment: BTreeMap::new(),
        pool_size: NonZeroU32::MIN,
        queue_limit: NonZeroU32::MIN,
        patience: Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) },
        memory_limit: 1 << 30,
        so_pin_file: None,
        user_tokens: None,
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
fn tie(name: &str, on: &str, lineage: &str) -> Tie {
    Tie {
        store: KeyStoreId::random(),
        name: name.parse().unwrap(),
        state: ConnectionState::Disconnected,
        cluster: on.parse().unwrap(),
        lineage: lineage.parse().unwrap(),
    }
}

/// [`good`] with something changed in the cluster's declaration.
fn declared(change: impl FnOnce(&mut Settings)) -> Facts {
    let mut cluster = cluster();
    change(&mut cluster);
    Facts { cluster: Some(Arc::new(cluster)), ..good() }
}

/// [`good`] with a key store on it that is to be moved to another cluster: here, to this one.
fn moving(mut facts: Facts, lineage: &str) -> Facts {
    let own = tie("moving", OTHER, lineage);
    facts.moving = Some(own.store.clone());
    facts.ties.push(own);
    facts
}

/// A reason for each phase that refuses, `-` where the row stops nothing: Create, Move, Connect, Connecting, CreateKey.
#[track_caller]
fn row(what: &str, facts: &Facts, expected: [&str; 5]) {
    let lineage = facts.lineage.to_string();
    let moved = if facts.moving.is_some() { facts.clone() } else { moving(facts.clone(), &lineage) };
    let reason = |phase, outcome: Result<(), Unmet>| outcome.err().map_or("-", |unmet| unmet.reason(phase));
    let found = [
        reason(Phase::Create, to_create(facts)),
        reason(Phase::Move, to_move_to(&moved)),
        reason(Phase::Connect, to_connect(facts)),
        reason(Phase::Connecting, while_connecting(facts)),
        reason(Phase::CreateKey, to_create_key(facts)),
    ];
    assert_eq!(found, expected, "{what}");
}

type Change<T> = fn(&mut T);

const NONE: [&str; 5] = ["-", "-", "-", "-", "-"];
const ACTIVE: &str = "CLOUD_HSM_CLUSTER_NOT_ACTIVE";
const INVALID: &str = "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION";
const IN_USE: &str = "CLOUD_HSM_CLUSTER_IN_USE";

#[test]
fn a_cluster_with_everything_stops_nothing() {
    row("good", &good(), NONE);
    for phase in [Phase::Create, Phase::Connect, Phase::Connecting] {
        let checks = checks(phase, &good());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Passed), "{checks:?}");
    }
}

#[test]
fn row_1_the_cluster_is_declared() {
    let facts = Facts { cluster: None, ..good() };
    let missing = "CLOUD_HSM_CLUSTER_NOT_FOUND";
    row("undeclared", &facts, [missing, missing, "-", "CLUSTER_NOT_FOUND", "-"]);
}

#[test]
fn row_2_the_cluster_is_active() {
    for state in ClusterState::ALL {
        let facts = declared(|cluster| cluster.state = *state);
        let expected = if *state == ClusterState::Active { NONE } else { [ACTIVE, ACTIVE, ACTIVE, "-", "-"] };
        row(state.as_str(), &facts, expected);
    }
    let said = declared(|cluster| {
        cluster.state = ClusterState::UpdateInProgress;
        cluster.state_message = "an HSM is being added".to_owned();
    });
    let unmet = to_create(&said).unwrap_err();
    assert_eq!(unmet.to_string(), "it is UPDATE_IN_PROGRESS, not ACTIVE: an HSM is being added");
}

#[test]
fn row_4_its_subnets_are_in_two_zones() {
    let facts = declared(|cluster| drop(cluster.subnets.remove(&subnet('b'))));
    row("one subnet", &facts, [INVALID, INVALID, INVALID, "-", "-"]);
    let facts = declared(|cluster| cluster.subnets.values_mut().for_each(|subnet| subnet.zone = zone('a')));
    row("two subnets in one zone", &facts, [INVALID, INVALID, INVALID, "-", "-"]);
}

#[test]
fn row_5_its_subnets_are_there() {
    let facts = declared(|cluster| cluster.subnets.get_mut(&subnet('b')).unwrap().present = false);
    row("a subnet is gone", &facts, ["-", "-", "-", "SUBNET_NOT_FOUND", "-"]);
    assert!(while_connecting(&facts).unwrap_err().to_string().contains("subnet-b"));
}

#[test]
fn row_6_its_subnets_have_free_addresses() {
    let with = |free| declared(|cluster| cluster.subnets.get_mut(&subnet('b')).unwrap().free_addresses = free);
    row("none", &with(Some(0)), ["-", "-", "-", "INSUFFICIENT_FREE_ADDRESSES_IN_SUBNET", "-"]);
    for free in [Some(1), Some(2), None] {
        row("some", &with(free), NONE);
    }
    let verdict = |free| {
        let checks = checks(Phase::Connecting, &with(free));
        let found = checks.into_iter().find(|it| it.rule == Rule::FreeAddresses && it.subject == "subnet-b");
        found.unwrap().verdict
    };
    assert!(matches!(verdict(Some(1)), Verdict::Warning(Unmet::OneFreeAddress(_))));
    assert_eq!(verdict(Some(2)), Verdict::Passed);
    assert!(matches!(verdict(None), Verdict::Skipped { .. }));
}

#[test]
fn row_7_its_security_group_lets_the_hsms_ports_pass_to_itself() {
    let closed: [(&str, Change<SecurityGroup>); 6] = [
        ("nothing in", |group| drop(group.rules.remove(0))),
        ("nothing out", |group| drop(group.rules.remove(1))),
        ("one port short", |group| group.rules[0].to_port = 2224),
        ("udp", |group| group.rules[1].protocol = "udp".to_owned()),
        ("another group", |group| group.rules[0].peer = "sg-2".parse().unwrap()),
        ("both in", |group| group.rules[1].direction = Direction::Ingress),
    ];
    for (what, close) in closed {
        let facts = declared(|cluster| close(cluster.security_group.as_mut().unwrap()));
        row(what, &facts, [INVALID, INVALID, INVALID, "-", "-"]);
    }
    let open: [(&str, Change<SecurityGroup>); 3] = [
        ("every protocol", |group| {
            group.rules[0] =
                SecurityGroupRule { protocol: "-1".to_owned(), from_port: 0, to_port: 0, ..group.rules[0].clone() }
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
    let unmet = to_create(&facts).unwrap_err();
    assert_eq!(unmet.to_string(), "its security group sg-1 lets no TCP 2224, 2225 in from itself");
}

#[test]
fn row_8_two_active_hsms_in_two_zones_and_one_to_connect() {
    let cases: [(&str, Change<Settings>, [&str; 5]); 5] = [
        ("one HSM", |it| drop(it.nodes.remove(&hsm(2))), [INVALID, INVALID, "-", "-", INVALID]),
        ("one zone", |it| it.nodes.get_mut(&hsm(2)).unwrap().zone = zone('a'), [INVALID, INVALID, "-", "-", INVALID]),
        (
            "one ACTIVE",
            |it| it.nodes.get_mut(&hsm(2)).unwrap().state = HsmState::Degraded,
            [INVALID, INVALID, "-", "-", INVALID],
        ),
        (
            "none ACTIVE",
            |it| it.nodes.values_mut().for_each(|node| node.state = HsmState::DeleteInProgress),
            [INVALID, INVALID, INVALID, "INSUFFICIENT_CLOUDHSM_HSMS", INVALID],
        ),
        (
            "three wanted",
            |it| it.min_hsms_to_create = NonZeroU32::new(3).unwrap(),
            [INVALID, INVALID, "-", "-", INVALID],
        ),
    ];
    for (what, change, expected) in cases {
        row(what, &declared(change), expected);
    }
    let out_of_use = [hsm(1), hsm(2)].map(|hsm| (hsm, Service::OutOfUse("moving house".to_owned())));
    let facts = Facts { hsms: out_of_use.into(), ..good() };
    row("all out of use", &facts, ["-", "-", "-", "INSUFFICIENT_CLOUDHSM_HSMS", "-"]);
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
    let facts = Facts { ties: vec![tie("other", ID, ID)], ..good() };
    row("tied", &facts, [IN_USE, IN_USE, "-", "-", "-"]);
    let unmet = to_create(&facts).unwrap_err();
    assert!(matches!(unmet, Unmet::Tied(_)), "{unmet:?}");
}

#[test]
fn row_10_no_relative_is_tied_and_a_key_store_moves_only_to_a_relative() {
    let facts = Facts { ties: vec![tie("other", OTHER, ID)], ..good() };
    assert!(matches!(to_create(&facts), Err(Unmet::RelativeTied { .. })));
    row("a relative is tied", &facts, [IN_USE, "-", "-", "-", "-"]);
    let stranger = moving(good(), OTHER);
    let not_related = "CLOUD_HSM_CLUSTER_NOT_RELATED";
    row("no relative", &stranger, ["-", not_related, "-", "-", "-"]);
}

#[test]
fn row_11_the_trust_anchor_is_the_clusters() {
    let wrong = TrustAnchor::parse(&another_authority()).unwrap();
    let facts = Facts { trust_anchor: Some(Ok(wrong)), ..good() };
    row("another CA", &facts, ["INCORRECT_TRUST_ANCHOR", "-", "-", "-", "-"]);
    let facts = Facts { trust_anchor: Some(Err("is garbled".to_owned())), ..good() };
    row("garbled", &facts, ["VALIDATION", "-", "-", "-", "-"]);
    let facts = Facts { trust_anchor: None, ..good() };
    let verdict = checks(Phase::Create, &facts).pop().unwrap();
    assert!(matches!((verdict.rule, verdict.verdict), (Rule::TrustAnchor, Verdict::Skipped { .. })));
}

#[test]
fn rows_12_to_15_a_login_that_fails_is_told_with_its_connection_error_code() {
    use ConnectionErrorCode as C;
    for code in [C::UserNotFound, C::InvalidCredentials, C::UserLoggedIn, C::UserLockedOut, C::NetworkErrors] {
        let login = Login::Failed { hsm: Some(hsm(2)), code, message: "so it said".to_owned() };
        let facts = Facts { login, ..good() };
        row(code.as_str(), &facts, NONE);
        let check = checks(Phase::Connecting, &facts).pop().unwrap();
        assert_eq!((check.rule, check.subject.as_str()), (Rule::Login, "hsm-2"));
        let Verdict::Failed(unmet) = check.verdict else { panic!("{:?}", check.verdict) };
        assert_eq!(unmet.reason(Phase::Connecting), code.as_str());
    }
    let facts = Facts { password: Some(Err("is too short".to_owned())), ..good() };
    let check = checks(Phase::Create, &facts).into_iter().find(|it| it.rule == Rule::PasswordForm).unwrap();
    let Verdict::Failed(unmet) = check.verdict else { panic!("{:?}", check.verdict) };
    assert_eq!(unmet.reason(Phase::Create), "VALIDATION");
}

#[test]
fn rows_16_and_17_the_name_is_free_and_the_quota_not_reached() {
    let facts = Facts { ties: vec![tie("main", OTHER, OTHER)], ..good() };
    row("the name is taken", &facts, ["CUSTOM_KEY_STORE_NAME_IN_USE", "-", "-", "-", "-"]);
    let facts = Facts { ties: vec![tie("one", OTHER, OTHER)], quota: 1, ..good() };
    row("the quota is reached", &facts, ["LIMIT_EXCEEDED", "-", "-", "-", "-"]);
}

#[test]
fn row_18_the_key_store_is_connected_and_enough_hsms_answer() {
    let reasons = |facts: &Facts| -> Vec<(Phase, &str, Option<&str>)> {
        let told = |check: Check| {
            let reason = match &check.verdict {
                Verdict::Failed(unmet) => Some(unmet.reason(check.phase)),
                Verdict::Passed => Some("PASSED"),
                Verdict::Skipped { .. } | Verdict::Warning(_) => None,
            };
            (check.phase, check.rule.name(), reason)
        };
        [Phase::CreateKey, Phase::Use].into_iter().flat_map(|phase| checks(phase, facts)).map(told).collect()
    };
    let with = |state, hsms: [Service; 2]| {
        let store = Tie { state, ..tie("main", ID, ID) };
        let [one, two] = hsms;
        reasons(&Facts { ties: vec![store], hsms: [(hsm(1), one), (hsm(2), two)].into(), ..good() })
    };
    let table = |enough, store, answer, used, one| {
        vec![
            (Phase::CreateKey, "active-hsms-in-two-zones", enough),
            (Phase::CreateKey, "key-store-connected", store),
            (Phase::CreateKey, "hsms-answer-in-two-zones", answer),
            (Phase::Use, "key-store-connected", used),
            (Phase::Use, "hsm-answers", one),
        ]
    };
    let passed = Some("PASSED");
    assert_eq!(reasons(&good()), table(passed, None, None, None, None), "no key store yet");
    let invalid = Some("CUSTOM_KEY_STORE_INVALID_STATE");
    let found = with(ConnectionState::Disconnected, [Service::Reachable, Service::Reachable]);
    assert_eq!(found, table(passed, invalid, None, Some("KMS_INVALID_STATE"), None));
    let found = with(ConnectionState::Connected, [Service::Answers, Service::Answers]);
    assert_eq!(found, table(passed, passed, passed, passed, passed));
    let found = with(ConnectionState::Connected, [Service::Answers, Service::Unreachable("gone".to_owned())]);
    assert_eq!(found, table(passed, passed, Some("NO_NODE"), passed, passed));
    let found = with(ConnectionState::Connected, [Service::NotYet("x".to_owned()), Service::OutOfUse("y".to_owned())]);
    assert_eq!(found, table(passed, passed, Some("NO_NODE"), passed, Some("NO_NODE")));
}

#[test]
fn an_hsm_that_cannot_be_reached_is_a_warning_while_another_can() {
    let with = |services: [Service; 2]| {
        let [one, two] = services;
        let facts = Facts { hsms: [(hsm(1), one), (hsm(2), two)].into(), ..good() };
        let found = checks(Phase::Connecting, &facts);
        found
            .into_iter()
            .filter(|check| check.rule == Rule::HsmReachable)
            .map(|check| check.verdict)
            .collect::<Vec<_>>()
    };
    let gone = || Service::Unreachable("no slot has this token".to_owned());
    assert!(matches!(with([gone(), Service::Reachable])[..], [Verdict::Warning(_), Verdict::Passed]));
    assert!(matches!(with([gone(), gone()])[..], [Verdict::Failed(_), Verdict::Failed(_)]));
    assert!(matches!(with([Service::Unknown, gone()])[..], [Verdict::Skipped { .. }, Verdict::Failed(_)]));
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
    for phase in [Phase::Create, Phase::Connect, Phase::Connecting] {
        for check in checks(phase, &facts).into_iter().filter(|check| about.contains(&check.rule)) {
            assert!(matches!(check.verdict, Verdict::Skipped { .. }), "{check:?}");
        }
    }
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
    facts.ties = vec![tie("main", OTHER, ID), tie("other", ID, ID)];
    let undeclared = Facts { cluster: None, ..facts.clone() };
    let reason = |facts: &Facts| to_create(facts).unwrap_err().reason(Phase::Create);
    assert_eq!(reason(&undeclared), "CUSTOM_KEY_STORE_NAME_IN_USE");
    facts.name = Some("free".parse().unwrap());
    assert_eq!(reason(&Facts { name: facts.name.clone(), ..undeclared.clone() }), "LIMIT_EXCEEDED");
    facts.quota = 10;
    assert_eq!(reason(&Facts { cluster: None, ..facts.clone() }), "CLOUD_HSM_CLUSTER_NOT_FOUND");
    assert!(matches!(to_create(&facts), Err(Unmet::Tied(_))));
    facts.ties.pop();
    assert!(matches!(to_create(&facts), Err(Unmet::RelativeTied { .. })));
    facts.ties.clear();
    type Is = fn(&Unmet) -> bool;
    let mend: [(Change<Settings>, Is); 4] = [
        (|_| (), |it| matches!(it, Unmet::NotActive { .. })),
        (|it| it.state = ClusterState::Active, |it| matches!(it, Unmet::SubnetsInTooFewZones { .. })),
        (|it| it.subnets = cluster().subnets, |it| matches!(it, Unmet::Closed { direction: Direction::Ingress, .. })),
        (|it| it.security_group = cluster().security_group, |it| matches!(it, Unmet::TooFewHsms { .. })),
    ];
    for (mend, expected) in mend {
        mend(Arc::make_mut(facts.cluster.as_mut().unwrap()));
        let unmet = to_create(&facts).unwrap_err();
        assert!(expected(&unmet), "{unmet:?}");
    }
    Arc::make_mut(facts.cluster.as_mut().unwrap()).nodes = cluster().nodes;
    assert_eq!(to_create(&facts), Err(Unmet::IncorrectTrustAnchor));
    facts.trust_anchor = Some(Ok(authority()));
    assert_eq!(to_create(&facts), Ok(()));
}

#[test]
fn every_unmet_prerequisite_says_what_to_do() {
    let every = [
        to_create(&Facts { cluster: None, ..good() }),
        to_create(&declared(|it| it.state = ClusterState::Degraded)),
        to_create(&declared(|it| drop(it.subnets.pop_first()))),
        to_create(&declared(|it| it.security_group.as_mut().unwrap().rules.clear())),
        to_create(&declared(|it| drop(it.nodes.pop_first()))),
        to_connect(&declared(|it| it.nodes.clear())),
    ];
    for unmet in every {
        let unmet = unmet.unwrap_err();
        assert!(unmet.remedy().ends_with('.'), "{unmet:?}: {:?}", unmet.remedy());
    }
}
