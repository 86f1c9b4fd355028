//! One node proves a password before any other is asked: a wrong one then costs one attempt, on one HSM.
//!
//! Each password has a gate of its own. Nodes whose token has accepted it before need none, and neither does a candidate:
//! whether a node was given that says nothing about another. One that an operator grants a login makes it, whatever
//! another has said.

use std::collections::BTreeSet;

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::model::{HsmId, PasswordVersion};
use crate::records::Standing;

use super::LoginRefusal;

/// What the nodes of a Connection have said of one password, and whose turn it is to find out.
#[derive(Debug)]
pub(super) struct Gate {
    verdict: watch::Sender<Verdict>,
    /// Held by the node that is finding out.
    turn: Mutex<()>,
    /// HSMs on which an operator has granted a login that was not made yet when the Connection began.
    granted: BTreeSet<HsmId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Untried,
    Good,
    Refused,
}

/// A node's way through the gate: open, or its turn to prove the password while the others wait.
pub(super) enum Passage<'a> {
    Open,
    Turn { gate: &'a Gate, _held: MutexGuard<'a, ()> },
}

impl Gate {
    /// As the records have it: a password that any node has accepted is good, and one that was only refused is not offered
    /// again, here or elsewhere.
    pub(super) fn of(version: PasswordVersion, standings: &[(HsmId, PasswordVersion, Standing)]) -> Self {
        let of_this_version = || standings.iter().filter(|(_, of, _)| *of == version);
        let verdict = of_this_version().fold(Verdict::Untried, |verdict, (_, _, standing)| match (verdict, standing) {
            (Verdict::Good, _) | (_, Standing::Proven) => Verdict::Good,
            (Verdict::Untried | Verdict::Refused, Standing::Refused) => Verdict::Refused,
            (verdict, Standing::Untried | Standing::Granted | Standing::Unsettled) => verdict,
        });
        let granted = of_this_version().filter(|(_, _, standing)| *standing == Standing::Granted);
        Self {
            verdict: watch::Sender::new(verdict),
            turn: Mutex::default(),
            granted: granted.map(|(hsm, _, _)| hsm.clone()).collect(),
        }
    }

    /// What is known by now. A turn that is being taken is no verdict yet.
    pub(super) fn verdict(&self) -> Verdict {
        self.turn.try_lock().map_or(Verdict::Untried, |_turn| *self.verdict.borrow())
    }

    /// Whether the HSM came into the Connection with a login granted: until it is out of the way, there is more to hear.
    pub(super) fn has_granted(&self, hsm: &HsmId) -> bool {
        self.granted.contains(hsm)
    }

    /// Resolves when a node has accepted the password, as it may have already.
    pub(super) async fn opened(&self) {
        let _ = self.verdict.subscribe().wait_for(|verdict| *verdict == Verdict::Good).await;
    }

    /// For a node that was not asked yet: `granted`, by an operator's word, or not.
    pub(super) async fn enter(&self, granted: bool) -> Result<Passage<'_>, LoginRefusal> {
        let held = self.turn.lock().await;
        let verdict = *self.verdict.borrow();
        match verdict {
            Verdict::Good => Ok(Passage::Open),
            Verdict::Refused if !granted => Err(LoginRefusal::NotTried),
            Verdict::Untried | Verdict::Refused => Ok(Passage::Turn { gate: self, _held: held }),
        }
    }
}

impl Passage<'_> {
    pub(super) fn tell(self, verdict: Verdict) {
        if let Self::Turn { gate, .. } = self {
            gate.verdict.send_replace(verdict);
        }
    }
}
