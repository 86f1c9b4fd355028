//! Rotation by a program of the operator's: once for the whole cluster, while nobody is logged in.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::{Connection, Member, Program};
use crate::host::{Host, OpeningError, PasswordChange, ProgramError, WorkerSpec};
use crate::model::{HsmId, with_causes};
use crate::node::{Credential, Passwords, heard_out};
use crate::records::{Records, Unavailable};

use super::super::KeyStores;

/// The one password that every node has, unless they differ or one is not settled: then no program can be told the old one.
pub(super) async fn present(connection: &Connection) -> Result<Option<Credential>, Unavailable> {
    let mut present: Option<Credential> = None;
    for member in connection.members().iter() {
        let why = match (connection.passwords().settled(member.node.hsm()).await?, &present) {
            (None, _) => "what came of an earlier rotation is not known there yet",
            (Some(here), Some(others)) if here.version != others.version => "it has another password than the others",
            (Some(_), _) if member.node.status().borrow().login_refusal.is_some() => "it refuses its password",
            (Some(here), _) => {
                present = Some(here);
                continue;
            }
        };
        let hsm = member.node.hsm();
        tracing::warn!(%hsm, why, "the password is not rotated");
        member.node.note_trouble(&format!("the password was not rotated: {why}"));
        return Ok(None);
    }
    Ok(present)
}

/// Runs the program, for as long as the connect can wait for it, and has one node after it, and then the others, find out what came of it. An error is that of a program
/// that does not end: nobody is logged in then, and what it has done the nodes tell when it has.
pub(super) async fn rotate(
    stores: &KeyStores,
    connection: &Arc<Connection>,
    program: &Program,
    (old, new): (Credential, Arc<Credential>),
    limit: Duration,
) -> Result<(), UnderWay> {
    let give_up = Instant::now() + limit;
    // Nobody joins or leaves while the key store is CONNECTING.
    let members = connection.members();
    let first = members.iter().find(|member| member.is_proved());
    for member in members.iter() {
        member.take_down().await;
    }
    let run = Run {
        connection: connection.clone(),
        host: stores.0.host.clone(),
        records: stores.0.records.clone(),
        passwords: connection.passwords().clone(),
        slots: members.iter().map(|member| member.node.spec.clone()).collect(),
        program: program.clone(),
        old,
        new: new.clone(),
        give_up,
    };
    // What was begun is heard out, though the connect may be given up meanwhile.
    let under_way = connection.passwords().change_begins().await;
    let change = async move {
        let _under_way = under_way;
        run.change().await
    };
    let outcome = heard_out(tokio::spawn(change)).await;
    let why = outcome.as_ref().err().map(|error| with_causes(error));
    for member in members.iter() {
        member.node.has_password(None);
        if let Some(why) = &why {
            member.node.note_trouble(&format!("the password's rotation failed: {why}"));
        }
    }
    if let Some(why) = why {
        tracing::warn!(cluster = %connection.cluster, why, "the rotation failed; each HSM's next login tells which password it has");
    }
    if let Err(Undone::Program(error)) = outcome
        && error.is_under_way()
    {
        return Err(UnderWay(error));
    }
    if let Some(first) = first {
        connection.bring_up(first);
        let has = super::settled(first).await;
        if has.is_some_and(|version| version != new.version) {
            others_keep_theirs(connection, first, &new).await;
        }
    }
    for member in members.iter() {
        connection.bring_up(member);
    }
    Ok(())
}

/// The first node was not changed, and so the others were not, most likely: each is asked for its old password first, and
/// refuses one login only if it was changed after all.
async fn others_keep_theirs(connection: &Connection, first: &Member, new: &Credential) {
    let members = connection.members();
    let others = members.iter().map(|member| member.node.hsm()).filter(|hsm| *hsm != first.node.hsm());
    let others: Vec<_> = others.cloned().collect();
    if let Err(error) = connection.passwords().doubt(&others, new.version).await {
        tracing::error!(cluster = %connection.cluster, %error, "each HSM is asked for the new password first");
    }
}

/// A program that may be changing the password yet.
#[derive(Debug, thiserror::Error)]
#[error("nobody may log in while rotation_command is at work")]
pub(super) struct UnderWay(#[source] ProgramError);

/// Why the password may not have been changed.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
    #[error("an earlier change is not settled")]
    Unsettled,
    #[error("the key store is not connecting any more")]
    GivenUp,
    #[error("too little is left of connect_timeout")]
    Late,
    #[error("a worker of the user does not leave")]
    Occupied(#[source] OpeningError),
    #[error("rotation_command")]
    Program(#[source] ProgramError),
}

struct Run {
    connection: Arc<Connection>,
    host: Host,
    records: Records,
    passwords: Arc<Passwords>,
    slots: Vec<WorkerSpec>,
    program: Program,
    old: Credential,
    new: Arc<Credential>,
    give_up: Instant,
}

impl Run {
    async fn change(self) -> Result<(), Undone> {
        let (owner, new) = (self.passwords.owner(), self.new.version);
        let hsms: Vec<HsmId> = self.slots.iter().map(|slot| slot.hsm.clone()).collect();
        let vacant = self.host.vacate(&self.slots).await.map_err(Undone::Occupied)?;
        // That may have taken a while.
        if self.connection.is_closed() {
            return Err(Undone::GivenUp);
        }
        let left = self.give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Undone::Late);
        }
        let program = Program { timeout: self.program.timeout.min(left), ..self.program };
        let nodes: Vec<_> = hsms.iter().map(|hsm| (hsm.clone(), self.old.version)).collect();
        if !self.records.set_candidate(owner, &nodes, new).await? {
            return Err(Undone::Unsettled);
        }
        #[cfg(debug_assertions)]
        crate::seams::stop_point("rotation-command-begun");
        let change = PasswordChange {
            cluster: &owner.cluster,
            username: &owner.username,
            old: &self.old.password,
            new: &self.new.password,
        };
        let ran = self.host.run_program(&vacant, &program, &change).await;
        #[cfg(debug_assertions)]
        crate::seams::stop_point("rotation-command-ended");
        match &ran {
            Ok(()) => self.records.candidate_was_set(owner, &hsms, new).await?,
            Err(error) if error.is_before_it_began() => {
                for hsm in &hsms {
                    self.records.drop_candidate(owner, hsm, new).await?;
                }
            }
            Err(_) => {}
        }
        ran.map_err(Undone::Program)
    }
}
