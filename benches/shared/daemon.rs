//! keyway itself: `keyway dev` with a connected key store and a key, as anybody would start it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyway::proto::v1 as pb;
use pb::key_service_client::KeyServiceClient;
use pb::key_store_service_client::KeyStoreServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

use super::Error;
use super::child::{children, cpu_time_of_family};
use super::connect::{Target, connect};

/// Making tokens, starting, connecting: each is waited for this long at most.
const PATIENCE: Duration = Duration::from_secs(60);
const LOG: &str = "daemon.log";
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running daemon with its workers. Told to stop, and waited for, when dropped.
pub struct Daemon {
    process: Child,
    pub tcp: Target,
    pub unix: Target,
    pub cluster: String,
    pub key_store: String,
    /// What to encrypt with.
    pub key: String,
}

/// What the development cluster is like.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    pub nodes: u8,
    pub pool_size: u16,
    /// A PKCS#11 library in SoftHSM2's place.
    pub library: Option<&'a Path>,
}

impl Daemon {
    pub fn start(binary: &Path, home: &Path, shape: Shape<'_>) -> Result<Self, Error> {
        let data = home.join("dev");
        std::fs::create_dir_all(home)?;
        let log = std::fs::File::create(home.join(LOG))?;
        let mut command = Command::new(binary);
        command
            .args(["dev", "--grpc-addr", "127.0.0.1:0", "--http-addr", "off", "--zones", "2"])
            .args(["--nodes", &shape.nodes.to_string()])
            .args(["--pool-size", &shape.pool_size.to_string()])
            .arg("--data-dir")
            .arg(&data);
        if let Some(library) = shape.library {
            command.arg("--softhsm2").arg(library);
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut daemon = Self {
            process,
            tcp: Target::Tcp(String::new()),
            unix: Target::Unix(data.join("keyway.sock")),
            cluster: String::new(),
            key_store: String::new(),
            key: String::new(),
        };
        match daemon.make_ready(&data) {
            Ok(()) => Ok(daemon),
            Err(error) => {
                let log = std::fs::read_to_string(home.join(LOG)).unwrap_or_default();
                Err(format!("{error}\n---- the daemon said ----\n{log}").into())
            }
        }
    }

    fn make_ready(&mut self, data: &Path) -> Result<(), Error> {
        let announced: serde_json::Value = self.announcement(&data.join("cluster.json"))?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        self.tcp = Target::Tcp(text(&announced["endpoints"]["grpc"]));
        self.cluster = text(&announced["cluster_id"]);
        (self.key_store, self.key) = self.make_key(data)?;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// CPU time so far, of the daemon and of its workers.
    pub fn cpu_time(&self) -> Duration {
        cpu_time_of_family(self.process.id())
    }

    /// Waits until the daemon says that it serves.
    fn announcement(&mut self, path: &Path) -> Result<serde_json::Value, Error> {
        let begun = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(path) {
                return Ok(serde_json::from_str(&text)?);
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the daemon did not start: {status}").into());
            }
            if begun.elapsed() > PATIENCE {
                return Err("the daemon did not start in time".into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// A connected key store whose nodes are all healthy, and a key in it.
    fn make_key(&self, data: &Path) -> Result<(String, String), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let channel = connect(&self.unix).await?;
            tokio::time::timeout(PATIENCE, make_key(channel, data, self.cluster.clone()))
                .await
                .map_err(|_| "the key store was not connected in time")?
        })
    }
}

async fn make_key(channel: Channel, data: &Path, cluster: String) -> Result<(String, String), Error> {
    let mut stores = KeyStoreServiceClient::new(channel.clone());
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "bench".to_owned(),
        cluster_id: cluster,
        key_store_password: read(data.join("kmsuser.password"))?,
        trust_anchor_certificate: read(data.join("customerCA.crt"))?,
    };
    let key_store_id = stores.create_key_store(request).await?.into_inner().key_store_id;
    let request = pb::ConnectKeyStoreRequest { key_store_id: key_store_id.clone() };
    stores.connect_key_store(request).await?;
    let request = pb::WatchKeyStoreRequest { key_store_id: key_store_id.clone() };
    let mut changes = stores.watch_key_store(request).await?.into_inner();
    loop {
        let change = changes.message().await?.ok_or("the key store is watched no more")?;
        let store = change.key_store.unwrap_or_default();
        let connected = store.connection_state() == pb::ConnectionState::Connected;
        let healthy = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy;
        if connected && store.nodes.iter().all(healthy) {
            break;
        }
    }
    let request = pb::CreateKeyRequest { key_store_id: key_store_id.clone(), ..Default::default() };
    let key = KeyServiceClient::new(channel).create_key(request).await?.into_inner().key;
    Ok((key_store_id, key.ok_or("no key was made")?.key_id))
}

fn read(path: PathBuf) -> Result<String, Error> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Those that are there now: others may have been replaced.
        let workers = children(self.process.id());
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.process.kill();
                let _ = self.process.wait();
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        // The tokens must not be pulled from under workers that are still leaving.
        let there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        while workers.iter().any(there) && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
