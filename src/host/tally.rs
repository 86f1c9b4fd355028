//! What was asked of each HSM since the process began, and what came of it: counted where it happens, read by a scrape.
//!
//! Connections, nodes and workers come and go; the count of an HSM goes on over all of them, whoever's they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::link::v1::fault::{Bucket, Kind};
use crate::link::v1::{Fault, request::Verb};
use crate::model::{ClusterId, HsmId};
use crate::telemetry::{Count, Durations, Page, catalogue};

use super::{OpeningError, WorkerSpec};

/// Every HSM's count. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tallies(Arc<Mutex<BTreeMap<Hsm, Arc<Tally>>>>);

/// HSMs of two clusters may go by one name.
type Hsm = (ClusterId, HsmId);

/// One HSM's.
#[derive(Debug, Default)]
pub struct Tally {
    operations: [OperationTally; Operation::ALL.len()],
    logins: [Count; LoginEnd::ALL.len()],
    canary: Durations,
    restarts: Count,
    moved: Count,
}

#[derive(Debug, Default)]
struct OperationTally {
    ends: [Count; End::ALL.len()],
    took: Durations,
}

/// What a worker whose pool serves can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Encrypt,
    Decrypt,
    GenerateDataKey,
    GenerateRandom,
    GenerateKey,
    WrapKey,
    UnwrapKey,
    ProveKey,
    DestroyKey,
    FindKeys,
    MakeProbe,
    DestroyProvenKey,
    ListObjects,
    SweepUnfinished,
    CheckToken,
    SetPin,
    /// A signature, or a MAC.
    Sign,
    DecryptOaep,
    TestAbilities,
}

impl Operation {
    const ALL: [(Self, &str); 19] = [
        (Self::Encrypt, "encrypt"),
        (Self::Decrypt, "decrypt"),
        (Self::GenerateDataKey, "generate_data_key"),
        (Self::GenerateRandom, "generate_random"),
        (Self::GenerateKey, "generate_key"),
        (Self::WrapKey, "wrap_key"),
        (Self::UnwrapKey, "unwrap_key"),
        (Self::ProveKey, "prove_key"),
        (Self::DestroyKey, "destroy_key"),
        (Self::FindKeys, "find_keys"),
        (Self::MakeProbe, "make_probe"),
        (Self::DestroyProvenKey, "destroy_proven_key"),
        (Self::ListObjects, "list_objects"),
        (Self::SweepUnfinished, "sweep_unfinished"),
        (Self::CheckToken, "check_token"),
        (Self::SetPin, "set_pin"),
        (Self::Sign, "sign"),
        (Self::DecryptOaep, "decrypt_oaep"),
        (Self::TestAbilities, "test_abilities"),
    ];

    /// `None` for a ping, and for what no pool is asked.
    pub const fn of(verb: &Verb) -> Option<Self> {
        Some(match verb {
            Verb::Encrypt(_) => Self::Encrypt,
            Verb::Decrypt(_) => Self::Decrypt,
            Verb::GenerateDataKey(_) => Self::GenerateDataKey,
            Verb::GenerateRandom(_) => Self::GenerateRandom,
            Verb::GenerateKey(_) => Self::GenerateKey,
            Verb::WrapKey(_) => Self::WrapKey,
            Verb::UnwrapKey(_) => Self::UnwrapKey,
            Verb::ProveKey(_) => Self::ProveKey,
            Verb::DestroyKey(_) => Self::DestroyKey,
            Verb::FindKeys(_) => Self::FindKeys,
            Verb::MakeProbe(_) => Self::MakeProbe,
            Verb::DestroyProvenKey(_) => Self::DestroyProvenKey,
            Verb::ListObjects(_) => Self::ListObjects,
            Verb::SweepUnfinished(_) => Self::SweepUnfinished,
            Verb::CheckToken(_) => Self::CheckToken,
            Verb::SetPin(_) => Self::SetPin,
            Verb::Sign(_) => Self::Sign,
            Verb::DecryptOaep(_) => Self::DecryptOaep,
            Verb::TestAbilities(_) => Self::TestAbilities,
            Verb::Ping(_)
            | Verb::Open(_)
            | Verb::LogIn(_)
            | Verb::MakeKek(_)
            | Verb::OfferJoin(_)
            | Verb::SealKek(_)
            | Verb::AcceptKek(_)
            | Verb::GiveUser(_)
            | Verb::Summon(_) => return None,
        })
    }
}

/// What came of a request to an HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    /// The request's own fault: any HSM would say the same.
    BadInput,
    /// The session was spoiled.
    SessionFault,
    /// It was refused before any work began.
    Refused,
    /// It failed in a way that says nothing of whether the work was done.
    Fault,
    QueueFull,
    /// The deadline passed while it waited for a place.
    LateInQueue,
    /// The deadline, or the HSM's share of it, passed while the HSM was at it.
    Late,
    /// Its worker died under it.
    Died,
    /// The link to its worker was lost under it, with the host or the network.
    Lost,
    /// Nobody was logged in any more when its turn came.
    NotServing,
    /// Its caller left.
    Abandoned,
}

impl End {
    const ALL: [(Self, &str); 12] = [
        (Self::Done, "done"),
        (Self::BadInput, "bad_input"),
        (Self::SessionFault, "session_fault"),
        (Self::Refused, "refused"),
        (Self::Fault, "fault"),
        (Self::QueueFull, "queue_full"),
        (Self::LateInQueue, "late_in_queue"),
        (Self::Late, "late"),
        (Self::Died, "died"),
        (Self::Lost, "lost"),
        (Self::NotServing, "not_serving"),
        (Self::Abandoned, "abandoned"),
    ];

    pub fn of(fault: &Fault) -> Self {
        match fault.bucket() {
            Bucket::Input => Self::BadInput,
            Bucket::Session => Self::SessionFault,
            Bucket::Node => Self::Refused,
            Bucket::Unknown | Bucket::Unspecified => Self::Fault,
        }
    }
}

/// What came of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginEnd {
    Accepted,
    /// The token's own word on the password, or on its user.
    Refused,
    /// No word on either: it was not asked, or has not answered.
    Failed,
}

impl LoginEnd {
    const ALL: [(Self, &str); 3] = [(Self::Accepted, "accepted"), (Self::Refused, "refused"), (Self::Failed, "failed")];

    fn of(answer: &Result<(), OpeningError>) -> Self {
        match answer {
            Ok(()) => Self::Accepted,
            Err(OpeningError::Fault(fault)) => match fault.kind() {
                Kind::PinIncorrect | Kind::PinRefused | Kind::PinLocked | Kind::UserNotFound => Self::Refused,
                _ => Self::Failed,
            },
            Err(_) => Self::Failed,
        }
    }
}

impl Tallies {
    pub fn of(&self, spec: &WorkerSpec) -> Arc<Tally> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((spec.cluster.clone(), spec.hsm.clone())).or_default().clone()
    }

    /// Puts all of it on the page. HSMs that are `known` are there from the beginning, with nothing counted, so that a first
    /// time shows. Others are forgotten once nobody counts for them: HSMs come and go.
    pub fn tell(&self, page: &mut Page, known: impl IntoIterator<Item = Hsm>) {
        let known: BTreeSet<_> = known.into_iter().collect();
        let all = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|hsm, tally| Arc::strong_count(tally) > 1 || known.contains(hsm));
            for hsm in known {
                all.entry(hsm).or_default();
            }
            all.clone()
        };
        for ((cluster, hsm), tally) in &all {
            tally.tell(page, [cluster.as_str(), hsm.as_str()]);
        }
    }
}

impl Tally {
    /// What is counted when it ends, or is given up. `None` for what is not counted.
    pub fn begin(&self, verb: Option<&Verb>) -> Option<Counting<'_>> {
        let operation = verb.and_then(Operation::of)?;
        Some(Counting { tally: &self.operations[operation as usize], end: End::Abandoned })
    }

    pub fn login(&self, answer: &Result<(), OpeningError>) {
        self.logins[LoginEnd::of(answer) as usize].one_more();
    }

    pub fn canary_answered(&self, took: Duration) {
        self.canary.note(took);
    }

    pub fn worker_is_gone(&self) {
        self.restarts.one_more();
    }

    pub fn request_moved_on(&self) {
        self.moved.one_more();
    }

    fn tell(&self, page: &mut Page, [cluster, hsm]: [&str; 2]) {
        for ((_, operation), tally) in Operation::ALL.iter().zip(&self.operations) {
            for ((_, end), count) in End::ALL.iter().zip(&tally.ends) {
                // What never happened is left out: most of it never will.
                if count.so_far() > 0 {
                    page.count(&catalogue::HSM_OPERATIONS, [cluster, hsm, operation, end], count.so_far());
                }
            }
            let took = tally.took.so_far();
            if !took.is_empty() {
                page.spread(&catalogue::HSM_OPERATION_SECONDS, [cluster, hsm, operation], took);
            }
        }
        for ((_, end), count) in LoginEnd::ALL.iter().zip(&self.logins) {
            page.count(&catalogue::HSM_LOGINS, [cluster, hsm, end], count.so_far());
        }
        page.spread(&catalogue::HSM_CANARY_SECONDS, [cluster, hsm], self.canary.so_far());
        page.count(&catalogue::HSM_RESTARTS, [cluster, hsm], self.restarts.so_far());
        page.count(&catalogue::HSM_MOVED, [cluster, hsm], self.moved.so_far());
    }
}

/// A request on its way. Whoever drops it without a word has given it up.
#[derive(Debug)]
pub struct Counting<'a> {
    tally: &'a OperationTally,
    end: End,
}

impl Counting<'_> {
    /// How it ended, and how long it was with the worker, if it was.
    pub fn ended(mut self, end: End, took: Option<Duration>) {
        self.end = end;
        if let Some(took) = took {
            self.tally.took.note(took);
        }
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.tally.ends[self.end as usize].one_more();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::example;
    use crate::telemetry::Form;

    #[test]
    fn names_stand_where_their_counts_do() {
        assert!(Operation::ALL.iter().enumerate().all(|(place, (operation, _))| *operation as usize == place));
        assert!(End::ALL.iter().enumerate().all(|(place, (end, _))| *end as usize == place));
        assert!(LoginEnd::ALL.iter().enumerate().all(|(place, (end, _))| *end as usize == place));
    }

    #[test]
    fn a_request_is_counted_once_by_its_end_or_as_abandoned() {
        let tally = Tally::default();
        let verb = Verb::Encrypt(Default::default());
        drop(tally.begin(Some(&verb)));
        tally.begin(Some(&verb)).unwrap().ended(End::Done, Some(Duration::ZERO));
        tally.begin(Some(&verb)).unwrap().ended(End::QueueFull, None);
        assert!(tally.begin(Some(&Verb::Ping(Default::default()))).is_none());
        let counted = &tally.operations[Operation::Encrypt as usize];
        let ends: Vec<_> = End::ALL.iter().zip(&counted.ends).filter(|(_, count)| count.so_far() > 0).collect();
        let ends: Vec<_> = ends.into_iter().map(|((end, _), count)| (*end, count.so_far())).collect();
        assert_eq!(ends, [(End::Done, 1), (End::QueueFull, 1), (End::Abandoned, 1)]);
        assert!(!counted.took.so_far().is_empty());
    }

    #[test]
    fn an_hsm_is_told_of_while_it_is_known_or_somebody_counts_for_it() {
        let (tallies, spec) = (Tallies::default(), example::slot(&example::token()));
        let told = |known: bool| {
            let mut page = Page::default();
            tallies.tell(&mut page, known.then(|| (spec.cluster.clone(), spec.hsm.clone())));
            page.written(Form::Prometheus)
        };
        assert!(told(true).contains("outcome=\"refused\"} 0\n"), "a first time is to show as one");
        tallies.of(&spec).login(&Err(OpeningError::NoToken));
        assert!(told(true).contains("outcome=\"failed\"} 1\n"));
        let at_work = tallies.of(&spec);
        assert!(told(false).contains("outcome=\"failed\"} 1\n"), "somebody counts for it");
        drop(at_work);
        assert_eq!(told(false), "");
        assert!(told(true).contains("outcome=\"failed\"} 0\n"), "it was forgotten");
    }
}
