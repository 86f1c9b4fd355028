//! Where a configuration comes from: the TOML file, and over it the environment.
//!
//! Both end in one tree of [`Value`]s. What the file says has no origin; what a variable says has
//! that variable's name as its origin, so that a complaint can name it.

use std::path::Path;

use config::{ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::file;
use super::problem::KeyPath;

pub(super) type Table = Map<String, Value>;

/// Variables with this prefix are ours; all others are left alone.
const PREFIX: &str = "KEYWAY__";
const SEPARATOR: &str = "__";
/// More segments than any key has.
const MOST_SEGMENTS: usize = 16;
/// Far longer than any sensible configuration.
const LONGEST_FILE: u64 = 1 << 20;

/// A variable that cannot be laid over the file: the key it means, and why.
pub(super) struct Misplaced {
    pub(super) key: KeyPath,
    pub(super) complaint: String,
}

/// Reads the file as TOML.
pub(super) fn read(path: &Path) -> Result<Table, String> {
    let text = file::text(path, LONGEST_FILE)?;
    File::from_str(&text, FileFormat::Toml).collect().map_err(|error| match error {
        ConfigError::FileParse { cause, .. } => syntax(&cause.to_string()),
        other => other.to_string(),
    })
}

/// The parser draws the line with its place marked, on lines of their own: the first line says where, the last what.
fn syntax(drawing: &str) -> String {
    let mut lines = drawing.lines().filter(|line| !line.is_empty());
    let place = lines.next().unwrap_or("not TOML");
    match lines.next_back() {
        Some(what) => format!("{place}: {what}"),
        None => format!("not TOML: {place}"),
    }
}

/// Those of `environment` that are ours, in order.
pub(super) fn variables(environment: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut ours: Vec<_> = environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    ours
}

/// Lays one variable over the tree. Where the tree has no such key the variable's own spelling is
/// put there: whether that key is known is for its section to say.
pub(super) fn overlay(root: &mut Table, variable: &str, text: String) -> Result<(), Misplaced> {
    let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
    let segments: Vec<&str> = name.split(SEPARATOR).collect();
    if segments.len() > MOST_SEGMENTS || segments.contains(&"") {
        let key = KeyPath::default().child(&segments.join(".").to_lowercase());
        return Err(Misplaced::new(key, "no key is named like this"));
    }
    let (last, sections) = segments.split_last().expect("split gives at least one");
    let origin = variable.to_owned();
    let (mut table, mut path) = (root, KeyPath::default());
    for segment in sections {
        let key = spelling(table, segment);
        let value = table.entry(key.clone()).or_insert_with(|| Value::new(Some(&origin), Table::new()));
        path = path.child(&shown(&key, value));
        let ValueKind::Table(inner) = &mut value.kind else {
            return Err(Misplaced::new(path, "is a value, not a section with keys of its own"));
        };
        table = inner;
    }
    let key = spelling(table, last);
    if let Some(present) = table.get(&key) {
        replaceable(present).map_err(|complaint| Misplaced::new(path.child(&shown(&key, present)), complaint))?;
    }
    table.insert(key, Value::new(Some(&origin), text));
    Ok(())
}

impl Misplaced {
    fn new(key: KeyPath, complaint: impl Into<String>) -> Self {
        Self { key, complaint: complaint.into() }
    }
}

/// Whether a variable may replace this value.
fn replaceable(value: &Value) -> Result<(), String> {
    match (&value.kind, value.origin()) {
        (ValueKind::Table(_), _) => Err("is a section: name one of its keys after another `__`".to_owned()),
        (_, Some(other)) => Err(format!("is set by {other} too: keep one of the two")),
        (_, None) => Ok(()),
    }
}

/// How the table already spells what a variable's segment means.
fn spelling(table: &Table, segment: &str) -> String {
    if table.contains_key(segment) {
        return segment.to_owned();
    }
    let likes = table.keys().filter(|key| is_meant(key, segment));
    likes.min().cloned().unwrap_or_else(|| segment.to_owned())
}

/// Whether a variable's segment means this key: variables have neither lower case nor hyphens.
pub(super) fn is_meant(key: &str, segment: &str) -> bool {
    let plain = |byte: u8| if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() };
    key.bytes().map(plain).eq(segment.bytes().map(plain))
}

/// A key as complaints show it: variables shout, keys do not.
pub(super) fn shown(key: &str, value: &Value) -> String {
    if value.origin().is_some() { key.to_lowercase() } else { key.to_owned() }
}
