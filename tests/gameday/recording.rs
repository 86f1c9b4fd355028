//! What happened on a game day. Times count from its beginning.

use std::time::Duration;

use crate::rig::pb::HsmHealth;

#[derive(Debug, Clone, Default)]
pub struct Recording {
    pub length: Duration,
    /// By HSM: in which zone it is.
    pub hsms: Vec<(String, String)>,
    pub calls: Vec<Call>,
    pub sightings: Vec<Sighting>,
    /// How many entries the list of drift had, and when.
    pub drift: Vec<(Duration, usize)>,
    pub events: Vec<Event>,
    pub keys: Kept,
    pub ciphertexts: Kept,
}

/// What callers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Encrypt,
    Decrypt,
    GenerateDataKey,
    CreateKey,
}

/// A call, with what it was told until it was answered or given up.
#[derive(Debug, Clone)]
pub struct Call {
    pub operation: Operation,
    pub due: Duration,
    pub ended: Duration,
    /// The reason of each refusal.
    pub refusals: Vec<String>,
    pub answered: bool,
}

/// From now on an HSM is told like this; `None`: nobody tells.
#[derive(Debug, Clone)]
pub struct Sighting {
    pub at: Duration,
    pub hsm: String,
    pub health: Option<HsmHealth>,
}

#[derive(Debug, Clone)]
pub enum Event {
    Struck {
        at: Duration,
        what: &'static str,
        hsms: Vec<&'static str>,
    },
    Returned {
        at: Duration,
        what: &'static str,
        hsms: Vec<&'static str>,
    },
    Incident {
        from: Duration,
        until: Duration,
        what: &'static str,
    },
    /// Every HSM is HEALTHY again.
    Well {
        at: Duration,
    },
}

/// What was acknowledged, and how much of it still worked in the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    pub acknowledged: usize,
    pub working: usize,
}

impl Event {
    pub fn begins(&self) -> Duration {
        match self {
            Self::Struck { at, .. } | Self::Returned { at, .. } | Self::Well { at } => *at,
            Self::Incident { from, .. } => *from,
        }
    }

    pub fn ends(&self) -> Duration {
        match self {
            Self::Struck { at, .. } | Self::Returned { at, .. } | Self::Well { at } => *at,
            Self::Incident { until, .. } => *until,
        }
    }
}

impl Operation {
    /// Whether doing it twice does no harm, so that it moves to another HSM when one fails.
    pub fn is_repeatable(self) -> bool {
        match self {
            Self::Encrypt | Self::Decrypt | Self::GenerateDataKey => true,
            Self::CreateKey => false,
        }
    }
}
