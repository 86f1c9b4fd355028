//! Whether a node is too slow to be asked, from how long its canary takes beside its siblings'. Pure.
//!
//! Judged by our own small request at a steady pace: nothing that callers send makes a node look slow.
//! It takes several slow answers in a row to be put aside, and more quick ones to come back, so that
//! a node at the border does not swing.

use std::collections::VecDeque;
use std::time::Duration;

/// So many answers in a row decide that a node is slow …
const SLOW_AFTER: usize = 3;
/// … and so many that it is not.
const QUICK_AFTER: usize = 6;
/// No node is slow below this.
const SLOW_AT_LEAST: Duration = Duration::from_millis(50);
/// Slow is so many times what the siblings take; quick again is half of that.
const TIMES: u32 = 5;

/// How a node's canary has answered lately.
#[derive(Debug, Default)]
pub struct Pace {
    recent: VecDeque<Duration>,
    slow: bool,
}

impl Pace {
    /// Notes an answer. `siblings` is what the other nodes take, if there are any that serve.
    pub fn note(&mut self, took: Duration, siblings: Option<Duration>) {
        if self.recent.len() == QUICK_AFTER {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        // A node without siblings has nobody to be slower than.
        let Some(siblings) = siblings else {
            self.slow = false;
            return;
        };
        let limit = (siblings * TIMES).max(SLOW_AT_LEAST);
        let last = |count: usize| self.recent.iter().rev().take(count);
        if self.slow {
            self.slow = !(last(QUICK_AFTER).len() == QUICK_AFTER && last(QUICK_AFTER).all(|took| *took < limit / 2));
        } else {
            self.slow = last(SLOW_AFTER).len() == SLOW_AFTER && last(SLOW_AFTER).all(|took| *took > limit);
        }
    }

    /// Notes that nothing at all was heard for so long: that counts for as many slow answers as it takes.
    pub fn note_silence(&mut self, so_long: Duration, siblings: Option<Duration>) {
        for _ in 0..SLOW_AFTER {
            self.note(so_long, siblings);
        }
    }

    pub const fn is_slow(&self) -> bool {
        self.slow
    }

    /// What its canary takes, mostly.
    pub fn typical(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

/// What a node's siblings typically take: the middle one.
pub fn of_siblings(mut typical: Vec<Duration>) -> Option<Duration> {
    typical.sort_unstable();
    typical.get(typical.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIBLINGS: Option<Duration> = Some(Duration::from_millis(1));

    fn after(answers: &[u64]) -> bool {
        let mut pace = Pace::default();
        answers.iter().for_each(|millis| pace.note(Duration::from_millis(*millis), SIBLINGS));
        pace.is_slow()
    }

    #[test]
    fn a_few_slow_answers_in_a_row_make_a_node_slow_and_a_single_one_does_not() {
        assert!(!after(&[200, 200]));
        assert!(!after(&[200, 200, 1, 200, 200]));
        assert!(after(&[1, 200, 200, 200]));
    }

    #[test]
    fn it_comes_back_only_after_more_quick_answers_than_made_it_slow() {
        assert!(after(&[200, 200, 200, 1, 1, 1, 1, 1]));
        assert!(!after(&[200, 200, 200, 1, 1, 1, 1, 1, 1]));
        assert!(after(&[200, 200, 200, 1, 1, 1, 1, 1, 30]), "neither slow nor quick is not quick");
    }

    #[test]
    fn silence_makes_a_node_slow_at_once_unless_it_is_alone() {
        let mut pace = Pace::default();
        (0..9).for_each(|_| pace.note(Duration::from_millis(1), SIBLINGS));
        pace.note_silence(Duration::from_secs(2), None);
        assert!(!pace.is_slow());
        pace.note_silence(Duration::from_secs(2), SIBLINGS);
        assert!(pace.is_slow());
    }

    #[test]
    fn nobody_is_slow_when_all_are_or_when_alone() {
        let mut pace = Pace::default();
        (0..9).for_each(|_| pace.note(Duration::from_millis(900), Some(Duration::from_millis(400))));
        assert!(!pace.is_slow(), "the siblings are no quicker");
        (0..9).for_each(|_| pace.note(Duration::from_millis(900), None));
        assert!(!pace.is_slow(), "there are none");
        (0..9).for_each(|_| pace.note(Duration::from_millis(40), SIBLINGS));
        assert!(!pace.is_slow(), "40 times as slow, and still quick");
    }

    #[test]
    fn the_typical_answer_is_the_middle_one() {
        assert_eq!(of_siblings(Vec::new()), None);
        let millis = [30, 10, 20].map(Duration::from_millis);
        assert_eq!(of_siblings(millis.to_vec()), Some(Duration::from_millis(20)));
        let mut pace = Pace::default();
        millis.iter().for_each(|took| pace.note(*took, None));
        assert_eq!(pace.typical(), Some(Duration::from_millis(20)));
    }
}
