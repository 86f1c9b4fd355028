//! What to do after a call on a node failed: stop, ask the same node again, or ask another; and how long to wait for one.
//!
//! Pure. The rule: work that can be repeated moves when a node fails; work that may have been
//! done is never done again, but settled by looking. Each class of trouble that a request can be the
//! cause of moves it once, so that it does not go through the whole cluster. What a node says before
//! it looks at the request (it is gone, nobody is logged in, it lacks the key) moves it on to every other.

use std::time::Duration;

use crate::link::v1::Fault;
use crate::link::v1::fault::{Bucket, Kind};
use crate::node::CallError;

use super::Failure;

/// While others could be asked, no node is waited for longer than this.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

/// Whether doing the work twice does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Encrypt, decrypt, random, prove, wrap: as good twice as once.
    Repeatable,
    /// Generate, unwrap into a token, destroy.
    Once,
}

/// Trouble that the request may be the cause of: it moves for it once and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The session was dead or spoiled.
    Session,
    /// The token, the library or the device does not work.
    Node,
    /// No session, no memory.
    Capacity,
    /// The worker died under it.
    Death,
    /// No answer within its share of the deadline.
    Slow,
}

/// What one request has behind it.
#[derive(Debug, Default)]
pub struct History {
    met: Vec<Class>,
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
    /// How long the next node is waited for, with `others` left to ask after it: a share of what remains, and all of it
    /// when there is nobody else or the request was moved for slowness before.
    pub fn attempt(&self, remaining: Duration, others: usize) -> Duration {
        let shares = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        if others == 0 || self.met.contains(&Class::Slow) {
            remaining
        } else {
            (remaining / shares).min(LONGEST_ATTEMPT)
        }
    }

    /// Whether a worker has died under the request already.
    pub fn is_suspect(&self) -> bool {
        self.met.contains(&Class::Death)
    }

    /// Nobody is left to ask.
    pub fn exhausted(self, otherwise: Failure) -> Failure {
        self.last.unwrap_or(otherwise)
    }

    /// Decides what follows from `error` on a node. `late`: whether the whole deadline is over, not just the share of it that
    /// the node had.
    pub fn after(&mut self, error: &CallError, effect: Effect, late: bool) -> Next {
        match (error, effect) {
            (CallError::Full, _) => Next::Stop(Failure::Busy),
            (CallError::TooLong, _) => Next::Stop(Failure::BadInput),
            // Nothing was asked of the node, so that nothing can be the request's own fault.
            (CallError::NotServing, _) => self.other(Failure::NoNode),
            (CallError::LateBefore, _) if late => Next::Stop(Failure::Late),
            (CallError::LateBefore, _) => self.move_once(Class::Slow, Failure::Late),
            (CallError::LateAfter | CallError::Died | CallError::Cut, Effect::Once) => {
                Next::Stop(Failure::OutcomeUnknown)
            }
            (CallError::LateAfter, Effect::Repeatable) if late => Next::Stop(Failure::Late),
            (CallError::LateAfter, Effect::Repeatable) => self.move_once(Class::Slow, Failure::Late),
            (CallError::Died, Effect::Repeatable) => self.died(),
            // A network or a host that fails takes along whatever is there: nothing says that the request did it.
            (CallError::Cut, Effect::Repeatable) => self.other(Failure::NoNode),
            // The worker's clock for its share of the deadline may be ahead of ours.
            (CallError::Fault(fault), _) if fault.kind() == Kind::Late && !late => {
                self.move_once(Class::Slow, Failure::Late)
            }
            (CallError::Fault(fault), effect) => self.fault(fault, effect),
        }
    }

    fn fault(&mut self, fault: &Fault, effect: Effect) -> Next {
        match fault.bucket() {
            Bucket::Input => Next::Stop(match fault.kind() {
                Kind::BadCiphertext => Failure::BadCiphertext,
                Kind::Late => Failure::Late,
                Kind::Unsupported => Failure::Unsupported(fault.function.clone()),
                _ => Failure::BadInput,
            }),
            Bucket::Session if !self.met.contains(&Class::Session) => {
                self.met.push(Class::Session);
                Next::SameNode
            }
            // A fresh session is as bad: it is the node.
            Bucket::Session => self.move_once(Class::Node, Failure::NoNode),
            Bucket::Node => match fault.kind() {
                // Each node says these for itself, before any work.
                Kind::KeyMissing => self.other(Failure::KeyUnavailable),
                Kind::TokenAbsent | Kind::LoginLost => self.other(Failure::NoNode),
                Kind::Capacity => self.move_once(Class::Capacity, Failure::Busy),
                _ => self.move_once(Class::Node, Failure::NoNode),
            },
            Bucket::Unknown | Bucket::Unspecified => match effect {
                Effect::Once => Next::Stop(Failure::OutcomeUnknown),
                Effect::Repeatable => self.move_once(Class::Node, Failure::NoNode),
            },
        }
    }

    fn other(&mut self, reason: Failure) -> Next {
        self.last = Some(reason);
        Next::OtherNode
    }

    fn move_once(&mut self, class: Class, reason: Failure) -> Next {
        if self.met.contains(&class) {
            return Next::Stop(reason);
        }
        self.met.push(class);
        self.other(reason)
    }

    /// A request under which a worker died moves once: if the next dies too, the request may be the cause.
    ///
    /// However the workers died: SIGKILL from outside acquits nobody, since that is also how the kernel ends a worker that a
    /// request makes outgrow the machine's memory, and how we end one that a request has stuck. Two workers that somebody
    /// kills for his own reasons under the same innocent request cost its caller a minute of this one operation.
    fn died(&mut self) -> Next {
        match self.move_once(Class::Death, Failure::NoNode) {
            Next::Stop(_) => Next::Stop(Failure::Poisonous),
            moved => moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bucket: Bucket, kind: Kind) -> CallError {
        let mut fault = Fault::default();
        fault.set_bucket(bucket);
        fault.set_kind(kind);
        CallError::Fault(fault)
    }

    #[test]
    fn bad_input_stops_at_once_since_any_node_would_say_the_same() {
        let mut history = History::default();
        let next = history.after(&fault(Bucket::Input, Kind::BadCiphertext), Effect::Repeatable, false);
        assert_eq!(next, Next::Stop(Failure::BadCiphertext));
    }

    #[test]
    fn a_spoiled_session_is_tried_once_more_on_its_node_and_then_elsewhere() {
        let mut history = History::default();
        let spoiled = fault(Bucket::Session, Kind::Device);
        assert_eq!(history.after(&spoiled, Effect::Once, false), Next::SameNode);
        assert_eq!(history.after(&spoiled, Effect::Once, false), Next::OtherNode);
    }

    #[test]
    fn repeatable_work_moves_once_when_a_worker_dies_under_it() {
        let mut history = History::default();
        assert_eq!(history.after(&CallError::Died, Effect::Repeatable, false), Next::OtherNode);
        assert!(history.is_suspect());
        let next = history.after(&CallError::Died, Effect::Repeatable, false);
        assert_eq!(next, Next::Stop(Failure::Poisonous));
    }

    #[test]
    fn links_that_are_lost_under_repeatable_work_move_it_and_make_no_suspect_of_it() {
        let mut history = History::default();
        for _ in 0..5 {
            assert_eq!(history.after(&CallError::Cut, Effect::Repeatable, false), Next::OtherNode);
        }
        assert!(!history.is_suspect());
        assert_eq!(history.after(&CallError::Died, Effect::Repeatable, false), Next::OtherNode, "the first death");
        assert_eq!(history.exhausted(Failure::KeyUnavailable), Failure::NoNode);
    }

    #[test]
    fn each_class_of_trouble_moves_a_request_once() {
        let troubles = [
            (fault(Bucket::Node, Kind::DeviceRemoved), Failure::NoNode),
            (fault(Bucket::Node, Kind::Capacity), Failure::Busy),
            (CallError::LateAfter, Failure::Late),
        ];
        let mut history = History::default();
        for (trouble, _) in &troubles {
            assert_eq!(history.after(trouble, Effect::Repeatable, false), Next::OtherNode, "{trouble}");
        }
        for (trouble, failure) in troubles {
            let next = history.after(&trouble, Effect::Repeatable, false);
            assert_eq!(next, Next::Stop(failure), "{trouble}, again");
        }
    }

    #[test]
    fn a_node_that_was_not_asked_is_gone_or_lacks_the_key_is_passed_over_however_many_there_are() {
        let mut history = History::default();
        for _ in 0..5 {
            assert_eq!(history.after(&CallError::NotServing, Effect::Once, false), Next::OtherNode);
            for kind in [Kind::TokenAbsent, Kind::LoginLost, Kind::KeyMissing] {
                let before_any_work = fault(Bucket::Node, kind);
                assert_eq!(history.after(&before_any_work, Effect::Once, false), Next::OtherNode, "{kind:?}");
            }
        }
        assert_eq!(history.exhausted(Failure::NoNode), Failure::KeyUnavailable);
    }

    #[test]
    fn work_that_may_have_been_done_is_never_done_again() {
        for error in [CallError::Died, CallError::Cut, CallError::LateAfter, fault(Bucket::Unknown, Kind::Device)] {
            let next = History::default().after(&error, Effect::Once, false);
            assert_eq!(next, Next::Stop(Failure::OutcomeUnknown), "{error}");
        }
    }

    #[test]
    fn work_that_was_refused_before_it_began_moves_even_when_it_must_not_be_repeated() {
        let mut history = History::default();
        let absent = fault(Bucket::Node, Kind::TokenAbsent);
        assert_eq!(history.after(&absent, Effect::Once, false), Next::OtherNode);
        assert_eq!(history.exhausted(Failure::KeyUnavailable), Failure::NoNode);
    }

    #[test]
    fn nothing_is_tried_once_the_callers_deadline_is_over() {
        for error in [CallError::LateBefore, CallError::LateAfter] {
            let next = History::default().after(&error, Effect::Repeatable, true);
            assert_eq!(next, Next::Stop(Failure::Late), "{error}");
        }
    }

    #[test]
    fn a_node_gets_a_share_of_the_deadline_and_the_last_one_all_of_it() {
        let second = Duration::from_secs(1);
        let mut history = History::default();
        assert_eq!(history.attempt(second, 3), second / 4);
        assert_eq!(history.attempt(second, 0), second);
        assert_eq!(history.attempt(100 * second, 1), LONGEST_ATTEMPT);
        history.after(&CallError::LateAfter, Effect::Repeatable, false);
        assert_eq!(history.attempt(100 * second, 1), 100 * second, "it moves for slowness once");
    }
}
