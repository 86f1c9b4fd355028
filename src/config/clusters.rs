//! The clusters, their subnets and their nodes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::cluster::{
    NodeSettings, Origin, Profile, Protocol, SecurityGroup, SecurityGroupId, SecurityGroupRule, Settings,
    SubnetSettings, SyncMode,
};
use crate::host::{LocalToken, Location, RemoteNode, TokenName};
use crate::link::Patience;
use crate::model::{ClusterId, ClusterState, HostName, HsmId, HsmState, Invalid, Ports, SubnetId, TrustAnchor, Zone};

use super::file;
use super::problem::KeyPath;
use super::rotation::rotation;
use super::section::Section;
use super::value::{
    Written, certificate, duration, existing_file, line, number, path, private_file, text, trust_anchor, truth,
};

/// As PKCS#11 lays out a token's label and serial number.
const LONGEST_LABEL: usize = 32;
const LONGEST_SERIAL: usize = 16;

/// As the public contract has it.
const LONGEST_STATE_MESSAGE: usize = 300;
/// As many as a subnet can have.
const MOST_ADDRESSES: u32 = 65_536;
/// More than AWS allows in a cluster.
pub(super) const MOST_HSMS: u32 = 64;

/// A key is told to be there when it is on two HSMs.
pub(super) const MIN_HSMS_TO_CREATE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
const POOL_SIZE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
const QUEUE_LIMIT: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");
const PATIENCE: Patience = Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) };
const MEMORY_LIMIT_MIB: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");
const SHORTEST_PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

type Subnets = BTreeMap<SubnetId, SubnetSettings>;

/// Which tokens, and which directories of users' tokens, have been seen, and on which node: two nodes on one token are no
/// copies of each other.
#[derive(Default)]
pub(super) struct Tokens {
    named: BTreeMap<(PathBuf, TokenName, BTreeMap<String, String>), KeyPath>,
    of_users: BTreeMap<PathBuf, KeyPath>,
    /// By their `SOFTHSM2_CONF`, and whether users are managed there.
    configurations: BTreeMap<PathBuf, (KeyPath, bool)>,
}

pub(super) fn clusters(root: &mut Section<'_>) -> Option<BTreeMap<ClusterId, Settings>> {
    let mut tokens = Tokens::default();
    root.sections("clusters", "<cluster>", |section| cluster(section, &mut tokens))
}

fn cluster(cluster: &mut Section<'_>, tokens: &mut Tokens) -> Option<Settings> {
    let region = cluster.required("region", text, "name the cluster's region, such as \"us-east-1\"");
    let account = cluster.required("account", text, "give 12 digits, such as \"000000000000\"");
    let state = cluster.defaulted("state", ClusterState::Active, text);
    let state_message = cluster.defaulted("state_message", String::new(), line(LONGEST_STATE_MESSAGE));
    let certificate = cluster.optional("certificate", certificate);
    let backup_lineage = cluster.optional("backup_lineage", text);
    let sync = cluster.required("sync", text, "write \"wrap\"");
    let profile = cluster.required("profile", text, "write \"softhsm2\"");
    let trust_anchor = cluster_trust_anchor(cluster, profile);
    let rotation = rotation(cluster, profile);
    let subnets = cluster.sections("subnets", "<subnet>", subnet);
    let security_group = security_group(cluster);
    let nodes = cluster.sections("nodes", "<hsm>", |section| {
        let anchor = trust_anchor.as_ref().map(Option::as_ref);
        let node = node(section, subnets.as_ref(), sync.zip(profile), anchor)?;
        match &node.location {
            Location::Here(token) => refuse_shared(section, token, tokens),
            // What is behind an address, and that it is there once, its node sees to.
            Location::There(_) => {}
        }
        Some(node)
    });
    if nodes.as_ref().is_some_and(BTreeMap::is_empty) {
        cluster.complain_of("nodes", "is empty: a cluster has at least one node");
    }
    if let Some(nodes) = &nodes {
        refuse_half_managed(cluster, nodes);
    }
    let min_hsms_to_create = min_hsms_to_create(cluster, nodes.as_ref());
    Some(Settings {
        region: region?,
        account: account?,
        state: state?,
        state_message: state_message?,
        certificate: certificate?,
        trust_anchor: trust_anchor?,
        backup_lineage: backup_lineage?,
        sync: sync?,
        profile: profile?,
        rotation: rotation?,
        subnets: subnets?,
        security_group: security_group?,
        min_hsms_to_create: min_hsms_to_create?,
        nodes: nodes?,
        origin: Origin::Configured,
    })
}

/// The certificate that callers must show, where the profile has them show one.
fn cluster_trust_anchor(cluster: &mut Section<'_>, profile: Option<Profile>) -> Option<Option<TrustAnchor>> {
    if profile.is_none_or(Profile::requires_trust_anchor) {
        cluster.required("trust_anchor", trust_anchor, "name the cluster's customerCA.crt").map(Some)
    } else {
        cluster.optional("trust_anchor", trust_anchor)
    }
}

/// One copy of a key is enough only where the vendor vouches for the others behind the same slot.
fn min_hsms_to_create(cluster: &mut Section<'_>, nodes: Option<&BTreeMap<HsmId, NodeSettings>>) -> Option<NonZeroU32> {
    let min = cluster.defaulted("min_hsms_to_create", MIN_HSMS_TO_CREATE, number(1..=MOST_HSMS))?;
    let vouched = nodes.is_none_or(|nodes| nodes.values().all(|node| node.vendor_cluster));
    if min == NonZeroU32::MIN && !vouched {
        let why = "may be 1 only where every node has vendor_cluster = true: a key on one HSM is lost with it";
        cluster.complain_of("min_hsms_to_create", why);
        return None;
    }
    Some(min)
}

fn subnet(subnet: &mut Section<'_>) -> Option<SubnetSettings> {
    let zone = subnet.required("zone", text, "name the availability zone, such as \"us-east-1a\"");
    let free_addresses = subnet.optional("free_addresses", number(0..=MOST_ADDRESSES));
    let present = subnet.defaulted("present", true, truth);
    Some(SubnetSettings { zone: zone?, free_addresses: free_addresses?, present: present? })
}

fn security_group(cluster: &mut Section<'_>) -> Option<Option<SecurityGroup>> {
    if !cluster.has("security_group") {
        return Some(None);
    }
    cluster.section("security_group", |group| {
        let id = group.required("id", text::<SecurityGroupId>, "name the group, such as \"sg-1\"");
        let rules = group.sections::<RuleName, _>("rules", "<rule>", |section| rule(section, id.as_ref()));
        Some(Some(SecurityGroup { id: id?, rules: rules?.into_values().collect() }))
    })
}

fn rule(rule: &mut Section<'_>, group: Option<&SecurityGroupId>) -> Option<SecurityGroupRule> {
    let direction = rule.required("direction", text, "write \"ingress\" or \"egress\"");
    let protocol = rule.defaulted("protocol", Protocol::Tcp, text);
    let from_port = rule.required("from_port", number(0..=65_535), "give the first port that it allows");
    let to_port = rule.required("to_port", number(0..=65_535), "give the last port that it allows");
    let peer = rule.optional("peer", text::<SecurityGroupId>);
    if let (Some(from), Some(to)) = (from_port, to_port)
        && from > to
    {
        rule.complain_of("to_port", format!("is less than from_port: {from} to {to} is no port at all"));
    }
    Some(SecurityGroupRule {
        direction: direction?,
        protocol: protocol?,
        from_port: from_port?,
        to_port: to_port?,
        peer: peer?.or_else(|| group.cloned())?,
    })
}

/// What an operator calls a rule, so that a variable can name it too.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct RuleName(String);

impl FromStr for RuleName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let alphabet = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if (1..=64).contains(&text.len()) && alphabet {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("a rule's name is 1 to 64 lower-case letters, digits or hyphens"))
        }
    }
}

fn node(
    node: &mut Section<'_>,
    subnets: Option<&Subnets>,
    kind: Option<(SyncMode, Profile)>,
    anchor: Option<Option<&TrustAnchor>>,
) -> Option<NodeSettings> {
    let place = place(node, subnets);
    let state = node.defaulted("state", HsmState::Active, text);
    let vendor_cluster = node.defaulted("vendor_cluster", false, truth);
    let location = if node.has("address") {
        remote_node(node, anchor).map(Location::There)
    } else {
        local_token(node, kind).map(Location::Here)
    };
    let limits = limits(node);
    let (subnet, zone) = place?;
    let Limits { pool_size, queue_limit, patience, memory_limit } = limits?;
    Some(NodeSettings {
        subnet,
        zone,
        state: state?,
        vendor_cluster: vendor_cluster?,
        location: location?,
        pool_size,
        queue_limit,
        patience,
        memory_limit,
    })
}

/// What a node takes on, and how long it is waited for.
pub(super) struct Limits {
    pub(super) pool_size: NonZeroU32,
    pub(super) queue_limit: NonZeroU32,
    pub(super) patience: Patience,
    pub(super) memory_limit: u64,
}

pub(super) fn limits(node: &mut Section<'_>) -> Option<Limits> {
    let pool_size = node.defaulted("pool_size", POOL_SIZE, number(1..=256));
    let queue_limit = node.defaulted("queue_limit", QUEUE_LIMIT, number(1..=65_536));
    let patience = node.defaulted("patience", PATIENCE.quick, duration(SHORTEST_PATIENCE..=LONGEST_PATIENCE));
    let slow_patience = node.defaulted("slow_patience", PATIENCE.slow, duration(SHORTEST_PATIENCE..=LONGEST_PATIENCE));
    let memory_limit = node.defaulted("memory_limit_mib", MEMORY_LIMIT_MIB, number(32..=65_536));
    Some(Limits {
        pool_size: pool_size?,
        queue_limit: queue_limit?,
        patience: Patience { quick: patience?, slow: slow_patience? },
        memory_limit: u64::from(memory_limit?.get()) << 20,
    })
}

/// A `keyway node` on another host, which says itself what its library and its token are.
fn remote_node(node: &mut Section<'_>, anchor: Option<Option<&TrustAnchor>>) -> Option<RemoteNode> {
    let address = node.required("address", text::<HostName>, "name the node's host");
    let ports = ports(node);
    let manages_users = node.defaulted("manages_users", false, truth);
    for key in ["module", "token", "environment", "so_pin_file", "user_tokens"] {
        if node.has(key) {
            node.complain_of(
                key,
                "is for a token on this machine: with an address, the node's own configuration says it",
            );
        }
        node.passes_over(key);
    }
    let anchor = anchor?.cloned();
    if anchor.is_none() {
        node.complain_of("address", "needs the cluster's trust_anchor: the node's certificate is under that");
    }
    Some(RemoteNode { address: address?, ports: ports?, trust_anchor: anchor?, manages_users: manages_users? })
}

pub(super) fn ports(section: &mut Section<'_>) -> Option<Ports> {
    let Ports { sessions, identity, administration } = Ports::USUAL;
    let sessions = section.defaulted("session_port", sessions, number(0..=65_535));
    let identity = section.defaulted("identity_port", identity, number(0..=65_535));
    let administration = section.defaulted("administration_port", administration, number(0..=65_535));
    Some(Ports { sessions: sessions?, identity: identity?, administration: administration? })
}

/// A token that is reached from this machine, and where its users' are.
pub(super) fn local_token(node: &mut Section<'_>, kind: Option<(SyncMode, Profile)>) -> Option<LocalToken> {
    let module = node.required("module", existing_file, "name the vendor's PKCS#11 library");
    let name = node.section("token", token);
    let environment = node.texts("environment", "<name>", variable);
    let so_pin_file = so_pin_file(node, kind);
    let user_tokens = node.optional("user_tokens", path);
    Some(LocalToken {
        module: module?,
        name: name?,
        environment: environment?,
        so_pin_file: so_pin_file?,
        user_tokens: user_tokens?,
    })
}

/// Where a node is: in a subnet that is declared, or else in a zone and no subnet.
fn place(node: &mut Section<'_>, subnets: Option<&Subnets>) -> Option<(Option<SubnetId>, Zone)> {
    let subnet = node.optional("subnet", text::<SubnetId>);
    let zone = node.optional("zone", text::<Zone>);
    match (subnet?, zone?, subnets) {
        (None, None, _) => {
            node.complain_of("subnet", "is missing: name one of the cluster's subnets, or the node's zone without one");
            None
        }
        (Some(_), Some(_), _) => {
            node.complain_of("zone", "is its subnet's: remove it, or the subnet");
            None
        }
        (None, Some(zone), _) => Some((None, zone)),
        // What is wrong with the subnets has been noted: that this one is not among them would be no news.
        (Some(_), None, None) => None,
        (Some(id), None, Some(subnets)) => {
            let Some(subnet) = subnets.get(&id) else {
                let complaint = format!("there is no {id} among the cluster's subnets: declare it there");
                node.complain_of("subnet", complaint);
                return None;
            };
            Some((Some(id), subnet.zone.clone()))
        }
    }
}

/// Tokens that we manage need their security officer for the trust ceremony.
fn so_pin_file(node: &mut Section<'_>, kind: Option<(SyncMode, Profile)>) -> Option<Option<PathBuf>> {
    const FIX: &str = "sync = \"wrap\" on softhsm2 needs the file with the SO PIN";
    match kind {
        Some((SyncMode::Wrap, Profile::SoftHsm2)) => node.required("so_pin_file", private_file, FIX).map(Some),
        None => node.optional("so_pin_file", private_file),
    }
}

fn token(token: &mut Section<'_>) -> Option<TokenName> {
    let label = token.optional("label", |written| token_text(written, LONGEST_LABEL));
    let serial = token.optional("serial", |written| token_text(written, LONGEST_SERIAL));
    match (label?, serial?) {
        (Some(label), None) => Some(TokenName::Label(label)),
        (None, Some(serial)) => Some(TokenName::Serial(serial)),
        (None, None) | (Some(_), Some(_)) => {
            token.complain("must have exactly one of label and serial");
            None
        }
    }
}

/// Tokens pad their texts with spaces, so that a space at the end is never seen again.
fn token_text(written: &Written<'_>, longest: usize) -> Result<String, String> {
    let name: String = text(written)?;
    if name.is_empty() || name.len() > longest || name.ends_with(' ') || name.chars().any(char::is_control) {
        return Err(format!(
            "must have 1 to {longest} bytes, no control characters and no space at the end, not {name:?}"
        ));
    }
    Ok(name)
}

/// What a process's environment can hold. No complaint repeats the value: it may be a secret of the vendor's.
fn variable(name: &str, written: &Written<'_>) -> Result<String, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err("a variable's name is not empty and has neither `=` nor NUL".to_owned());
    }
    match written.text() {
        Ok(value) if value.contains('\0') => Err("a variable's value has no NUL".to_owned()),
        Ok(value) => Ok(value.to_owned()),
        Err(_) => Err("must be text in quotes".to_owned()),
    }
}

/// No two nodes have a token, or anything of their users', in common.
pub(super) fn refuse_shared(section: &mut Section<'_>, token: &LocalToken, tokens: &mut Tokens) {
    refuse_twins(section, token, tokens);
    refuse_shared_configuration(section, token, tokens);
    if let Some(directory) = &token.user_tokens {
        refuse_shared_users(section, directory, tokens);
    }
}

fn refuse_twins(section: &mut Section<'_>, token: &LocalToken, tokens: &mut Tokens) {
    let token = (file::resolved(&token.module), token.name.clone(), token.environment.clone());
    match tokens.named.get(&token) {
        Some(twin) => section.complain(format!("is the same token as {twin}: each node needs one of its own")),
        None => drop(tokens.named.insert(token, section.path().clone())),
    }
}

/// A user who is removed goes with all that his `SOFTHSM2_CONF` leads to, and is told to be there when something is.
fn refuse_shared_configuration(section: &mut Section<'_>, token: &LocalToken, tokens: &mut Tokens) {
    let Some(configuration) = token.environment.get("SOFTHSM2_CONF") else { return };
    let configuration = file::resolved(Path::new(configuration));
    match tokens.configurations.get(&configuration) {
        Some((twin, is_managed)) if *is_managed || token.locks_user() => {
            let complaint = format!("SOFTHSM2_CONF is that of {twin}: with user_tokens each node needs one of its own");
            section.complain_of("environment", complaint);
        }
        Some(_) => {}
        None => drop(tokens.configurations.insert(configuration, (section.path().clone(), token.locks_user()))),
    }
}

fn refuse_shared_users(section: &mut Section<'_>, directory: &Path, tokens: &mut Tokens) {
    let directory = file::resolved(directory);
    match tokens.of_users.get(&directory) {
        Some(twin) => {
            section.complain_of("user_tokens", format!("is that of {twin}: each node needs one of its own"));
        }
        None => drop(tokens.of_users.insert(directory, section.path().clone())),
    }
}

/// A user is on every node or on none.
fn refuse_half_managed(cluster: &mut Section<'_>, nodes: &BTreeMap<HsmId, NodeSettings>) {
    let without: Vec<_> = nodes.iter().filter(|(_, node)| !node.location.manages_users()).collect();
    if let [(first, node), ..] = without[..]
        && without.len() < nodes.len()
    {
        let lacks = match node.location {
            Location::Here(_) => "user_tokens",
            Location::There(_) => "manages_users = true",
        };
        let complaint = format!(
            "{first} has no {lacks}, and others have their users managed: have every node's of the cluster, or none's"
        );
        cluster.complain_of("nodes", complaint);
    }
}
