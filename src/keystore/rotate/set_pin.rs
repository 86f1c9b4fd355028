//! Rotation by the HSMs' own `C_SetPIN`: each node for itself.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::cluster::{Connection, Member};
use crate::node::{Change, Credential};
use crate::records::{Standing, Unavailable};

/// What became of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A fresh worker has logged in with the new password.
    Changed,
    /// One has logged in with the old one, or need not: nothing was changed.
    Kept,
    /// It refused the old one, which was good before: somebody else has changed it, and on the others perhaps as well.
    Refused,
    /// It said that it took the new password, and does not take it; or it is not known what it takes.
    Amiss,
}

/// The nodes that can be given a password.
pub(super) fn proved(connection: &Connection) -> Vec<Arc<Member>> {
    connection.members().iter().filter(|member| member.is_proved()).cloned().collect()
}

/// Proved nodes that missed a rotation, and the password that it gave to the others. One that has said anything of that
/// password before is not given it again: what it said would be taken for what came of this change.
pub(super) async fn stragglers(
    connection: &Connection,
) -> Result<Option<(Arc<Credential>, Vec<Arc<Member>>)>, Unavailable> {
    let passwords = connection.passwords();
    let mut known = Vec::new();
    for member in proved(connection) {
        let on = passwords.on(member.node.hsm()).await?;
        known.push((member, on));
    }
    let Some(newest) = known.iter().map(|(_, on)| on.confirmed).max() else { return Ok(None) };
    let mut behind = Vec::new();
    for (member, on) in known {
        let is_new_there = passwords.standing(member.node.hsm(), newest).await? == Standing::Untried;
        if on.confirmed < newest && on.candidate.is_none() && is_new_there {
            behind.push(member);
        }
    }
    if behind.is_empty() {
        return Ok(None);
    }
    Ok(Some((Arc::new(passwords.credential(newest).await?), behind)))
}

/// Gives these nodes the new password: one first, and only when that one takes it, the others.
pub(super) async fn rotate(connection: &Arc<Connection>, nodes: Vec<Arc<Member>>, new: Arc<Credential>) {
    let mut nodes = nodes.iter();
    for member in nodes.by_ref() {
        match change(connection, member, &new).await {
            Outcome::Changed => break,
            Outcome::Kept => {}
            stop @ (Outcome::Refused | Outcome::Amiss) => {
                let hsm = member.node.hsm();
                tracing::error!(%hsm, why = ?stop, "no other HSM is asked to take the new password");
                return;
            }
        }
    }
    join_all(nodes.map(|member| change(connection, member, &new))).await;
}

async fn change(connection: &Connection, member: &Member, new: &Arc<Credential>) -> Outcome {
    let said = connection.change_password(member, new.clone()).await;
    match said {
        Change::Kept(_) => Outcome::Kept,
        Change::Refused(_) => Outcome::Refused,
        Change::Made | Change::Unknown(_) => match super::settled(member).await {
            Some(version) if version == new.version => Outcome::Changed,
            Some(_) if said != Change::Made => Outcome::Kept,
            Some(_) | None => Outcome::Amiss,
        },
    }
}
