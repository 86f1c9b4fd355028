//! A soak: callers at work, and one trouble after another, drawn by a seed. Nothing is lost, and nothing wrong is told.
//!
//! ```text
//!   seed ─▶ schedule ─▶ doing ──────▶ rig: daemon, workers, tokens, faulty libraries
//!             (pure)      │ well again?        ▲
//!                         ▼                    │ calls
//!   seed ─▶ callers ─▶ history ◀───────── callers
//!                         │
//!                         ▼
//!                    examination, at the end
//! ```
//!
//! What is done and in which order follows from the seed; when exactly it meets the callers does not.
//! `scripts/soak` runs it.

mod callers;
mod doing;
mod examination;
mod history;
mod schedule;
mod trouble;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use callers::{Caller, Callers, Haste};
use doing::Doing;
use history::History;
use schedule::{Schedule, Step};

use crate::rig::{Dice, workers_of_cluster};

/// How often the workers are counted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So many keys are there before the first trouble.
const FIRST_KEYS: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: scripts/soak runs it"]
async fn whatever_befalls_hsms_workers_and_the_daemon_nothing_acknowledged_is_lost_and_nothing_wrong_is_told() {
    let minutes: f64 = from_environment("KEYWAY_SOAK_MINUTES").unwrap_or(2.0);
    let seed: u64 = from_environment("KEYWAY_SOAK_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_fields().0.into());
    let mut log = Log { begun: Instant::now(), minutes, seed };
    log.say(&format!("seed {seed}, {minutes} minutes"));
    let history = Arc::new(History::new());
    let mut doing = Doing::new(history.clone()).await;
    let mut first = Caller {
        clients: doing.clients.clone(),
        history: history.clone(),
        store: doing.store.clone(),
        dice: Dice::new(seed),
        name: "first".to_owned(),
        haste: Haste::Pauses,
    };
    for number in 0..FIRST_KEYS {
        first.create(&format!("first-{number}")).await.expect("all is well yet");
    }
    let callers = Callers::start(&doing.clients, &doing.store, &history, seed);
    let watch = tokio::spawn(watch_workers(doing.rig.cluster_id(), history.clone()));
    doing.settle().await.expect("all is well yet");
    let early = doing.rig.resources();

    let mut ended = soak(&mut doing, &mut log).await.map_err(|why| vec![why]);
    log.say("---- the end");
    callers.stop().await;
    if ended.is_ok() {
        ended = examination::examine(&mut doing, early).await;
    } else if let Err(why) = &mut ended {
        why.extend(history.unpromised());
    }
    watch.abort();
    println!("{}", history.summary());
    if let Err(found) = ended {
        let logs = log.keep(&(doing.former_logs.clone() + &doing.rig.log()));
        panic!(
            "seed {seed}: {} things are wrong (the daemons' logs are in {logs}):\n{}",
            found.len(),
            found.join("\n")
        );
    }
}

/// One step after another, until the time is over and all is well.
async fn soak(doing: &mut Doing, log: &mut Log) -> Result<(), String> {
    for step in Schedule::new(log.seed) {
        log.say(&step.to_string());
        doing.step(&step).await?;
        let wrong = [doing.history.violations(), doing.history.unpromised_for_certain()].concat();
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        if step == Step::Settle && log.begun.elapsed().as_secs_f64() > log.minutes * 60.0 {
            return Ok(());
        }
    }
    unreachable!("a schedule has no end")
}

/// Sees workers go, and that no HSM has two.
async fn watch_workers(cluster: String, history: Arc<History>) {
    let (mut before, mut twins) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let listing = {
            let cluster = cluster.clone();
            move || workers_of_cluster(&cluster)
        };
        let all = tokio::task::spawn_blocking(listing).await.expect("it is only read");
        let serves = |slot: &str| !slot.ends_with(".admin") && !slot.ends_with(".lookout");
        let now: BTreeSet<_> = all.into_iter().filter(|(_, slot)| serves(slot)).collect();
        for (_, slot) in before.difference(&now) {
            history.worker_gone(slot);
        }
        let twins_now: BTreeSet<_> = now
            .iter()
            .filter(|(pid, slot)| now.iter().any(|(other, of)| of == slot && other != pid))
            .cloned()
            .collect();
        // Twice in a row: one may have gone and another come while we looked.
        if twins.intersection(&twins_now).count() > 1 {
            history.violated(format!("two workers on one slot: {twins_now:?}"));
        }
        (before, twins) = (now, twins_now);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn from_environment<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Tells what is done and when, and at a failure how to do it again.
struct Log {
    begun: Instant,
    minutes: f64,
    seed: u64,
}

impl Log {
    fn say(&self, what: &str) {
        println!("{:8.2} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Where the daemons' logs are from now on.
    fn keep(&self, text: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{}.log", self.seed));
        std::fs::write(&path, text).expect("the tests' own directory");
        path.display().to_string()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { begun, minutes, seed } = self;
            println!(
                "failed after {:.1?}; the same again: scripts/soak --minutes {minutes} --seed {seed}",
                begun.elapsed()
            );
        }
    }
}
