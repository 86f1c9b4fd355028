//! One key on one node: proved there, or copied there from a sibling that holds it.

use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Connection, KeyInHsms, KeyTemplate, Member};
use crate::link::v1::presence::Found;
use crate::model::{CkaId, HsmLabel, KeyKind};
use crate::records::{Proof, ProvableKey};

/// How long one step on a node may take.
const STEP: Duration = Duration::from_secs(60);

/// A key on its way to a node.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) key: KeyInHsms,
    template: KeyTemplate,
}

impl From<&ProvableKey> for Errand {
    fn from(key: &ProvableKey) -> Self {
        let id = CkaId::of(key.key, key.version);
        let template = template(key.kind, &id, key.label.as_ref());
        Self { key: KeyInHsms { id, found: key.found.clone(), probe: key.probe.clone() }, template }
    }
}

/// What a key is made as: with its user's own label, or one that tells operators which of a key store's it is.
pub(super) fn template(kind: KeyKind, id: &CkaId, label: Option<&HsmLabel>) -> KeyTemplate {
    KeyTemplate { kind, label: label.map_or_else(|| id.label(), |label| label.as_str().to_owned()) }
}

impl Errand {
    /// Whether the node holds the key, as the probe tells. `None`: the node does not say.
    pub(super) async fn look(&self, connection: &Connection, member: &Member) -> Option<Proof> {
        match connection.prove_key(member, &self.key, Instant::now() + STEP).await {
            Ok(found) => proof(found),
            Err(error) => {
                tracing::debug!(hsm = %member.node.hsm(), key = ?self.key.id, %error, "not looked");
                None
            }
        }
    }

    /// Copies the key to the node, and has it answer the probe there. `None`: nobody could give it, or the node did not take it.
    pub(super) async fn copy(&self, connection: &Connection, member: &Member) -> Option<Proof> {
        let wrapped = self.wrap(connection, member).await?;
        let deadline = Instant::now() + STEP;
        match connection.unwrap_key(member, &self.key, &self.template, wrapped, deadline).await {
            Ok(found) => proof(found),
            Err(error) => {
                let hsm = member.node.hsm();
                tracing::warn!(%hsm, key = ?self.key.id, %error, "a key could not be copied here");
                // Somebody else may have brought it meanwhile, or the answer alone was lost.
                self.look(connection, member).await.filter(|proof| *proof != Proof::Missing)
            }
        }
    }

    /// From a node that holds it, the least busy first.
    async fn wrap(&self, connection: &Connection, member: &Member) -> Option<Vec<u8>> {
        for holder in connection.ready_for_new_keys() {
            if holder.node.hsm() == member.node.hsm() || !holder.has(&self.key.id) {
                continue;
            }
            match connection.wrap_key(&holder, &self.key, Instant::now() + STEP).await {
                Ok(wrapped) => return Some(wrapped),
                Err(error) => {
                    tracing::warn!(hsm = %holder.node.hsm(), key = ?self.key.id, %error, "a key could not be wrapped here");
                }
            }
        }
        None
    }
}

fn proof(found: Found) -> Option<Proof> {
    match found {
        Found::Proven => Some(Proof::Used),
        Found::Missing => Some(Proof::Missing),
        Found::Different => Some(Proof::Different),
        Found::Unspecified => None,
    }
}
