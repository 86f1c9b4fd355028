//! The end: whether anything was lost, anything is there that should not be, or anything was told that is not promised.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty_pkcs11::ckr::CKR_PIN_INCORRECT;
use faulty_pkcs11::{Function, Outcome};
use tokio::task::block_in_place;

use super::callers::{Caller, Haste};
use super::doing::Doing;
use super::history::Sealed;
use super::schedule::HSMS;
use crate::rig::{Dice, Resources, pb, wait};

/// How long a creation whose answer was lost may take to be settled.
const SETTLED_BY_LOOKING: Duration = Duration::from_secs(60);
/// How long a process that is stuck in its library may stay.
const STUCK: Duration = Duration::from_secs(30);
/// So many look at ciphertexts at once.
const READERS: usize = 8;
/// What a daemon may hold more than in its first minute: connections to its records, threads that come and go.
const MORE_DESCRIPTORS: usize = 16;
const MORE_THREADS: usize = 16;

/// Examines a cluster that is well, and that nobody uses any more. Everything found is told, not just the first.
pub async fn examine(doing: &mut Doing, early: Resources) -> Result<(), Vec<String>> {
    let mut found = Vec::new();
    settle_creations(doing).await;
    if let Err(why) = doing.settle().await {
        found.push(why);
    }
    found.extend(keys_are_those_acknowledged(doing).await);
    found.extend(tokens_hold_what_the_records_explain(doing));
    found.extend(nothing_has_drifted(doing).await);
    every_ciphertext_opens(doing).await;
    found.extend(doing.history.unpromised());
    found.extend(logins_were_within_budget(doing));
    found.extend(the_daemon_has_not_grown(doing, early));
    found.extend(nobody_is_left(doing));
    found.extend(doing.history.violations());
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn caller(doing: &Doing) -> Caller {
    Caller {
        clients: doing.clients.clone(),
        history: doing.history.clone(),
        store: doing.store.clone(),
        dice: Dice::new(0),
        name: "examiner".to_owned(),
        haste: Haste::Pauses,
    }
}

/// The same request, repeated, gives the key that was made, or makes it.
async fn settle_creations(doing: &Doing) {
    let mut caller = caller(doing);
    for request in doing.history.unknown_creations() {
        let begun = Instant::now();
        while caller.create(&request).await.is_err() {
            if begun.elapsed() > SETTLED_BY_LOOKING {
                doing.history.violated(format!("{request} is still not settled"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn keys_are_those_acknowledged(doing: &mut Doing) -> Option<String> {
    let request = pb::ListKeysRequest { key_store_id: doing.store.clone(), page_size: 1_000, ..Default::default() };
    let page = doing.clients.keys.list_keys(request).await.expect("listed").into_inner();
    let listed: BTreeSet<_> = page.keys.into_iter().map(|key| key.key_id).collect();
    let acknowledged: BTreeSet<_> = doing.history.keys().into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&listed).collect();
    let strange: Vec<_> = listed.difference(&acknowledged).collect();
    (listed != acknowledged).then(|| format!("acknowledged and gone: {lost:?}; there and of no request: {strange:?}"))
}

fn tokens_hold_what_the_records_explain(doing: &Doing) -> Vec<String> {
    let mut expected: Vec<String> = doing.history.keys().iter().map(|key| format!("keyway:{key}:1")).collect();
    expected.extend(["keyway:kek".to_owned(), "keyway:canary".to_owned()]);
    expected.sort();
    let tokens = HSMS.map(|hsm| block_in_place(|| doing.rig.objects(hsm)));
    let mut found = Vec::new();
    for (hsm, objects) in HSMS.into_iter().zip(&tokens) {
        let mut labels: Vec<_> = objects.iter().map(|object| object.label.clone()).collect();
        labels.sort();
        if labels != expected {
            let missing: Vec<_> = expected.iter().filter(|label| !labels.contains(label)).collect();
            let count = |label: &String| labels.iter().filter(|other| *other == label).count();
            let strange: Vec<_> = labels.iter().filter(|label| !expected.contains(label) || count(label) > 1).collect();
            found.push(format!("{hsm}: missing: {missing:?}; strange, or there twice: {strange:?}"));
        }
        if *objects != tokens[0] {
            found.push(format!("{hsm} does not hold the same ids as {}", HSMS[0]));
        }
    }
    found
}

async fn nothing_has_drifted(doing: &mut Doing) -> Vec<String> {
    let mut found = Vec::new();
    let cluster_id = doing.rig.cluster_id();
    let list = pb::ListDriftRequest { cluster_id: cluster_id.clone(), ..Default::default() };
    let listed = doing.clients.clusters.list_drift(list).await.expect("listed").into_inner().drifts;
    if !listed.is_empty() {
        found.push(format!("ListDrift: {listed:?}"));
    }
    let sync = pb::SyncClusterRequest { cluster_id, dry_run: true };
    let mut news = doing.clients.clusters.sync_cluster(sync).await.expect("it begins").into_inner();
    while let Some(message) = news.message().await.expect("it ends well") {
        found.extend(message.drift.map(|drift| format!("SyncCluster: {drift:?}")));
    }
    found
}

/// Every one that was ever acknowledged, to what it was.
async fn every_ciphertext_opens(doing: &Doing) {
    let all: Arc<Vec<Sealed>> = Arc::new(doing.history.all_sealed());
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (all, mut caller) = (all.clone(), caller(doing));
            tokio::spawn(async move {
                for sealed in all.iter().skip(reader).step_by(READERS) {
                    if caller.decrypt(sealed).await.is_err() {
                        caller.history.violated(format!("a ciphertext under {} does not open any more", sealed.key));
                    }
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.expect("readers do not panic");
    }
}

/// At most one refusal for each HSM, and one for each act of an operator.
fn logins_were_within_budget(doing: &Doing) -> Vec<String> {
    let mut found = Vec::new();
    for hsm in HSMS {
        let refused = doing.rig.faults(hsm).journal().into_iter().filter(|entry| {
            entry.function == Function::C_Login && entry.outcome == Outcome::Answered(CKR_PIN_INCORRECT)
        });
        let times: Vec<Duration> = refused.map(|entry| entry.at).collect();
        let acts: Vec<Duration> = doing.allowed.iter().filter(|(of, _)| *of == hsm).map(|(_, at)| *at).collect();
        let acts_between = |one: Duration, other: Duration| acts.iter().any(|act| one <= *act && *act <= other);
        for pair in times.windows(2).filter(|pair| !acts_between(pair[0], pair[1])) {
            let apart = pair[1] - pair[0];
            found.push(format!("{hsm} refused the password twice, {apart:?} apart, without an operator between"));
        }
    }
    found
}

fn the_daemon_has_not_grown(doing: &Doing, early: Resources) -> Option<String> {
    let late = doing.rig.resources();
    let as_before = late.threads <= early.threads + MORE_THREADS
        && late.descriptors <= early.descriptors + MORE_DESCRIPTORS
        && late.processes == HSMS.len()
        && late.locks <= early.locks + READERS;
    (!as_before).then(|| format!("the daemon held {early:?} at first and holds {late:?} now"))
}

/// One worker for each HSM, soon, and none without its daemon.
fn nobody_is_left(doing: &mut Doing) -> Option<String> {
    block_in_place(|| {
        let begun = Instant::now();
        let mut workers = doing.rig.workers_and_lookouts();
        while workers.len() != HSMS.len() && begun.elapsed() < STUCK {
            std::thread::sleep(Duration::from_millis(100));
            workers = doing.rig.workers_and_lookouts();
        }
        let one_each = workers.len() == HSMS.len() && HSMS.iter().all(|hsm| doing.rig.workers_of(hsm).len() == 1);
        doing.rig.stop_daemon();
        wait(|| doing.rig.workers_and_lookouts().is_empty().then_some(()));
        (!one_each).then(|| format!("these workers ran: {workers:?}"))
    })
}
