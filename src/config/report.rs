//! What is noted while a configuration is read: problems, the keys there are, and the keys that nobody asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::Value;

use super::problem::{KeyPath, Origin, Problem, Problems};
use super::value::Written;

/// What is noted while a whole configuration is read.
pub(super) struct Report {
    file: PathBuf,
    /// Where relative paths start.
    base: PathBuf,
    problems: Vec<Problem>,
    /// Every key that was asked for, with `<placeholder>` for each id.
    known: BTreeSet<String>,
    unknown: Vec<Unknown>,
}

/// A key that nobody asked for, in a section that knows its `siblings`.
pub(super) struct Unknown {
    pub(super) origin: Origin,
    pub(super) key: KeyPath,
    pub(super) name: String,
    pub(super) siblings: BTreeSet<&'static str>,
}

impl Report {
    pub(super) fn new(file: &Path, base: PathBuf) -> Self {
        let file = file.to_owned();
        Self { file, base, problems: Vec::new(), known: BTreeSet::new(), unknown: Vec::new() }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn note(&mut self, origin: Origin, key: Option<KeyPath>, complaint: impl Into<String>) {
        self.problems.push(Problem { origin, key, complaint: complaint.into() });
    }

    /// What was read, when nothing was wrong with it.
    pub(super) fn conclude<T>(mut self, outcome: Option<T>) -> Result<T, Problems> {
        for unknown in std::mem::take(&mut self.unknown) {
            let complaint = match self.suggestion(&unknown) {
                Some(likely) => format!("unknown key; did you mean {likely}?"),
                None => "unknown key; remove it".to_owned(),
            };
            self.note(unknown.origin, Some(unknown.key), complaint);
        }
        match outcome {
            Some(outcome) if self.problems.is_empty() => Ok(outcome),
            _ => Err(Problems::new(self.problems)),
        }
    }

    /// Remembers that there is such a key.
    pub(super) fn knows(&mut self, pattern: String) {
        self.known.insert(pattern);
    }

    /// Notes a key that its section did not ask for.
    pub(super) fn note_unknown(&mut self, unknown: Unknown) {
        self.unknown.push(unknown);
    }

    /// Every key there is, once a configuration that uses all of them was read.
    #[cfg(test)]
    pub(super) fn known(&self) -> &BTreeSet<String> {
        &self.known
    }

    /// A sibling of nearly this name, or else the key of exactly this name in another section.
    fn suggestion(&self, unknown: &Unknown) -> Option<String> {
        let distance = |sibling: &str| strsim::osa_distance(&unknown.name, sibling);
        let nearest = unknown.siblings.iter().min_by_key(|sibling| distance(sibling));
        let near = nearest.filter(|sibling| distance(sibling) <= (sibling.len() / 3).max(1));
        let elsewhere = || self.known.iter().find(|key| key.rsplit('.').next() == Some(&unknown.name)).cloned();
        near.map(ToString::to_string).or_else(elsewhere)
    }

    pub(super) fn origin(&self, value: &Value) -> Origin {
        match value.origin() {
            Some(variable) => Origin::Variable(variable.to_owned()),
            None => Origin::File(self.file.clone()),
        }
    }

    /// Puts a value before a reader.
    pub(super) fn written<'a>(&'a self, value: &'a Value) -> Written<'a> {
        Written { value, base: &self.base }
    }
}
