//! A test's handle on one shim: writes its control file, and reads its journal.
//!
//! Everything lies in files, so that a handle can be made again at any time and none need be kept.

use std::path::{Path, PathBuf};

use crate::rule::Effect;
use crate::{Entry, Function, Rule, parse};

/// The faults of whatever processes have this control file.
#[derive(Debug, Clone)]
pub struct Faults {
    control: PathBuf,
}

impl Faults {
    /// Nothing is written yet. The file may be named to a shim by `FAULTY_PKCS11_CONTROL`.
    pub fn at(control: impl Into<PathBuf>) -> Self {
        Self { control: control.into() }
    }

    /// The control file that a shim finds by itself: `faults` beside the file that `SOFTHSM2_CONF` names.
    pub fn beside(softhsm2_conf: &Path) -> Self {
        Self::at(softhsm2_conf.with_file_name("faults"))
    }

    /// These rules from now on, and no others.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        self.forget_claims();
        let counters = self.rules().into_iter().filter(|rule| rule.effect.is_counter());
        self.write(counters.chain(rules).collect());
    }

    /// One rule more.
    pub fn add(&self, rule: Rule) {
        self.write(self.rules().into_iter().chain([rule]).collect());
    }

    /// The module does what the real one does.
    pub fn clear(&self) {
        self.set([]);
    }

    /// Every session that is open now is gone, and with it the login.
    pub fn expire_sessions(&self) {
        self.raise(&[Effect::Epoch]);
    }

    /// Nobody is logged in any more. Sessions stay.
    pub fn lose_login(&self) {
        self.raise(&[Effect::Logout]);
    }

    /// The objects' handles are dealt out anew: a handle given before names another object.
    pub fn reassign_handles(&self) {
        self.raise(&[Effect::Reassign]);
    }

    /// Sessions and login are gone, and the handles given before name other objects.
    pub fn reboot(&self) {
        self.raise(&[Effect::Epoch, Effect::Reassign]);
    }

    /// Puts the file there that rules `during(name)` wait for.
    pub fn mark(&self, name: &str) {
        std::fs::write(self.marker(name), b"").expect("the control file's directory can be written");
    }

    /// Takes it away.
    pub fn unmark(&self, name: &str) {
        let _ = std::fs::remove_file(self.marker(name));
    }

    /// Users that `pin_lock` has locked have all their attempts again.
    pub fn unlock_pins(&self) {
        let _ = std::fs::remove_file(pins_of(&self.control));
    }

    /// Every call that was written down, in the order in which they ended.
    pub fn journal(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(journal_of(&self.control)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// How many calls of a function were written down.
    pub fn count(&self, function: Function) -> usize {
        self.journal().iter().filter(|entry| entry.function == function).count()
    }

    pub fn forget_journal(&self) {
        let _ = std::fs::remove_file(journal_of(&self.control));
    }

    /// Rules that happen `once` may happen again.
    fn forget_claims(&self) {
        let claims = claim_of(&self.control, "");
        let directory = self.control.parent().map(std::fs::read_dir);
        for file in directory.into_iter().flatten().flatten().flatten() {
            let path = file.path();
            if path.as_os_str().as_encoded_bytes().starts_with(claims.as_os_str().as_encoded_bytes()) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.control.with_file_name(name)
    }

    fn rules(&self) -> Vec<Rule> {
        let text = std::fs::read_to_string(&self.control).unwrap_or_default();
        parse::rules(&text).expect("the control file can be read")
    }

    /// Counts these on by one. The rest stays.
    fn raise(&self, counters: &[fn(u64) -> Effect]) {
        let mut rules = self.rules();
        for counter in counters {
            let kind = std::mem::discriminant(&counter(0));
            let alike = |rule: &&mut Rule| std::mem::discriminant(&rule.effect) == kind;
            match rules.iter_mut().find(alike).map(|rule| &mut rule.effect) {
                Some(Effect::Epoch(number) | Effect::Logout(number) | Effect::Reassign(number)) => *number += 1,
                _ => rules.push(Rule::new(counter(1))),
            }
        }
        self.write(rules);
    }

    /// Whole or not at all: a shim may read at any moment.
    fn write(&self, rules: Vec<Rule>) {
        let text: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
        assert_eq!(parse::rules(&text), Ok(rules), "the rules go together");
        let fresh = self.control.with_file_name(format!("faults.{}.fresh", fresh_number()));
        std::fs::write(&fresh, text).expect("the control file's directory can be written");
        std::fs::rename(&fresh, &self.control).expect("the control file can be replaced");
    }
}

fn fresh_number() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn journal_of(control: &Path) -> PathBuf {
    with_ending(control, "journal")
}

/// What `pin_lock` keeps.
pub(crate) fn pins_of(control: &Path) -> PathBuf {
    with_ending(control, "pins")
}

/// What a process makes that does what happens `once`.
pub(crate) fn claim_of(control: &Path, rule: &str) -> PathBuf {
    with_ending(control, &format!("once.{rule}"))
}

fn with_ending(control: &Path, ending: &str) -> PathBuf {
    let mut name = control.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}
