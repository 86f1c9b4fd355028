//! Does the schedule's steps to a rig, and waits until all is well again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use faulty_pkcs11::Outcome;
use rustix::process::Signal;
use tokio::task::block_in_place;

use super::history::History;
use super::schedule::{End, HSMS, Step};
use super::trouble::{Cure, Event, Meets, Sickness, Trouble};
use crate::rig::{Clients, Rig, kill, pb, signal};

/// How long a cluster gets to be well again. Only a soak that fails waits so long.
const SETTLING: Duration = Duration::from_secs(180);
/// A canary that answers so long after all troubles have ended was not on its way before.
const AFTER: Duration = Duration::from_secs(1);

/// What a password is changed to.
const CHANGED: &str = "another-password-of-32-characters";

/// A cluster that things are done to.
pub struct Doing {
    pub rig: Rig,
    pub clients: Clients,
    pub store: String,
    pub history: Arc<History>,
    /// Processes that were stopped and may be so still.
    stopped: Vec<(&'static str, u32)>,
    /// When an operator allowed an HSM one more login, since 1970.
    pub allowed: Vec<(&'static str, Duration)>,
    /// What former daemons said.
    pub former_logs: String,
}

impl Doing {
    pub async fn new(history: Arc<History>) -> Self {
        let (rig, mut clients, store) = Rig::new().faulty().connected().await;
        clients.all_healthy(&store).await;
        Self { rig, clients, store, history, stopped: Vec::new(), allowed: Vec::new(), former_logs: String::new() }
    }

    pub async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Enter(phase) => self.history.enter(*phase),
            Step::Begin(hsm, trouble) => self.begin(hsm, trouble).await?,
            Step::End(hsm, trouble) => self.end(hsm, trouble).await?,
            Step::DaemonEnds(end) => self.end_daemon(*end),
            Step::DaemonStarts => block_in_place(|| self.rig.start_daemon()),
            Step::Wait(pause) => tokio::time::sleep(*pause).await,
            Step::Settle => self.settle().await?,
        }
        if *step == Step::DaemonStarts {
            self.history.daemon_is_up();
        }
        Ok(())
    }

    async fn begin(&mut self, hsm: &'static str, trouble: &Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Library(Sickness { rules, meets, .. }) => {
                self.rig.faults(hsm).set(rules.iter().cloned());
                if *meets == Meets::ANewOne {
                    self.kill_workers(hsm);
                }
            }
            Trouble::Event(Event::Rebooted) => self.rig.faults(hsm).reboot(),
            Trouble::Event(Event::LoginLost) => self.rig.faults(hsm).lose_login(),
            Trouble::Event(Event::SessionsExpired) => self.rig.faults(hsm).expire_sessions(),
            Trouble::Killed => self.kill_workers(hsm),
            Trouble::Stopped => self.stop_workers(hsm),
            Trouble::TokenAway => self.move_token(hsm, "tokens", "away"),
            Trouble::TokenEmptied => self.rig.empty_token(hsm),
            Trouble::KeyDeleted(number) => self.delete_key(hsm, *number),
            Trouble::PasswordChanged => {
                block_in_place(|| self.rig.change_password(hsm, CHANGED));
                self.kill_workers(hsm);
            }
            Trouble::Drained => self.drain(hsm).await?,
        }
        Ok(())
    }

    async fn end(&mut self, hsm: &'static str, trouble: &Trouble) -> Result<(), String> {
        match trouble {
            Trouble::Library(Sickness { cure, .. }) => {
                self.rig.faults(hsm).clear();
                match cure {
                    Cure::ItsDaemon => {}
                    Cure::AnOperator => self.resume(hsm, false).await?,
                }
            }
            Trouble::Stopped => self.let_workers_go_on(hsm),
            Trouble::TokenAway => self.move_token(hsm, "away", "tokens"),
            Trouble::PasswordChanged => {
                block_in_place(|| self.rig.restore_password(hsm, CHANGED));
                self.resume(hsm, true).await?;
            }
            Trouble::Drained => self.resume(hsm, false).await?,
            Trouble::Event(_) | Trouble::Killed | Trouble::TokenEmptied | Trouble::KeyDeleted(_) => {}
        }
        Ok(())
    }

    fn kill_workers(&self, hsm: &str) {
        for pid in self.rig.workers_of(hsm) {
            kill(pid);
        }
    }

    fn stop_workers(&mut self, hsm: &'static str) {
        for pid in self.rig.workers_of(hsm) {
            signal(pid, Signal::STOP);
            self.stopped.push((hsm, pid));
        }
    }

    fn let_workers_go_on(&mut self, hsm: &str) {
        for (_, pid) in self.stopped.extract_if(.., |(of, _)| *of == hsm) {
            signal(pid, Signal::CONT);
        }
    }

    fn move_token(&self, hsm: &str, from: &str, to: &str) {
        let path = |name: &str| self.rig.path(&format!("hsms/{hsm}/kmsuser/{name}"));
        std::fs::rename(path(from), path(to)).expect("nobody else moves it");
    }

    /// Deletes one of the acknowledged keys, if the HSM can be read and has it now.
    fn delete_key(&self, hsm: &str, number: usize) {
        let keys = self.history.keys();
        let key = &keys[number % keys.len()];
        block_in_place(|| {
            let objects = self.rig.try_objects(hsm).unwrap_or_default();
            if let Some(object) = objects.iter().find(|object| object.label.contains(key)) {
                self.rig.delete_object(hsm, &object.id);
            }
        });
    }

    async fn drain(&mut self, hsm: &str) -> Result<(), String> {
        let request = pb::DrainHsmRequest {
            cluster_id: self.rig.cluster_id(),
            hsm_id: hsm.to_owned(),
            note: "soak".to_owned(),
            drain_timeout: None,
        };
        self.clients.clusters.drain_hsm(request).await.map_err(|status| format!("draining {hsm}: {status}"))?;
        Ok(())
    }

    async fn resume(&mut self, hsm: &'static str, allow_one_login: bool) -> Result<(), String> {
        if allow_one_login {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than that");
            self.allowed.push((hsm, now));
        }
        let cluster_id = self.rig.cluster_id();
        let request = pb::ResumeHsmRequest { cluster_id, hsm_id: hsm.to_owned(), allow_one_login };
        self.clients.clusters.resume_hsm(request).await.map_err(|status| format!("resuming {hsm}: {status}"))?;
        Ok(())
    }

    fn end_daemon(&mut self, end: End) {
        self.history.daemon_goes_down();
        match end {
            End::Killed => self.rig.kill_daemon(),
            End::Stopped => drop(block_in_place(|| self.rig.stop_daemon())),
        }
        self.former_logs.push_str(&self.rig.log());
    }

    // ---- all is well ---------------------------------------------------------------------------

    /// Waits until every HSM is healthy and has every key, by itself: what an operator could have mended is left to nobody.
    pub async fn settle(&mut self) -> Result<(), String> {
        let (begun, since) = (Instant::now(), SystemTime::now() + AFTER);
        loop {
            let keys = self.history.keys();
            match self.is_well(since, &keys).await {
                Ok(()) => return self.nothing_is_left_to_mend(&keys).await,
                Err(why) if begun.elapsed() > SETTLING => {
                    return Err(format!("not well again {SETTLING:?} after the last trouble: {why}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn is_well(&mut self, since: SystemTime, keys: &[String]) -> Result<(), String> {
        self.nobody_is_stuck()?;
        self.is_healthy().await?;
        self.is_proved(since).await?;
        self.nothing_has_drifted().await?;
        // Last, and so not often: to read a token takes a login, which disturbs whoever reads it at that moment.
        self.tokens_are_complete(keys)?;
        // What was found missing meanwhile has been put back.
        self.is_healthy().await
    }

    /// A call that blocks does so also when its rule is gone: its worker must be replaced first.
    fn nobody_is_stuck(&self) -> Result<(), String> {
        for hsm in HSMS {
            let workers = self.rig.workers_of(hsm);
            let journal = self.rig.faults(hsm).journal();
            let blocked = journal.iter().find(|it| it.outcome == Outcome::Blocked && workers.contains(&it.pid));
            if let Some(call) = blocked {
                return Err(format!("{hsm}: {} of {} is blocked", call.function, call.pid));
            }
        }
        Ok(())
    }

    async fn is_healthy(&mut self) -> Result<(), String> {
        let stores = self.clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await;
        let store = stores.map_err(|status| status.to_string())?.into_inner().key_stores.remove(0);
        if store.connection_state() != pb::ConnectionState::Connected {
            return Err(format!("the store is {:?}: {store:?}", store.connection_state()));
        }
        let is_well = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Healthy && node.keys_missing == 0;
        match store.nodes.iter().find(|node| !is_well(node)) {
            Some(node) => {
                let (hsm, health, missing, why) = (&node.hsm_id, node.health(), node.keys_missing, &node.last_error);
                Err(format!("{hsm} is {health:?} and lacks {missing} keys: {why}"))
            }
            None => Ok(()),
        }
    }

    /// Their canaries have answered since then.
    async fn is_proved(&mut self, since: SystemTime) -> Result<(), String> {
        let clusters = self.clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await;
        let cluster = clusters.map_err(|status| status.to_string())?.into_inner().clusters.remove(0);
        let proved = |hsm: &pb::Hsm| {
            let time = hsm.last_proof_time.as_ref().and_then(|time| SystemTime::try_from(*time).ok());
            time.is_some_and(|time| time >= since)
        };
        match cluster.hsms.iter().find(|hsm| !proved(hsm)) {
            Some(hsm) => Err(format!("{}: its canary has not answered lately: {}", hsm.hsm_id, hsm.health_reason)),
            None => Ok(()),
        }
    }

    async fn nothing_has_drifted(&mut self) -> Result<(), String> {
        let request = pb::ListDriftRequest { cluster_id: self.rig.cluster_id(), ..Default::default() };
        let listed = self.clients.clusters.list_drift(request).await.map_err(|status| status.to_string())?;
        let drifts = listed.into_inner().drifts;
        if drifts.is_empty() { Ok(()) } else { Err(format!("ListDrift: {drifts:?}")) }
    }

    /// Every HSM is asked for each of these keys, and has it. Younger ones may be on their way.
    async fn nothing_is_left_to_mend(&mut self, keys: &[String]) -> Result<(), String> {
        let request = pb::SyncClusterRequest { cluster_id: self.rig.cluster_id(), dry_run: true };
        let news = self.clients.clusters.sync_cluster(request).await;
        let mut news = news.map_err(|status| status.to_string())?.into_inner();
        let mut left = Vec::new();
        while let Some(message) = news.message().await.map_err(|status| status.to_string())? {
            left.extend(message.drift.filter(|drift| keys.contains(&drift.key_id)));
        }
        if left.is_empty() { Ok(()) } else { Err(format!("all was well, and yet SyncCluster found {left:?}")) }
    }

    fn tokens_are_complete(&self, keys: &[String]) -> Result<(), String> {
        let wanted: BTreeSet<String> = keys
            .iter()
            .map(|key| format!("keyway:{key}:1"))
            .chain(["keyway:kek".into(), "keyway:canary".into()])
            .collect();
        for hsm in HSMS {
            let objects = block_in_place(|| self.rig.try_objects(hsm))?;
            let found: BTreeSet<String> = objects.into_iter().map(|object| object.label).collect();
            if let Some(missing) = wanted.difference(&found).next() {
                return Err(format!("{hsm} does not hold {missing}"));
            }
        }
        Ok(())
    }
}
