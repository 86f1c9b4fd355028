//! Which node a request goes to: the one with the least outstanding for its sessions, near ones first.
//!
//! Pure: what is known of the candidates in, a choice out.

use crate::node::Load;

/// A node that could serve the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub index: usize,
    pub load: Load,
    /// In the daemon's own availability zone, or the daemon has none.
    pub near: bool,
    /// Much slower than its siblings.
    pub slow: bool,
}

/// A node in another zone is taken when the near ones have so many requests more outstanding for each session.
const FAR: u64 = 2;

/// The least busy candidate. A slow node is taken only when every other one is slow too, and one that does not answer
/// pings only when nothing else is left. Among equals, the first at or after `start`, so that callers who count `start`
/// up take turns.
pub fn choose(candidates: impl Iterator<Item = Candidate>, start: usize, nodes: usize) -> Option<usize> {
    candidates.min_by_key(|candidate| Cost::of(candidate, start, nodes)).map(|candidate| candidate.index)
}

/// All candidates, the one that [`choose`] takes first.
pub fn in_order(candidates: impl Iterator<Item = Candidate>, start: usize, nodes: usize) -> Vec<usize> {
    let mut ordered: Vec<_> =
        candidates.map(|candidate| (Cost::of(&candidate, start, nodes), candidate.index)).collect();
    ordered.sort();
    ordered.into_iter().map(|(_, index)| index).collect()
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    silent: bool,
    slow: bool,
    /// Outstanding per session, in 1/1024ths, and the way there.
    outstanding: u64,
    turn: usize,
}

impl Cost {
    fn of(candidate: &Candidate, start: usize, nodes: usize) -> Self {
        let load = candidate.load;
        let outstanding =
            (u64::from(load.in_flight) + u64::from(load.waiting)) * 1024 / u64::from(load.sessions.max(1));
        let way = if candidate.near { 0 } else { FAR * 1024 };
        Self {
            silent: !load.answers_pings,
            slow: candidate.slow,
            outstanding: outstanding + way,
            turn: (candidate.index + nodes - start % nodes.max(1)) % nodes.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(index: usize, sessions: u32, in_flight: u32, waiting: u32) -> Candidate {
        let load = Load { login: 1, sessions, in_flight, waiting, answers_pings: true };
        Candidate { index, load, near: true, slow: false }
    }

    fn silent(node: Candidate) -> Candidate {
        Candidate { load: Load { answers_pings: false, ..node.load }, ..node }
    }

    #[test]
    fn the_least_busy_node_for_its_size_is_taken() {
        let nodes = [node(0, 1, 2, 0), node(1, 4, 4, 0), node(2, 2, 1, 9)];
        assert_eq!(choose(nodes.into_iter(), 0, 3), Some(1));
    }

    #[test]
    fn equals_take_turns() {
        let nodes = [node(0, 1, 0, 0), node(1, 1, 0, 0), node(2, 1, 0, 0)];
        let taken: Vec<_> = (0..4).filter_map(|start| choose(nodes.into_iter(), start, 3)).collect();
        assert_eq!(taken, [0, 1, 2, 0]);
    }

    #[test]
    fn a_near_node_is_preferred_until_it_is_busier_than_the_way_is_long() {
        let far = |index| Candidate { near: false, ..node(index, 1, 0, 0) };
        for (near_has, taken) in [(0, 0), (2, 0), (3, 1)] {
            let nodes = [node(0, 1, near_has, 0), far(1)];
            assert_eq!(choose(nodes.into_iter(), 0, 2), Some(taken), "{near_has} outstanding");
        }
    }

    #[test]
    fn a_slow_node_and_then_a_silent_one_are_the_last_resorts() {
        let busy = node(2, 1, 9, 9);
        let slow = Candidate { slow: true, ..node(1, 1, 0, 0) };
        let silent = silent(node(0, 1, 0, 0));
        assert_eq!(choose([silent, slow, busy].into_iter(), 0, 3), Some(2));
        assert_eq!(choose([silent, slow].into_iter(), 0, 3), Some(1));
        assert_eq!(in_order([silent, slow, busy].into_iter(), 0, 3), [2, 1, 0]);
        assert_eq!(choose([silent].into_iter(), 0, 3), Some(0));
        assert_eq!(choose(std::iter::empty(), 0, 0), None);
    }

    proptest! {
        #[test]
        fn the_choice_is_one_of_the_candidates_and_no_better_one_is_passed_over(
            nodes in prop::collection::vec((1u32..8, 0u32..100, 0u32..100, any::<bool>(), any::<bool>(), any::<bool>()), 1..6),
            start in any::<usize>(),
        ) {
            let candidates: Vec<_> = nodes.iter().enumerate().map(|(index, (sessions, in_flight, waiting, answers, near, slow))| {
                let node = Candidate { near: *near, slow: *slow, ..node(index, *sessions, *in_flight, *waiting) };
                if *answers { node } else { silent(node) }
            }).collect();
            let chosen = choose(candidates.iter().copied(), start % 1000, candidates.len()).unwrap();
            let chosen = candidates[chosen];
            prop_assert!(chosen.load.answers_pings || candidates.iter().all(|other| !other.load.answers_pings));
            let rank = |it: &Candidate| (!it.load.answers_pings, it.slow);
            prop_assert!(candidates.iter().all(|other| rank(&chosen) <= rank(other)));
        }
    }
}
