//! Quick and slow work: what may wait behind what, and how long it may run before it counts as stuck.

use std::time::Duration;

use super::v1::request::Verb;

/// How long a verb keeps its session, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// Uses a key, or asks something: others may wait behind it in a batch.
    Quick,
    /// Makes, copies, searches or destroys objects, or changes a PIN. Some HSMs take tens of seconds to make a key.
    Slow,
}

/// How long one call of the library may take before its worker counts as stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub quick: Duration,
    pub slow: Duration,
}

impl Pace {
    pub const fn of(verb: &Verb) -> Self {
        match verb {
            Verb::GenerateKey(_)
            | Verb::WrapKey(_)
            | Verb::UnwrapKey(_)
            | Verb::ProveKey(_)
            | Verb::DestroyKey(_)
            | Verb::ListObjects(_)
            | Verb::FindKeys(_)
            | Verb::MakeProbe(_)
            | Verb::DestroyProvenKey(_)
            | Verb::SweepUnfinished(_)
            | Verb::SetPin(_) => Self::Slow,
            Verb::Ping(_)
            | Verb::CheckToken(_)
            | Verb::Encrypt(_)
            | Verb::Decrypt(_)
            | Verb::GenerateDataKey(_)
            | Verb::GenerateRandom(_)
            // Refused by a pool, which is quick.
            | Verb::Open(_)
            | Verb::LogIn(_)
            | Verb::MakeKek(_)
            | Verb::OfferJoin(_)
            | Verb::SealKek(_)
            | Verb::AcceptKek(_)
            | Verb::GiveUser(_)
        | Verb::Summon(_) => Self::Quick,
        }
    }
}

impl Patience {
    pub const fn with(self, pace: Pace) -> Duration {
        match pace {
            Pace::Quick => self.quick,
            Pace::Slow => self.slow,
        }
    }

    pub fn longest(self) -> Duration {
        self.quick.max(self.slow)
    }
}
