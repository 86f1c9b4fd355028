//! A section of the tree, read key by key; whatever is wrong is noted and reading goes on.
//!
//! This takes serde's place, which stops at the first value that it cannot use. A `None` from
//! any of these functions says that a problem has been noted, never that a key is absent. Keys
//! that nobody asked for are problems when their section ends.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use config::{Value, ValueKind};

use crate::model::Invalid;

use super::problem::{KeyPath, Origin};
use super::report::{Report, Unknown};
use super::source::{Table, is_meant, shown};
use super::value::Written;

/// One section while it is read.
pub(super) struct Section<'r> {
    report: &'r mut Report,
    origin: Origin,
    path: KeyPath,
    /// The path with `<placeholder>` for each id.
    pattern: String,
    table: Table,
    asked: BTreeSet<&'static str>,
}

/// Reads the tree from its root.
pub(super) fn read<T>(report: &mut Report, root: Table, read: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Option<T> {
    let origin = Origin::File(report.file().to_owned());
    Section::read(report, origin, KeyPath::default(), String::new(), root, read)
}

impl<'r> Section<'r> {
    fn read<T>(
        report: &'r mut Report,
        origin: Origin,
        path: KeyPath,
        pattern: String,
        table: Table,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut section = Section { report, origin, path, pattern, table, asked: BTreeSet::new() };
        let outcome = read(&mut section);
        section.end();
        outcome
    }

    /// A key that must be there; `fix` tells what to write when it is not.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Written<'_>) -> Result<T, String>,
        fix: &str,
    ) -> Option<T> {
        let found = self.optional(name, read)?;
        if found.is_none() {
            self.complain_of(name, format!("is missing: {fix}"));
        }
        found
    }

    /// A key that may be left out, and what holds then.
    pub(super) fn defaulted<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(&Written<'_>) -> Result<T, String>,
    ) -> Option<T> {
        Some(self.optional(name, read)?.unwrap_or(default))
    }

    /// A key that may be left out: `Some(None)`.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Written<'_>) -> Result<T, String>,
    ) -> Option<Option<T>> {
        self.report.knows(self.pattern_of(name));
        let Some(value) = self.take(name) else {
            return Some(None);
        };
        match read(&self.report.written(&value)) {
            Ok(meaning) => Some(Some(meaning)),
            Err(complaint) => {
                self.note(&value, self.path.child(name), complaint);
                None
            }
        }
    }

    /// Whether anybody wrote this key or section.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// A section within this one; one that nobody wrote is read as an empty one.
    pub(super) fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let (origin, table) = self.take_table(name)?;
        let (path, pattern) = (self.path.child(name), self.pattern_of(name));
        Section::read(self.report, origin, path, pattern, table, read)
    }

    /// A section of sections, each named by an id.
    pub(super) fn sections<K, T>(
        &mut self,
        name: &'static str,
        placeholder: &str,
        mut read: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Option<BTreeMap<K, T>>
    where
        K: FromStr<Err = Invalid> + Ord,
    {
        let (_, table) = self.take_table(name)?;
        let (path, pattern) = (self.path.child(name), format!("{}.{placeholder}", self.pattern_of(name)));
        let mut found = Some(BTreeMap::new());
        for (key, value) in sorted(table) {
            let written = id_spelling(key, &value);
            let path = path.child(&written);
            let id = written.parse::<K>().map_err(|rule| format!("{rule}, not {written:?}"));
            let id = id.map_err(|complaint| self.note(&value, path.clone(), complaint)).ok();
            let section = self.table_of(value, &path).and_then(|(origin, table)| {
                Section::read(self.report, origin, path, pattern.clone(), table, &mut read)
            });
            match (found.as_mut(), id, section) {
                (Some(found), Some(id), Some(section)) => drop(found.insert(id, section)),
                _ => found = None,
            }
        }
        found
    }

    /// A section of texts whose keys are free, each spelt as it was written; `rule` says what is wrong with one.
    pub(super) fn texts(
        &mut self,
        name: &'static str,
        placeholder: &str,
        rule: impl Fn(&str, &Written<'_>) -> Result<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        let (_, table) = self.take_table(name)?;
        let (path, pattern) = (self.path.child(name), format!("{}.{placeholder}", self.pattern_of(name)));
        self.report.knows(pattern);
        let mut found = Some(BTreeMap::new());
        for (key, value) in sorted(table) {
            match rule(&key, &self.report.written(&value)) {
                Ok(text) => {
                    if let Some(found) = &mut found {
                        found.insert(key, text);
                    }
                }
                Err(complaint) => {
                    self.note(&value, path.child(&key), complaint);
                    found = None;
                }
            }
        }
        found
    }

    /// Notes what is wrong with the section as a whole.
    pub(super) fn complain(&mut self, complaint: impl Into<String>) {
        self.report.note(self.origin.clone(), Some(self.path.clone()), complaint);
    }

    /// Notes what is wrong with a key that is not there.
    pub(super) fn complain_of(&mut self, name: &str, complaint: impl Into<String>) {
        self.report.note(self.origin.clone(), Some(self.path.child(name)), complaint);
    }

    /// A key that has been complained of, whatever stands there.
    pub(super) fn passes_over(&mut self, name: &'static str) {
        drop(self.take(name));
    }

    pub(super) fn path(&self) -> &KeyPath {
        &self.path
    }

    /// What is left was never asked for.
    fn end(self) {
        for (key, value) in sorted(self.table) {
            let name = shown(&key, &value);
            for (origin, key) in writers(self.report, &value, self.path.child(&name)) {
                let (name, siblings) = (name.clone(), self.asked.clone());
                self.report.note_unknown(Unknown { origin, key, name, siblings });
            }
        }
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.insert(name);
        let key = self.find(name)?.to_owned();
        self.table.remove(&key)
    }

    /// How the table spells this key. Only variables may spell it otherwise than it is spelt here.
    fn find(&self, name: &str) -> Option<&str> {
        if let Some((key, _)) = self.table.get_key_value(name) {
            return Some(key);
        }
        let mut variables = self.table.iter().filter(|(_, value)| value.origin().is_some());
        variables.find(|(key, _)| is_meant(name, key)).map(|(key, _)| key.as_str())
    }

    fn take_table(&mut self, name: &'static str) -> Option<(Origin, Table)> {
        match self.take(name) {
            Some(value) => self.table_of(value, &self.path.child(name)),
            None => Some((self.origin.clone(), Table::new())),
        }
    }

    fn table_of(&mut self, value: Value, path: &KeyPath) -> Option<(Origin, Table)> {
        let origin = self.report.origin(&value);
        match value.kind {
            ValueKind::Table(table) => Some((origin, table)),
            _ => {
                self.report.note(origin, Some(path.clone()), "must be a section with keys of its own");
                None
            }
        }
    }

    fn note(&mut self, value: &Value, path: KeyPath, complaint: String) {
        self.report.note(self.report.origin(value), Some(path), complaint);
    }

    fn pattern_of(&self, name: &str) -> String {
        if self.pattern.is_empty() { name.to_owned() } else { format!("{}.{name}", self.pattern) }
    }
}

/// Who wrote an unknown key: the file, and each variable that reaches into it.
fn writers(report: &Report, value: &Value, path: KeyPath) -> Vec<(Origin, KeyPath)> {
    let mut found = Vec::new();
    if value.origin().is_none() {
        found.push((report.origin(value), path.clone()));
    }
    let mut pending = vec![(path, value)];
    while let Some((path, value)) = pending.pop() {
        match &value.kind {
            ValueKind::Table(table) => {
                pending.extend(table.iter().map(|(key, value)| (path.child(&shown(key, value)), value)));
            }
            _ if value.origin().is_some() => found.push((report.origin(value), path)),
            _ => {}
        }
    }
    found.sort_by(|(_, one), (_, other)| one.cmp(other));
    found
}

/// An id as it is meant: ids have hyphens where variables can only have underscores.
fn id_spelling(key: String, value: &Value) -> String {
    if value.origin().is_some() { key.to_lowercase().replace('_', "-") } else { key }
}

fn sorted(table: Table) -> BTreeMap<String, Value> {
    table.into_iter().collect()
}
