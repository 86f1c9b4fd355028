//! Nodes on other hosts: a `keyway node` for each HSM, behind a network that fails on command, and `keyway serve` that
//! reaches them by nothing else. A host is a process of this machine's, or a container.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::engine::{Container, DISK, Disk, Engine, Zone, engine};
use super::pki::{Authority, Identity, issue_under};
use super::proxy::{Proxy, Weather};
use super::{Web, served, wait};

/// The name on the daemon's certificate.
const DAEMON: &str = "keyway-daemon";
/// Where a node listens unless it is told otherwise.
const PORTS: [(&str, u16); 3] = [("session_port", 2223), ("identity_port", 2224), ("administration_port", 2225)];

/// Room for a token and its copies, and for little else.
const LITTLE: Disk = Disk::OfItsOwn(1 << 20);

/// The hosts of a cluster.
pub struct Hosts {
    home: PathBuf,
    /// Who vouches for daemons.
    pub daemons: Authority,
    pub hosts: Vec<HostOfOne>,
    made: Made,
    /// Of containers. Outlive these: a network with somebody in it cannot be removed.
    zones: Vec<Zone>,
}

/// What hosts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Processes,
    Containers,
    /// Each with a disk of its own for its token and data, which is small. The tests do not see what is there.
    ContainersWithLittleDisks,
}

impl Made {
    /// What a container of these has for a disk.
    const fn disk(self) -> Option<Disk> {
        match self {
            Self::Processes => None,
            Self::Containers => Some(Disk::Shared),
            Self::ContainersWithLittleDisks => Some(LITTLE),
        }
    }
}

/// One host, with one HSM.
pub struct HostOfOne {
    pub hsm: String,
    home: PathBuf,
    sessions: Proxy,
    identity: Proxy,
    administration: Proxy,
    identity_under_the_cluster: Identity,
    node: Option<Child>,
    container: Option<Container>,
    bound: Vec<SocketAddr>,
}

/// What dev made of an HSM, and the library that its workers load.
pub struct Token<'a> {
    pub dev: &'a Path,
    pub cluster: &'a str,
    pub module: &'a Path,
}

impl Token<'_> {
    /// What whoever is the HSM's host says of it in his configuration.
    pub fn declaration(&self, hsm: &str) -> String {
        let Self { dev, module, .. } = self;
        format!(
            r#"module = {module:?}
token = {{ label = "kmsuser" }}
environment = {{ SOFTHSM2_CONF = {softhsm2:?} }}
so_pin_file = {so_pin:?}
user_tokens = {users:?}
"#,
            softhsm2 = dev.join(format!("hsms/{hsm}/kmsuser/softhsm2.conf")),
            so_pin = dev.join(format!("hsms/{hsm}/so-pin")),
            users = dev.join(format!("hsms/{hsm}/users")),
        )
    }
}

impl Hosts {
    /// Writes what each host and the daemon need. Nothing runs yet.
    pub fn prepare(home: &Path, token: &Token<'_>, nodes: u8, zones: u8, made: Made) -> Self {
        let daemons = Authority::new("daemons");
        let shown = daemons.client(DAEMON);
        std::fs::create_dir_all(home).expect("our directory");
        write_identity(home, "daemon", &shown);
        write_identity(home, "server", &daemons.server());
        let networks = made.disk().map(|_| (0..zones).map(|_| the_engine().zone()).collect());
        let mut this =
            Self { home: home.to_owned(), daemons, hosts: Vec::new(), made, zones: networks.unwrap_or_default() };
        for number in 1..=nodes {
            this.add(&format!("hsm-{number}"), token);
        }
        this
    }

    /// One host more, in the zone whose turn it is, for an HSM that dev, or the rig, has made. It does not run yet.
    pub fn add(&mut self, hsm: &str, token: &Token<'_>) -> &mut HostOfOne {
        let mut host = HostOfOne::prepare(&self.home, hsm, token, &self.daemons);
        if let Some(disk) = self.made.disk() {
            let zone = &self.zones[self.hosts.len() % self.zones.len()];
            let command = host.command_in_a_container(token, disk);
            host.contain(the_engine().node(zone, token.dev.parent().expect("ours"), command, disk));
        }
        self.hosts.push(host);
        self.hosts.last_mut().expect("just there")
    }

    pub fn start(&mut self) {
        for host in &mut self.hosts {
            if !host.runs() {
                host.start();
            }
        }
    }

    pub fn of(&mut self, hsm: &str) -> &mut HostOfOne {
        self.hosts.iter_mut().find(|host| host.hsm == hsm).expect("one of the cluster's")
    }

    /// Where nodes with seams are told to stop.
    pub fn seams(&self) -> impl Iterator<Item = PathBuf> {
        self.hosts.iter().map(|host| host.home.join("data/seams"))
    }

    /// What the daemon's configuration says of its listener, which lets in whom [`Hosts::daemons`] vouches for.
    pub fn listener_section(&self) -> String {
        let path = |name: &str| self.home.join(name);
        format!(
            "listen = \"127.0.0.1:0\"\ntls = {{ certificate = {:?}, private_key = {:?}, client_ca = {:?} }}\n",
            path("server.crt"),
            path("server.key"),
            path("hsm-1/daemons.crt"),
        )
    }

    /// What a daemon's configuration says of itself for nodes.
    pub fn client_section(&self) -> String {
        let path = |name: &str| self.home.join(name);
        format!("[node_client]\ncertificate = {:?}\nprivate_key = {:?}\n", path("daemon.crt"), path("daemon.key"))
    }

    /// The processes that run.
    pub fn nodes(&self) -> impl Iterator<Item = u32> {
        self.hosts.iter().filter_map(|host| host.node.as_ref()).map(Child::id)
    }

    pub fn log(&self) -> String {
        self.hosts.iter().fold(String::new(), |mut all, host| {
            let _ = write!(all, "---- the node of {} said ----\n{}", host.hsm, host.log());
            all
        })
    }
}

impl HostOfOne {
    fn prepare(home: &Path, hsm: &str, token: &Token<'_>, daemons: &Authority) -> Self {
        let home = home.join(hsm);
        std::fs::create_dir_all(&home).expect("our directory");
        let read = |name: &str| std::fs::read_to_string(token.dev.join(name)).expect("dev wrote it");
        let identity_under_the_cluster = issue_under(&read("customerCA.crt"), &read("customerCA.key"), "127.0.0.1");
        write_identity(&home, "node", &identity_under_the_cluster);
        std::fs::write(home.join("daemons.crt"), daemons.pem()).expect("our directory");
        let here = token.declaration(hsm);
        let configuration = format!(
            r#"data_dir = "data"
listen = "127.0.0.1"
session_port = 0
identity_port = 0
administration_port = 0
daemons = ["{DAEMON}"]
log = {{ level = "info", format = "json" }}
tls = {{ certificate = "node.crt", private_key = "node.key", client_ca = "daemons.crt" }}

[clusters.{cluster}]
sync = "wrap"
profile = "softhsm2"

[clusters.{cluster}.nodes.{hsm}]
{here}"#,
            cluster = token.cluster,
        );
        std::fs::write(home.join("node.toml"), configuration).expect("our directory");
        let [sessions, identity, administration] = [(); 3].map(|()| Proxy::new());
        Self {
            hsm: hsm.to_owned(),
            home,
            sessions,
            identity,
            administration,
            identity_under_the_cluster,
            node: None,
            container: None,
            bound: Vec::new(),
        }
    }

    /// Changes its configuration, for its next start.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let file = self.home.join("node.toml");
        let configuration = std::fs::read_to_string(&file).expect("our directory");
        std::fs::write(file, change(configuration)).expect("our directory");
    }

    /// Writes down that its ports are the usual ones, and that its token is a copy on its own disk if it has one.
    fn command_in_a_container(&self, token: &Token<'_>, disk: Disk) -> String {
        let of_dev = token.dev.join(format!("hsms/{}/kmsuser", self.hsm));
        self.configure(|configuration| {
            let everywhere = configuration.replace("listen = \"127.0.0.1\"", "listen = \"0.0.0.0\"");
            PORTS
                .iter()
                .fold(everywhere, |text, (key, port)| text.replace(&format!("{key} = 0"), &format!("{key} = {port}")))
        });
        let command = format!("exec keyway node --config {}", self.home.join("node.toml").display());
        let Disk::OfItsOwn(_) = disk else { return command };
        let softhsm2 = self.home.join("softhsm2.conf");
        std::fs::write(&softhsm2, format!("directories.tokendir = {DISK}/tokens\n")).expect("our directory");
        self.configure(|configuration| {
            let of_dev_softhsm2 = of_dev.join("softhsm2.conf");
            let with_its_own = configuration.replace(&format!("{of_dev_softhsm2:?}"), &format!("{softhsm2:?}"));
            with_its_own.replace("data_dir = \"data\"", &format!("data_dir = \"{DISK}/data\""))
        });
        format!("cp -rp {}/tokens {DISK}/tokens; {command}", of_dev.display())
    }

    /// From now on its host is a container.
    fn contain(&mut self, container: Container) {
        self.bound = PORTS.map(|(_, port)| SocketAddr::from((container.address, port))).into();
        self.lead_to_it();
        self.container = Some(container);
    }

    /// The container that it is in.
    pub fn container(&self) -> &Container {
        self.container.as_ref().expect("built with .contained()")
    }

    /// Not a byte more fits on its disk. Only of one that has a little disk of its own.
    pub fn fill_disk(&self) {
        let (all_went_in, said) = self.container().run(&format!("cat /dev/zero > {DISK}/full"));
        assert!(!all_went_in && said.contains("No space left"), "{said}");
    }

    pub fn free_disk(&self) {
        let (freed, said) = self.container().run(&format!("rm {DISK}/full"));
        assert!(freed, "{said}");
    }

    fn lead_to_it(&self) {
        for (proxy, address) in [&self.sessions, &self.identity, &self.administration].into_iter().zip(&self.bound) {
            proxy.leads_to(*address);
        }
    }

    pub fn start(&mut self) {
        if let Some(container) = &self.container {
            container.start();
            return wait(|| self.answers().then_some(()));
        }
        let log = std::fs::File::create(self.home.join("node.log")).expect("our directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.args(["node", "--config"]).arg(self.home.join("node.toml"));
        let node = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("it is built");
        // Kept before it is waited for: a test that fails here must not leave it behind.
        let node = self.node.insert(node);
        let log = self.home.join("node.log");
        let bound = wait(|| {
            let ended = node.try_wait().expect("it is ours");
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "the node did not start: {ended:?}\n{said}");
            bound_ports(&said)
        });
        self.bound = bound;
        self.lead_to_it();
    }

    /// The operations listener. Only of one whose configuration has it.
    pub fn web(&self) -> Web {
        let log = std::fs::read_to_string(self.home.join("node.log")).expect("it was started");
        Web(served::bound(&log, "http").expect("it serves"))
    }

    /// Whether each of its ports is open.
    pub fn answers(&self) -> bool {
        let open = |port: &SocketAddr| TcpStream::connect_timeout(port, Duration::from_secs(1)).is_ok();
        self.bound.iter().all(open)
    }

    fn runs(&self) -> bool {
        if self.container.is_some() { self.answers() } else { self.node.is_some() }
    }

    /// `kill -9`: its workers see their links end. In a container they are killed as well.
    pub fn kill(&mut self) {
        if let Some(container) = &self.container {
            return container.kill();
        }
        let mut node = self.node.take().expect("running");
        node.kill().expect("it is ours");
        node.wait().expect("it is ours");
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        super::signal(self.node.as_ref().expect("running").id(), signal);
    }

    /// SIGTERM, and waits for the orderly end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        let mut node = self.node.take().expect("running");
        wait(|| node.try_wait().expect("it is ours"))
    }

    /// Its whole network, between everybody and this host.
    pub fn network(&self, weather: Weather) {
        for proxy in [&self.sessions, &self.identity, &self.administration] {
            proxy.turn(weather);
        }
    }

    /// What another cluster's CA has signed, from the next start or SIGHUP on.
    pub fn show_a_strangers_certificate(&self) {
        let stranger = Authority::new("another cluster");
        write_identity(&self.home, "node", &stranger.for_address("127.0.0.1"));
    }

    pub fn show_its_own_certificate(&self) {
        write_identity(&self.home, "node", &self.identity_under_the_cluster);
    }

    /// SIGHUP, heeded.
    pub async fn reads_its_certificates_again(&self) {
        let heeded = || self.log().matches("were read again").count();
        let before = heeded();
        self.signal(rustix::process::Signal::HUP);
        super::wait_async(|| async { (heeded() > before).then_some(()) }).await;
    }

    /// The ports themselves, past the network: sessions, identity, administration.
    pub fn ports(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// What it said on standard error.
    pub fn log(&self) -> String {
        if let Some(container) = &self.container {
            return container.log();
        }
        std::fs::read_to_string(self.home.join("node.log")).unwrap_or_default()
    }

    /// What a daemon's configuration says in place of a library and a token.
    pub fn address(&self) -> String {
        format!(
            "address = \"127.0.0.1\"\nmanages_users = true\nsession_port = {}\nidentity_port = {}\nadministration_port = {}\n",
            self.sessions.address.port(),
            self.identity.address.port(),
            self.administration.address.port()
        )
    }
}

impl Drop for HostOfOne {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn the_engine() -> &'static Engine {
    engine().expect("asked for by who has one")
}

fn write_identity(home: &Path, name: &str, identity: &Identity) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(home.join(format!("{name}.crt")), &identity.certificate).expect("our directory");
    let key = home.join(format!("{name}.key"));
    std::fs::write(&key, &identity.key).expect("our directory");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("our file");
}

/// The ports that the system chose, as the log tells them once the node serves.
pub fn bound_ports(log: &str) -> Option<Vec<SocketAddr>> {
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let serving = lines.find(|line| line["message"] == "serving")?;
    let of = |port: &str| serving[port].as_str().expect("it is told").parse().expect("an address");
    Some(["sessions", "identity", "administration"].map(of).into())
}
