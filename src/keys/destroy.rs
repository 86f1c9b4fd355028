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
//! stand by the time an absent HSM is back. So it is not begun while one that is known to hold it is away.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future;
use tokio::time::Instant;

use crate::authz::{Permit, action};
use crate::cluster::{Connection, Failure};
use crate::keystore::lifecycle::Event;
use crate::model::{CkaId, HsmKeyName, KeyId, KeyRef};
use crate::node::heard_out;
use crate::records::Proof;
use crate::users::ShownLogins;

use super::owner::Reached;
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
        let reached = self.reach(&permit, logins, &KeyRef::Hsm(name), deadline).await?;
        let connection = self.connection_of(&reached.owner, Event::Use)?;
        let this = self.clone();
        // In a task of its own: a caller who leaves changes nothing.
        let destroying = self.0.runtime.spawn(async move { this.destroy_now(&reached, &connection).await });
        match tokio::time::timeout_at(deadline, heard_out(destroying)).await {
            Ok(destroyed) => destroyed,
            Err(_) => Err(Error::StillDestroying(told)),
        }
    }

    async fn destroy_now(&self, reached: &Reached, connection: &Arc<Connection>) -> Result<(), Error> {
        let id = reached.key.id;
        if self.lock_creating().contains(&id) {
            // Its maker is still copying it to the last nodes.
            return Err(Error::StillCreating(reached.key.name()));
        }
        if connection.ready_for_new_keys().is_empty() {
            return Err(Error::Hsm(Failure::NoNode));
        }
        let hsms: Vec<_> = connection.members().iter().map(|member| member.node.hsm().clone()).collect();
        if reached.key.is_found() {
            return self.destroy_found(&reached.key, connection).await;
        }
        if !self.0.records.destroy_user_key(&connection.user(), id, &hsms).await? {
            return Err(Error::NotFound(reached.key.name()));
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("destroy-begun");
        self.forget(id);
        let versions = reached.key.versions.iter().map(|version| version.in_hsms.id);
        future::join_all(versions.map(|version| destroy_everywhere(connection, version))).await;
        // Whoever keeps the nodes level sees to it that no copy came back meanwhile.
        self.0.unsettled.notify_waiters();
        Ok(())
    }

    async fn destroy_found(&self, key: &Key, connection: &Connection) -> Result<(), Error> {
        let version = key.version(key.current).ok_or_else(|| Error::NotFound(key.name()))?;
        let members = connection.members();
        for member in members.iter().filter(|member| !member.is_proved()) {
            let place = (&connection.cluster, member.node.hsm());
            let known = self.0.records.presence(key.id, version.version, place).await?;
            if known.is_some_and(|known| known.proof == Proof::Used) {
                return Err(Error::HolderAway { key: key.name(), hsm: member.node.hsm().clone() });
            }
        }
        let proved = members.iter().filter(|member| member.is_proved());
        let destroying =
            proved.map(|member| connection.destroy_proven_key(member, &version.in_hsms, Instant::now() + STEP));
        for destroyed in future::join_all(destroying).await {
            // One that is left somewhere is known still, and can be destroyed again.
            destroyed?;
        }
        self.0.records.forget_found_key(&connection.user(), key.id).await?;
        self.forget(key.id);
        Ok(())
    }

    pub(super) fn forget(&self, id: KeyId) {
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// On every node that answers.
async fn destroy_everywhere(connection: &Connection, key: CkaId) {
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
