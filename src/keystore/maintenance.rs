//! An operator takes an HSM out of use, and back into it.
//!
//! Written down first, so that it outlives the daemon; then told to the node, if somebody is logged in there.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::Member;
use crate::model::{ClusterId, HsmId, Username};
use crate::node::{Health, Reach};
use crate::records::Unavailable;

use super::{Error, KeyStores};

/// Whether a refused password may be tried once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logins {
    AllowOne,
    AsBefore,
}

impl KeyStores {
    /// No new calls go to the HSM until it is resumed; running ones get `limit`.
    pub async fn drain_hsm(
        &self,
        _permit: Permit<action::DrainHsm>,
        cluster: &ClusterId,
        hsm: &HsmId,
        note: String,
        limit: Duration,
    ) -> Result<(), Error> {
        self.known(cluster, hsm)?;
        let (this, cluster, hsm) = (self.clone(), cluster.clone(), hsm.clone());
        self.outlive(async move {
            let _maintenance = this.0.maintenance.lock().await;
            this.0.records.drain_hsm(&cluster, &hsm, &note, clock::now()).await?;
            this.write_drained().insert((cluster.clone(), hsm.clone()), note.clone());
            this.0.listed.send_modify(|count| *count += 1);
            for member in this.members_on(&cluster, &hsm) {
                member.node.drain(note.clone(), limit);
            }
            Ok(())
        })
        .await
    }

    /// Back into use, after a drain, a refused login, or the replacement of its token.
    pub async fn resume_hsm(
        &self,
        _permit: Permit<action::ResumeHsm>,
        cluster: &ClusterId,
        hsm: &HsmId,
        logins: Logins,
    ) -> Result<(), Error> {
        self.known(cluster, hsm)?;
        let (this, cluster, hsm) = (self.clone(), cluster.clone(), hsm.clone());
        self.outlive(async move { this.resume_now(&cluster, &hsm, logins).await }).await
    }

    async fn resume_now(&self, cluster: &ClusterId, hsm: &HsmId, logins: Logins) -> Result<(), Error> {
        let _maintenance = self.0.maintenance.lock().await;
        let records = &self.0.records;
        let members = self.members_on(cluster, hsm);
        if self.has_another_token(cluster, hsm, &members).await? {
            // The operator has seen which token is there now, and means that one.
            records.forget_token_serial(cluster, hsm).await?;
        }
        records.resume_hsm(cluster, hsm).await?;
        self.write_drained().remove(&(cluster.clone(), hsm.clone()));
        self.0.listed.send_modify(|count| *count += 1);
        if logins == Logins::AllowOne {
            records.allow_password_check(cluster, hsm).await?;
            for connection in self.connections_on(cluster) {
                connection.passwords().allow_one_login(hsm).await?;
                connection.changed();
            }
            if let (Some(store), None) = (self.on_cluster(cluster), self.connection_on(cluster)) {
                self.passwords(&store.record()).await?.allow_one_login(hsm).await?;
            }
        }
        for member in members {
            member.node.resume();
        }
        Ok(())
    }

    /// Whether a token of the HSM's is not the one that was first logged in to there, or may be another for all that anybody
    /// saw. A key store that found only such tokens is FAILED, and has no members to ask.
    async fn has_another_token(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        members: &[Arc<Member>],
    ) -> Result<bool, Unavailable> {
        if members.iter().any(|member| member.node.status().borrow().health == Health::WrongIdentity) {
            return Ok(true);
        }
        let kmsuser = Username::kmsuser();
        if members.iter().any(|member| member.node.spec.username == kmsuser) {
            return Ok(false);
        }
        if self.drained(cluster, hsm).is_some() {
            return Ok(false);
        }
        match self.reach(cluster, hsm) {
            Some(Reach::Reached(token)) => {
                let known = self.0.records.token_serial(cluster, hsm, &kmsuser).await?;
                Ok(known.is_some_and(|known| known != token.serial))
            }
            // What cannot be reached was not refused for its serial number.
            Some(Reach::Unreached(_)) => Ok(false),
            None => Ok(true),
        }
    }

    /// The operator's note on an HSM that is out of use.
    pub fn drained(&self, cluster: &ClusterId, hsm: &HsmId) -> Option<String> {
        let drained = self.0.drained.read().unwrap_or_else(PoisonError::into_inner);
        drained.get(&(cluster.clone(), hsm.clone())).cloned()
    }

    /// Nothing is left of the HSM, nor of its being drained.
    pub fn forget_hsm(&self, cluster: &ClusterId, hsm: &HsmId) {
        self.write_drained().remove(&(cluster.clone(), hsm.clone()));
    }

    fn write_drained(&self) -> RwLockWriteGuard<'_, BTreeMap<(ClusterId, HsmId), String>> {
        self.0.drained.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, cluster: &ClusterId, hsm: &HsmId) -> Result<(), Error> {
        // One that is not declared any more serves until it is drained, and with its whole cluster until that is disconnected.
        if !self.members_on(cluster, hsm).is_empty() {
            return Ok(());
        }
        let settings = self.0.clusters.get(cluster).ok_or_else(|| Error::ClusterNotFound(cluster.clone()))?;
        if settings.nodes.contains_key(hsm) {
            Ok(())
        } else {
            Err(Error::HsmNotFound { cluster: cluster.clone(), hsm: hsm.clone() })
        }
    }
}
