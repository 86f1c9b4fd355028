//! A daemon as operators run it: `keyway serve` with a configuration file, over the tokens of a development cluster.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::pki::{Authority, Identity};
use super::{Clients, PATIENCE, Rig, Web, wait, wait_async};

pub struct Served {
    pub(super) home: PathBuf,
    pub transport: Authority,
    daemon: Option<Child>,
    address: String,
}

impl Served {
    /// Writes the configuration and starts. The development daemon must have ended: tokens have one master.
    pub fn start(rig: &Rig, admins: &[&str]) -> Self {
        Self::start_with(rig, admins, "")
    }

    /// The tokens of a development cluster whose daemon has ended, served with what more is said of their cluster.
    pub async fn over(
        rig: super::Builder,
        admins: &'static [&'static str],
        of_the_cluster: impl FnOnce(&Rig) -> String + Send + 'static,
    ) -> (Self, Rig) {
        let starting = tokio::task::spawn_blocking(move || {
            let mut rig = rig.start();
            assert!(rig.stop_daemon().success());
            let of_the_cluster = of_the_cluster(&rig);
            (Self::start_with(&rig, admins, &of_the_cluster), rig)
        });
        starting.await.expect("it starts")
    }

    /// `keyway serve` over two HSMs in two zones.
    pub async fn over_two_hsms() -> (Rig, Self, Clients) {
        let (served, rig) = Self::over(Rig::new().nodes(2).zones(2), &["ops"], |_| String::new()).await;
        let clients = served.clients_on_the_socket().await;
        (rig, served, clients)
    }

    /// The same as [`Served::start`], with more said of the cluster.
    pub fn start_with(rig: &Rig, admins: &[&str], of_the_cluster: &str) -> Self {
        let home = rig.home.path().to_owned();
        let transport = Authority::new("transport");
        let server = transport.server();
        let files = [
            ("server.crt", &server.certificate),
            ("server.key", &server.key),
            ("clients-ca.crt", &transport.pem()),
            ("keyway.toml", &configuration(rig, admins, of_the_cluster)),
        ];
        for (name, text) in files {
            std::fs::write(home.join(name), text).expect("our directory");
        }
        let mut served = Self { home, transport, daemon: None, address: String::new() };
        served.start_daemon();
        served
    }

    pub fn start_daemon(&mut self) {
        let log = std::fs::File::create(self.home.join("serve.log")).expect("our directory");
        let daemon = self.command().stderr(log).spawn().expect("the binary is built");
        // Kept before it is waited for: a test that fails here must not leave it behind.
        let daemon = self.daemon.insert(daemon);
        let log = self.home.join("serve.log");
        self.address = wait(|| {
            let ended = daemon.try_wait().expect("it is ours");
            assert!(ended.is_none(), "the daemon did not start: {ended:?}");
            bound_address(&std::fs::read_to_string(&log).unwrap_or_default())
        });
    }

    /// Tries to run a second daemon on the same configuration: its exit code, and what it said.
    pub fn run_another(&self) -> (Option<i32>, String) {
        to_its_end(&mut self.command())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command
            .args(["serve", "--config"])
            .arg(self.home.join("keyway.toml"))
            // The file says "error": that there is more in the log shows that a variable wins.
            .env("KEYWAY__LOG__LEVEL", "info")
            // What Kubernetes puts there for a Service named keyway is none of ours.
            .env("KEYWAY_PORT", "tcp://10.0.0.1:50051")
            .env("KEYWAY_SERVICE_HOST", "10.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The configuration as it stands in the file now.
    pub fn configuration(&self) -> String {
        std::fs::read_to_string(self.home.join("keyway.toml")).expect("our directory")
    }

    /// Writes a file beside the configuration.
    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.home.join(name), text).expect("our directory");
    }

    /// Writes another configuration, sends SIGHUP, and waits until the daemon has said what it made of it: those lines.
    pub async fn reload(&self, configuration: &str) -> String {
        let said = || {
            let log = self.log();
            let lines: Vec<_> = log.lines().filter(|line| line.contains("SIGHUP")).map(str::to_owned).collect();
            lines
        };
        let before = said().len();
        self.put("keyway.toml", configuration);
        self.hang_up();
        wait_async(|| async { (said().len() > before).then_some(()) }).await;
        said().split_off(before).join("\n")
    }

    /// A `keyway` client command that talks to this daemon.
    pub fn keyway(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.env("KEYWAY_ADDR", format!("unix:{}", self.home.join("keyway.sock").display())).args(args);
        command
    }

    /// `host:port` of the listener.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The operations listener. Only of one whose configuration has it.
    pub fn web(&self) -> Web {
        Web(bound(&self.log(), "http").expect("it serves"))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("serve.log")).unwrap_or_default()
    }

    /// `kill -9`, as a power cut would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().expect("it is ours");
        daemon.wait().expect("it is ours");
    }

    /// SIGHUP: the configuration is read again.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    pub fn tell_to_stop(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.daemon.as_ref().expect("running").id().cast_signed();
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }

    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("running");
        let ending = tokio::task::spawn_blocking(move || wait(|| daemon.try_wait().expect("it is ours")));
        ending.await.expect("it ends")
    }

    pub async fn clients_on_the_socket(&self) -> Clients {
        Clients::unix(&self.home.join("keyway.sock")).await
    }

    /// Clients over TLS that show this certificate, or none.
    pub async fn clients(&self, shown: Option<&Identity>) -> Result<Clients, tonic::transport::Error> {
        Clients::tls(&self.address, self.transport.client_config(shown)).await
    }
}

impl Drop for Served {
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

fn configuration(rig: &Rig, admins: &[&str], of_the_cluster: &str) -> String {
    let cluster = rig.cluster_id();
    let mut text = format!(
        r#"data_dir = "data"
sealing_key_file = "sealing.key"
log = {{ level = "error", format = "json" }}

[grpc]
unix_socket = "keyway.sock"
listen = "127.0.0.1:0"
tls = {{ certificate = "server.crt", private_key = "server.key", client_ca = "clients-ca.crt" }}

[authz]
admins = {admins:?}

[clusters.{cluster}]
region = "us-east-1"
account = "123456789012"
trust_anchor = {trust_anchor:?}
sync = "wrap"
profile = "softhsm2"
{of_the_cluster}
"#,
        trust_anchor = rig.path("customerCA.crt"),
    );
    for number in 1..=rig.nodes {
        node(&mut text, rig, number);
    }
    text
}

/// A node in a zone of its own, on a token that dev made.
fn node(text: &mut String, rig: &Rig, number: u8) {
    let cluster = rig.cluster_id();
    let zone = char::from(b'a' + number - 1);
    write!(
        text,
        r#"
[clusters.{cluster}.subnets.subnet-{zone}{number}]
zone = "us-east-1{zone}"

[clusters.{cluster}.nodes.hsm-{number}]
subnet = "subnet-{zone}{number}"
module = {module:?}
token = {{ label = "kmsuser" }}
environment = {{ SOFTHSM2_CONF = {configuration:?} }}
so_pin_file = {so_pin:?}
"#,
        module = rig.module(),
        configuration = rig.path(&format!("hsms/hsm-{number}/kmsuser/softhsm2.conf")),
        so_pin = rig.path(&format!("hsms/hsm-{number}/so-pin")),
    )
    .expect("a text takes it");
}

/// The port that the system chose, as the log tells it once it serves.
pub fn bound_address(log: &str) -> Option<String> {
    bound(log, "tcp")
}

/// The same of another listener.
pub(super) fn bound(log: &str, listener: &str) -> Option<String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let serving = lines.into_iter().find(|line| line["message"] == "serving")?;
    let address = serving[listener].as_str().expect("it is told");
    Some(address.trim_start_matches("Some(").trim_end_matches(')').to_owned())
}

/// Runs `keyway serve` on a configuration that is not to be served: its exit code, and what it said.
pub fn refused_configuration(file: &Path, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
    command.args(["serve", "--config"]).arg(file).envs(variables.iter().copied()).stdin(Stdio::null());
    to_its_end(&mut command)
}

/// Runs what is to end by itself; what goes on instead is killed, and has no exit code.
pub(super) fn to_its_end(command: &mut Command) -> (Option<i32>, String) {
    let mut daemon = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary is built");
    let begun = Instant::now();
    while daemon.try_wait().expect("it is ours").is_none() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = daemon.kill();
    let output = daemon.wait_with_output().expect("it has ended");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The configuration with a line more in its cluster.
pub fn with_line(configuration: &str, line: &str) -> String {
    let profile = "profile = \"softhsm2\"\n";
    assert!(configuration.contains(profile));
    configuration.replace(profile, &format!("{profile}{line}\n"))
}
