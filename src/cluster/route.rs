//! Which node a request goes to: the one with the least outstanding for its sessions.
//!
//! Pure: loads in, a choice out.

use crate::node::Load;

/// The index of the least busy candidate. A node that does not answer pings is taken only when no
/// other can be. Among equals, the first at or after `start`, so that callers who count `start` up take turns.
pub fn choose(candidates: impl Iterator<Item = (usize, Load)>, start: usize, nodes: usize) -> Option<usize> {
    candidates.min_by_key(|(index, load)| Cost::of(*index, *load, start, nodes)).map(|(index, _)| index)
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    silent: bool,
    /// Outstanding per session, in 1/1024ths.
    outstanding: u64,
    turn: usize,
}

impl Cost {
    fn of(index: usize, load: Load, start: usize, nodes: usize) -> Self {
        let outstanding = u64::from(load.in_flight) + u64::from(load.waiting);
        Self {
            silent: !load.answers_pings,
            outstanding: outstanding * 1024 / u64::from(load.sessions.max(1)),
            turn: (index + nodes - start % nodes.max(1)) % nodes.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(sessions: u32, in_flight: u32, waiting: u32) -> Load {
        Load { login: 1, sessions, in_flight, waiting, answers_pings: true }
    }

    #[test]
    fn the_least_busy_node_for_its_size_is_taken() {
        let nodes = [load(1, 2, 0), load(4, 4, 0), load(2, 1, 9)];
        assert_eq!(choose(nodes.into_iter().enumerate(), 0, 3), Some(1));
    }

    #[test]
    fn equals_take_turns() {
        let nodes = [load(1, 0, 0), load(1, 0, 0), load(1, 0, 0)];
        let taken: Vec<_> = (0..4).filter_map(|start| choose(nodes.into_iter().enumerate(), start, 3)).collect();
        assert_eq!(taken, [0, 1, 2, 0]);
    }

    #[test]
    fn a_node_that_does_not_answer_is_the_last_resort() {
        let silent = Load { answers_pings: false, ..load(1, 0, 0) };
        assert_eq!(choose([(0, silent), (1, load(1, 9, 9))].into_iter(), 0, 2), Some(1));
        assert_eq!(choose([(0, silent)].into_iter(), 0, 2), Some(0));
        assert_eq!(choose(std::iter::empty(), 0, 0), None);
    }

    proptest! {
        #[test]
        fn the_choice_is_always_one_of_the_candidates(
            loads in prop::collection::vec((1u32..8, 0u32..100, 0u32..100, any::<bool>()), 1..6),
            start in any::<usize>(),
        ) {
            let candidates: Vec<_> = loads.iter().map(|(s, f, w, p)| Load { login: 1, sessions: *s, in_flight: *f, waiting: *w, answers_pings: *p }).enumerate().collect();
            let chosen = choose(candidates.iter().copied(), start % 1000, candidates.len()).unwrap();
            prop_assert!(chosen < candidates.len());
        }
    }
}
