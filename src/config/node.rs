//! The configuration of `keyway node`: who is let in, and which HSMs are beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cluster::{Profile, SyncMode};
use crate::door::http;
use crate::host::{LocalToken, served};
use crate::model::{ClusterId, HsmId};
use crate::telemetry;

use super::clusters::{Tokens, local_token, ports, refuse_shared};
use super::daemon::{CallerName, directory, http_of_a_node, log, tls};
use super::section::Section;
use super::value::{Written, list, number, text};

/// More links than a node with HSMs of many clusters needs.
const MAX_LINKS: usize = 256;

/// What the operator of a node decided, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    pub log: telemetry::Settings,
    /// `None`: there is no operations listener.
    pub http: Option<http::Settings>,
    pub node: served::Settings,
}

pub(super) fn config(root: &mut Section<'_>) -> Option<NodeConfig> {
    let data_dir = root.required("data_dir", directory, "name the directory for locks and copies of tokens");
    let log = root.section("log", log);
    let http = root.section("http", http_of_a_node);
    let listen = root.required("listen", text::<IpAddr>, "name the address to listen on, such as \"0.0.0.0\"");
    let ports = ports(root);
    let tls = root.section("tls", tls);
    let daemons = root.required("daemons", names, "name the daemons that may come, by their certificates");
    let max_links = root.defaulted("max_links", MAX_LINKS, number(1..=4096));
    let mut tokens = Tokens::default();
    let clusters = root.sections::<ClusterId, _>("clusters", "<cluster>", |cluster| {
        let sync = cluster.required("sync", text::<SyncMode>, "write \"wrap\"");
        let profile = cluster.required("profile", text::<Profile>, "write \"softhsm2\"");
        cluster.sections::<HsmId, _>("nodes", "<hsm>", |node| {
            let token = local_token(node, sync.zip(profile))?;
            refuse_shared(node, &token, &mut tokens);
            Some(token)
        })
    });
    let hsms = hsms(clusters?);
    if hsms.is_empty() {
        root.complain_of("clusters", "names no HSM: declare at least one, under clusters.<cluster>.nodes.<hsm>");
        return None;
    }
    let node = served::Settings {
        data_dir: data_dir?,
        listen: listen?,
        ports: ports?,
        tls: tls?,
        daemons: daemons?,
        max_links: max_links?,
        hsms,
    };
    Some(NodeConfig { log: log?, http: http?, node })
}

fn hsms(clusters: BTreeMap<ClusterId, BTreeMap<HsmId, LocalToken>>) -> BTreeMap<(ClusterId, HsmId), LocalToken> {
    let of_each = clusters
        .into_iter()
        .flat_map(|(cluster, nodes)| nodes.into_iter().map(move |(hsm, token)| ((cluster.clone(), hsm), token)));
    of_each.collect()
}

fn names(written: &Written<'_>) -> Result<Vec<String>, String> {
    match list::<CallerName>(written)? {
        names if names.is_empty() => Err("must not be empty: nobody could come in".to_owned()),
        names => Ok(names.into_iter().map(|CallerName(name)| name).collect()),
    }
}
