//! A development cluster of three nodes with a connected key store, filled with keys and kept.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use keyway::proto::v1 as pb;
use pb::cluster_service_client::ClusterServiceClient;
use pb::key_service_client::KeyServiceClient;
use pb::key_store_service_client::KeyStoreServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};

use crate::Error;

/// Starting, and every single answer, is waited for this long at most.
const PATIENCE: Duration = Duration::from_secs(120);
/// A node with very many keys to take in is waited for this long.
const LEVELLING: Duration = Duration::from_secs(60 * 60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const STORE: &str = "bench";

/// A running daemon with its workers. Told to stop, and waited for, when dropped.
pub struct Cluster {
    home: PathBuf,
    process: Child,
    channel: Channel,
    id: String,
    store: String,
    pub keys: u32,
}

impl Cluster {
    /// Takes up what an earlier run left in `home`, or begins anew.
    pub async fn start(home: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(home)?;
        let (process, id) = spawn(home)?;
        let channel = connect(home).await?;
        let mut cluster = Self { home: home.to_owned(), process, channel, id, store: String::new(), keys: 0 };
        cluster.ready().await?;
        Ok(cluster)
    }

    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop();
        (self.process, self.id) = spawn(&self.home)?;
        self.channel = connect(&self.home).await?;
        self.ready().await
    }

    /// Makes keys until there are so many; how many that took.
    pub async fn fill(&mut self, keys: u32, makers: u8) -> Result<u32, Error> {
        let missing = keys.saturating_sub(self.keys);
        let begun = Arc::new(AtomicU32::new(0));
        let mut makers = (0..makers).map(|_| make(self.channel.clone(), self.store.clone(), begun.clone(), missing));
        let makers: Vec<_> = makers.by_ref().map(tokio::spawn).collect();
        for maker in makers {
            maker.await??;
        }
        self.keys += missing;
        Ok(missing)
    }

    /// Removes everything in a node's token but the token itself, and kills its worker, whose memory would still know it.
    pub fn empty(&self, hsm: &str) -> Result<(), Error> {
        let worker = self.worker(hsm)?;
        let tokens = self.home.join(format!("dev/hsms/{hsm}/kmsuser/tokens"));
        for token in std::fs::read_dir(tokens)?.flatten() {
            for file in std::fs::read_dir(token.path())?.flatten() {
                let name = file.file_name();
                let name = name.to_string_lossy();
                if name.ends_with(".object") && name != "token.object" {
                    std::fs::remove_file(file.path())?;
                }
            }
        }
        let pid = i32::try_from(worker).ok().and_then(Pid::from_raw).ok_or("no worker")?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Waits until the node has a new worker and every key.
    pub async fn level_again(&self, hsm: &str) -> Result<(), Error> {
        let level = |node: &pb::NodeConnection| {
            node.health() == pb::HsmHealth::Healthy && node.worker_restarts > 0 && node.keys_missing == 0
        };
        self.until(LEVELLING, |store| store.nodes.iter().any(|node| node.hsm_id == hsm && level(node))).await
    }

    /// Has every key proved on every node, and nothing copied; how many differences there are.
    pub async fn compare(&self) -> Result<usize, Error> {
        let request = pb::SyncClusterRequest { cluster_id: self.id.clone(), dry_run: true };
        let mut news = ClusterServiceClient::new(self.channel.clone()).sync_cluster(request).await?.into_inner();
        let mut differences = 0;
        while let Some(message) = news.message().await? {
            differences += usize::from(message.drift.is_some());
        }
        Ok(differences)
    }

    pub fn daemon(&self) -> u32 {
        self.process.id()
    }

    /// The worker process of a node.
    pub fn worker(&self, hsm: &str) -> Result<u32, Error> {
        let slot = format!("{}.{hsm}.", self.id);
        let entries = std::fs::read_dir("/proc")?.flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let of_it = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            words.get(1).is_some_and(|word| word == "worker")
                && words.get(2).is_some_and(|word| word.starts_with(&slot))
        };
        pids.find(of_it).ok_or_else(|| format!("{hsm} has no worker").into())
    }

    /// A connected key store whose nodes are all level.
    async fn ready(&mut self) -> Result<(), Error> {
        let mut stores = KeyStoreServiceClient::new(self.channel.clone());
        let known = stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await?.into_inner();
        self.store = match known.key_stores.into_iter().next() {
            Some(store) => store.key_store_id,
            None => self.make_store(&mut stores).await?,
        };
        let level = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy;
        self.until(LEVELLING, |store| !store.nodes.is_empty() && store.nodes.iter().all(level)).await?;
        let described = stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await?.into_inner();
        self.keys = described.key_stores.first().map_or(0, |store| u32::try_from(store.key_count).unwrap_or(0));
        Ok(())
    }

    async fn make_store(&self, stores: &mut KeyStoreServiceClient<Channel>) -> Result<String, Error> {
        let read = |name: &str| std::fs::read_to_string(self.home.join("dev").join(name));
        let request = pb::CreateKeyStoreRequest {
            key_store_name: STORE.to_owned(),
            cluster_id: self.id.clone(),
            key_store_password: read("kmsuser.password")?.trim().to_owned(),
            trust_anchor_certificate: read("customerCA.crt")?,
        };
        let id = stores.create_key_store(request).await?.into_inner().key_store_id;
        stores.connect_key_store(pb::ConnectKeyStoreRequest { key_store_id: id.clone() }).await?;
        Ok(id)
    }

    async fn until(&self, patience: Duration, wanted: impl Fn(&pb::KeyStore) -> bool) -> Result<(), Error> {
        let request = pb::WatchKeyStoreRequest { key_store_id: self.store.clone() };
        let mut stores = KeyStoreServiceClient::new(self.channel.clone());
        let mut changes = stores.watch_key_store(request).await?.into_inner();
        let watching = async {
            loop {
                let change = changes.message().await?.ok_or("the key store is watched no more")?;
                if change.key_store.is_some_and(|store| wanted(&store)) {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(patience, watching).await.map_err(|_| "the nodes were not level in time")?
    }

    fn stop(&mut self) {
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
        let left = |hsm: &&str| self.worker(hsm).is_ok();
        while ["hsm-1", "hsm-2", "hsm-3"].iter().any(left) && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The daemon, and its cluster's id once it serves.
fn spawn(home: &Path) -> Result<(Child, String), Error> {
    let announcement = home.join("dev/cluster.json");
    let _ = std::fs::remove_file(&announcement);
    let log = home.join("daemon.log");
    let mut process = Command::new(env!("CARGO_BIN_EXE_keyway"))
        .args(["dev", "--grpc-addr", "127.0.0.1:0", "--http-addr", "off", "--nodes", "3", "--zones", "3", "--data-dir"])
        .arg(home.join("dev"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .spawn()?;
    let begun = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(&announcement) {
            let announced: serde_json::Value = serde_json::from_str(&text)?;
            return Ok((process, announced["cluster_id"].as_str().unwrap_or_default().to_owned()));
        }
        if process.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
            let _ = process.kill();
            let _ = process.wait();
            return Err(format!("the daemon did not start; see {}", log.display()).into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

async fn connect(home: &Path) -> Result<Channel, Error> {
    let path = home.join("dev/keyway.sock");
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://keyway").connect_with_connector(connector).await?)
}

/// Makes keys, one after the other, until all makers together have begun so many.
async fn make(channel: Channel, store: String, begun: Arc<AtomicU32>, wanted: u32) -> Result<(), Error> {
    let mut keys = KeyServiceClient::new(channel);
    loop {
        let number = begun.fetch_add(1, Relaxed);
        if number >= wanted {
            return Ok(());
        }
        if number % 500 == 499 {
            eprintln!("{} of {wanted} keys made", number + 1);
        }
        let mut request =
            tonic::Request::new(pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() });
        request.set_timeout(PATIENCE);
        keys.create_key(request).await?;
    }
}
