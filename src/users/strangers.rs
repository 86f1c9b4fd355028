//! Failed logins in a row under names that nobody has: counted as a user's are, so that nobody learns from when logins are
//! refused unheard which names are somebody's.
//!
//! In memory and bounded: with as many other names tried in between, or a restart, a count is forgotten. A user's is
//! not: by this the two can still be told apart.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::model::{ClusterId, HsmId, Username};

const MOST: usize = 4_096;

type Place = (ClusterId, HsmId, Username);

#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    failed: HashMap<Place, u32>,
    oldest_first: VecDeque<Place>,
}

impl Strangers {
    /// Counts an attempt, unless `allowed` have failed.
    pub(super) fn may_try(&self, cluster: &ClusterId, hsm: &HsmId, name: &Username, allowed: u32) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (cluster.clone(), hsm.clone(), name.clone());
        if let Some(failed) = counts.failed.get_mut(&place) {
            let may = *failed < allowed;
            *failed += u32::from(may);
            return may;
        }
        if counts.oldest_first.len() >= MOST
            && let Some(oldest) = counts.oldest_first.pop_front()
        {
            counts.failed.remove(&oldest);
        }
        counts.oldest_first.push_back(place.clone());
        counts.failed.insert(place, 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_refused_unheard_after_as_many_attempts_as_a_users_and_counts_are_bounded() {
        let strangers = Strangers::default();
        let (cluster, hsm): (ClusterId, HsmId) = ("cluster-2abcdefghij".parse().unwrap(), "hsm-1".parse().unwrap());
        let name = |number: usize| format!("name{number}").parse::<Username>().unwrap();
        let allowed: Vec<_> = (0..5).map(|_| strangers.may_try(&cluster, &hsm, &name(0), 3)).collect();
        assert_eq!(allowed, [true, true, true, false, false]);
        assert!(strangers.may_try(&cluster, &"hsm-2".parse().unwrap(), &name(0), 3), "each HSM counts for itself");
        for number in 1..=MOST {
            assert!(strangers.may_try(&cluster, &hsm, &name(number), 3));
        }
        let counts = strangers.0.lock().unwrap();
        assert_eq!((counts.failed.len(), counts.oldest_first.len()), (MOST, MOST));
    }
}
