//! One node proves a password before any other is asked: a wrong one then costs one attempt, on one HSM.
//!
//! Each password has a gate of its own. Nodes whose token has accepted it before need none, and neither does a candidate:
//! whether a node was given that says nothing about another.

use tokio::sync::{Mutex, MutexGuard};

use crate::model::{HsmId, PasswordVersion};
use crate::records::Standing;

use super::LoginRefusal;

/// What the nodes of a Connection have said of one password, and whose turn it is to find out.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Verdict>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Untried,
    Good,
    Refused,
}

/// A node's way through the gate: open, or its turn to prove the password while the others wait.
pub(super) enum Passage<'a> {
    Open,
    Turn(MutexGuard<'a, Verdict>),
}

impl Gate {
    /// As the records have it: a password that any node has accepted is good, and one that was only refused is not offered
    /// again, here or elsewhere.
    pub(super) fn of(version: PasswordVersion, standings: &[(HsmId, PasswordVersion, Standing)]) -> Self {
        let of_this_version = standings.iter().filter(|(_, of, _)| *of == version);
        let verdict = of_this_version.fold(Verdict::Untried, |verdict, (_, _, standing)| match (verdict, standing) {
            (Verdict::Good, _) | (_, Standing::Proven) => Verdict::Good,
            (Verdict::Untried | Verdict::Refused, Standing::Refused) => Verdict::Refused,
            (verdict, Standing::Untried | Standing::Unsettled) => verdict,
        });
        Self(Mutex::new(verdict))
    }

    /// What is known by now. A turn that is being taken is no verdict yet.
    pub(super) fn verdict(&self) -> Verdict {
        self.0.try_lock().map_or(Verdict::Untried, |verdict| *verdict)
    }

    pub(super) async fn enter(&self) -> Result<Passage<'_>, LoginRefusal> {
        let verdict = self.0.lock().await;
        match *verdict {
            Verdict::Untried => Ok(Passage::Turn(verdict)),
            Verdict::Good => Ok(Passage::Open),
            Verdict::Refused => Err(LoginRefusal::NotTried),
        }
    }

    /// An operator grants another try: whoever is next finds out anew.
    pub(super) async fn reopen(&self) {
        let mut verdict = self.0.lock().await;
        if *verdict == Verdict::Refused {
            *verdict = Verdict::Untried;
        }
    }
}

impl Passage<'_> {
    pub(super) fn tell(self, verdict: Verdict) {
        if let Self::Turn(mut turn) = self {
            *turn = verdict;
        }
    }
}
