//! The cluster that is disturbed: what its HSMs say of themselves, and how one of them is lost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use faulty_pkcs11::Faults;
use keyway::proto::v1 as pb;
use pb::cluster_service_client::ClusterServiceClient;
use pb::key_store_service_client::KeyStoreServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::Error;
use crate::calls::{Ask, Caller};
use crate::shared::child::{children, cpu_time};
use crate::shared::connect::connect;
use crate::shared::daemon::{Daemon, Shape};

pub const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
/// The longest pause between two starts of a worker is 15 s, and a library may take 30 s to open.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cluster {
    pub daemon: Daemon,
    home: PathBuf,
    runtime: Runtime,
    channel: Channel,
}

impl Cluster {
    /// Three HSMs, on a library in SoftHSM2's place if one is given.
    pub fn start(home: &Path, pool_size: u16, library: Option<&Path>) -> Result<Self, Error> {
        let shape = Shape { nodes: 3, pool_size, library };
        let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_keyway")), home, shape)?;
        // With a thread that runs it between our questions, too: a connection that answers no pings is closed.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = runtime.block_on(connect(&daemon.unix))?;
        Ok(Self { daemon, home: home.join("dev"), runtime, channel })
    }

    /// What callers do in turn: both can be repeated, so that no loss of an HSM may be seen.
    pub fn work(&self, caller: &Caller) -> Result<Vec<Ask>, Error> {
        let encrypt = Ask::encrypt(&self.daemon.key);
        let ciphertext = caller.once(encrypt.clone())?;
        Ok(vec![encrypt, Ask::decrypt(ciphertext)])
    }

    /// CPU time so far of everything here, and of the callers.
    pub fn cpu_time(&self) -> Duration {
        self.daemon.cpu_time() + cpu_time(std::process::id())
    }

    pub fn until_healthy(&self) -> Result<pb::KeyStore, Error> {
        self.until(|store| store.nodes.iter().all(|node| node.health() == pb::HsmHealth::Healthy))
    }

    pub fn drain(&self, hsm: &str) -> Result<(), Error> {
        let request = pb::DrainHsmRequest {
            cluster_id: self.daemon.cluster.clone(),
            hsm_id: hsm.to_owned(),
            note: "measuring the others".to_owned(),
            drain_timeout: None,
        };
        self.runtime.block_on(ClusterServiceClient::new(self.channel.clone()).drain_hsm(request))?;
        let is_it = |node: &pb::NodeConnection| node.hsm_id == hsm && node.health() == pb::HsmHealth::Drained;
        self.until(|store| store.nodes.iter().any(is_it))?;
        Ok(())
    }

    pub fn resume(&self, hsm: &str) -> Result<(), Error> {
        let request = pb::ResumeHsmRequest {
            cluster_id: self.daemon.cluster.clone(),
            hsm_id: hsm.to_owned(),
            allow_one_login: false,
        };
        self.runtime.block_on(ClusterServiceClient::new(self.channel.clone()).resume_hsm(request))?;
        self.until_healthy()?;
        Ok(())
    }

    pub fn faults(&self, hsm: &str) -> Faults {
        Faults::beside(&self.user(hsm).join("softhsm2.conf"))
    }

    pub fn take_token_away(&self, hsm: &str) -> Result<(), Error> {
        Ok(std::fs::rename(self.user(hsm).join("tokens"), self.user(hsm).join("away"))?)
    }

    pub fn bring_token_back(&self, hsm: &str) -> Result<(), Error> {
        Ok(std::fs::rename(self.user(hsm).join("away"), self.user(hsm).join("tokens"))?)
    }

    /// To the worker of an HSM; nothing when it has none.
    pub fn signal(&self, hsm: &str, signal: Signal) {
        let of_it = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&format!(".{hsm}."))
        };
        for pid in children(self.daemon.pid()).into_iter().filter(of_it) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(pid, signal);
            }
        }
    }

    fn user(&self, hsm: &str) -> PathBuf {
        self.home.join("hsms").join(hsm).join("kmsuser")
    }

    fn until(&self, wanted: impl Fn(&pb::KeyStore) -> bool) -> Result<pb::KeyStore, Error> {
        let request = pb::WatchKeyStoreRequest { key_store_id: self.daemon.key_store.clone() };
        let watching = async {
            let mut stores = KeyStoreServiceClient::new(self.channel.clone());
            let mut changes = stores.watch_key_store(request).await?.into_inner();
            loop {
                let change = changes.message().await?.ok_or("the key store is watched no more")?;
                let store = change.key_store.unwrap_or_default();
                if wanted(&store) {
                    return Ok::<_, Error>(store);
                }
            }
        };
        let waited = async { tokio::time::timeout(PATIENCE, watching).await };
        self.runtime.block_on(waited).map_err(|_| "the key store did not get there in time")?
    }
}
