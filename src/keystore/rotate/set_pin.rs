//! Rotation by the HSMs' own `C_SetPIN`: each node for itself.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::cluster::Connection;
use crate::node::{Change, Credential};

/// What became of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A fresh worker has logged in with the new password.
    Changed,
    /// One has logged in with the old one, or need not: nothing was changed.
    Kept,
    /// It said that it took the new password, and does not take it; or it is not known what it takes.
    Amiss,
}

/// Gives every proved node the new password: one first, and only when that one takes it, the others.
pub(super) async fn rotate(connection: &Arc<Connection>, new: Arc<Credential>) {
    let members = connection.members().iter().enumerate();
    let mut proved = members.filter(|(_, member)| member.is_proved()).map(|(index, _)| index);
    for index in proved.by_ref() {
        match change(connection, index, &new).await {
            Outcome::Changed => break,
            Outcome::Kept => {}
            Outcome::Amiss => {
                let hsm = connection.members()[index].node.hsm();
                tracing::error!(%hsm, "no other HSM gets the new password before this one is seen to take it");
                return;
            }
        }
    }
    join_all(proved.map(|index| change(connection, index, &new))).await;
}

async fn change(connection: &Connection, index: usize, new: &Arc<Credential>) -> Outcome {
    let said = connection.change_password(index, new.clone()).await;
    match said {
        Change::Kept(_) => Outcome::Kept,
        Change::Made | Change::Unknown(_) => match super::settled(connection, index).await {
            Some(version) if version == new.version => Outcome::Changed,
            Some(_) if said != Change::Made => Outcome::Kept,
            Some(_) | None => Outcome::Amiss,
        },
    }
}
