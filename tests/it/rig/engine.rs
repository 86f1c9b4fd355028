//! Hosts of their own: containers, in a small network for each zone, gone when they are dropped. What a test that was killed
//! has left of these is removed by the next.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, ExecConfig, HostConfig, Ipam, IpamConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest, NetworkingConfig,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptions, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    ListNetworksOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    StopContainerOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use tokio::runtime::{Builder, Runtime};

use super::wait_async;

/// Whose a container or a network is: the process that runs the tests.
const OWNER: &str = "keyway.test.owner";
/// Images that hold the binary under test are called `keyway-node:test-…`.
const NODE: &str = "keyway-node";
/// Set where tests on containers must not be passed over.
const REQUIRED: &str = "KEYWAY_TESTS_NEED_CONTAINERS";

/// What runs containers, with the images of the binary under test.
pub struct Engine {
    docker: Docker,
    node_image: String,
}

/// A network that stands for an availability zone.
pub struct Zone {
    name: String,
    first: Ipv4Addr,
    taken: AtomicU32,
}

/// Where a host's data are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// On this machine's, as if it were without end.
    Shared,
    /// On one of its own, of so many bytes, empty at each start.
    OfItsOwn(u32),
}

/// Where a disk of a host's own is.
pub const DISK: &str = "/disk";

/// A container of this test's.
pub struct Container {
    name: String,
    zone: String,
    pub address: Ipv4Addr,
}

/// The engine, if there is one; the reason why the test is passed over is shown.
pub fn engine() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    match ENGINE.get_or_init(Engine::connect) {
        Ok(engine) => Some(engine),
        Err(why) => {
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, and no container can be started: {why}");
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            // Past the harness, which shows nothing of a test that passes.
            let line = format!("SKIPPED {test}: no container can be started: {why}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes());
            None
        }
    }
}

impl Engine {
    fn connect() -> Result<Self, String> {
        let docker = Docker::connect_with_socket_defaults().map_err(|error| error.to_string())?;
        let docker = wait_for(async move { docker.negotiate_version().await }).map_err(|error| error.to_string())?;
        let engine = Self { docker, node_image: format!("{NODE}:{}", tag()) };
        engine.remove_what_others_left();
        engine.make_images()?;
        Ok(engine)
    }

    /// Those of the binary under test; of others' binaries nothing is kept.
    fn make_images(&self) -> Result<(), String> {
        let (docker, image) = (self.docker.clone(), self.node_image.clone());
        if wait_for(async move { docker.inspect_image(&image).await }).is_ok() {
            return Ok(());
        }
        let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/images"))
            .args(["--tag", &tag(), "--binary", env!("CARGO_BIN_EXE_keyway")])
            .output()
            .map_err(|error| error.to_string())?;
        let said = [made.stdout, made.stderr].concat();
        if !made.status.success() {
            return Err(format!("scripts/images: {}", String::from_utf8_lossy(&said)));
        }
        self.remove_former_images();
        Ok(())
    }

    fn remove_former_images(&self) {
        let (docker, ours) = (self.docker.clone(), tag());
        wait_for(async move {
            let all = ListImagesOptionsBuilder::default().build();
            let images = docker.list_images(Some(all)).await.unwrap_or_default();
            let tags = images.into_iter().flat_map(|image| image.repo_tags);
            let former = |tag: &String| {
                tag.starts_with("keyway-") && tag.contains(":test-") && !tag.ends_with(&format!(":{ours}"))
            };
            for tag in tags.filter(former) {
                // One that somebody else's test uses stays.
                let _ = docker.remove_image(&tag, None::<RemoveImageOptions>, None).await;
            }
        });
    }

    fn remove_what_others_left(&self) {
        let docker = self.docker.clone();
        wait_for(async move {
            let labelled: HashMap<String, Vec<String>> = [("label".to_owned(), vec![OWNER.to_owned()])].into();
            let all = ListContainersOptionsBuilder::default().all(true).filters(&labelled).build();
            for container in docker.list_containers(Some(all)).await.unwrap_or_default() {
                let owner = container.labels.and_then(|labels| labels.get(OWNER).cloned());
                if let (Some(id), false) = (container.id, owner.is_some_and(|owner| lives(&owner))) {
                    remove(&docker, &id).await;
                }
            }
            let networks = ListNetworksOptionsBuilder::default().filters(&labelled).build();
            for network in docker.list_networks(Some(networks)).await.unwrap_or_default() {
                let owner = network.labels.and_then(|labels| labels.get(OWNER).cloned());
                if let (Some(name), false) = (network.name, owner.is_some_and(|owner| lives(&owner))) {
                    let _ = docker.remove_network(&name).await;
                }
            }
        });
    }

    /// Which of the images have the binary under test.
    pub fn tag(&self) -> String {
        tag()
    }

    /// A network of fourteen addresses that leads nowhere else.
    pub fn zone(&self) -> Zone {
        for _ in 0..100 {
            let first = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 213, 0, 0)) + 16 * (random() % 4096));
            let name = unique("zone");
            let request = NetworkCreateRequest {
                name: name.clone(),
                internal: Some(true),
                ipam: Some(Ipam {
                    config: Some(vec![IpamConfig { subnet: Some(format!("{first}/28")), ..Default::default() }]),
                    ..Default::default()
                }),
                labels: Some(owned()),
                ..Default::default()
            };
            let docker = self.docker.clone();
            match wait_for(async move { docker.create_network(request).await }) {
                // The second is the gateway's.
                Ok(_) => return Zone { name, first, taken: AtomicU32::new(2) },
                // Somebody has these addresses.
                Err(Error::DockerResponseServerError { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("no small network is free");
    }

    /// A node's host, made and not started, which sees `home` where this machine has it, and runs this shell command.
    pub fn node(&self, zone: &Zone, home: &Path, command: String, disk: Disk) -> Container {
        let address = Ipv4Addr::from(u32::from(zone.first) + zone.taken.fetch_add(1, Relaxed));
        let name = unique("node");
        let endpoint = EndpointSettings {
            ipam_config: Some(EndpointIpamConfig { ipv4_address: Some(address.to_string()), ..Default::default() }),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: Some(self.node_image.clone()),
            entrypoint: Some(["sh", "-ec"].map(str::to_owned).into()),
            cmd: Some(vec![command]),
            user: Some(format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())),
            working_dir: Some(home.display().to_string()),
            labels: Some(owned()),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{home}:{home}", home = home.display())]),
                tmpfs: match disk {
                    Disk::Shared => None,
                    Disk::OfItsOwn(bytes) => Some([(DISK.to_owned(), format!("size={bytes},mode=1777"))].into()),
                },
                readonly_rootfs: Some(true),
                cap_drop: Some(vec!["ALL".to_owned()]),
                security_opt: Some(vec!["no-new-privileges".to_owned()]),
                ..Default::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some([(zone.name.clone(), endpoint)].into()),
            }),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let docker = self.docker.clone();
        wait_for(async move { docker.create_container(Some(options), body).await }).expect("a container");
        Container { name, zone: zone.name.clone(), address }
    }
}

impl Container {
    pub fn start(&self) {
        self.ask(|docker, name| async move { docker.start_container(&name, None).await });
    }

    /// `kill -9`, and everything in it.
    pub fn kill(&self) {
        self.ask(|docker, name| async move { docker.kill_container(&name, None::<KillContainerOptions>).await });
    }

    /// SIGTERM, and SIGKILL to what does not heed it.
    pub fn stop(&self) {
        let patience = StopContainerOptionsBuilder::default().t(20).build();
        self.ask(|docker, name| async move { docker.stop_container(&name, Some(patience)).await });
    }

    /// Every process in it stands still.
    pub fn freeze(&self) {
        self.ask(|docker, name| async move { docker.pause_container(&name).await });
    }

    pub fn thaw(&self) {
        self.ask(|docker, name| async move { docker.unpause_container(&name).await });
    }

    /// Its cable is pulled.
    pub fn disconnect(&self) {
        let zone = self.zone.clone();
        let request = |container| NetworkDisconnectRequest { container, force: Some(true) };
        self.ask(|docker, name| async move { docker.disconnect_network(&zone, request(name)).await });
    }

    /// And put back, with the address that it had.
    pub fn connect(&self) {
        let (zone, address) = (self.zone.clone(), self.address.to_string());
        let request = |container| NetworkConnectRequest {
            container,
            endpoint_config: Some(EndpointSettings {
                ipam_config: Some(EndpointIpamConfig { ipv4_address: Some(address), ..Default::default() }),
                ..Default::default()
            }),
        };
        self.ask(|docker, name| async move { docker.connect_network(&zone, request(name)).await });
    }

    /// Runs a shell command in it, as the node's own user: whether it succeeded, and what it said.
    pub fn run(&self, command: &str) -> (bool, String) {
        let config = ExecConfig {
            cmd: Some(["sh", "-c", command].map(str::to_owned).into()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        self.ask(|docker, name| async move {
            let run = docker.create_exec(&name, config).await?.id;
            let StartExecResults::Attached { output, .. } = docker.start_exec(&run, None::<StartExecOptions>).await?
            else {
                unreachable!("it was not asked to be detached");
            };
            let said: Vec<LogOutput> = output.try_collect().await?;
            // What it says may end a moment before the engine knows how it ended.
            let ended =
                wait_async(async || docker.inspect_exec(&run).await.map(|run| run.exit_code).transpose()).await?;
            Ok((ended == 0, said.iter().map(LogOutput::to_string).collect()))
        })
    }

    /// What was said in it since it was made, on standard error.
    pub fn log(&self) -> String {
        let everything = LogsOptionsBuilder::default().stderr(true).build();
        self.ask(|docker, name| async move {
            let said: Vec<LogOutput> = docker.logs(&name, Some(everything)).try_collect().await?;
            Ok(said.iter().map(LogOutput::to_string).collect())
        })
    }

    fn ask<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        what: impl FnOnce(Docker, String) -> F,
    ) -> T {
        let docker = engine().expect("it has made this").docker.clone();
        wait_for(what(docker, self.name.clone())).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let (docker, name) = (engine().expect("it has made this").docker.clone(), self.name.clone());
        wait_for(async move { remove(&docker, &name).await });
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        let (docker, name) = (engine().expect("it has made this").docker.clone(), self.name.clone());
        let _ = wait_for(async move { docker.remove_network(&name).await });
    }
}

async fn remove(docker: &Docker, container: &str) {
    let whatever_it_does = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let _ = docker.remove_container(container, Some(whatever_it_does)).await;
}

/// The engine is spoken to on a thread of its own: tests, and what they drop, wait for it wherever they are.
fn wait_for<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime =
        RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));
    let (answer, answered) = std::sync::mpsc::channel();
    runtime.spawn(async move { drop(answer.send(work.await)) });
    answered.recv().expect("the engine's answer")
}

/// Which binary is in an image.
fn tag() -> String {
    static TAG: OnceLock<String> = OnceLock::new();
    let tag = TAG.get_or_init(|| {
        let binary = std::fs::read(env!("CARGO_BIN_EXE_keyway")).expect("it is built");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &binary);
        digest.as_ref().iter().take(6).fold("test-".to_owned(), |tag, byte| format!("{tag}{byte:02x}"))
    });
    tag.clone()
}

fn owned() -> HashMap<String, String> {
    let pid = std::process::id();
    [(OWNER.to_owned(), format!("{pid} {}", began(pid).expect("this process")))].into()
}

/// A process's number may come again; with the time at which it began, it does not.
fn lives(owner: &str) -> bool {
    let (pid, time) = owner.split_once(' ').unwrap_or_default();
    pid.parse().ok().and_then(began).is_some_and(|began| began == time)
}

fn began(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19).map(str::to_owned)
}

fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("keyway-test-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    u32::from_be_bytes(bytes)
}
