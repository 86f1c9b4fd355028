//! A crypto user on each HSM of a cluster, and how he stands there. Where his token is, is for the host to say.

use futures_util::future::join_all;

use crate::cluster::{self, NodeSettings};
use crate::host::{UserStanding, WorkerSpec};
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
        Place { spec: worker_spec(id, hsm, node, user), out_of_use }
    }

    /// How the user stands there now.
    pub(super) async fn standing(&self, place: &Place) -> Result<UserStanding, Undone> {
        place.in_use()?;
        Ok(self.0.host.user_standing(&place.spec).await?)
    }

    /// How the user stands on each HSM of a cluster. All of them are asked at once, as each may have to be waited for.
    pub(super) async fn standings(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        user: &Username,
    ) -> Vec<(HsmId, Result<UserStanding, Undone>)> {
        let asked = self.places(id, cluster, user).into_iter().map(|place| async move {
            let standing = self.standing(&place).await;
            (place.spec.hsm, standing)
        });
        join_all(asked).await
    }

    /// How each of the users stands on each HSM of a cluster that is in use and answers: one question for each HSM.
    pub(super) async fn standings_of_all(
        &self,
        id: &ClusterId,
        cluster: &cluster::Settings,
        users: &[&Username],
    ) -> Vec<(HsmId, Vec<Option<UserStanding>>)> {
        let asked = cluster.nodes.iter().map(|(hsm, node)| async move {
            let places: Vec<_> = users.iter().map(|user| self.place(id, hsm, node, user)).collect();
            let out_of_use = places.iter().any(|place| place.in_use().is_err());
            let specs: Vec<_> = places.into_iter().map(|place| place.spec).collect();
            let standings = if out_of_use { None } else { self.0.host.user_standings(&specs).await.ok() };
            let standings = standings.map(|all| all.into_iter().map(Result::ok).collect());
            (hsm.clone(), standings.unwrap_or_else(|| vec![None; users.len()]))
        });
        join_all(asked).await
    }
}
