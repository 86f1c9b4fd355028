//! What is done to a cluster, and in which order: a pure function of the seed, without end.
//!
//! Phases of two sorts take turns. In one, a single HSM at a time is in trouble, and everything is well again before the
//! next one is; callers must then notice nothing. In the other anything goes: several at once, and the daemon too.
//!
//! What keyway cannot survive is not done: keys are destroyed in one HSM at a time, and in another only once all is well.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::trouble::Trouble;
use crate::rig::Dice;

pub const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

/// By which rule callers' errors are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    OneAtATime,
    AnythingGoes,
}

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Stopped,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Enter(Phase),
    Begin(&'static str, Trouble),
    End(&'static str, Trouble),
    DaemonEnds(End),
    DaemonStarts,
    Wait(Duration),
    /// Waits until every HSM is healthy and level.
    Settle,
}

/// The steps that follow from a seed.
pub struct Schedule {
    dice: Dice,
    next: Phase,
    steps: VecDeque<Step>,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), next: Phase::OneAtATime, steps: VecDeque::new() }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.steps.is_empty() {
            self.steps.push_back(Step::Enter(self.next));
            self.next = match self.next {
                Phase::OneAtATime => {
                    one_at_a_time(&mut self.dice, &mut self.steps);
                    Phase::AnythingGoes
                }
                Phase::AnythingGoes => {
                    anything_goes(&mut self.dice, &mut self.steps);
                    Phase::OneAtATime
                }
            };
        }
        self.steps.pop_front()
    }
}

fn one_at_a_time(dice: &mut Dice, steps: &mut VecDeque<Step>) {
    for _ in 0..2 + dice.below(3) {
        let (hsm, trouble) = (dice.pick(&HSMS), Trouble::throw(dice));
        let longest = if trouble.is_slow_to_show() { 8_000 } else { 2_500 };
        steps.push_back(Step::Begin(hsm, trouble.clone()));
        steps.push_back(Step::Wait(dice.millis(200, longest)));
        if trouble.lasts() {
            steps.push_back(Step::End(hsm, trouble));
        }
        steps.push_back(Step::Settle);
    }
}

fn anything_goes(dice: &mut Dice, steps: &mut VecDeque<Step>) {
    let mut wild = Wild { dice, steps, troubled: [const { None }; HSMS.len()], destroyed: None };
    for _ in 0..6 + wild.dice.below(8) {
        match wild.dice.below(10) {
            0..=1 => wild.daemon_restarts(),
            2..=4 => wild.one_ends(),
            _ => wild.one_begins(Trouble::throw),
        }
        let pause = wild.dice.millis(0, 1_200);
        wild.steps.push_back(Step::Wait(pause));
    }
    wild.all_end();
    steps.push_back(Step::Settle);
}

/// A phase in which anything goes, as far as it is planned.
struct Wild<'a> {
    dice: &'a mut Dice,
    steps: &'a mut VecDeque<Step>,
    troubled: [Option<Trouble>; HSMS.len()],
    /// The HSM in which keys were destroyed.
    destroyed: Option<usize>,
}

impl Wild<'_> {
    /// An HSM that is in no lasting trouble gets into some.
    fn one_begins(&mut self, throw: fn(&mut Dice) -> Trouble) {
        let well: Vec<usize> = (0..HSMS.len()).filter(|index| self.troubled[*index].is_none()).collect();
        if well.is_empty() {
            return;
        }
        let (index, trouble) = (self.dice.pick(&well), throw(self.dice));
        if !self.may_befall(index, &trouble) {
            return;
        }
        if trouble.destroys() {
            self.destroyed = Some(index);
        }
        self.steps.push_back(Step::Begin(HSMS[index], trouble.clone()));
        if trouble.lasts() {
            self.troubled[index] = Some(trouble);
        }
    }

    fn may_befall(&self, index: usize, trouble: &Trouble) -> bool {
        let elsewhere = self.destroyed.is_some_and(|other| other != index);
        // One that never accepted a password is asked only by an operator's leave; where all refuse, so does the store.
        let refused = self.troubled.iter().flatten().any(Trouble::refuses_the_password);
        !(trouble.destroys() && elsewhere || trouble.refuses_the_password() && refused)
    }

    /// An operator acts when all else is quiet: the one login that he allows must not be cut off.
    fn one_ends(&mut self) {
        let index = self.dice.below(HSMS.len());
        if let Some(trouble) = self.troubled[index].take_if(|trouble| !trouble.wants_an_operator()) {
            self.steps.push_back(Step::End(HSMS[index], trouble));
        }
    }

    fn daemon_restarts(&mut self) {
        let end = self.dice.pick(&[End::Killed, End::Killed, End::Stopped]);
        self.steps.push_back(Step::DaemonEnds(end));
        if self.dice.one_in(3) {
            self.one_begins(Trouble::throw_behind_the_scenes);
        }
        let pause = self.dice.millis(0, 500);
        self.steps.push_back(Step::Wait(pause));
        self.steps.push_back(Step::DaemonStarts);
    }

    fn all_end(&mut self) {
        for (hsm, trouble) in HSMS.into_iter().zip(&mut self.troubled) {
            if let Some(trouble) = trouble.take() {
                self.steps.push_back(Step::End(hsm, trouble));
            }
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneAtATime => "one HSM at a time, and callers notice nothing",
            Self::AnythingGoes => "anything goes",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enter(phase) => write!(f, "---- {phase}"),
            Self::Begin(hsm, trouble) => write!(f, "{hsm}: {trouble}"),
            Self::End(hsm, trouble) => write!(f, "{hsm}: over: {trouble}"),
            Self::DaemonEnds(End::Killed) => f.write_str("daemon: kill -9"),
            Self::DaemonEnds(End::Stopped) => f.write_str("daemon: stopped in an orderly way"),
            Self::DaemonStarts => f.write_str("daemon: started"),
            Self::Wait(pause) => write!(f, "wait {pause:?}"),
            Self::Settle => f.write_str("wait until all is well"),
        }
    }
}

#[test]
fn one_seed_makes_one_schedule() {
    let steps = |seed| Schedule::new(seed).take(500).collect::<Vec<_>>();
    assert_eq!(steps(7), steps(7));
    assert_ne!(steps(7), steps(8));
}

#[test]
fn no_schedule_asks_for_what_cannot_be_survived() {
    for seed in 0..200 {
        let (mut troubled, mut destroyed, mut since_settled) = (Vec::new(), Vec::new(), 0);
        let (mut phase, mut alive) = (Phase::OneAtATime, true);
        for step in Schedule::new(seed).take(500) {
            match step {
                Step::Enter(entered) => phase = entered,
                Step::Begin(hsm, trouble) => {
                    assert!(troubled.iter().all(|(other, _)| *other != hsm), "seed {seed}: one trouble for one HSM");
                    if trouble.destroys() {
                        destroyed.push(hsm);
                    }
                    destroyed.dedup();
                    assert!(destroyed.len() <= 1, "seed {seed}: keys are destroyed in {destroyed:?}");
                    assert!(phase == Phase::AnythingGoes || since_settled == 0, "seed {seed}: {trouble:?}");
                    since_settled += 1;
                    if trouble.lasts() {
                        troubled.push((hsm, trouble));
                    }
                }
                Step::End(hsm, trouble) => {
                    let before = troubled.len();
                    troubled.retain(|known| *known != (hsm, trouble.clone()));
                    assert_eq!(troubled.len(), before - 1, "seed {seed}: it had begun");
                    assert!(alive, "seed {seed}: some endings need a daemon");
                }
                Step::DaemonEnds(_) => {
                    assert!(alive && phase == Phase::AnythingGoes, "seed {seed}");
                    alive = false;
                }
                Step::DaemonStarts => {
                    assert!(!alive, "seed {seed}");
                    alive = true;
                }
                Step::Wait(_) => {}
                Step::Settle => {
                    assert!(troubled.is_empty() && alive, "seed {seed}: {troubled:?}");
                    destroyed.clear();
                    since_settled = 0;
                }
            }
        }
    }
}
