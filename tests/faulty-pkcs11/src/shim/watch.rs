//! The control file, looked at on every call: which rules stand, and which of them this call meets.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::faults::claim_of;
use crate::rule::{Effect, Moment, When};
use crate::{Function, Rule, parse};

/// Names the control file.
const CONTROL: &str = "FAULTY_PKCS11_CONTROL";
/// Else it lies beside the file that this names.
const SOFTHSM2: &str = "SOFTHSM2_CONF";

/// The control file, as it was last read.
pub(super) struct Watch {
    control: Option<PathBuf>,
    stamp: Option<Stamp>,
    armed: Arc<Armed>,
    seen: Option<Counters>,
}

/// What changes when a file is replaced.
type Stamp = (u64, u64, i64, i64);

/// How far `epoch`, `logout` and `reassign` have been counted.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Counters {
    epoch: u64,
    logout: u64,
    reassign: u64,
}

/// What has just happened to the module.
#[derive(Default, Clone, Copy)]
pub(super) struct Events {
    pub(super) epoch: bool,
    pub(super) logout: bool,
    pub(super) reassign: bool,
}

/// The rules that stand.
#[derive(Default)]
pub(super) struct Armed {
    control: Option<PathBuf>,
    rules: Vec<(Rule, Arc<AtomicU64>)>,
    /// The file holds what is no rule.
    pub(super) unreadable: bool,
}

/// An effect that this call meets. The number is how many calls its rule has met, for what is random.
pub(super) struct Fired {
    pub(super) effect: Effect,
    pub(super) moment: Moment,
    pub(super) marker: Option<PathBuf>,
    pub(super) number: u64,
}

impl Watch {
    pub(super) fn new() -> Self {
        let named = std::env::var_os(CONTROL).map(PathBuf::from);
        let beside = || std::env::var_os(SOFTHSM2).map(|file| PathBuf::from(file).with_file_name("faults"));
        let control = named.or_else(beside);
        let armed = Arc::new(Armed { control: control.clone(), ..Armed::default() });
        Self { control, stamp: None, armed, seen: None }
    }

    /// Reads the file if it is another than before. What was counted before this process came is no event.
    pub(super) fn look(&mut self) -> (Arc<Armed>, Events) {
        let stamp = self.control.as_deref().and_then(stamp);
        if stamp != self.stamp {
            self.stamp = stamp;
            self.armed = Arc::new(self.read());
        }
        let now = self.armed.counters();
        let seen = self.seen.unwrap_or(now);
        let events = Events {
            epoch: now.epoch > seen.epoch,
            logout: now.logout > seen.logout,
            reassign: now.reassign > seen.reassign,
        };
        self.seen = Some(Counters {
            epoch: now.epoch.max(seen.epoch),
            logout: now.logout.max(seen.logout),
            reassign: now.reassign.max(seen.reassign),
        });
        (self.armed.clone(), events)
    }

    fn read(&self) -> Armed {
        let Some(control) = &self.control else { return Armed::default() };
        let text = match std::fs::read_to_string(control) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return self.unreadable(&error.to_string()),
        };
        match parse::rules(&text) {
            Ok(rules) => self.arm(rules),
            Err(bad) => self.unreadable(&bad.to_string()),
        }
    }

    fn unreadable(&self, why: &str) -> Armed {
        let control = self.control.clone();
        eprintln!("faulty-pkcs11: every call fails: {}: {why}", control.as_deref().unwrap_or(Path::new("")).display());
        Armed { control, unreadable: true, rules: Vec::new() }
    }

    /// A rule that stood before goes on counting.
    fn arm(&self, rules: Vec<Rule>) -> Armed {
        let mut before: Vec<_> = self.armed.rules.iter().collect();
        let with_count = |rule: Rule| {
            let known = before.iter().position(|(former, _)| *former == rule);
            let count = known.map(|at| before.swap_remove(at).1.clone());
            (rule, count.unwrap_or_default())
        };
        let rules = rules.into_iter().map(with_count).collect();
        Armed { control: self.control.clone(), rules, unreadable: false }
    }
}

fn stamp(control: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(control).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

impl Armed {
    pub(super) fn control(&self) -> Option<&Path> {
        self.control.as_deref()
    }

    /// What a call of this function meets. Each matching rule counts the call, whatever the others do.
    pub(super) fn fired(&self, function: Function) -> Vec<Fired> {
        self.fire(|effect| effect.on().is_some_and(|on| on.matches(function)))
    }

    /// Whether a search is to go wrong.
    pub(super) fn finds_wrong(&self) -> bool {
        !self.fire(|effect| *effect == Effect::FindWrong).is_empty()
    }

    fn fire(&self, meets: impl Fn(&Effect) -> bool) -> Vec<Fired> {
        let met = self.rules.iter().filter(|(rule, _)| meets(&rule.effect) && self.holds(rule));
        let fires = met.filter_map(|(rule, count)| {
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            self.chosen(rule, number).then(|| Fired {
                effect: rule.effect.clone(),
                moment: rule.moment,
                marker: self.marker(rule),
                number,
            })
        });
        fires.collect()
    }

    fn chosen(&self, rule: &Rule, number: u64) -> bool {
        match rule.when {
            When::Always => true,
            When::Nth(nth) => number == nth,
            When::Every(nth) => number.is_multiple_of(nth),
            When::First(count) => number <= count,
            When::Chance { of_one, seed } => part(seed ^ number) < of_one,
            When::Once => self.claim(rule),
        }
    }

    /// Of all processes, the one that makes the file.
    fn claim(&self, rule: &Rule) -> bool {
        let Some(control) = &self.control else { return false };
        let line = rule.to_string();
        let name = line.bytes().fold(0, |hash, byte| mixed(hash ^ u64::from(byte)));
        std::fs::File::create_new(claim_of(control, &format!("{name:016x}"))).is_ok()
    }

    fn marker(&self, rule: &Rule) -> Option<PathBuf> {
        Some(self.control.as_ref()?.with_file_name(rule.marker.as_ref()?))
    }

    fn holds(&self, rule: &Rule) -> bool {
        self.marker(rule).is_none_or(|marker| marker.exists())
    }

    fn standing(&self) -> impl Iterator<Item = &Effect> {
        self.rules.iter().filter(|(rule, _)| self.holds(rule)).map(|(rule, _)| &rule.effect)
    }

    /// How much greater the slots' numbers are than the real module's.
    pub(super) fn slot_offset(&self) -> u64 {
        self.standing()
            .find_map(|effect| if let Effect::SlotOffset(by) = effect { Some(*by) } else { None })
            .unwrap_or(0)
    }

    pub(super) fn idle(&self) -> Option<Duration> {
        self.standing().find_map(|effect| if let Effect::Idle(limit) = effect { Some(*limit) } else { None })
    }

    pub(super) fn max_sessions(&self) -> Option<(usize, cryptoki_sys::CK_RV)> {
        let most =
            |effect: &Effect| if let Effect::MaxSessions { most, ckr } = effect { Some((*most, *ckr)) } else { None };
        self.standing().find_map(most)
    }

    pub(super) fn pin_lock(&self) -> Option<usize> {
        self.standing().find_map(|effect| if let Effect::PinLock(most) = effect { Some(*most) } else { None })
    }

    pub(super) fn makes_gcm_ivs(&self) -> bool {
        self.standing().any(|effect| *effect == Effect::GcmIv)
    }

    pub(super) fn serial(&self) -> Option<&str> {
        self.standing()
            .find_map(|effect| if let Effect::Serial(serial) = effect { Some(serial.as_str()) } else { None })
    }

    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for effect in self.standing() {
            let (place, number) = match effect {
                Effect::Epoch(number) => (&mut counters.epoch, number),
                Effect::Logout(number) => (&mut counters.logout, number),
                Effect::Reassign(number) => (&mut counters.reassign, number),
                _ => continue,
            };
            *place = *number.max(place);
        }
        counters
    }
}

/// From 0 up to 1, by the number alone.
pub(super) fn part(number: u64) -> f64 {
    (mixed(number) >> 11) as f64 / (1_u64 << 53) as f64
}

/// SplitMix64: neighbours become strangers.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
