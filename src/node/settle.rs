//! Which of a node's passwords is offered next, and what the answer settles. Pure.
//!
//! A change of password that was cut short leaves two: `confirmed`, which the node had, and a `candidate`, which it may
//! have been given. Nobody can be asked which one it is but the node itself, by a login, and a wrong one costs an attempt:
//!
//! ```text
//!   candidate, once ──accepted──▶ it is the password
//!        │ refused: the change did not happen
//!        ▼
//!   confirmed
//! ```
//!
//! An attempt with the candidate that was never answered counts as made. Then `confirmed` is asked: accepted, the change
//! did not happen. Refused, it did, and so the candidate cannot have been refused: it is offered once more, the last time.
//! Any crash thus costs a node one refused attempt at most.

use crate::records::{CandidateFate, Standing};

use super::LoginRefusal;

/// One of the two passwords that a node may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Confirmed,
    Candidate,
}

/// What to do about a node that nobody is logged in to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    Offer(Which),
    /// The node has refused it: it is dropped for ever, and the next move is looked for again.
    DropCandidate,
    /// Nothing without an operator.
    Stop(LoginRefusal),
}

/// How a node answers an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    Refused,
}

/// What an answer says beyond itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Nothing,
    /// The candidate is the node's password.
    Confirm,
    /// The change did not happen.
    Drop,
    /// The change did happen: the candidate's open attempt was not refused, and it may be offered once more.
    OnceMore,
}

impl Settled {
    /// What the records are to say of the candidate.
    pub(super) const fn fate(self) -> Option<CandidateFate> {
        match self {
            Self::Nothing => None,
            Self::Confirm => Some(CandidateFate::Confirmed),
            Self::Drop => Some(CandidateFate::Dropped),
            Self::OnceMore => Some(CandidateFate::OnceMore),
        }
    }
}

/// What is to be done, by what the node has said of either password.
pub(super) fn next(confirmed: Standing, candidate: Option<Standing>) -> Move {
    use Standing::{Granted, Proven, Refused, Unsettled, Untried};
    match (candidate, confirmed) {
        // One that is known to have been set is as good as one that was accepted.
        (Some(Untried | Granted | Proven), _) => Move::Offer(Which::Candidate),
        (Some(Refused), _) => Move::DropCandidate,
        (None | Some(Unsettled), Untried | Granted | Proven) => Move::Offer(Which::Confirmed),
        (None, Refused) => Move::Stop(LoginRefusal::Incorrect),
        (None | Some(Unsettled), Unsettled) | (Some(Unsettled), Refused) => Move::Stop(LoginRefusal::Unsettled),
    }
}

/// What the answer to an offer settles.
pub(super) fn after(offered: Which, verdict: Verdict, candidate: Option<Standing>) -> Settled {
    match (offered, verdict, candidate) {
        (Which::Candidate, Verdict::Accepted, _) => Settled::Confirm,
        (Which::Candidate, Verdict::Refused, _) | (Which::Confirmed, Verdict::Accepted, Some(_)) => Settled::Drop,
        (Which::Confirmed, Verdict::Refused, Some(Standing::Unsettled)) => Settled::OnceMore,
        (Which::Confirmed, _, _) => Settled::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Granted, Proven, Refused, Unsettled, Untried};

    const STANDINGS: [Standing; 5] = [Untried, Granted, Unsettled, Proven, Refused];

    #[test]
    fn every_cell_of_the_table() {
        let (confirmed, candidate) = (Move::Offer(Which::Confirmed), Move::Offer(Which::Candidate));
        let (drop, incorrect, unsettled) =
            (Move::DropCandidate, Move::Stop(LoginRefusal::Incorrect), Move::Stop(LoginRefusal::Unsettled));
        //                     confirmed: untried    granted    unsettled  proven     refused
        let table = [
            (None, [confirmed, confirmed, unsettled, confirmed, incorrect]),
            (Some(Untried), [candidate; 5]),
            (Some(Granted), [candidate; 5]),
            (Some(Unsettled), [confirmed, confirmed, unsettled, confirmed, unsettled]),
            (Some(Proven), [candidate; 5]),
            (Some(Refused), [drop; 5]),
        ];
        for (of_candidate, row) in table {
            for (of_confirmed, expected) in STANDINGS.into_iter().zip(row) {
                assert_eq!(next(of_confirmed, of_candidate), expected, "{of_candidate:?}, {of_confirmed:?}");
            }
        }
    }

    /// A node, and what the records know of it.
    struct Played {
        /// Whether the change was made there.
        changed: bool,
        confirmed: Standing,
        candidate: Option<Standing>,
        refusals: u32,
    }

    impl Played {
        /// Makes the moves until somebody is logged in, or nothing goes on.
        fn play(&mut self) -> Result<Which, LoginRefusal> {
            for _ in 0..10 {
                let offered = match next(self.confirmed, self.candidate) {
                    Move::Offer(which) => which,
                    Move::DropCandidate => {
                        self.candidate = None;
                        continue;
                    }
                    Move::Stop(refusal) => return Err(refusal),
                };
                let verdict =
                    if (offered == Which::Candidate) == self.changed { Verdict::Accepted } else { Verdict::Refused };
                let settled = after(offered, verdict, self.candidate);
                let standing = if verdict == Verdict::Accepted { Proven } else { Refused };
                match offered {
                    Which::Confirmed => self.confirmed = standing,
                    Which::Candidate => self.candidate = Some(standing),
                }
                match settled {
                    Settled::Nothing => {}
                    Settled::Confirm => (self.confirmed, self.candidate) = (Proven, None),
                    Settled::Drop => self.candidate = None,
                    Settled::OnceMore => self.candidate = Some(Untried),
                }
                if verdict == Verdict::Accepted {
                    return Ok(offered);
                }
                self.refusals += 1;
            }
            panic!("it goes round in circles");
        }
    }

    #[test]
    fn whatever_a_crash_left_the_node_is_logged_in_to_with_at_most_one_refusal() {
        for changed in [false, true] {
            for candidate in [None, Some(Untried), Some(Unsettled), Some(Proven), Some(Refused)] {
                // What cannot be: a change without a candidate, or one that was made and refused.
                if changed && matches!(candidate, None | Some(Refused)) {
                    continue;
                }
                let mut node = Played { changed, confirmed: Proven, candidate, refusals: 0 };
                let logged_in = node.play();
                let expected = if changed { Which::Candidate } else { Which::Confirmed };
                assert_eq!(logged_in, Ok(expected), "changed: {changed}, candidate: {candidate:?}");
                assert!(node.refusals <= 1, "changed: {changed}, candidate: {candidate:?}: {}", node.refusals);
                assert_eq!(node.candidate, None, "it is settled");
            }
        }
    }

    #[test]
    fn a_node_that_refuses_both_is_left_to_the_operator() {
        let mut node = Played { changed: true, confirmed: Refused, candidate: Some(Refused), refusals: 0 };
        assert_eq!(node.play(), Err(LoginRefusal::Incorrect));
        let mut node = Played { changed: true, confirmed: Refused, candidate: Some(Unsettled), refusals: 0 };
        assert_eq!(node.play(), Err(LoginRefusal::Unsettled), "it was offered once more before");
        assert_eq!(node.refusals, 0);
    }
}
