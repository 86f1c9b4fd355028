//! Game days: a plan of faults is played against a cluster of containers under live traffic, and a report says what its
//! callers and its operator saw.
//!
//! ```text
//!   plans ─▶ play ──▶ stage: daemon, hosts, networks
//!              │        ▲            │
//!              │        │ calls      │ health, drift
//!              │     traffic       watch
//!              ▼        ▼            ▼
//!            recording: what happened, and when
//!              │
//!              ▼
//!            measure (pure) ─▶ report ─▶ JSON, page, plot
//! ```
//!
//! `scripts/gameday` runs it. A short plan is played by the ordinary tests, so that this does not rot.

#[path = "../../benches/shared/machine.rs"]
mod machine;
mod measure;
mod page;
mod plan;
mod plans;
mod play;
mod plot;
mod recording;
mod report;
mod stage;
mod traffic;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::rig::engine;
use plan::Plan;
use report::Report;

/// How long each part of a plan lasts, unless told.
const SECONDS: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: scripts/gameday runs it"]
async fn game_days_are_played_and_every_promise_is_kept() {
    let wanted = from_environment("KEYWAY_GAMEDAY_PLANS").unwrap_or_default();
    let plans = chosen(&wanted);
    if from_environment("KEYWAY_GAMEDAY_LIST").is_some() {
        return plans.iter().for_each(|plan| println!("{:16} {}", plan.name, plan.title));
    }
    let _ = engine().expect("a game day needs containers");
    let seconds = from_environment("KEYWAY_GAMEDAY_SECONDS").map_or(SECONDS, |text| text.parse().expect("seconds"));
    let out = from_environment("KEYWAY_GAMEDAY_OUT")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("gameday"), PathBuf::from);
    let mut reports = Vec::new();
    for plan in &plans {
        println!("{}: {}", plan.name, plan.title);
        let report = play::play(plan, Duration::from_secs(seconds)).await;
        println!("{}", report.in_words());
        report.write(&out);
        reports.push(report);
        // After each: a run that is cut short leaves what it has seen.
        std::fs::write(out.join("index.html"), page::index(&reports)).expect("a directory to write to");
    }
    println!("the reports are in {}", out.join("index.html").display());
    let broken: Vec<_> = reports.iter().flat_map(Report::broken).collect();
    assert!(broken.is_empty(), "promises were broken:\n{}", broken.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_game_day_tells_what_callers_and_operators_saw_of_a_node_that_was_lost() {
    let Some(_) = engine() else { return };
    let plan = &chosen("lose-one-node")[0];
    let report = play::play(plan, Duration::from_secs(2)).await;
    assert_eq!(report.broken(), Vec::<String>::new(), "{}", report.in_words());
    let out = tempfile::tempdir().expect("a directory");
    report.write(out.path());
    let json = std::fs::read_to_string(out.path().join("lose-one-node.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["calls"]["answered"].as_u64() > Some(100), "{}", json["calls"]);
    let fault = &json["faults"][0];
    assert_eq!((&fault["hsm"], &fault["told_as"]), (&"hsm-2".into(), &"UNREACHABLE".into()), "{fault}");
    assert!(fault["detected_after"].is_number() && fault["recovered_after"].is_number(), "{fault}");
    assert!(json["keys"]["most_out_of_step"].as_u64() > Some(0), "keys were made while it was away");
    let page = std::fs::read_to_string(out.path().join("lose-one-node.html")).unwrap();
    assert!(page.contains("<svg") && page.contains(&report.title) && page.ends_with("</html>\n"));
    assert!(!page.contains("http://") && !page.contains("https://"), "a page that needs nothing from elsewhere");
    assert!(page::index(&[report]).contains("lose-one-node.html"));
}

/// Those that are named, in their usual order; all if none is.
fn chosen(names: &str) -> Vec<Plan> {
    let (names, mut plans): (Vec<_>, _) = (names.split_whitespace().collect(), plans::plans());
    for name in &names {
        let known = plans.iter().map(|plan| plan.name).collect::<Vec<_>>();
        assert!(known.contains(name), "there is no plan {name}; there are {}", known.join(", "));
    }
    plans.retain(|plan| names.is_empty() || names.contains(&plan.name));
    plans
}

fn from_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
