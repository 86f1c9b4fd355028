//! A daemon that begins without a cluster, and may make some.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{Clients, Seams, pb, served, wait};

/// What its clusters' kmsuser is given.
pub const PASSWORD: &str = "correcthorse4";

/// The daemon, and the directory in which everything of it is.
pub struct Maker {
    home: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Maker {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// With more said of the clusters that it makes.
    pub fn start_with(of_made_clusters: &str) -> Self {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().expect("a temporary directory");
        let configuration = format!(
            r#"data_dir = "data"
sealing_key_file = "sealing.key"
log = {{ level = "info", format = "json" }}

[grpc]
unix_socket = "keyway.sock"

[authz]
admins = ["nobody"]

[made_clusters]
region = "us-east-1"
account = "000000000000"
password_rotation = "none"
slow_patience = "10s"
{of_made_clusters}
"#
        );
        std::fs::write(home.path().join("keyway.toml"), configuration).expect("our directory");
        std::fs::create_dir_all(home.path().join("data/seams")).expect("our directory");
        let mut maker = Self { home, daemon: None };
        maker.start_daemon();
        maker
    }

    pub fn start_daemon(&mut self) {
        let log = std::fs::File::create(self.path("serve.log")).expect("our directory");
        let daemon = self.command().stdout(Stdio::null()).stderr(log).spawn().expect("the binary is built");
        // Kept before it is waited for: a test that fails here must not leave it behind.
        self.daemon = Some(daemon);
        wait(|| {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("it is ours"));
            assert!(ended.is_none(), "the daemon did not start: {ended:?}");
            self.log().contains("\"message\":\"serving\"").then_some(())
        });
    }

    /// `kill -9`, as a power cut would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// Has the daemon, which does not run, start on another configuration and fail: its exit code, and what it said.
    pub fn refuses(&self, configuration: &str) -> (Option<i32>, String) {
        let former = self.configuration();
        std::fs::write(self.path("keyway.toml"), configuration).expect("our directory");
        let refused = served::to_its_end(&mut self.command());
        std::fs::write(self.path("keyway.toml"), former).expect("our directory");
        refused
    }

    /// SIGHUP, with another configuration: what it said of it.
    pub fn reload(&self, configuration: &str) -> String {
        std::fs::write(self.path("keyway.toml"), configuration).expect("our directory");
        let pid = self.daemon.as_ref().expect("running").id().cast_signed();
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is ours");
        wait(|| self.log().lines().find(|line| line.contains("SIGHUP")).map(str::to_owned))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.args(["serve", "--config"]).arg(self.path("keyway.toml")).stdin(Stdio::null());
        command
    }

    pub fn configuration(&self) -> String {
        std::fs::read_to_string(self.path("keyway.toml")).expect("our directory")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where an HSM on this machine has its tokens.
    pub fn hsm(&self, cluster: &str, hsm: &str) -> PathBuf {
        self.path(&format!("data/clusters/{cluster}/{hsm}"))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    pub fn seams(&self) -> Seams {
        Seams(vec![self.path("data/seams")])
    }

    pub async fn clients(&self) -> Clients {
        Clients::unix(&self.path("keyway.sock")).await
    }

    /// Runs a client command.
    pub fn keyway(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.env("KEYWAY_ADDR", format!("unix:{}", self.path("keyway.sock").display())).args(args);
        command.stdin(Stdio::null()).output().expect("the binary is built")
    }

    /// Runs one that must succeed: its JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.keyway(&[&["--output", "json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    }

    /// An INITIALIZED cluster with HSMs `hsm-1`, `hsm-2` …, each in a zone of its own.
    pub async fn initialized(&self, clients: &mut Clients, hsms: u8) -> String {
        let cluster = self.uninitialized(clients, hsms).await;
        self.initialize(&cluster, &format!("customer-of-{cluster}"));
        cluster
    }

    /// One with as many HSMs: its id.
    pub async fn uninitialized(&self, clients: &mut Clients, hsms: u8) -> String {
        let cluster = clients.create_cluster(&["us-east-1a", "us-east-1b", "us-east-1c"]).await;
        for number in 1..=hsms {
            clients.add_hsm(&cluster, number).await;
        }
        cluster
    }

    /// By the authority in this directory, which is made if it is not there: what the command printed.
    pub fn initialize(&self, cluster: &str, directory: &str) -> Value {
        let directory = self.path(directory);
        self.json(&["cluster", "init", cluster, "--out", directory.to_str().expect("UTF-8")])
    }

    /// An ACTIVE one, with kmsuser on each HSM and a connected key store: its id, and the store's.
    pub async fn connected(&self, clients: &mut Clients, hsms: u8) -> (String, String) {
        let cluster = self.initialized(clients, hsms).await;
        clients.create_kmsuser(&cluster).await;
        let request = pb::CreateKeyStoreRequest {
            key_store_name: format!("on {cluster}"),
            cluster_id: cluster.clone(),
            key_store_password: PASSWORD.to_owned(),
            trust_anchor_certificate: read(&self.path(&format!("customer-of-{cluster}/customerCA.crt"))),
        };
        let made = clients.stores.create_key_store(request).await.expect("it can be made").into_inner();
        clients.connect(&made.key_store_id).await;
        clients.all_healthy(&made.key_store_id).await;
        (cluster, made.key_store_id)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- keyway serve said ----\n{}", self.log());
        }
    }
}

impl Clients {
    /// A cluster with a subnet in each of these zones; its id.
    pub async fn create_cluster(&mut self, zones: &[&str]) -> String {
        let subnet = |(index, zone): (usize, &&str)| pb::NewSubnet {
            subnet_id: format!("subnet-{}", index + 1),
            availability_zone: (*zone).to_owned(),
        };
        let subnets = zones.iter().enumerate().map(subnet).collect();
        let request = pb::CreateClusterRequest { subnets, ..Default::default() };
        let made = self.clusters.create_cluster(request).await.expect("it can be made").into_inner();
        made.cluster.expect("it is told").cluster_id
    }

    /// Adds `hsm-<number>` in the zone of that number: what was said of it.
    pub async fn add_hsm(&mut self, cluster: &str, number: u8) -> pb::AddHsmResponse {
        let request = pb::AddHsmRequest {
            cluster_id: cluster.to_owned(),
            availability_zone: format!("us-east-1{}", char::from(b'a' + number - 1)),
            hsm_id: format!("hsm-{number}"),
            ..Default::default()
        };
        self.clusters.add_hsm(request).await.expect("it can be added").into_inner()
    }

    pub async fn remove_hsm(&mut self, cluster: &str, hsm: &str) -> Result<pb::RemoveHsmResponse, tonic::Status> {
        let request = pb::RemoveHsmRequest { cluster_id: cluster.to_owned(), hsm_id: hsm.to_owned() };
        self.clusters.remove_hsm(request).await.map(tonic::Response::into_inner)
    }

    pub async fn create_kmsuser(&mut self, cluster: &str) {
        let request = pb::CreateCryptoUserRequest {
            cluster_id: cluster.to_owned(),
            username: "kmsuser".to_owned(),
            password: PASSWORD.to_owned(),
            require_second_factor: false,
        };
        self.users.create_crypto_user(request).await.expect("it can be made");
    }

    /// Waits until so many HSMs serve a key store, with every key.
    pub async fn all_level(&mut self, store: &str, hsms: usize) {
        let is_level = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy && node.keys_missing == 0;
        self.watch_until(store, |store| store.nodes.len() == hsms && store.nodes.iter().all(is_level)).await;
    }

    pub async fn cluster(&mut self, id: &str) -> pb::Cluster {
        let request = pb::DescribeClustersRequest { cluster_ids: vec![id.to_owned()], ..Default::default() };
        let described = self.clusters.describe_clusters(request).await.expect("it is there").into_inner();
        described.clusters.into_iter().next().expect("it is told")
    }

    /// Watches a cluster until `wanted` of it is true.
    pub async fn cluster_until(&mut self, id: &str, wanted: impl Fn(&pb::Cluster) -> bool) -> pb::Cluster {
        let request = pb::WatchClusterRequest { cluster_id: id.to_owned() };
        let mut stream = self.clusters.watch_cluster(request).await.expect("it can be watched").into_inner();
        let mut seen = None;
        let watching = async {
            loop {
                let message = stream.message().await.expect("the stream lasts").expect("the stream lasts");
                let cluster = seen.insert(message.cluster.expect("every message has it"));
                if wanted(cluster) {
                    break;
                }
            }
        };
        let gets_there = tokio::time::timeout(super::PATIENCE, watching).await.is_ok();
        assert!(gets_there, "the cluster does not get there; it stays {seen:?}");
        seen.expect("it was watched")
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("it is there")
}
