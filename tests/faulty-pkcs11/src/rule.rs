//! A rule: what goes wrong, in which calls, and when. `Display` is the line of a control file that says so.

use std::fmt;
use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::{On, ckr};

/// One line of a control file. The constructors say what happens; the methods say in which of the calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub(crate) effect: Effect,
    pub(crate) moment: Moment,
    pub(crate) when: When,
    /// The rule stands only while this file is there.
    pub(crate) marker: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    // In calls.
    Fail { on: On, ckr: CK_RV },
    Delay { on: On, by: Duration, jitter: Duration },
    Block { on: On },
    Crash { on: On },
    Abort { on: On },
    Leak { on: On, bytes: usize },
    Journal { on: On },
    FindWrong,
    // As long as they stand.
    SlotOffset(u64),
    Idle(Duration),
    MaxSessions { most: usize, ckr: CK_RV },
    PinLock(usize),
    GcmIv,
    Serial(String),
    // Once, each time that the number grows.
    Epoch(u64),
    Logout(u64),
    Reassign(u64),
}

/// Whether the real function is called first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

/// Which of the matching calls, counted in each process from when the rule came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum When {
    Always,
    Nth(u64),
    Every(u64),
    First(u64),
    Chance {
        of_one: f64,
        seed: u64,
    },
    /// A single call of all processes together.
    Once,
}

impl Rule {
    /// The call answers `ckr`, and the real function is not called.
    pub fn fail(on: impl Into<On>, ckr: CK_RV) -> Self {
        Self::new(Effect::Fail { on: on.into(), ckr })
    }

    pub fn delay(on: impl Into<On>, by: Duration) -> Self {
        Self::new(Effect::Delay { on: on.into(), by, jitter: Duration::ZERO })
    }

    /// By `by`, and up to `jitter` more.
    pub fn delay_up_to(on: impl Into<On>, by: Duration, jitter: Duration) -> Self {
        Self::new(Effect::Delay { on: on.into(), by, jitter })
    }

    /// The call does not come back: for ever, or as long as its marker is there.
    pub fn block(on: impl Into<On>) -> Self {
        Self::new(Effect::Block { on: on.into() })
    }

    /// The process dies of SIGSEGV.
    pub fn crash(on: impl Into<On>) -> Self {
        Self::new(Effect::Crash { on: on.into() })
    }

    /// The process dies of SIGABRT.
    pub fn abort(on: impl Into<On>) -> Self {
        Self::new(Effect::Abort { on: on.into() })
    }

    /// The process grows by so much at each call.
    pub fn leak(on: impl Into<On>, bytes: usize) -> Self {
        Self::new(Effect::Leak { on: on.into(), bytes })
    }

    /// The calls are written to the journal, as those of the rare functions always are.
    pub fn journal(on: impl Into<On>) -> Self {
        Self::new(Effect::Journal { on: on.into() })
    }

    /// A search for a key by its id or label finds another in its place.
    pub fn find_wrong() -> Self {
        Self::new(Effect::FindWrong)
    }

    /// Slots have other numbers: greater by so much. The old ones are invalid.
    pub fn slot_offset(offset: u64) -> Self {
        Self::new(Effect::SlotOffset(offset))
    }

    /// A session that is not used for so long is gone.
    pub fn idle(limit: Duration) -> Self {
        Self::new(Effect::Idle(limit))
    }

    /// No more sessions than `most` in a process: opening another answers `ckr`.
    pub fn max_sessions(most: usize, ckr: CK_RV) -> Self {
        Self::new(Effect::MaxSessions { most, ckr })
    }

    /// After so many wrong PINs the user is locked.
    pub fn pin_lock(most: usize) -> Self {
        Self::new(Effect::PinLock(most))
    }

    /// The module makes AES-GCM's IVs itself, into a buffer that must be zero.
    pub fn gcm_iv() -> Self {
        Self::new(Effect::GcmIv)
    }

    /// Tokens tell this serial number, of at most 16 characters.
    pub fn serial(serial: &str) -> Self {
        Self::new(Effect::Serial(serial.to_owned()))
    }

    pub(crate) fn new(effect: Effect) -> Self {
        Self { effect, moment: Moment::Before, when: When::Always, marker: None }
    }

    /// It happens when the real function has been executed: the reply is lost, or late.
    pub fn after(mut self) -> Self {
        self.moment = Moment::After;
        self
    }

    /// In the `nth` call only, the first being 1.
    pub fn nth(self, nth: u64) -> Self {
        self.when(When::Nth(nth))
    }

    /// In every `nth` call.
    pub fn every(self, nth: u64) -> Self {
        self.when(When::Every(nth))
    }

    /// In the first `count` calls.
    pub fn first(self, count: u64) -> Self {
        self.when(When::First(count))
    }

    /// In a part of the calls, 0.0 to 1.0. One seed chooses the same calls each time.
    pub fn chance(self, of_one: f64, seed: u64) -> Self {
        self.when(When::Chance { of_one, seed })
    }

    /// In one call, whichever process makes it first. `Faults::set` arms it again.
    pub fn once(self) -> Self {
        self.when(When::Once)
    }

    /// Only while a file of this name lies beside the control file.
    pub fn during(mut self, marker: &str) -> Self {
        self.marker = Some(marker.to_owned());
        self
    }

    fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }
}

impl Effect {
    /// The functions whose calls it is about.
    pub(crate) fn on(&self) -> Option<&On> {
        match self {
            Self::Fail { on, .. } | Self::Delay { on, .. } | Self::Leak { on, .. } => Some(on),
            Self::Block { on } | Self::Crash { on } | Self::Abort { on } | Self::Journal { on } => Some(on),
            Self::FindWrong | Self::SlotOffset(_) | Self::Idle(_) | Self::MaxSessions { .. } => None,
            Self::PinLock(_) | Self::GcmIv | Self::Serial(_) => None,
            Self::Epoch(_) | Self::Logout(_) | Self::Reassign(_) => None,
        }
    }

    pub(crate) fn is_counter(&self) -> bool {
        matches!(self, Self::Epoch(_) | Self::Logout(_) | Self::Reassign(_))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.effect)?;
        match self.moment {
            Moment::Before => {}
            Moment::After => f.write_str(" after")?,
        }
        match self.when {
            When::Always => {}
            When::Nth(nth) => write!(f, " nth={nth}")?,
            When::Every(nth) => write!(f, " every={nth}")?,
            When::First(count) => write!(f, " first={count}")?,
            When::Chance { of_one, seed } => write!(f, " chance={of_one} seed={seed}")?,
            When::Once => f.write_str(" once")?,
        }
        self.marker.as_ref().map_or(Ok(()), |marker| write!(f, " while={marker}"))
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail { on, ckr } => write!(f, "fail {on} {}", ckr::spell(*ckr)),
            Self::Delay { on, by, jitter } if jitter.is_zero() => write!(f, "delay {on} {}", spell(*by)),
            Self::Delay { on, by, jitter } => write!(f, "delay {on} {} jitter={}", spell(*by), spell(*jitter)),
            Self::Block { on } => write!(f, "block {on}"),
            Self::Crash { on } => write!(f, "crash {on}"),
            Self::Abort { on } => write!(f, "abort {on}"),
            Self::Leak { on, bytes } => write!(f, "leak {on} {bytes}"),
            Self::Journal { on } => write!(f, "journal {on}"),
            Self::FindWrong => f.write_str("find_wrong"),
            Self::SlotOffset(offset) => write!(f, "slot_offset {offset}"),
            Self::Idle(limit) => write!(f, "idle {}", spell(*limit)),
            Self::MaxSessions { most, ckr } => write!(f, "max_sessions {most} {}", ckr::spell(*ckr)),
            Self::PinLock(most) => write!(f, "pin_lock {most}"),
            Self::GcmIv => f.write_str("gcm_iv"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Epoch(number) => write!(f, "epoch {number}"),
            Self::Logout(number) => write!(f, "logout {number}"),
            Self::Reassign(number) => write!(f, "reassign {number}"),
        }
    }
}

/// In the greatest unit that loses nothing a control file can say.
fn spell(duration: Duration) -> String {
    let micros = duration.as_micros();
    match (micros % 1_000_000, micros % 1000) {
        (0, _) => format!("{}s", micros / 1_000_000),
        (_, 0) => format!("{}ms", micros / 1000),
        _ => format!("{micros}us"),
    }
}
