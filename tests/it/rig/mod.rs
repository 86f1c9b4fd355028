//! A development cluster of one's own, spoken of in zones, nodes and keys; gone when it is dropped.

mod backup;
mod clients;
mod declaring;
mod dice;
mod engine;
pub mod generic;
mod holdings;
mod load;
mod maker;
mod pki;
mod proxy;
mod raw;
mod refusal;
mod remote;
mod seams;
mod served;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use faulty_pkcs11::Faults;
use faulty_pkcs11::{Function, Outcome};

pub use backup::Restored;
pub use clients::{Clients, pb, reason};
pub use declaring::{Declaring, with_line_for, without};
pub use dice::Dice;
pub use engine::engine;
pub use holdings::Holdings;
pub use load::{Load, asks_to_be_repeated};
pub use maker::{Maker, PASSWORD};
pub use pki::Authority;
pub use pki::{Validity, certificate_in};
pub use proxy::{Loss, Weather};
pub use raw::raw_call;
pub use refusal::refused;
use remote::Made;
pub use remote::{HostOfOne, Hosts, bound_ports};
pub use seams::Seams;
pub use served::{Served, bound_address, refused_configuration, with_line};

/// How long anything here is waited for. Only a test that fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where Debian has it.
const SOFTHSM2: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A daemon, its nodes, and their data directory.
pub struct Rig {
    pub home: tempfile::TempDir,
    nodes: u8,
    zones: u8,
    faulty: bool,
    rotating: bool,
    /// How long a day of a deletion window is, as dev takes it.
    deletion_day: Option<&'static str>,
    /// What the daemon is started from.
    binary: PathBuf,
    daemon: Option<Child>,
    announced: Value,
    /// `None`: the nodes are the daemon's own machine's.
    hosts: Option<Hosts>,
}

/// What a rig is to be like.
pub struct Builder {
    nodes: u8,
    zones: u8,
    seams: bool,
    faulty: bool,
    rotating: bool,
    deletion_day: Option<&'static str>,
    hosts: Option<Made>,
}

/// With nodes on other hosts a heavy test goes so many times fewer rounds: what a round shows by itself is shown here.
const FEWER_ROUNDS: usize = 4;

/// Tests under this module have their nodes on other hosts.
const REMOTELY: &str = "remotely::";

impl Rig {
    /// Three nodes in three zones, unless told otherwise. On this machine, but for tests in `remotely`.
    #[allow(clippy::new_ret_no_self, reason = "a rig is built in sentences")]
    pub fn new() -> Builder {
        let remote = std::thread::current().name().is_some_and(|test| test.starts_with(REMOTELY));
        let hosts = remote.then_some(Made::Processes);
        Builder { nodes: 3, zones: 3, seams: false, faulty: false, rotating: false, deletion_day: None, hosts }
    }

    /// A daemon's certificate with this name on it, from the CA that nodes believe.
    pub fn daemon_called(&self, name: &str) -> pki::Identity {
        self.hosts.as_ref().expect("built with .remote()").daemons.client(name)
    }

    /// How many rounds to go of what goes so many with nodes on this machine.
    pub fn rounds(&self, here: usize) -> usize {
        if self.hosts.is_none() { here } else { here.div_ceil(FEWER_ROUNDS) }
    }

    /// The host of a node. Only of a rig that is `remote`.
    pub fn host(&mut self, hsm: &str) -> &mut HostOfOne {
        self.hosts.as_mut().expect("built with .remote()").of(hsm)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("dev")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data_dir().join(name)
    }

    pub fn cluster_id(&self) -> String {
        self.announced["cluster_id"].as_str().expect("announced").to_owned()
    }

    /// `host:port` of the gRPC listener.
    pub fn tcp(&self) -> String {
        let url = self.announced["endpoints"]["grpc"].as_str().expect("announced");
        url.trim_start_matches("http://").to_owned()
    }

    pub fn trust_anchor(&self) -> String {
        std::fs::read_to_string(self.path("customerCA.crt")).expect("dev wrote it")
    }

    pub fn password(&self) -> String {
        std::fs::read_to_string(self.path("kmsuser.password")).expect("dev wrote it").trim().to_owned()
    }

    /// Clients over the Unix socket.
    pub async fn clients(&self) -> Clients {
        Clients::unix(&self.path("keyway.sock")).await
    }

    /// Clients who are somebody else to the daemon than those on the Unix socket: the loopback, or a certificate's name.
    pub async fn clients_of_another_caller(&self) -> Clients {
        let Some(hosts) = &self.hosts else { return Clients::tcp(&self.tcp()).await };
        let address = served::bound_address(&self.log()).expect("it serves");
        let shown = hosts.daemons.client("nobody");
        Clients::tls(&address, hosts.daemons.client_config(Some(&shown))).await.expect("it is let in")
    }

    /// A `keyway` client command that talks to this daemon.
    pub fn keyway(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.env("KEYWAY_ADDR", format!("unix:{}", self.path("keyway.sock").display())).args(args);
        command
    }

    /// `kill -9`, as a power cut would: nothing is drained.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// The same for the daemon and whoever is the nodes' host, which on this machine are one process.
    pub fn kill_daemon_and_hosts(&mut self) {
        self.kill_daemon();
        for host in self.hosts.iter_mut().flat_map(|hosts| &mut hosts.hosts) {
            host.kill();
        }
    }

    /// SIGTERM, and waits for the orderly end.
    pub fn stop_daemon(&mut self) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("running");
        let pid = rustix::process::Pid::from_raw(daemon.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is ours");
        wait(|| daemon.try_wait().expect("it is ours"))
    }

    /// Starts the daemon on the same data again.
    pub fn start_daemon(&mut self) {
        self.start_daemon_with(&[]);
    }

    pub fn start_daemon_with(&mut self, flags: &[&str]) {
        if self.hosts.is_some() {
            self.serve_remote_nodes(flags);
        } else {
            self.start_dev(flags);
        }
    }

    /// As a package does it: another file in the binary's place, an orderly end, and a start on the same data. Only of a rig
    /// whose nodes are elsewhere, and they stay.
    pub fn upgrade_daemon(&mut self) {
        let next = self.home.path().join("keyway-next");
        std::fs::copy(&self.binary, &next).expect("our directory");
        self.binary = self.home.path().join("keyway");
        std::fs::rename(next, &self.binary).expect("our directory");
        self.stop_daemon();
        self.start_daemon();
    }

    fn start_dev(&mut self, flags: &[&str]) {
        let _ = std::fs::remove_file(self.path("cluster.json"));
        let log = std::fs::File::create(self.home.path().join("daemon.log")).expect("our directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.args(["dev", "--grpc-addr", "127.0.0.1:0"]);
        if self.faulty {
            command.arg("--softhsm2").arg(self.module());
        }
        if self.rotating {
            command.args(["--password-rotation", "set-pin"]);
        }
        if let Some(day) = self.deletion_day {
            command.args(["--deletion-day", day]);
        }
        let daemon = command
            .args(flags)
            .args(["--nodes", &self.nodes.to_string(), "--zones", &self.zones.to_string()])
            .arg("--data-dir")
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary was built with the tests");
        // Ours to end from now on, also when it does not start.
        self.daemon = Some(daemon);
        let announcement = self.path("cluster.json");
        let begun = Instant::now();
        self.announced = loop {
            if let Ok(text) = std::fs::read_to_string(&announcement) {
                break serde_json::from_str(&text).expect("written whole");
            }
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("it is ours"));
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "the daemon did not start: {ended:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
    }

    /// The tokens that dev has made stay where they are; from now on they are other hosts'.
    fn move_nodes_to_hosts(&mut self, made: Made) {
        self.stop_daemon();
        // What dev made is declared from now on: nobody is to remember that it made it.
        for file in ["records.sqlite3", "records.sqlite3-wal", "records.sqlite3-shm"] {
            let _ = std::fs::remove_file(self.path("daemon").join(file));
        }
        let (dev, cluster, module) = (self.data_dir(), self.cluster_id(), self.module());
        let token = remote::Token { dev: &dev, cluster: &cluster, module: &module };
        let home = self.home.path().join("hosts");
        let hosts = self.hosts.insert(Hosts::prepare(&home, &token, self.nodes, self.zones, made));
        if dev.join("daemon/seams").is_dir() {
            hosts.seams().for_each(|seams| std::fs::create_dir_all(seams).expect("our directory"));
        }
        self.start_daemon();
    }

    /// `keyway serve`, where dev would listen, and the hosts that do not run yet.
    fn serve_remote_nodes(&mut self, flags: &[&str]) {
        let configuration = self.remote_configuration(flags);
        self.serve(&configuration);
    }

    /// Ends the daemon, and starts another one on a changed configuration. Only of a rig that is `remote`.
    pub fn restart_with(&mut self, change: impl FnOnce(String) -> String) {
        self.stop_daemon();
        let configuration = change(self.remote_configuration(&[]));
        self.serve(&configuration);
    }

    /// What such a configuration says of an HSM that is not on a host of its own, but on the daemon's.
    pub fn declared_here(&self, hsm: &str) -> String {
        let (dev, cluster, module) = (self.data_dir(), self.cluster_id(), self.module());
        remote::Token { dev: &dev, cluster: &cluster, module: &module }.declaration(hsm)
    }

    fn serve(&mut self, configuration: &str) {
        let file = self.path("serve.toml");
        std::fs::write(&file, configuration).expect("our directory");
        self.hosts.as_mut().expect("there are hosts").start();
        let log = std::fs::File::create(self.home.path().join("daemon.log")).expect("our directory");
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null());
        self.daemon = Some(command.stderr(log).spawn().expect("the binary was built with the tests"));
        let begun = Instant::now();
        while !self.log().contains("\"message\":\"serving\"") {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().expect("it is ours"));
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "it did not start: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The cluster as dev declares it, with its nodes elsewhere.
    pub fn remote_configuration(&self, flags: &[&str]) -> String {
        use std::fmt::Write as _;
        let (cluster, hosts) = (self.cluster_id(), self.hosts.as_ref().expect("there are hosts"));
        let rotation = if self.rotating { "set-pin" } else { "none" };
        let mut text = format!(
            r#"data_dir = "daemon"
sealing_key_file = "secrets/sealing.key"
log = {{ level = "info", format = "json" }}
{client}
[grpc]
unix_socket = "keyway.sock"
{listener}
[authz]
admins = ["nobody"]

[clusters.{cluster}]
region = "us-east-1"
account = "000000000000"
trust_anchor = "customerCA.crt"
sync = "wrap"
profile = "softhsm2"
password_rotation = "{rotation}"
"#,
            client = hosts.client_section(),
            listener = hosts.listener_section(),
        );
        for number in 1..=self.zones {
            let zone = char::from(b'a' + number - 1);
            write!(text, "\n[clusters.{cluster}.subnets.subnet-dev{number}]\nzone = \"us-east-1{zone}\"\n")
                .expect("a text takes it");
        }
        let limits: String = flags.chunks(2).map(|flag| format!("{} = {}\n", key_of_flag(flag[0]), flag[1])).collect();
        for (number, host) in hosts.hosts.iter().enumerate() {
            let (hsm, address) = (&host.hsm, host.address());
            let subnet = number % usize::from(self.zones) + 1;
            write!(
                text,
                "\n[clusters.{cluster}.nodes.{hsm}]\nsubnet = \"subnet-dev{subnet}\"\nslow_patience = \"10s\"\n{limits}{address}"
            )
            .expect("a text takes it");
        }
        text
    }

    /// What the daemon said on standard error.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(self.home.path().join("daemon.log")) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// The worker processes of this daemon's nodes, by the name of their slot.
    pub fn workers(&self) -> Vec<(u32, String)> {
        let all = self.workers_and_lookouts().into_iter();
        all.filter(|(_, slot)| !slot.ends_with(".lookout")).collect()
    }

    /// Those that only look whether a token is there among them.
    pub fn workers_and_lookouts(&self) -> Vec<(u32, String)> {
        workers_of_cluster(&self.cluster_id())
    }

    /// The worker processes of one node.
    pub fn workers_of(&self, hsm: &str) -> Vec<u32> {
        let of_it = |slot: &str| slot.contains(&format!(".{hsm}."));
        self.workers().into_iter().filter(|(_, slot)| of_it(slot)).map(|(pid, _)| pid).collect()
    }

    /// The one that serves a node, or is about to: a new one may not be there yet. Beside it there may be another for a
    /// step of the trust ceremony.
    pub fn worker_of(&self, hsm: &str) -> u32 {
        let serves = |slot: &str| slot.contains(&format!(".{hsm}.")) && !slot.ends_with(".admin");
        wait(|| self.workers().into_iter().find(|(_, slot)| serves(slot)).map(|(pid, _)| pid))
    }

    /// From now until the file is dropped, whoever makes an object in the node's token waits:
    /// SoftHSM2 takes this lock first, and has no limit to its patience.
    pub fn hang_next_creation(&self, hsm: &str) -> std::fs::File {
        let tokens = self.path(&format!("hsms/{hsm}/kmsuser/tokens"));
        let token = std::fs::read_dir(tokens).expect("a token").flatten().next().expect("a token");
        let file = std::fs::File::options().read(true).write(true).open(token.path().join("generation"));
        let file = file.expect("SoftHSM2 keeps it");
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).expect("nobody holds it for long");
        file
    }

    /// Asks the daemon, and whoever is the nodes' host, to stop where a stop point of this name stands.
    pub fn stop_at(&self, name: &str) {
        self.seams().stop_at(name);
    }

    pub fn let_pass(&self, name: &str) {
        self.seams().let_pass(name);
    }

    /// The daemon's, and those of the nodes' hosts.
    fn seams(&self) -> Seams {
        let of_hosts = self.hosts.iter().flat_map(Hosts::seams);
        Seams(std::iter::once(self.path("daemon/seams")).chain(of_hosts).collect())
    }

    /// Waits until one of them has reached the stop point.
    pub async fn wait_until_stopped_at(&self, name: &str) {
        self.seams().wait_until_stopped_at(name).await;
    }

    /// Whether the last login to a node's token was refused: the token itself remembers.
    pub fn login_was_refused(&self, hsm: &str) -> bool {
        let configuration = self.path(&format!("hsms/{hsm}/kmsuser/softhsm2.conf"));
        token_info(&configuration).contains("user PIN count low")
    }

    /// Gives a node's user a new password, as its SO can.
    pub fn set_password_as_so(&self, hsm: &str, password: &str) {
        let so_pin = self.path(&format!("hsms/{hsm}/so-pin"));
        set_password_as_so(&self.token_configuration(hsm), &so_pin, "kmsuser", password);
    }

    /// Whether a node's token lets its user in with this password.
    pub fn opens(&self, hsm: &str, password: &str) -> bool {
        try_pkcs11_tool(&self.token_configuration(hsm), password, &["--list-objects"]).is_ok()
    }

    /// How many of keyway's logins a node refused. Only of a rig that is `faulty`.
    pub fn refusals(&self, hsm: &str) -> usize {
        let refused = Outcome::Answered(faulty_pkcs11::ckr::CKR_PIN_INCORRECT);
        let logins = self.faults(hsm).journal().into_iter().filter(|call| call.function == Function::C_Login);
        logins.filter(|login| login.outcome == refused).count()
    }

    /// Every object of a node's token, as its own user sees them: class, `CKA_ID`, label.
    pub fn objects(&self, hsm: &str) -> Vec<Object> {
        objects(&self.token_configuration(hsm), &self.password())
    }

    /// The same, of a token that may not be there.
    pub fn try_objects(&self, hsm: &str) -> Result<Vec<Object>, String> {
        try_pkcs11_tool(&self.token_configuration(hsm), &self.password(), &["--list-objects"])
            .map(|text| read_objects(&text))
    }

    /// Deletes a secret key from a node's token, as somebody with the password could.
    pub fn delete_object(&self, hsm: &str, id: &str) {
        let args = ["--delete-object", "--type", "secrkey", "--id", id];
        pkcs11_tool(&self.token_configuration(hsm), &self.password(), &args);
    }

    /// Makes an AES key in a node's token, as somebody with the password could.
    pub fn add_secret_key(&self, hsm: &str, id: &str, label: &str) {
        let args = ["--keygen", "--key-type", "aes:32", "--id", id, "--label", label];
        pkcs11_tool(&self.token_configuration(hsm), &self.password(), &args);
    }

    /// Makes a pair of RSA keys there.
    pub fn add_key_pair(&self, hsm: &str, id: &str, label: &str) {
        let args = ["--keypairgen", "--key-type", "rsa:2048", "--id", id, "--label", label];
        pkcs11_tool(&self.token_configuration(hsm), &self.password(), &args);
    }

    /// The token itself stays; everything in it goes, as when a node is restored from an empty backup.
    pub fn empty_token(&self, hsm: &str) {
        let tokens = self.path(&format!("hsms/{hsm}/kmsuser/tokens"));
        for token in std::fs::read_dir(tokens).expect("a token").flatten() {
            for file in std::fs::read_dir(token.path()).expect("its objects").flatten() {
                let name = file.file_name().into_string().expect("SoftHSM2's names");
                if name.ends_with(".object") && name != "token.object" {
                    // Its worker may be quicker.
                    let gone = std::fs::remove_file(file.path());
                    assert!(gone.is_ok() || !file.path().exists(), "{gone:?}");
                }
            }
        }
    }

    /// Puts a token in place of a node's that was made, and whose user was not.
    pub fn make_token_without_user(&self, hsm: &str) {
        let tokens = self.path(&format!("hsms/{hsm}/kmsuser/tokens"));
        std::fs::remove_dir_all(&tokens).expect("a token");
        std::fs::create_dir(&tokens).expect("our directory");
        let made = Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", self.token_configuration(hsm))
            .args(["--module", SOFTHSM2, "--init-token", "--label", "kmsuser", "--so-pin", "12345678"])
            .output()
            .expect("opensc is installed by scripts/test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Changes the user's password in a node's token, as another program with the old one could.
    pub fn change_password(&self, hsm: &str, new: &str) {
        self.change_password_from(hsm, &self.password(), new);
    }

    /// Gives it back the password that keyway knows.
    pub fn restore_password(&self, hsm: &str, changed: &str) {
        self.change_password_from(hsm, changed, &self.password());
    }

    /// And looks whether it stays so: a worker that starts in the middle of it has `token.object` put back as it was.
    fn change_password_from(&self, hsm: &str, old: &str, new: &str) {
        let configuration = self.token_configuration(hsm);
        let new_pin = format!("kmsuser:{new}");
        wait(|| {
            let _ = try_pkcs11_tool(&configuration, old, &["--change-pin", "--new-pin", &new_pin]);
            try_pkcs11_tool(&configuration, new, &["--list-objects"]).is_ok().then_some(())
        });
    }

    /// What the daemon holds of the system, and its nodes where they are processes of their own.
    pub fn resources(&self) -> Resources {
        let nodes = self.hosts.iter().flat_map(Hosts::nodes);
        let pids: Vec<u32> = nodes.chain([self.daemon.as_ref().expect("running").id()]).collect();
        let entries = |name: &str| {
            let of_one = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/{name}")).expect("it lives").count();
            pids.iter().map(of_one).sum()
        };
        let locks = std::fs::read_to_string("/proc/locks").expect("Linux");
        let own = |line: &&str| {
            line.split_whitespace().nth(4).and_then(|pid| pid.parse().ok()).is_some_and(|pid: u32| pids.contains(&pid))
        };
        Resources {
            threads: entries("task"),
            descriptors: pids.iter().map(|pid| descriptors(*pid)).sum(),
            processes: pids.iter().map(|pid| children(*pid)).sum(),
            locks: locks.lines().filter(own).count(),
        }
    }

    /// What goes wrong in a node's HSM, and what was asked of it. Only of a rig that is `faulty`.
    pub fn faults(&self, hsm: &str) -> Faults {
        assert!(self.faulty, "built with .faulty()");
        Faults::beside(&self.token_configuration(hsm))
    }

    /// The PKCS#11 library of its nodes.
    fn module(&self) -> PathBuf {
        if self.faulty { faulty_library() } else { PathBuf::from(SOFTHSM2) }
    }

    pub fn token_configuration(&self, hsm: &str) -> PathBuf {
        self.path(&format!("hsms/{hsm}/kmsuser/softhsm2.conf"))
    }
}

impl Builder {
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    pub fn zones(mut self, zones: u8) -> Self {
        self.zones = zones;
        self
    }

    /// With a clock that can be shifted and points to stop at.
    pub fn seams(mut self) -> Self {
        self.seams = true;
        self
    }

    /// With HSMs that fail when they are told to: see `Rig::faults`.
    pub fn faulty(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// Connecting a key store changes the password, which nobody but the daemon has from then on.
    pub fn rotating(mut self) -> Self {
        self.rotating = true;
        self
    }

    /// Deletion windows pass sooner: each of their days takes so long.
    pub fn deletion_day(mut self, day: &'static str) -> Self {
        self.deletion_day = Some(day);
        self
    }

    /// With each node on a host of its own: see `Rig::host`.
    pub fn remote(mut self) -> Self {
        self.hosts = Some(Made::Processes);
        self
    }

    /// With each node in a container of its own, in a network for each zone: see `HostOfOne::container`. Only for who has an
    /// `engine`.
    pub fn contained(mut self) -> Self {
        self.hosts = Some(Made::Containers);
        self
    }

    /// The same, each with a small disk of its own: see `HostOfOne::fill_disk`.
    pub fn contained_with_little_disks(mut self) -> Self {
        self.hosts = Some(Made::ContainersWithLittleDisks);
        self
    }

    pub fn start(self) -> Rig {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().expect("a temporary directory");
        let Self { nodes, zones, seams: _, faulty, rotating, deletion_day, hosts: _ } = self;
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_keyway"));
        let (daemon, announced) = (None, Value::Null);
        let mut rig =
            Rig { home, nodes, zones, faulty, rotating, deletion_day, binary, daemon, announced, hosts: None };
        if self.seams {
            std::fs::create_dir_all(rig.path("daemon/seams")).expect("our directory");
        }
        rig.start_daemon();
        if let Some(made) = self.hosts {
            rig.move_nodes_to_hosts(made);
        }
        rig
    }

    /// Started, with a connected key store called `main`.
    pub async fn connected(self) -> (Rig, Clients, String) {
        let rig = self.start();
        let mut clients = rig.clients().await;
        let store = clients.connected_store(&rig, "main").await;
        (rig, clients, store)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the daemon said ----\n{}", self.log());
            eprintln!("{}", self.hosts.as_ref().map(Hosts::log).unwrap_or_default());
        }
        self.hosts = None;
        // Workers end by themselves once their daemon is gone; the tokens must not be pulled from under them.
        let begun = Instant::now();
        while !self.announced.is_null() && !self.workers_and_lookouts().is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What a flag of dev's is called in a configuration.
fn key_of_flag(flag: &str) -> String {
    flag.trim_start_matches("--").replace('-', "_")
}

/// OpenSSL's command, which must succeed: what it printed.
pub fn openssl(args: &[&str], directory: &Path) -> Vec<u8> {
    let output = Command::new("openssl").args(args).current_dir(directory).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// SoftHSM2 that fails on command. Cargo builds it beside the tests.
pub fn faulty_library() -> PathBuf {
    let library = std::env::current_exe().expect("this test").with_file_name("libfaulty_pkcs11.so");
    assert!(library.is_file(), "{} is built with the tests", library.display());
    library
}

/// Polls until there is an answer.
pub fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls until there is an answer, letting other tasks run.
pub async fn wait_async<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a daemon holds of the system.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    pub threads: usize,
    pub descriptors: usize,
    /// Its children, ended ones that nobody waited for among them.
    pub processes: usize,
    pub locks: usize,
}

/// `kill -9`.
pub fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, signal);
}

fn children(parent: u32) -> usize {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).expect("it lives").flatten();
    let of_each = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    of_each.map(|children| children.split_whitespace().count()).sum()
}

/// An object in a token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub id: String,
    pub label: String,
}

/// OpenSC's tool on a token, logged in: nothing of keyway's between the test and the HSM.
fn pkcs11_tool(configuration: &Path, password: &str, args: &[&str]) -> String {
    pkcs11_tool_as(configuration, "kmsuser", password, args)
}

/// Gives a token's user a new password, as its SO can.
pub fn set_password_as_so(configuration: &Path, so_pin: &Path, user: &str, password: &str) {
    let so_pin = std::fs::read_to_string(so_pin).expect("dev wrote it");
    let output = Command::new("pkcs11-tool")
        .env("SOFTHSM2_CONF", configuration)
        .args(["--module", SOFTHSM2, "--login", "--login-type", "so", "--so-pin", so_pin.trim(), "--init-pin"])
        .args(["--new-pin", &format!("{user}:{password}")])
        .output()
        .expect("opensc is installed by scripts/test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether a token lets this crypto user in.
pub fn opens_as(configuration: &Path, user: &str, password: &str) -> bool {
    try_pkcs11_tool_as(configuration, user, password, &["--list-objects"]).is_ok()
}

fn try_pkcs11_tool(configuration: &Path, password: &str, args: &[&str]) -> Result<String, String> {
    try_pkcs11_tool_as(configuration, "kmsuser", password, args)
}

fn try_pkcs11_tool_as(configuration: &Path, user: &str, password: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new("pkcs11-tool")
        .env("SOFTHSM2_CONF", configuration)
        .args(["--module", SOFTHSM2, "--login", "--pin"])
        .arg(format!("{user}:{password}"))
        .args(args)
        .output()
        .expect("opensc is installed by scripts/test");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Every object of a token.
pub fn objects(configuration: &Path, password: &str) -> Vec<Object> {
    objects_as(configuration, "kmsuser", password)
}

/// The same, of a crypto user's own.
pub fn objects_as(configuration: &Path, user: &str, password: &str) -> Vec<Object> {
    read_objects(&pkcs11_tool_as(configuration, user, password, &["--list-objects"]))
}

/// OpenSC's tool on a crypto user's own token, logged in.
pub fn pkcs11_tool_as(configuration: &Path, user: &str, password: &str, args: &[&str]) -> String {
    try_pkcs11_tool_as(configuration, user, password, args).unwrap_or_else(|error| panic!("{error}"))
}

fn read_objects(text: &str) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    for line in text.lines() {
        if line.contains(" Object;") {
            objects.push(Object { id: String::new(), label: String::new() });
        }
        if let (Some((key, value)), Some(last)) = (line.split_once(':'), objects.last_mut()) {
            match key.trim() {
                "ID" => value.trim().clone_into(&mut last.id),
                "label" => value.trim().clone_into(&mut last.label),
                _ => {}
            }
        }
    }
    objects.sort();
    objects
}

/// What a token says of itself to anybody.
fn token_info(configuration: &Path) -> String {
    let output = Command::new("pkcs11-tool")
        .env("SOFTHSM2_CONF", configuration)
        .args(["--module", SOFTHSM2, "--list-slots"])
        .output()
        .expect("opensc is installed by scripts/test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The worker processes of a cluster, lookouts among them, by the name of their slot.
pub fn workers_of_cluster(cluster: &str) -> Vec<(u32, String)> {
    processes()
        .into_iter()
        .filter(|(_, words)| {
            words.get(1).is_some_and(|word| word == "worker")
                && words.get(2).is_some_and(|slot| slot.starts_with(cluster))
        })
        .map(|(pid, words)| (pid, words[2].clone()))
        .collect()
}

/// How many descriptors a process has open. Those of one that leaves no core dump only root may list; the directory's size
/// (Linux 6.2) anybody may see.
fn descriptors(pid: u32) -> usize {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    match std::fs::read_dir(&directory) {
        Ok(entries) => entries.count(),
        Err(_) => std::fs::metadata(directory).expect("it lives").len().try_into().expect("few"),
    }
}

/// Every process with its words on the command line.
fn processes() -> Vec<(u32, Vec<String>)> {
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Some((pid, words))
    })
    .collect()
}
