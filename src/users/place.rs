//! Where a crypto user's token is on an HSM: kmsuser's is the declared one, everybody else's is in the HSM's `user_tokens`.

use crate::cluster::{self, NodeSettings};
use crate::host::{Location, TokenName, UserStanding, WorkerSpec};
use crate::keystore::worker_spec;
use crate::model::{ClusterId, HsmId, HsmState, Username};

use super::Users;
use super::jobs::Undone;

/// A user on an HSM, and why that one is not to be asked, if it is not.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) spec: WorkerSpec,
    out_of_use: Option<String>,
}

impl Place {
    pub(super) fn hsm(&self) -> &HsmId {
        &self.spec.hsm
    }

    /// An operator may be at work on an HSM that is out of use: it is left alone.
    pub(super) fn in_use(&self) -> Result<(), Undone> {
        match &self.out_of_use {
            Some(why) => Err(Undone::OutOfUse(why.clone())),
            None => Ok(()),
        }
    }
}

impl Users {
    /// The user on each HSM of a cluster.
    pub(super) fn places(&self, id: &ClusterId, cluster: &cluster::Settings, user: &Username) -> Vec<Place> {
        cluster.nodes.iter().map(|(hsm, node)| self.place(id, hsm, node, user)).collect()
    }

    pub(super) fn place(&self, id: &ClusterId, hsm: &HsmId, node: &NodeSettings, user: &Username) -> Place {
        let out_of_use = match node.state {
            HsmState::Active => self.0.key_stores.drained(id, hsm),
            state => Some(format!("it is {state}")),
        };
        Place { spec: spec(id, hsm, node, user), out_of_use }
    }

    /// How the user stands there now.
    pub(super) fn standing(&self, place: &Place) -> Result<UserStanding, Undone> {
        place.in_use()?;
        Ok(self.0.host.user_standing(&place.spec)?)
    }
}

pub(super) fn spec(id: &ClusterId, hsm: &HsmId, node: &NodeSettings, user: &Username) -> WorkerSpec {
    let mut spec = worker_spec(id, hsm, node, user);
    let directory = node.user_tokens.as_ref().filter(|_| *user != Username::kmsuser());
    if let (Some(directory), Location::Here(token)) = (directory, &mut spec.location) {
        let configuration = directory.join(user.as_str()).join("softhsm2.conf");
        token.name = TokenName::Label(user.to_string());
        token.environment.insert("SOFTHSM2_CONF".to_owned(), configuration.display().to_string());
    }
    spec
}
