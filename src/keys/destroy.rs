//! Destroying a crypto user's own key: at once and for good, on every HSM that answers, and later on those that are away.
//!
//! ```text
//!   record gone, and every HSM that may hold the key written down ─▶ destroyed on each that answers ─▶ the caller told
//!                                                                └▶ reconcile: destroyed there, and the HSM crossed out
//! ```
//!
//! The records come first: whatever ends it midway, what is written down is done when the HSM is back and its user logged in.
//!
//! A key that another program made is destroyed where it answers its probe, and only then forgotten: under its id another may
//! stand by the time an absent HSM is back. So it is not begun while one that may hold it is away. One that was never used is
//! not written down for that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::clock;
use crate::cluster::{Connection, Failure, KeyInHsms};
use crate::link::v1::presence::Found;
use crate::model::{CkaId, HsmId, HsmKeyName};
use crate::node::heard_out;
use crate::records::{PresenceRecord, Proof};
use crate::users::ShownLogins;

use super::owner::{Named, connection_of_user};
use super::{Error, Key, Keys};

/// How long an HSM may take to destroy a key before it counts as away. It is destroyed there all the same, later.
const STEP: Duration = Duration::from_secs(60);

impl Keys {
    pub async fn destroy(
        &self,
        permit: Permit<action::DestroyHsmKey>,
        logins: &ShownLogins,
        name: HsmKeyName,
        deadline: Instant,
    ) -> Result<(), Error> {
        let told = name.to_string();
        let acting = self.acting(&permit, logins, &name.cluster, deadline).await?;
        let doomed = match self.named(&acting, &name, deadline).await? {
            Named::Recorded(id) => Doomed::Recorded(self.find(id).await?),
            Named::Sighted(found) => {
                let found = self.identify(&acting.connection, found, (&name.mark, deadline)).await?;
                Doomed::Sighted(name, found.in_hsms)
            }
        };
        let connection = connection_of_user(&acting)?;
        let this = self.clone();
        // In a task of its own: a caller who leaves changes nothing.
        let destroying = self.0.runtime.spawn(async move { this.destroy_now(&doomed, &connection).await });
        match tokio::time::timeout_at(deadline, heard_out(destroying)).await {
            Ok(destroyed) => destroyed,
            Err(_) => Err(Error::StillDestroying(told)),
        }
    }

    async fn destroy_now(&self, doomed: &Doomed, connection: &Connection) -> Result<(), Error> {
        if connection.ready_for_new_keys().is_empty() {
            return Err(Error::Hsm(Failure::NoNode));
        }
        match doomed {
            Doomed::Recorded(key) if key.is_found() => self.destroy_found(key, connection).await,
            Doomed::Recorded(key) => self.destroy_made(key, connection).await,
            Doomed::Sighted(name, key) => self.destroy_proven(&name.to_string(), key, &[], connection).await,
        }
    }

    async fn destroy_made(&self, key: &Key, connection: &Connection) -> Result<(), Error> {
        if self.lock_creating().contains(&key.id) {
            // Its maker is still copying it to the last nodes.
            return Err(Error::StillCreating(key.name()));
        }
        let hsms: Vec<_> = connection.members().iter().map(|member| member.node.hsm().clone()).collect();
        if !self.0.records.destroy_user_key(&connection.user(), key.id, &hsms, clock::now()).await? {
            return Err(Error::NotFound(key.name()));
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("destroy-begun");
        self.forget(key.id);
        self.forget_usage(key.id);
        let versions = key.versions.iter().map(|version| version.in_hsms.id);
        future::join_all(versions.map(|version| destroy_everywhere(connection, version))).await;
        // Whoever keeps the nodes level sees to it that no copy came back meanwhile.
        self.0.unsettled.notify_waiters();
        Ok(())
    }

    async fn destroy_found(&self, key: &Key, connection: &Connection) -> Result<(), Error> {
        let version = key.version(key.current).ok_or_else(|| Error::NotFound(key.name()))?;
        let record = self.0.records.key(key.id).await?.ok_or_else(|| Error::NotFound(key.name()))?;
        let known: Vec<_> = record.versions.into_iter().flat_map(|version| version.on).collect();
        self.destroy_proven(&key.name(), &version.in_hsms, &known, connection).await?;
        self.0.records.forget_found_key(&connection.user(), key.id).await?;
        self.forget(key.id);
        self.forget_usage(key.id);
        Ok(())
    }

    /// Destroys another program's key on every HSM, of which this much is known: on all, or it is told where it may be left. What
    /// is left somewhere can be destroyed again.
    async fn destroy_proven(
        &self,
        name: &str,
        key: &KeyInHsms,
        known: &[PresenceRecord],
        connection: &Connection,
    ) -> Result<(), Error> {
        let members = connection.members();
        let (here, away): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.is_proved());
        let cluster = self.0.clusters.get(&connection.cluster);
        let is_named = |hsm: &HsmId| cluster.as_ref().is_none_or(|cluster| cluster.nodes.contains_key(hsm));
        let is_here = |hsm: &HsmId| here.iter().any(|member| member.node.hsm() == hsm);
        let may_hold_it = known.iter().map(|known| &known.hsm).filter(|hsm| is_named(hsm) && !is_here(hsm));
        let elsewhere: BTreeSet<&HsmId> = may_hold_it.chain(away.iter().map(|member| member.node.hsm())).collect();
        let ambiguous = |hsm: &HsmId| Error::Ambiguous { name: name.to_owned(), hsm: hsm.clone() };
        for hsm in elsewhere {
            match known.iter().find(|known| known.hsm == *hsm).map(|known| known.proof) {
                Some(Proof::Missing) => {}
                Some(Proof::Different) => return Err(ambiguous(hsm)),
                Some(Proof::Used | Proof::Unknown) | None => {
                    return Err(Error::HolderAway { key: name.to_owned(), hsm: hsm.clone() });
                }
            }
        }
        let destroying = here.iter().map(|member| connection.destroy_proven_key(member, key, Instant::now() + STEP));
        for (member, destroyed) in here.iter().zip(future::join_all(destroying).await) {
            match destroyed? {
                Found::Proven | Found::Missing => {}
                Found::Different => return Err(ambiguous(member.node.hsm())),
                Found::Unspecified => return Err(Error::Hsm(Failure::OutOfTurn)),
            }
        }
        Ok(())
    }
}

/// What is destroyed.
enum Doomed {
    Recorded(Arc<Key>),
    /// Another program's, of which nothing is written down.
    Sighted(HsmKeyName, KeyInHsms),
}

/// On every node that answers.
pub(super) async fn destroy_everywhere(connection: &Connection, key: CkaId) {
    for member in &*connection.members() {
        // Who has just found the key asks for it nowhere any more, and finds no fault with a node that lacks it.
        member.lacks([key]);
    }
    let nodes = connection.ready_for_new_keys();
    let destroying = nodes.iter().map(|member| connection.destroy_key(member, key, Instant::now() + STEP));
    for (member, destroyed) in nodes.iter().zip(future::join_all(destroying).await) {
        if let Err(error) = destroyed {
            tracing::warn!(hsm = %member.node.hsm(), ?key, %error, "a key is not destroyed here yet");
        }
    }
}
