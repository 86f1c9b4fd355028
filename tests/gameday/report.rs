//! A game day in numbers: what is written as JSON, and what the pages are made of. Times are seconds from the
//! beginning, latencies milliseconds.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::page;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub plan: String,
    pub title: String,
    pub story: String,
    pub caveat: String,
    pub circumstances: Circumstances,
    pub callers: String,
    pub length: f64,
    pub calls: Calls,
    pub latency: Phases,
    /// The longest time in which no call was answered.
    pub longest_silence: f64,
    pub faults: Vec<Fault>,
    pub spans: Vec<Span>,
    pub health: Vec<Health>,
    pub over_time: Vec<Bin>,
    pub keys: Keys,
    pub promises: Vec<Verdict>,
}

/// Under which all of this was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Circumstances {
    pub machine: String,
    /// Which share of its processor time was used meanwhile, by whomever.
    pub busy: f64,
    /// Calls a second that callers without pause got shortly before.
    pub capacity: f64,
    /// Calls a second that came.
    pub per_second: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Calls {
    pub asked: usize,
    pub answered: usize,
    /// Those among the answered that were refused before.
    pub asked_again: usize,
    /// Neither at once nor later.
    pub unanswered: usize,
    pub refusals: Vec<Refusals>,
}

/// How often clients were told this; one call may be told several times.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusals {
    pub operation: String,
    pub reason: String,
    pub count: usize,
}

/// Before the first event, from there until all was well again, and after.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Phases {
    pub before: Latency,
    pub during: Latency,
    pub after: Latency,
}

/// Of answered calls, from when each was due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    pub calls: usize,
    pub p50: f64,
    pub p99: f64,
    pub longest: f64,
}

/// One HSM that something befell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    pub hsm: String,
    pub what: String,
    pub struck: f64,
    /// When it could be reached again, and what had been done for it.
    pub returned: Option<f64>,
    pub how: String,
    /// From the fault until its health told of it; `None`: it never did.
    pub detected_after: Option<f64>,
    pub told_as: String,
    /// From its return until it was HEALTHY; `None`: it was never told as anything else, or never became so.
    pub recovered_after: Option<f64>,
}

/// A part of the timeline in which something was wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    pub what: String,
    pub from: f64,
    pub until: f64,
    /// From then until every HSM was HEALTHY; `None`: it was not waited for, or in vain.
    pub well_after: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    pub hsm: String,
    pub zone: String,
    pub bands: Vec<Band>,
}

/// As an HSM was told during a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Band {
    pub health: String,
    pub from: f64,
    pub until: f64,
}

/// A short part of the timeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    pub from: f64,
    /// A second.
    pub answered: f64,
    pub refused: f64,
    pub p50: f64,
    pub p99: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Keys {
    pub acknowledged: usize,
    pub working: usize,
    pub ciphertexts: usize,
    pub readable: usize,
    pub most_out_of_step: usize,
    pub out_of_step_at_the_end: usize,
    /// From the last HSM's return until no key was out of step; `None`: there were some to the end.
    pub level_after: Option<f64>,
    pub out_of_step: Vec<(f64, usize)>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    pub promise: String,
    pub kept: bool,
    /// By how much.
    pub seen: String,
}

impl Report {
    /// Every promise that was not kept.
    pub fn broken(&self) -> Vec<String> {
        let broken = self.promises.iter().filter(|verdict| !verdict.kept);
        broken.map(|verdict| format!("{}: {} ({})", self.plan, verdict.promise, verdict.seen)).collect()
    }

    pub fn write(&self, out: &Path) {
        std::fs::create_dir_all(out).expect("a directory to write to");
        let json = serde_json::to_string_pretty(self).expect("plain numbers");
        std::fs::write(out.join(format!("{}.json", self.plan)), json).expect("a directory to write to");
        std::fs::write(out.join(format!("{}.html", self.plan)), page::one(self)).expect("a directory to write to");
    }

    /// For whoever looks on.
    pub fn in_words(&self) -> String {
        let (calls, latency) = (&self.calls, &self.latency);
        let mut text = format!(
            "  {} calls, {} unanswered; p99 {:.0} ms before, {:.0} ms during, {:.0} ms after\n",
            calls.asked, calls.unanswered, latency.before.p99, latency.during.p99, latency.after.p99,
        );
        for Refusals { operation, reason, count } in &calls.refusals {
            let _ = writeln!(text, "  {operation} was refused {count} times: {reason}");
        }
        for verdict in &self.promises {
            let kept = if verdict.kept { "kept" } else { "BROKEN" };
            let _ = writeln!(text, "  {kept}: {} ({})", verdict.promise, verdict.seen);
        }
        text
    }
}
