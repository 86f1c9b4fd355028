//! The journal: what was called and what it answered, a line a call, `<unix micros> <pid> <function> <0xckr>`.
//!
//! A call that ends its process or never comes back is written down before, with `crash`, `abort` or `block` in the answer's place.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cryptoki_sys::CK_RV;

use crate::Function;

/// A call, as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Since 1970.
    pub at: Duration,
    pub pid: u32,
    pub function: Function,
    pub outcome: Outcome,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Answered(CK_RV),
    Crashed,
    Aborted,
    Blocked,
}

impl Entry {
    pub(crate) fn now(function: Function, outcome: Outcome) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at, pid: std::process::id(), function, outcome }
    }

    /// One write, so that processes do not tear each other's lines. A journal that cannot be written is no reason to fail a call.
    pub(crate) fn append(&self, journal: &Path) {
        append(journal, &self.to_string());
    }
}

/// Adds a line to a file that several processes add to.
pub(crate) fn append(path: &Path, line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("faulty-pkcs11: {}: {error}", path.display());
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.at.as_micros(), self.pid, self.function, self.outcome)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(ckr) => write!(f, "{ckr:#x}"),
            Self::Crashed => f.write_str("crash"),
            Self::Aborted => f.write_str("abort"),
            Self::Blocked => f.write_str("block"),
        }
    }
}

impl FromStr for Entry {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<_> = line.split(' ').collect();
        let [at, pid, function, outcome] = words[..] else { return Err(()) };
        let outcome = match outcome {
            "crash" => Outcome::Crashed,
            "abort" => Outcome::Aborted,
            "block" => Outcome::Blocked,
            ckr => Outcome::Answered(crate::ckr::read(ckr).ok_or(())?),
        };
        let at = Duration::from_micros(at.parse().map_err(|_| ())?);
        Ok(Self { at, pid: pid.parse().map_err(|_| ())?, function: function.parse()?, outcome })
    }
}
