//! The clusters, their subnets and their nodes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{NodeSettings, Profile, Settings, SubnetId, SubnetSettings, SyncMode, TokenName};
use crate::link::Patience;
use crate::model::{ClusterId, Zone};

use super::file;
use super::problem::KeyPath;
use super::rotation::rotation;
use super::section::Section;
use super::value::{Written, duration, existing_file, number, private_file, text, trust_anchor};

/// As PKCS#11 lays out a token's label and serial number.
const LONGEST_LABEL: usize = 32;
const LONGEST_SERIAL: usize = 16;

const POOL_SIZE: NonZeroU32 = NonZeroU32::new(2).expect("not zero");
const QUEUE_LIMIT: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");
const PATIENCE: Patience = Patience { quick: Duration::from_secs(5), slow: Duration::from_secs(30) };
const MEMORY_LIMIT_MIB: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");
const SHORTEST_PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(300);

type Subnets = BTreeMap<SubnetId, SubnetSettings>;

/// Which tokens have been seen, and on which node: two nodes on one token are no copies of each other.
type Tokens = BTreeMap<(PathBuf, TokenName, BTreeMap<String, String>), KeyPath>;

pub(super) fn clusters(root: &mut Section<'_>) -> Option<BTreeMap<ClusterId, Settings>> {
    let mut tokens = Tokens::new();
    root.sections("clusters", "<cluster>", |section| cluster(section, &mut tokens))
}

fn cluster(cluster: &mut Section<'_>, tokens: &mut Tokens) -> Option<Settings> {
    let region = cluster.required("region", text, "name the cluster's region, such as \"us-east-1\"");
    let account = cluster.required("account", text, "give 12 digits, such as \"000000000000\"");
    let trust_anchor = cluster.required("trust_anchor", trust_anchor, "name the cluster's customerCA.crt");
    let sync = cluster.required("sync", text, "write \"wrap\"");
    let profile = cluster.required("profile", text, "write \"softhsm2\"");
    let rotation = rotation(cluster, profile);
    let subnets = cluster.sections("subnets", "<subnet>", subnet);
    let nodes = cluster.sections("nodes", "<hsm>", |section| {
        let node = node(section, subnets.as_ref(), sync.zip(profile))?;
        refuse_twins(section, &node, tokens);
        Some(node)
    });
    if nodes.as_ref().is_some_and(BTreeMap::is_empty) {
        cluster.complain_of("nodes", "is empty: a cluster has at least one node");
    }
    Some(Settings {
        region: region?,
        account: account?,
        trust_anchor: trust_anchor?,
        sync: sync?,
        profile: profile?,
        rotation: rotation?,
        subnets: subnets?,
        nodes: nodes?,
    })
}

fn subnet(subnet: &mut Section<'_>) -> Option<SubnetSettings> {
    let zone = subnet.required("zone", text, "name the availability zone, such as \"us-east-1a\"");
    Some(SubnetSettings { zone: zone? })
}

fn node(node: &mut Section<'_>, subnets: Option<&Subnets>, kind: Option<(SyncMode, Profile)>) -> Option<NodeSettings> {
    const SUBNET: &str = "name one of the cluster's subnets";
    let place = match subnets {
        Some(subnets) => node.required("subnet", |written| place(written, subnets), SUBNET),
        // What is wrong with the subnets has been noted: that this one is not among them would be no news.
        None => node.required("subnet", text::<SubnetId>, SUBNET).and(None),
    };
    let module = node.required("module", existing_file, "name the vendor's PKCS#11 library");
    let token = node.section("token", token);
    let environment = node.texts("environment", "<name>", variable);
    let pool_size = node.defaulted("pool_size", POOL_SIZE, number(1..=256));
    let queue_limit = node.defaulted("queue_limit", QUEUE_LIMIT, number(1..=65_536));
    let patience = node.defaulted("patience", PATIENCE.quick, duration(SHORTEST_PATIENCE..=LONGEST_PATIENCE));
    let slow_patience = node.defaulted("slow_patience", PATIENCE.slow, duration(SHORTEST_PATIENCE..=LONGEST_PATIENCE));
    let memory_limit = node.defaulted("memory_limit_mib", MEMORY_LIMIT_MIB, number(32..=65_536));
    let so_pin_file = so_pin_file(node, kind);
    let (subnet, zone) = place?;
    Some(NodeSettings {
        subnet,
        zone,
        module: module?,
        token: token?,
        environment: environment?,
        pool_size: pool_size?,
        queue_limit: queue_limit?,
        patience: Patience { quick: patience?, slow: slow_patience? },
        memory_limit: u64::from(memory_limit?.get()) << 20,
        so_pin_file: so_pin_file?,
    })
}

/// A subnet that is declared, with its zone.
fn place(written: &Written<'_>, subnets: &Subnets) -> Result<(SubnetId, Zone), String> {
    let id: SubnetId = text(written)?;
    match subnets.get(&id) {
        Some(subnet) => Ok((id, subnet.zone.clone())),
        None => Err(format!("there is no {id} among the cluster's subnets: declare it there")),
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

fn refuse_twins(section: &mut Section<'_>, node: &NodeSettings, tokens: &mut Tokens) {
    let module = file::resolved(&node.module);
    let token = (module, node.token.clone(), node.environment.clone());
    match tokens.get(&token) {
        Some(twin) => section.complain(format!("is the same token as {twin}: each node needs one of its own")),
        None => drop(tokens.insert(token, section.path().clone())),
    }
}
