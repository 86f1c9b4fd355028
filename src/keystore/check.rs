//! Checking a cluster: every prerequisite looked at, and nothing changed. A password that is given is tried, once.

use crate::authz::{Permit, action};
use crate::cluster;
use crate::model::{ClusterId, ConnectionErrorCode, ConnectionState, HsmId, Password, TrustAnchor, Username};
use crate::node::{self, Reach, Tried};

use super::prerequisites::{self, Check, Facts, Login, Phase, Service};
use super::{Error, KeyStores, connect, worker_spec};

/// What somebody would give to make a key store, or what is wrong with it.
#[derive(Debug, Default)]
pub struct Shown {
    pub trust_anchor: Option<Result<TrustAnchor, String>>,
    pub password: Option<Result<Password, String>>,
}

impl KeyStores {
    /// Every check, in the order in which creating, connecting, making a key and using it would make them.
    pub async fn check(
        &self,
        _permit: Permit<action::CheckCluster>,
        id: &ClusterId,
        shown: Shown,
    ) -> Result<Vec<Check>, Error> {
        let this = self.clone();
        let id = id.clone();
        // To its end even when the caller leaves: a login that was begun is heard out.
        self.outlive(async move { this.check_now(id, shown).await }).await
    }

    async fn check_now(&self, id: ClusterId, shown: Shown) -> Result<Vec<Check>, Error> {
        let Shown { trust_anchor, password } = shown;
        let mut facts = Facts { trust_anchor, ..self.facts(&id) };
        let Some(cluster) = facts.cluster.clone() else { return Err(Error::ClusterNotFound(id)) };
        let anchor = match &facts.trust_anchor {
            Some(Ok(shown)) => Some(shown.clone()),
            Some(Err(_)) | None => cluster.trust_anchor.clone(),
        };
        if let Some(anchor) = anchor {
            facts.strangers = self.strangers(&id, &anchor).await;
        }
        facts.password = password.as_ref().map(|password| password.as_ref().map(drop).map_err(Clone::clone));
        if let Some(Ok(password)) = password {
            facts.login = self.try_password(&facts, &cluster, password).await?;
        }
        let phases = [Phase::Create, Phase::Connect, Phase::Connecting, Phase::CreateKey, Phase::Use];
        Ok(phases.into_iter().flat_map(|phase| prerequisites::checks(phase, &facts)).collect())
    }

    /// One login on one HSM: on the first that can be reached and was not asked in vain before.
    async fn try_password(
        &self,
        facts: &Facts,
        cluster: &cluster::Settings,
        password: Password,
    ) -> Result<Login, Error> {
        let id = &facts.id;
        let not_tried = |why: String, remedy: &str| Ok(Login::NotTried { why, remedy: remedy.to_owned() });
        if let Err(why) = self.nobody_is_at_work(id) {
            return not_tried(why, "Read how its HSMs do with `keyway key-store describe`.");
        }
        for checked in [prerequisites::to_connect(facts), prerequisites::while_connecting(facts)] {
            if let Err(unmet) = checked {
                return not_tried(format!("connecting would be refused before any login: {unmet}"), &unmet.remedy());
            }
        }
        let spent = self.0.records.spent_password_checks(id).await?;
        let mut unreached = Vec::new();
        for hsm in self.in_order_of_hope(facts, cluster) {
            if spent.contains(&hsm) {
                continue;
            }
            let spec = worker_spec(id, &hsm, &cluster.nodes[&hsm], &Username::kmsuser());
            let (host, records) = (&self.0.host, &self.0.records);
            let tried = node::try_password(host, records, &spec, &password, || self.nobody_is_at_work(id)).await?;
            match tried {
                Tried::NotAsked(why) => unreached.push(format!("{hsm}: {why}")),
                // Another check was quicker.
                Tried::Spent => {}
                Tried::Accepted => return Ok(Login::Accepted(hsm)),
                Tried::Refused(refusal, message) => return Ok(failed(hsm, connect::code(refusal), message)),
                Tried::Unanswered(message) => return Ok(failed(hsm, ConnectionErrorCode::NetworkErrors, message)),
            }
        }
        if unreached.is_empty() {
            let why = "each HSM in service was asked before and did not accept what it was given";
            return not_tried(
                why.to_owned(),
                "Let one be asked once more with `keyway cluster resume CLUSTER HSM --allow-one-login`, when the password is certain.",
            );
        }
        let message = format!("no HSM could be asked: {}", unreached.join("; "));
        Ok(Login::Failed { hsm: None, code: ConnectionErrorCode::NetworkErrors, message })
    }

    /// kmsuser is in use where a key store is at work: another login could be refused for it, or be in its way.
    fn nobody_is_at_work(&self, id: &ClusterId) -> Result<(), String> {
        let Some(store) = self.on_cluster(id) else { return Ok(()) };
        match store.state() {
            ConnectionState::Disconnected | ConnectionState::Failed => Ok(()),
            state @ (ConnectionState::Connected | ConnectionState::Connecting | ConnectionState::Disconnecting) => {
                Err(format!("key store {} is {state}: kmsuser is in use there", store.id()))
            }
        }
    }

    /// The HSMs in service, those that can be reached first.
    fn in_order_of_hope(&self, facts: &Facts, cluster: &cluster::Settings) -> Vec<HsmId> {
        let out_of_use = |hsm| matches!(facts.hsms.get(hsm), Some(Service::OutOfUse(_)));
        let in_service = cluster.active_nodes().map(|(hsm, _)| hsm).filter(|hsm| !out_of_use(hsm));
        let mut hsms: Vec<_> = in_service.cloned().collect();
        hsms.sort_by_key(|hsm| match self.reach(&facts.id, hsm) {
            Some(Reach::Reached(_)) => 0,
            None => 1,
            Some(Reach::Unreached(_)) => 2,
        });
        hsms
    }
}

fn failed(hsm: HsmId, code: ConnectionErrorCode, message: String) -> Login {
    Login::Failed { message: format!("{hsm} did not let kmsuser log in: {message}"), hsm: Some(hsm), code }
}
