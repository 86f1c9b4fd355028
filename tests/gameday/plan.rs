//! What a plan consists of: a cluster, what is done to it one thing after another, and what is promised meanwhile.

use super::stage::Stage;

/// A game day.
pub struct Plan {
    pub name: &'static str,
    pub title: &'static str,
    pub story: &'static str,
    pub nodes: u8,
    pub zones: u8,
    pub rotating: bool,
    pub callers: Callers,
    pub acts: Vec<Act>,
    /// Beside that every acknowledged key works, and is where it should be in the end: those are promised always.
    pub promises: Vec<Promise>,
    /// What is not promised, where somebody might think so.
    pub caveat: &'static str,
}

/// What callers do when they are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    GiveUp,
    /// Ask again when they are told to, or their connection ended.
    AskAgain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Repeatable work is answered, each call by its deadline.
    Unharmed,
    /// An HSM is HEALTHY soon after it is back.
    Back,
}

/// What is done next.
pub enum Act {
    /// Something befalls each of these HSMs.
    Strike { what: &'static str, hsms: Vec<&'static str>, how: fn(&mut Stage, &str) },
    /// And ends.
    Return { what: &'static str, hsms: Vec<&'static str>, how: fn(&mut Stage, &str) },
    /// Something that takes its time and ends by itself.
    Incident { what: &'static str, how: fn(&mut Stage) },
    /// Time passes.
    Hold,
    /// Until every HSM is HEALTHY.
    UntilWell,
}

impl Plan {
    /// Three HSMs in three zones.
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            story: "",
            nodes: 3,
            zones: 3,
            rotating: false,
            callers: Callers::GiveUp,
            acts: Vec::new(),
            promises: Vec::new(),
            caveat: "",
        }
    }

    pub fn story(self, story: &'static str) -> Self {
        Self { story, ..self }
    }

    /// Six in three.
    pub fn two_in_each_zone(self) -> Self {
        Self { nodes: 6, ..self }
    }

    pub fn rotating(self) -> Self {
        Self { rotating: true, ..self }
    }

    pub fn asked_again(self) -> Self {
        Self { callers: Callers::AskAgain, ..self }
    }

    pub fn promises(self, promises: &[Promise]) -> Self {
        Self { promises: promises.to_vec(), ..self }
    }

    pub fn caveat(self, caveat: &'static str) -> Self {
        Self { caveat, ..self }
    }

    pub fn strike(self, what: &'static str, hsms: &[&'static str], how: fn(&mut Stage, &str)) -> Self {
        self.and(Act::Strike { what, hsms: hsms.to_vec(), how })
    }

    pub fn back(self, what: &'static str, hsms: &[&'static str], how: fn(&mut Stage, &str)) -> Self {
        self.and(Act::Return { what, hsms: hsms.to_vec(), how })
    }

    pub fn incident(self, what: &'static str, how: fn(&mut Stage)) -> Self {
        self.and(Act::Incident { what, how })
    }

    pub fn hold(self) -> Self {
        self.and(Act::Hold)
    }

    pub fn until_well(self) -> Self {
        self.and(Act::UntilWell)
    }

    fn and(mut self, act: Act) -> Self {
        self.acts.push(act);
        self
    }
}
