//! Making keys and copying them, HSM to HSM: wrapped under the cluster's key-encryption key, never in the clear.
//!
//! Each step is one node's and is told its outcome; which steps to take, and what the outcome
//! means for a record, is for the rooms above.

use tokio::time::Instant;

use crate::link::v1::{self, presence::Found, request::Verb, response::Outcome};
use crate::model::{CkaId, Probe, PublicKey};
use crate::records::KekRecord;

use super::connection::{Connection, Failure, KeyInHsms, KeyTemplate, Made, kind};
use super::failover::Effect;
use super::member::Member;

impl Connection {
    /// Makes a key on one node, wrapped for its siblings. An unknown outcome is settled by looking, once the worker is gone.
    pub async fn make_key(
        &self,
        member: &Member,
        id: CkaId,
        template: &KeyTemplate,
        deadline: Instant,
    ) -> Result<Made, Failure> {
        let kek = self.kek().await?;
        let verb = Verb::GenerateKey(v1::GenerateKey {
            cka_id: id.as_bytes().to_vec(),
            label: template.label.clone(),
            kind: kind(template.kind)?,
            kek_cka_id: kek.kek_id.to_vec(),
        });
        match self.ask(member, verb, Effect::Once, deadline).await? {
            Outcome::NewKey(v1::NewKey { wrapped, probe, public_key }) => {
                let public_key = (!public_key.is_empty()).then(|| PublicKey::from_der(public_key));
                Ok(Made { wrapped, probe: Probe(probe), public_key })
            }
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// Wraps a key on a node that has it, for another.
    pub async fn wrap_key(&self, member: &Member, key: &KeyInHsms, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let kek = self.kek().await?;
        let verb = Verb::WrapKey(v1::WrapKey {
            cka_id: key.cka_id(),
            kek_cka_id: kek.kek_id.to_vec(),
            probe: key.probe.0.clone(),
        });
        match self.ask(member, verb, Effect::Repeatable, deadline).await? {
            Outcome::Opaque(wrapped) => Ok(wrapped.bytes),
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// Gives a node a key, unless it has it, and has it answer the probe.
    pub async fn unwrap_key(
        &self,
        member: &Member,
        key: &KeyInHsms,
        template: &KeyTemplate,
        wrapped: Vec<u8>,
        deadline: Instant,
    ) -> Result<Found, Failure> {
        let kek = self.kek().await?;
        let verb = Verb::UnwrapKey(v1::UnwrapKey {
            cka_id: key.cka_id(),
            label: template.label.clone(),
            kind: kind(template.kind)?,
            wrapped,
            kek_cka_id: kek.kek_id.to_vec(),
            probe: key.probe.0.clone(),
        });
        self.presence(member, verb, Effect::Once, deadline).await
    }

    /// Whether the key is on this node and answers its probe.
    pub async fn prove_key(&self, member: &Member, key: &KeyInHsms, deadline: Instant) -> Result<Found, Failure> {
        let (cka_id, probe, afresh) = (key.cka_id(), key.probe.0.clone(), key.found.is_some());
        let verb = Verb::ProveKey(v1::ProveKey { cka_id, probe, afresh });
        self.presence(member, verb, Effect::Repeatable, deadline).await
    }

    /// Destroys whatever stands under the key's id on this node. Only for keys that were never acknowledged, or whose time is over.
    pub async fn destroy_key(&self, member: &Member, id: CkaId, deadline: Instant) -> Result<(), Failure> {
        let verb = Verb::DestroyKey(v1::DestroyKey { cka_id: id.as_bytes().to_vec() });
        match self.ask(member, verb, Effect::Repeatable, deadline).await? {
            Outcome::Done(_) => Ok(()),
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// A probe of a key that another program made on this node.
    pub async fn make_probe(&self, member: &Member, cka_id: &[u8], deadline: Instant) -> Result<Probe, Failure> {
        let verb = Verb::MakeProbe(v1::MakeProbe { cka_id: cka_id.to_vec() });
        match self.ask(member, verb, Effect::Repeatable, deadline).await? {
            Outcome::Opaque(probe) => Ok(Probe(probe.bytes)),
            _ => Err(Failure::OutOfTurn),
        }
    }

    /// Destroys the key on this node if it answers its probe, and nothing else that has its id. As it was found.
    pub async fn destroy_proven_key(
        &self,
        member: &Member,
        key: &KeyInHsms,
        deadline: Instant,
    ) -> Result<Found, Failure> {
        let verb = Verb::DestroyProvenKey(v1::DestroyProvenKey { cka_id: key.cka_id(), probe: key.probe.0.clone() });
        self.presence(member, verb, Effect::Repeatable, deadline).await
    }

    async fn presence(&self, member: &Member, verb: Verb, effect: Effect, deadline: Instant) -> Result<Found, Failure> {
        match self.ask(member, verb, effect, deadline).await? {
            Outcome::Presence(presence) => Ok(presence.found()),
            _ => Err(Failure::OutOfTurn),
        }
    }

    pub(super) async fn kek(&self) -> Result<KekRecord, Failure> {
        if let Some(kek) = self.kek.get() {
            return Ok(kek.clone());
        }
        match self.common.records.kek(&self.cluster, self.common.passwords.username()).await {
            Ok(Some(kek)) if kek.canary_probe.is_some() => Ok(self.kek.get_or_init(|| kek).clone()),
            Ok(Some(kek)) => Ok(kek),
            Ok(None) | Err(_) => Err(Failure::NoNode),
        }
    }
}
