//! Crypto users on the tokens of another host: its node does there what this host does here.

use std::time::Duration;

use crate::host::opening::OPENING_PATIENCE;
use crate::host::{OpeningError, RemoteNode, UserError, UserStanding, WorkerSpec, milliseconds};
use crate::model::Password;
use crate::proto::node::list_standings_response::{Standing, WithinReach, standing::Token};
use crate::proto::node::{GiveUserRequest, ListStandingsRequest, RemoveUserRequest, UnlockUserRequest};

use super::{CALL, Remote, said, slot_wait};

impl Remote {
    pub(in crate::host) async fn user_standing(
        &self,
        spec: &WorkerSpec,
        node: &RemoteNode,
    ) -> Result<UserStanding, UserError> {
        within_reach(self.standing(spec, node).await?)
    }

    pub(in crate::host) async fn user_standings(
        &self,
        specs: &[WorkerSpec],
        node: &RemoteNode,
    ) -> Result<Vec<Result<UserStanding, UserError>>, UserError> {
        Ok(self.standings(specs, node).await?.into_iter().map(within_reach).collect())
    }

    pub(in crate::host) async fn failed_logins(
        &self,
        spec: &WorkerSpec,
        node: &RemoteNode,
    ) -> Result<u32, OpeningError> {
        Ok(self.standing(spec, node).await?.failed_logins)
    }

    async fn standing(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<Standing, OpeningError> {
        self.standings(std::slice::from_ref(spec), node).await?.pop().ok_or(OpeningError::OutOfTurn)
    }

    /// As many as were asked for, which are all on one HSM.
    async fn standings(&self, specs: &[WorkerSpec], node: &RemoteNode) -> Result<Vec<Standing>, OpeningError> {
        let Some(WorkerSpec { cluster, hsm, .. }) = specs.first() else { return Ok(Vec::new()) };
        let ask = ListStandingsRequest {
            cluster: cluster.to_string(),
            hsm: hsm.to_string(),
            usernames: specs.iter().map(|spec| spec.username.to_string()).collect(),
        };
        let told = self.administration(node, CALL).await?.list_standings(ask).await;
        let standings = told.map_err(|status| said(node, hsm, &status))?.into_inner().standings;
        if standings.len() == specs.len() { Ok(standings) } else { Err(OpeningError::OutOfTurn) }
    }

    pub(in crate::host) async fn give_user(
        &self,
        spec: &WorkerSpec,
        node: &RemoteNode,
        password: &Password,
    ) -> Result<String, UserError> {
        let ask = GiveUserRequest {
            cluster: spec.cluster.to_string(),
            hsm: spec.hsm.to_string(),
            username: spec.username.to_string(),
            patience_ms: milliseconds(spec.patience.quick),
            slow_patience_ms: milliseconds(spec.patience.slow),
            password: password.expose().to_owned(),
        };
        let given = self.administration(node, job(spec)).await?.give_user(ask).await;
        Ok(given.map_err(|status| said(node, &spec.hsm, &status))?.into_inner().serial)
    }

    pub(in crate::host) async fn unlock_user(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<(), UserError> {
        let ask = UnlockUserRequest {
            cluster: spec.cluster.to_string(),
            hsm: spec.hsm.to_string(),
            username: spec.username.to_string(),
        };
        let unlocked = self.administration(node, CALL).await?.unlock_user(ask).await;
        Ok(unlocked.map(drop).map_err(|status| said(node, &spec.hsm, &status))?)
    }

    pub(in crate::host) async fn remove_user(&self, spec: &WorkerSpec, node: &RemoteNode) -> Result<(), UserError> {
        let ask = RemoveUserRequest {
            cluster: spec.cluster.to_string(),
            hsm: spec.hsm.to_string(),
            username: spec.username.to_string(),
            patience_ms: milliseconds(spec.patience.quick),
            slow_patience_ms: milliseconds(spec.patience.slow),
        };
        let removed = self.administration(node, job(spec)).await?.remove_user(ask).await;
        Ok(removed.map(drop).map_err(|status| said(node, &spec.hsm, &status))?)
    }
}

/// The longest that a job takes there, once it is its turn.
fn job(spec: &WorkerSpec) -> Duration {
    slot_wait(spec) + 2 * OPENING_PATIENCE
}

fn within_reach(Standing { failed_logins, token }: Standing) -> Result<UserStanding, UserError> {
    match token {
        Some(Token::WithinReach(WithinReach { is_present, is_locked })) => {
            Ok(UserStanding { is_present, failed_logins, is_locked })
        }
        Some(Token::OutOfReach(why)) => Err(OpeningError::Host(why).into()),
        None => Err(OpeningError::OutOfTurn.into()),
    }
}
