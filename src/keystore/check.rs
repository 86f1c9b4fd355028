//! Checking a cluster: every prerequisite looked at, and nothing changed. A password that is given is tried, once.

use crate::authz::{Permit, action};
use crate::cluster;
use crate::model::{ClusterId, ConnectionErrorCode, HsmId, Password, TrustAnchor, Username};
use crate::node::{self, LoginRefusal, Reach, Tried};

use super::lifecycle::{self, Event};
use super::prerequisites::{self, Check, Facts, HsmStanding, Login};
use super::{Error, KeyStores, connect, worker_spec};

/// What to do where kmsuser is in use.
const AT_WORK: &str = "Read how its HSMs do with `keyway key-store describe`.";
/// What to do where no HSM may be asked.
const ALLOW_ONE: &str = "Let one be asked once more with `keyway cluster resume CLUSTER HSM --allow-one-login`, when the password is certain.";

/// What to do where another failure might lock kmsuser.
const RESET: &str = "Give it another with `keyway crypto-user reset-password CLUSTER kmsuser`.";

/// What somebody would give to make a key store, or what is wrong with it.
#[derive(Debug, Default)]
pub struct CheckInput {
    pub trust_anchor: Option<Result<TrustAnchor, String>>,
    pub password: Option<Result<Password, String>>,
}

impl KeyStores {
    /// Every check, in the order in which creating, connecting, making a key and using it would make them.
    pub async fn check(
        &self,
        _permit: Permit<action::CheckCluster>,
        id: &ClusterId,
        shown: CheckInput,
    ) -> Result<Vec<Check>, Error> {
        let this = self.clone();
        let id = id.clone();
        // To its end even when the caller leaves: a login that was begun is heard out.
        self.outlive(async move { this.check_now(id, shown).await }).await
    }

    async fn check_now(&self, id: ClusterId, shown: CheckInput) -> Result<Vec<Check>, Error> {
        let CheckInput { trust_anchor, password } = shown;
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
        Ok(prerequisites::survey(&facts))
    }

    /// One login on one HSM: on the first that can be reached and was not asked in vain before.
    async fn try_password(
        &self,
        facts: &Facts,
        cluster: &cluster::Settings,
        password: Password,
    ) -> Result<Login, Error> {
        let id = &facts.id;
        let not_tried = |why, remedy| Ok(Login::NotTried { why, remedy });
        if let Err(why) = self.nobody_is_at_work(id) {
            return not_tried(why, Some(AT_WORK));
        }
        for checked in [prerequisites::to_connect(facts), prerequisites::while_connecting(facts)] {
            if let Err(refusal) = checked {
                let why = format!("connecting would be refused before any login: {}", refusal.unmet);
                // Its remedy stands with the check of that prerequisite.
                return not_tried(why, None);
            }
        }
        let spent = self.0.records.spent_password_checks(id).await?;
        let mut unreached = Vec::new();
        let mut throttled = false;
        let allowed = cluster.profile.failed_logins_allowed();
        for hsm in self.in_order_of_hope(facts, cluster) {
            if spent.contains(&hsm) {
                continue;
            }
            let spec = worker_spec(id, &hsm, &cluster.nodes[&hsm], &Username::kmsuser());
            let (host, records) = (&self.0.host, &self.0.records);
            let still = || self.nobody_is_at_work(id);
            match node::try_password(host, records, &spec, &password, allowed, still).await? {
                Tried::NotAsked(why) => unreached.push((ConnectionErrorCode::NetworkErrors, format!("{hsm}: {why}"))),
                Tried::AnotherToken(why) => {
                    unreached.push((ConnectionErrorCode::InternalError, format!("{hsm}: {why}")));
                }
                Tried::Withdrawn(why) => return not_tried(why, Some(AT_WORK)),
                // Another check was quicker.
                Tried::Spent => {}
                Tried::Throttled => throttled = true,
                Tried::Accepted => return Ok(Login::Accepted(hsm)),
                Tried::Refused(refusal, message) => return Ok(failed(hsm, connect::code(refusal), message)),
                Tried::Unanswered(message) => {
                    // As connecting tells an attempt that nobody has answered.
                    return Ok(failed(hsm, connect::code(LoginRefusal::Unsettled), message));
                }
            }
        }
        if unreached.is_empty() && throttled {
            let why = "too many wrong passwords were given for kmsuser in a row: another might lock him";
            return not_tried(why.to_owned(), Some(RESET));
        }
        if unreached.is_empty() {
            let why = "each HSM in service was asked before and did not accept what it was given";
            return not_tried(why.to_owned(), Some(ALLOW_ONE));
        }
        Ok(nobody_asked(unreached))
    }

    /// kmsuser is in use where a key store is at work: another login could be refused for it, or be in its way.
    fn nobody_is_at_work(&self, id: &ClusterId) -> Result<(), String> {
        let Some(store) = self.on_cluster(id) else { return Ok(()) };
        lifecycle::next(store.state(), Event::TryPassword)
            .map(drop)
            .map_err(|refused| format!("key store {} is {}: kmsuser is in use there", store.id(), refused.state))
    }

    /// The HSMs in service, those that can be reached first.
    fn in_order_of_hope(&self, facts: &Facts, cluster: &cluster::Settings) -> Vec<HsmId> {
        let drained = |hsm| matches!(facts.hsms.get(hsm), Some(HsmStanding::Drained(_)));
        let in_service = cluster.active_nodes().map(|(hsm, _)| hsm).filter(|hsm| !drained(hsm));
        let mut hsms: Vec<_> = in_service.cloned().collect();
        hsms.sort_by_key(|hsm| match self.reach(&facts.id, hsm) {
            Some(Reach::Reached(_)) => 0,
            None => 1,
            Some(Reach::Unreached(_)) => 2,
        });
        hsms
    }
}

/// Why no HSM was asked. A network is to blame unless each could be reached.
fn nobody_asked(unreached: Vec<(ConnectionErrorCode, String)>) -> Login {
    let all_reached = unreached.iter().all(|(code, _)| *code == ConnectionErrorCode::InternalError);
    let code = if all_reached { ConnectionErrorCode::InternalError } else { ConnectionErrorCode::NetworkErrors };
    let each: Vec<_> = unreached.into_iter().map(|(_, why)| why).collect();
    Login::Failed { hsm: None, code, message: format!("no HSM could be asked: {}", each.join("; ")) }
}

fn failed(hsm: HsmId, code: ConnectionErrorCode, message: String) -> Login {
    Login::Failed { message: format!("{hsm} did not let kmsuser log in: {message}"), hsm: Some(hsm), code }
}
