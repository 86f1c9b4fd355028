//! A backup of a rig's cluster, and the cluster that is restored from it: a copy of every token, elsewhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Object, Rig, Served, objects};

pub struct Restored {
    pub cluster: String,
    home: PathBuf,
    /// What its HSMs are called: `hsm-1`, or `hsm-x1`.
    prefix: &'static str,
    nodes: u8,
    password: String,
}

impl Rig {
    /// Copies every token as it is now. `prefix` names the HSMs of the cluster that the copies make.
    pub fn restore_elsewhere(&self, cluster: &str, prefix: &'static str) -> Restored {
        let home = self.home.path().join(cluster);
        for number in 1..=self.nodes {
            let (original, copy) = (self.path(&format!("hsms/hsm-{number}")), home.join(format!("hsm-{number}")));
            copy_directory(&original, &copy);
            let configuration = copy.join("kmsuser/softhsm2.conf");
            let text = std::fs::read_to_string(&configuration).expect("dev wrote it");
            // Where it is in truth: dev's own name for it is a link.
            let original = original.canonicalize().expect("dev made it");
            let (from, to) = (original.display().to_string(), copy.display().to_string());
            assert!(text.contains(&from), "{text}");
            std::fs::write(&configuration, text.replace(&from, &to)).expect("our directory");
        }
        Restored { cluster: cluster.to_owned(), home, prefix, nodes: self.nodes, password: self.password() }
    }
}

impl Restored {
    /// Empties one of its tokens, as if it had been made anew.
    pub fn empty_token(&self, number: u8) {
        let tokens = self.home.join(format!("hsm-{number}/kmsuser/tokens"));
        for token in std::fs::read_dir(tokens).expect("a token").flatten() {
            for file in std::fs::read_dir(token.path()).expect("its objects").flatten() {
                let name = file.file_name().into_string().expect("SoftHSM2's names");
                if name.ends_with(".object") && name != "token.object" {
                    std::fs::remove_file(file.path()).expect("nobody else is there");
                }
            }
        }
    }

    pub fn objects(&self, number: u8) -> Vec<Object> {
        objects(&self.home.join(format!("hsm-{number}/kmsuser/softhsm2.conf")), &self.password)
    }

    /// Its declaration, a node in a zone of its own each.
    pub fn declaration(&self, rig: &Rig, lineage: &str) -> String {
        let cluster = &self.cluster;
        let mut text = format!(
            r#"
[clusters.{cluster}]
region = "us-east-1"
account = "123456789012"
trust_anchor = {trust_anchor:?}
backup_lineage = {lineage:?}
sync = "wrap"
profile = "softhsm2"
password_rotation = "none"
"#,
            trust_anchor = rig.path("customerCA.crt"),
        );
        for number in 1..=self.nodes {
            let zone = char::from(b'a' + number - 1);
            let copy = self.home.join(format!("hsm-{number}"));
            write!(
                text,
                r#"
[clusters.{cluster}.subnets.subnet-{zone}{number}]
zone = "us-east-1{zone}"

[clusters.{cluster}.nodes.{prefix}{number}]
subnet = "subnet-{zone}{number}"
module = {module:?}
token = {{ label = "kmsuser" }}
environment = {{ SOFTHSM2_CONF = {configuration:?} }}
so_pin_file = {so_pin:?}
"#,
                prefix = self.prefix,
                module = rig.module(),
                configuration = copy.join("kmsuser/softhsm2.conf"),
                so_pin = copy.join("so-pin"),
            )
            .expect("a text takes it");
        }
        text
    }
}

impl Served {
    /// The daemon ends in good order and begins anew with another configuration.
    pub async fn restart_with(&mut self, change: impl FnOnce(String) -> String) {
        self.tell_to_stop();
        assert!(self.ended().await.success());
        let file = self.home.join("keyway.toml");
        let text = std::fs::read_to_string(&file).expect("it was written");
        std::fs::write(&file, change(text)).expect("our directory");
        self.start_daemon();
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("our directory");
    for entry in std::fs::read_dir(from).expect("it is there").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_directory(&from, &to);
        } else if from.is_file() {
            std::fs::copy(&from, &to).expect("room for it");
        }
    }
}
