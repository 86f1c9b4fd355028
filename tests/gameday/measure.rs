//! From what happened to what it comes to. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::{Callers, Plan, Promise};
use super::recording::{Call, Event, Recording, Sighting};
use super::report::{
    Band, Bin, Calls, Circumstances, Fault, Health, Keys, Latency, Phases, Refusals, Report, Span, Verdict,
};
use super::traffic::{DEADLINE, PERSISTENCE};
use crate::rig::pb::HsmHealth;

/// What docs/reliability.md promises operators, once an HSM's host is back.
const BACK_WITHIN: f64 = 5.0;
/// How finely the timeline is divided.
const BIN: Duration = Duration::from_millis(500);
/// What is told of an HSM while nobody tells anything.
const NOBODY: &str = "NOT TOLD";
const HEALTHY: &str = "HEALTHY";

pub fn measure(plan: &Plan, recording: &Recording, circumstances: Circumstances) -> Report {
    let health = health(recording);
    let faults = faults(&recording.events, &health);
    let (from, until) = troubled(&recording.events, &faults);
    let calls = &recording.calls;
    let keys = keys(recording);
    let latency = Phases {
        before: latency(calls.iter().filter(|call| call.due < from)),
        during: latency(calls.iter().filter(|call| call.due >= from && call.due < until)),
        after: latency(calls.iter().filter(|call| call.due >= until)),
    };
    let mut report = Report {
        plan: plan.name.to_owned(),
        title: plan.title.to_owned(),
        story: plan.story.to_owned(),
        caveat: plan.caveat.to_owned(),
        circumstances,
        callers: manners(plan.callers),
        length: recording.length.as_secs_f64(),
        calls: count(calls),
        latency,
        longest_silence: longest_silence(calls),
        spans: spans(&recording.events, recording.length),
        faults,
        health,
        over_time: over_time(calls, recording.length),
        keys,
        promises: Vec::new(),
    };
    report.promises = verdicts(&plan.promises, calls, &report);
    report
}

fn manners(callers: Callers) -> String {
    let deadline = DEADLINE.as_secs();
    match callers {
        Callers::GiveUp => format!("each call has {deadline} s, and is not repeated"),
        Callers::AskAgain => format!(
            "each call has {deadline} s, and is repeated for up to {} s when the daemon says so or the connection ends",
            PERSISTENCE.as_secs()
        ),
    }
}

/// The bands in which each HSM was told the same.
fn health(recording: &Recording) -> Vec<Health> {
    let bands = |hsm: &str| {
        let of_it: Vec<&Sighting> = recording.sightings.iter().filter(|seen| seen.hsm == hsm).collect();
        let ends = of_it.iter().skip(1).map(|seen| seen.at).chain([recording.length]);
        let whole = of_it.iter().zip(ends).filter(|(seen, _)| seen.at < recording.length);
        whole
            .map(|(seen, until)| Band {
                health: name(seen.health),
                from: seen.at.as_secs_f64(),
                until: until.min(recording.length).as_secs_f64(),
            })
            .collect()
    };
    let hsms = recording.hsms.iter();
    hsms.map(|(hsm, zone)| Health { hsm: hsm.clone(), zone: zone.clone(), bands: bands(hsm) }).collect()
}

fn name(health: Option<HsmHealth>) -> String {
    health.map_or(NOBODY, |health| health.as_str_name().trim_start_matches("HSM_HEALTH_")).to_owned()
}

/// Each HSM that something befell, with what its health told of it.
fn faults(events: &[Event], health: &[Health]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (number, event) in events.iter().enumerate() {
        let Event::Struck { at, what, hsms } = event else { continue };
        for hsm in hsms {
            let bands = health.iter().find(|health| health.hsm == *hsm).map_or(&[][..], |health| &health.bands);
            faults.push(fault(hsm, what, at.as_secs_f64(), returned(&events[number..], hsm), bands));
        }
    }
    faults
}

/// When an HSM was next back, and by what.
fn returned(events: &[Event], hsm: &str) -> Option<(f64, &'static str)> {
    events.iter().find_map(|event| match event {
        Event::Returned { at, what, hsms } => hsms.contains(&hsm).then_some((at.as_secs_f64(), *what)),
        Event::Struck { .. } | Event::Incident { .. } | Event::Well { .. } => None,
    })
}

fn fault(hsm: &str, what: &str, struck: f64, returned: Option<(f64, &str)>, bands: &[Band]) -> Fault {
    let (returned, how) = returned.map_or((None, ""), |(at, how)| (Some(at), how));
    let told = bands.iter().position(|band| band.until > struck && band.health != HEALTHY);
    let (detected_after, told_as) =
        told.map_or((None, String::new()), |at| (Some((bands[at].from - struck).max(0.0)), bands[at].health.clone()));
    let well_again = told.and_then(|at| {
        let since = returned?;
        bands[at..].iter().find(|band| band.health == HEALTHY && band.until > since)
    });
    let recovered_after = well_again.zip(returned).map(|(band, since)| (band.from - since).max(0.0));
    let (hsm, what, how) = (hsm.to_owned(), what.to_owned(), how.to_owned());
    Fault { hsm, what, struck, returned, how, detected_after, told_as, recovered_after }
}

/// From the first event until everything that it did was over.
fn troubled(events: &[Event], faults: &[Fault]) -> (Duration, Duration) {
    let from = events.iter().map(Event::begins).min().unwrap_or(Duration::MAX);
    let healed = faults.iter().filter_map(|fault| Some(fault.returned? + fault.recovered_after?));
    let ended = events.iter().map(Event::ends).chain(healed.map(Duration::from_secs_f64));
    (from, ended.max().unwrap_or(Duration::MAX))
}

fn latency<'a>(calls: impl Iterator<Item = &'a Call>) -> Latency {
    let answered = calls.filter(|call| call.answered);
    let mut took: Vec<f64> = answered.map(|call| (call.ended - call.due).as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    Latency { calls: took.len(), p50: at(50), p99: at(99), longest: took.last().copied().unwrap_or_default() }
}

fn count(calls: &[Call]) -> Calls {
    let mut told: BTreeMap<_, usize> = BTreeMap::new();
    for call in calls {
        for reason in &call.refusals {
            *told.entry((call.operation, reason)).or_default() += 1;
        }
    }
    let refusals = told.into_iter().map(|((operation, reason), count)| Refusals {
        operation: format!("{operation:?}"),
        reason: reason.clone(),
        count,
    });
    let answered: Vec<_> = calls.iter().filter(|call| call.answered).collect();
    Calls {
        asked: calls.len(),
        answered: answered.len(),
        asked_again: answered.iter().filter(|call| !call.refusals.is_empty()).count(),
        unanswered: calls.len() - answered.len(),
        refusals: refusals.collect(),
    }
}

fn longest_silence(calls: &[Call]) -> f64 {
    let mut answers: Vec<_> = calls.iter().filter(|call| call.answered).map(|call| call.ended).collect();
    answers.sort();
    let pauses = answers.windows(2).map(|two| two[1] - two[0]);
    pauses.max().unwrap_or_default().as_secs_f64()
}

/// From each fault until the last of its HSMs was back.
fn spans(events: &[Event], length: Duration) -> Vec<Span> {
    let covered = |(number, event): (usize, &Event)| match event {
        Event::Struck { at, what, hsms } => {
            let back = |hsm: &&str| returned(&events[number..], hsm).map_or(length.as_secs_f64(), |(at, _)| at);
            let until = hsms.iter().map(back).fold(0.0, f64::max);
            Some((format!("{} {what}", hsms.join(", ")), at.as_secs_f64(), until))
        }
        Event::Incident { from, until, what } => Some(((*what).to_owned(), from.as_secs_f64(), until.as_secs_f64())),
        Event::Returned { .. } | Event::Well { .. } => None,
    };
    let span = |(what, from, until)| {
        let well = events.iter().find_map(|event| match event {
            Event::Well { at } => Some(at.as_secs_f64() - until).filter(|after| *after >= 0.0),
            Event::Struck { .. } | Event::Returned { .. } | Event::Incident { .. } => None,
        });
        Span { what, from, until, well_after: well }
    };
    events.iter().enumerate().filter_map(covered).map(span).collect()
}

/// Rates by when calls ended, latencies by when they were due: so that a stall is seen as long as it was.
fn over_time(calls: &[Call], length: Duration) -> Vec<Bin> {
    let bins = length.div_duration_f64(BIN).ceil() as u32;
    let bin = |number: u32| {
        let (from, until) = (BIN * number, BIN * (number + 1));
        let within = |at: Duration| at >= from && at < until;
        let ended: Vec<_> = calls.iter().filter(|call| within(call.ended)).collect();
        let answered = ended.iter().filter(|call| call.answered).count();
        let latency = latency(calls.iter().filter(|call| within(call.due)));
        Bin {
            from: from.as_secs_f64(),
            answered: a_second(answered),
            refused: a_second(ended.len() - answered),
            p50: latency.p50,
            p99: latency.p99,
        }
    };
    (0..bins).map(bin).collect()
}

fn a_second(count: usize) -> f64 {
    count as f64 / BIN.as_secs_f64()
}

fn keys(recording: &Recording) -> Keys {
    let (keys, ciphertexts, drift) = (recording.keys, recording.ciphertexts, &recording.drift);
    let done = recording.events.iter().filter(|event| !matches!(event, Event::Well { .. }));
    let back = done.map(Event::ends).max().unwrap_or_default();
    // The last time at which there were some, and after it the first at which there were none.
    let behind = drift.iter().rposition(|(_, count)| *count > 0);
    let level = behind.map_or(Some(Duration::ZERO), |at| drift.get(at + 1).map(|(at, _)| *at));
    Keys {
        acknowledged: keys.acknowledged,
        working: keys.working,
        ciphertexts: ciphertexts.acknowledged,
        readable: ciphertexts.working,
        most_out_of_step: drift.iter().map(|(_, count)| *count).max().unwrap_or_default(),
        out_of_step_at_the_end: drift.last().map_or(0, |(_, count)| *count),
        level_after: level.map(|level| level.saturating_sub(back).as_secs_f64()),
        out_of_step: drift.iter().map(|(at, count)| (at.as_secs_f64(), *count)).collect(),
    }
}

fn verdicts(promises: &[Promise], calls: &[Call], report: &Report) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = promises
        .iter()
        .map(|promise| match promise {
            Promise::Unharmed => unharmed(calls),
            Promise::Back => back(&report.faults),
        })
        .collect();
    let keys = &report.keys;
    verdicts.push(Verdict {
        promise: "every acknowledged key and ciphertext still works".to_owned(),
        kept: keys.working == keys.acknowledged && keys.readable == keys.ciphertexts,
        seen: format!(
            "{} of {} keys, {} of {} ciphertexts",
            keys.working, keys.acknowledged, keys.readable, keys.ciphertexts
        ),
    });
    verdicts.push(Verdict {
        promise: "no key is out of step in the end".to_owned(),
        kept: keys.out_of_step_at_the_end == 0,
        seen: format!("{} are, {} were at most", keys.out_of_step_at_the_end, keys.most_out_of_step),
    });
    verdicts
}

fn unharmed(calls: &[Call]) -> Verdict {
    let repeatable = || calls.iter().filter(|call| call.operation.is_repeatable());
    let unanswered = repeatable().filter(|call| !call.answered).count();
    Verdict {
        promise: "every encryption, decryption and data key was answered".to_owned(),
        kept: unanswered == 0,
        seen: format!("{unanswered} of {} were not", repeatable().count()),
    }
}

fn back(faults: &[Fault]) -> Verdict {
    let told = faults.iter().filter(|fault| fault.detected_after.is_some());
    let recovered: Vec<_> = told.map(|fault| fault.recovered_after).collect();
    let slowest = recovered.iter().flatten().copied().fold(0.0, f64::max);
    Verdict {
        promise: format!("every HSM is HEALTHY within {BACK_WITHIN:.0} s of its return"),
        kept: recovered.iter().all(|after| after.is_some_and(|after| after < BACK_WITHIN)),
        seen: match (recovered.is_empty(), recovered.contains(&None)) {
            (true, _) => "none was ever told as anything else".to_owned(),
            (false, true) => "one did not become so".to_owned(),
            (false, false) => format!("{slowest:.1} s at most"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::{Kept, Operation};
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn call(due: f64, ended: f64) -> Call {
        let (due, ended) = (at(due), at(ended));
        Call { operation: Operation::Encrypt, due, ended, refusals: Vec::new(), answered: true }
    }

    fn refused(due: f64, reasons: &[&str], answered: bool) -> Call {
        let refusals = reasons.iter().map(|&reason| reason.to_owned()).collect();
        Call { refusals, answered, ..call(due, due + 1.0) }
    }

    fn seen(seconds: f64, health: Option<HsmHealth>) -> Sighting {
        Sighting { at: at(seconds), hsm: "hsm-2".to_owned(), health }
    }

    /// Killed at 10 s, told so at 11.5, back at 20, in use at 22 with its keys, and the day ends at 30.
    fn lost_and_found() -> Recording {
        Recording {
            length: at(30.0),
            hsms: vec![("hsm-2".to_owned(), "b".to_owned())],
            sightings: vec![
                seen(0.0, Some(HsmHealth::Healthy)),
                seen(11.5, Some(HsmHealth::Unreachable)),
                seen(20.5, Some(HsmHealth::Syncing)),
                seen(22.0, Some(HsmHealth::Healthy)),
            ],
            drift: vec![(at(5.0), 0), (at(12.0), 3), (at(21.0), 1), (at(22.5), 0), (at(29.0), 0)],
            events: vec![
                Event::Struck { at: at(10.0), what: "killed", hsms: vec!["hsm-2"] },
                Event::Returned { at: at(20.0), what: "started", hsms: vec!["hsm-2"] },
                Event::Well { at: at(22.1) },
            ],
            keys: Kept { acknowledged: 7, working: 7 },
            ..Recording::default()
        }
    }

    fn measured(recording: &Recording) -> Report {
        let plan = Plan::new("name", "title").promises(&[Promise::Unharmed, Promise::Back]);
        measure(&plan, recording, Circumstances::default())
    }

    #[test]
    fn detection_counts_from_the_fault_and_recovery_from_the_return() {
        let report = measured(&lost_and_found());
        let fault = &report.faults[0];
        assert_eq!((fault.detected_after, fault.recovered_after), (Some(1.5), Some(2.0)));
        assert_eq!(fault.told_as, "UNREACHABLE");
        let span = &report.spans[0];
        assert_eq!((span.what.as_str(), span.from, span.until), ("hsm-2 killed", 10.0, 20.0));
        assert_eq!(span.well_after.map(|after| (after * 10.0).round()), Some(21.0));
        assert_eq!((report.keys.most_out_of_step, report.keys.level_after), (3, Some(2.5)));
        assert_eq!(report.broken(), Vec::<String>::new());
    }

    #[test]
    fn an_hsm_that_does_not_come_back_or_comes_late_breaks_the_promise() {
        let (mut never, mut late) = (lost_and_found(), lost_and_found());
        never.sightings.pop();
        late.sightings[3].at = at(25.5);
        assert_eq!(measured(&never).faults[0].recovered_after, None);
        for recording in [never, late] {
            assert_eq!(measured(&recording).broken().len(), 1);
        }
    }

    #[test]
    fn an_hsm_that_is_never_told_as_lost_has_nothing_to_recover_from() {
        let mut recording = lost_and_found();
        recording.sightings.truncate(1);
        let fault = &measured(&recording).faults[0];
        assert_eq!((fault.detected_after, fault.recovered_after), (None, None));
        assert_eq!(measured(&recording).broken(), Vec::<String>::new());
    }

    #[test]
    fn one_that_was_well_again_before_its_siblings_were_back_took_no_time() {
        let mut recording = lost_and_found();
        recording.sightings[2].at = at(18.0);
        recording.sightings[3].at = at(19.0);
        assert_eq!(measured(&recording).faults[0].recovered_after, Some(0.0));
    }

    #[test]
    fn bands_reach_from_each_sighting_to_the_next_and_end_with_the_day() {
        let mut recording = lost_and_found();
        recording.sightings.push(seen(28.0, None));
        recording.sightings.push(seen(31.0, Some(HsmHealth::Healthy)));
        let bands = &measured(&recording).health[0].bands;
        let told: Vec<_> = bands.iter().map(|band| (band.health.as_str(), band.from, band.until)).collect();
        assert_eq!(told[0], ("HEALTHY", 0.0, 11.5));
        assert_eq!(told[3..], [("HEALTHY", 22.0, 28.0), ("NOT TOLD", 28.0, 30.0)]);
    }

    #[test]
    fn latencies_are_told_for_before_during_and_after_by_when_calls_were_due() {
        let mut recording = lost_and_found();
        // One of these is due before the fault, and answered in it.
        recording.calls = vec![call(9.0, 9.1), call(9.9, 11.0), call(21.0, 21.5), call(23.0, 23.2)];
        let latency = measured(&recording).latency;
        let rounded = |latency: Latency| (latency.calls, latency.longest.round());
        assert_eq!([latency.before, latency.during, latency.after].map(rounded), [(2, 1100.0), (1, 500.0), (1, 200.0)]);
    }

    #[test]
    fn one_call_in_a_hundred_takes_longer_than_p99() {
        let calls: Vec<_> = (0..200).map(|number| call(0.0, f64::from(number + 1) / 1e3)).collect();
        let latency = latency(calls.iter());
        assert_eq!((latency.p50.round(), latency.p99.round(), latency.longest.round()), (101.0, 199.0, 200.0));
        assert_eq!(super::latency([].iter()), Latency::default());
    }

    #[test]
    fn refusals_are_counted_by_reason_and_what_was_answered_in_the_end_is_answered() {
        let mut recording = lost_and_found();
        recording.calls = vec![
            call(1.0, 1.1),
            refused(11.0, &["NO_NODE", "NO_NODE", "DRAINING"], true),
            refused(12.0, &["NO_NODE"], false),
            Call { operation: Operation::CreateKey, ..refused(13.0, &["OUTCOME_UNKNOWN"], false) },
        ];
        let report = measured(&recording);
        assert_eq!((report.calls.answered, report.calls.asked_again, report.calls.unanswered), (2, 1, 2));
        let told: Vec<_> = report.calls.refusals.iter().map(|told| (told.reason.as_str(), told.count)).collect();
        assert_eq!(told, [("DRAINING", 1), ("NO_NODE", 3), ("OUTCOME_UNKNOWN", 1)]);
        // A key that was not made breaks no promise, an encryption that was refused does.
        assert!(report.broken()[0].contains("1 of 3 were not"), "{:?}", report.broken());
        recording.calls.remove(2);
        assert_eq!(measured(&recording).broken(), Vec::<String>::new());
    }

    #[test]
    fn keys_that_are_lost_or_out_of_step_in_the_end_break_a_promise() {
        let (mut lost, mut behind) = (lost_and_found(), lost_and_found());
        lost.keys.working = 6;
        behind.drift.push((at(30.0), 1));
        assert_eq!(measured(&behind).keys.level_after, None);
        for recording in [lost, behind] {
            assert_eq!(measured(&recording).broken().len(), 1);
        }
    }

    #[test]
    fn the_timeline_has_what_was_answered_when_and_what_it_took_from_when_it_was_due() {
        let calls = [call(0.1, 0.2), call(0.3, 1.9), refused(1.1, &["NO_NODE"], false)];
        let bins = over_time(&calls, at(2.1));
        let told: Vec<_> = bins.iter().map(|bin| (bin.from, bin.answered, bin.refused)).collect();
        assert_eq!(told, [(0.0, 2.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (1.5, 2.0, 0.0), (2.0, 0.0, 2.0)]);
        assert_eq!(bins[0].p99.round(), 1600.0);
        assert!((longest_silence(&calls) - 1.7).abs() < 1e-9);
    }
}
