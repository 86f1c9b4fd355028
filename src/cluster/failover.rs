//! What to do after a call on a node failed: stop, ask the same node again, or ask another.
//!
//! Pure. The rule: work that can be repeated moves when a node fails; work that may have been
//! done is never done again, but settled by looking.

use crate::link::v1::fault::{Bucket, Kind};
use crate::node::CallError;

use super::Failure;

/// Whether doing the work twice does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Encrypt, decrypt, random, prove, wrap: as good twice as once.
    Repeatable,
    /// Generate, unwrap into a token, destroy.
    Once,
}

/// What one request has behind it.
#[derive(Debug, Default)]
pub struct History {
    /// Nodes asked, by index; never asked again.
    pub asked: Vec<usize>,
    same_node_again: bool,
    lost: bool,
    /// The best reason to give when nobody is left to ask.
    last: Option<Failure>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    SameNode,
    OtherNode,
    Stop(Failure),
}

impl History {
    /// Decides what follows from `error` on the node `index`.
    pub fn after(&mut self, index: usize, error: &CallError, effect: Effect) -> Next {
        let next = self.decide(error, effect);
        if next != Next::SameNode {
            self.asked.push(index);
        }
        next
    }

    /// Nobody is left to ask.
    pub fn exhausted(self, otherwise: Failure) -> Failure {
        self.last.unwrap_or(otherwise)
    }

    fn decide(&mut self, error: &CallError, effect: Effect) -> Next {
        match error {
            CallError::Full => Next::Stop(Failure::Busy),
            CallError::LateBefore => Next::Stop(Failure::Late),
            CallError::LateAfter => Next::Stop(match effect {
                Effect::Repeatable => Failure::Late,
                Effect::Once => Failure::OutcomeUnknown,
            }),
            CallError::TooLong => Next::Stop(Failure::BadInput),
            CallError::NotServing => self.other(Failure::NoNode),
            CallError::Lost => self.lost(effect),
            CallError::Fault(fault) => match fault.bucket() {
                Bucket::Input => Next::Stop(match fault.kind() {
                    Kind::BadCiphertext => Failure::BadCiphertext,
                    Kind::Late => Failure::Late,
                    Kind::Unsupported => Failure::Unsupported(fault.function.clone()),
                    _ => Failure::BadInput,
                }),
                Bucket::Session if !self.same_node_again => {
                    self.same_node_again = true;
                    Next::SameNode
                }
                Bucket::Session | Bucket::Node => self.other(match fault.kind() {
                    Kind::KeyMissing => Failure::KeyUnavailable,
                    Kind::Capacity => Failure::Busy,
                    _ => Failure::NoNode,
                }),
                Bucket::Unknown | Bucket::Unspecified => self.lost(effect),
            },
        }
    }

    fn other(&mut self, reason: Failure) -> Next {
        self.last = Some(reason);
        Next::OtherNode
    }

    /// A request under which a worker died moves once: if the next dies too, the request may be the cause.
    fn lost(&mut self, effect: Effect) -> Next {
        match effect {
            Effect::Once => Next::Stop(Failure::OutcomeUnknown),
            Effect::Repeatable if self.lost => Next::Stop(Failure::Poisonous),
            Effect::Repeatable => {
                self.lost = true;
                self.other(Failure::NoNode)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v1::Fault;

    fn fault(bucket: Bucket, kind: Kind) -> CallError {
        let mut fault = Fault::default();
        fault.set_bucket(bucket);
        fault.set_kind(kind);
        CallError::Fault(fault)
    }

    #[test]
    fn bad_input_stops_at_once_since_any_node_would_say_the_same() {
        let mut history = History::default();
        let next = history.after(0, &fault(Bucket::Input, Kind::BadCiphertext), Effect::Repeatable);
        assert_eq!(next, Next::Stop(Failure::BadCiphertext));
    }

    #[test]
    fn a_spoiled_session_is_tried_once_more_on_its_node_and_then_elsewhere() {
        let mut history = History::default();
        let spoiled = fault(Bucket::Session, Kind::Device);
        assert_eq!(history.after(0, &spoiled, Effect::Once), Next::SameNode);
        assert_eq!(history.after(0, &spoiled, Effect::Once), Next::OtherNode);
        assert_eq!(history.asked, [0]);
    }

    #[test]
    fn repeatable_work_moves_once_when_a_worker_dies_under_it() {
        let mut history = History::default();
        assert_eq!(history.after(0, &CallError::Lost, Effect::Repeatable), Next::OtherNode);
        assert_eq!(history.after(1, &CallError::Lost, Effect::Repeatable), Next::Stop(Failure::Poisonous));
    }

    #[test]
    fn work_that_may_have_been_done_is_never_done_again() {
        for error in [CallError::Lost, CallError::LateAfter, fault(Bucket::Unknown, Kind::Device)] {
            let next = History::default().after(0, &error, Effect::Once);
            assert_eq!(next, Next::Stop(Failure::OutcomeUnknown), "{error}");
        }
    }

    #[test]
    fn work_that_was_refused_before_it_began_moves_even_when_it_must_not_be_repeated() {
        let mut history = History::default();
        assert_eq!(history.after(2, &fault(Bucket::Node, Kind::TokenAbsent), Effect::Once), Next::OtherNode);
        assert_eq!(history.exhausted(Failure::KeyUnavailable), Failure::NoNode);
    }
}
