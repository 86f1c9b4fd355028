//! One value as somebody wrote it, and the types it can be read as.
//!
//! A reader is a function from [`Written`] to what the value means, or to what is wrong with it.
//! The file is held to TOML's types; a variable is text and is read as whatever its key wants.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Value, ValueKind};

use crate::model::{Certificate, EscrowKey, Invalid, TrustAnchor};

use super::file;

/// As much of a wrong value as a complaint repeats.
const MOST_SHOWN: usize = 64;
/// Far longer than a certificate, or a public key.
const LONGEST_CERTIFICATE: u64 = 64 << 10;

/// A value, and the directory that relative paths in it start from.
pub(super) struct Written<'a> {
    pub(super) value: &'a Value,
    pub(super) base: &'a Path,
}

impl Written<'_> {
    pub(super) fn text(&self) -> Result<&str, String> {
        match &self.value.kind {
            ValueKind::String(text) => Ok(text),
            _ => Err(format!("must be text in quotes, not {}", self.shown())),
        }
    }

    /// The text of a variable, which may mean a number, a switch or a list. The file writes those as what they are.
    fn variable_text(&self) -> Option<&str> {
        self.value.origin()?;
        self.text().ok()
    }

    fn shown(&self) -> String {
        match &self.value.kind {
            ValueKind::Table(_) => "a section".to_owned(),
            ValueKind::Array(_) => "a list".to_owned(),
            ValueKind::String(text) if text.chars().nth(MOST_SHOWN).is_some() => {
                format!("{:?}…", text.chars().take(MOST_SHOWN).collect::<String>())
            }
            ValueKind::String(text) => format!("{text:?}"),
            other => other.to_string(),
        }
    }
}

/// Text with a rule of its own.
pub(super) fn text<T: FromStr<Err: Display>>(written: &Written<'_>) -> Result<T, String> {
    written.text()?.parse().map_err(|rule| format!("{rule}, not {}", written.shown()))
}

/// A whole number.
pub(super) fn number<T: TryFrom<u32>>(range: RangeInclusive<u32>) -> impl Fn(&Written<'_>) -> Result<T, String> {
    move |written| {
        let number = match (written.variable_text(), &written.value.kind) {
            (Some(text), _) => text.trim().parse().ok(),
            (None, ValueKind::I64(number)) => u32::try_from(*number).ok(),
            (None, _) => None,
        };
        number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            format!("must be a whole number from {} to {}, not {}", range.start(), range.end(), written.shown())
        })
    }
}

/// A switch.
pub(super) fn truth(written: &Written<'_>) -> Result<bool, String> {
    match (written.variable_text(), &written.value.kind) {
        (Some("true"), _) => Ok(true),
        (Some("false"), _) => Ok(false),
        (None, ValueKind::Boolean(truth)) => Ok(*truth),
        _ => Err(format!("must be true or false, not {}", written.shown())),
    }
}

/// A length of time: a whole number and `ms`, `s`, `m` or `h`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Written<'_>) -> Result<Duration, String> {
    move |written| {
        let duration = match &written.value.kind {
            ValueKind::String(text) => parse_duration(text),
            _ => None,
        };
        duration.filter(|duration| range.contains(duration)).ok_or_else(|| {
            let (from, to) = (spell_duration(*range.start()), spell_duration(*range.end()));
            format!("must be a duration such as \"10s\", from {from} to {to}, not {}", written.shown())
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    unit.checked_mul(number)
}

/// As [`parse_duration`] reads it, in the largest unit that it is a whole number of.
fn spell_duration(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) if seconds > 0 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// An IP address and a port.
pub(super) fn address(written: &Written<'_>) -> Result<SocketAddr, String> {
    let address = match &written.value.kind {
        ValueKind::String(text) => text.parse().ok(),
        _ => None,
    };
    address
        .ok_or_else(|| format!("must be an IP address and a port, such as \"0.0.0.0:50051\", not {}", written.shown()))
}

/// A list of texts, each with its rule; a variable separates them by commas.
pub(super) fn list<T: FromStr<Err: Display>>(written: &Written<'_>) -> Result<Vec<T>, String> {
    match (written.variable_text(), &written.value.kind) {
        (Some(variable), _) => all(variable.split(',').map(|item| {
            let value = &Value::new(None, item.trim());
            text(&Written { value, ..*written })
        })),
        (None, ValueKind::Array(values)) => all(values.iter().map(|value| text(&Written { value, ..*written }))),
        (None, _) => Err(format!("must be a list such as [\"a\", \"b\"], not {}", written.shown())),
    }
}

/// Every item, or what is wrong with every one that is wrong.
fn all<T>(items: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, String> {
    let (mut good, mut complaints) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Ok(item) => good.push(item),
            Err(complaint) => complaints.push(complaint),
        }
    }
    if complaints.is_empty() { Ok(good) } else { Err(complaints.join("; ")) }
}

/// A path, made absolute.
pub(super) fn path(written: &Written<'_>) -> Result<PathBuf, String> {
    let text = written.text()?;
    if text.is_empty() || text.contains('\0') {
        return Err(format!("must be a path, not {}", written.shown()));
    }
    Ok(written.base.join(text))
}

/// The path of a file that is there.
pub(super) fn existing_file(written: &Written<'_>) -> Result<PathBuf, String> {
    let path = path(written)?;
    file::exists(&path)?;
    Ok(path)
}

/// The path of a file that only its owner can read.
pub(super) fn private_file(written: &Written<'_>) -> Result<PathBuf, String> {
    let path = path(written)?;
    file::is_private(&path)?;
    Ok(path)
}

/// A cluster's certificate, from the file that is named.
pub(super) fn certificate(written: &Written<'_>) -> Result<Certificate, String> {
    from_file(written, Certificate::parse)
}

/// A certificate authority's certificate, from the file that is named.
pub(super) fn trust_anchor(written: &Written<'_>) -> Result<TrustAnchor, String> {
    from_file(written, TrustAnchor::parse)
}

fn from_file<T>(written: &Written<'_>, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> Result<T, String> {
    let path = path(written)?;
    let text = file::text(&path, LONGEST_CERTIFICATE)?;
    parse(&text).map_err(|rule| format!("{} {rule}", path.display()))
}

/// A line for people, which may be empty.
pub(super) fn line(longest: usize) -> impl Fn(&Written<'_>) -> Result<String, String> {
    move |written| match written.text()? {
        text if text.chars().count() > longest || text.chars().any(char::is_control) => {
            Err(format!("must be one line of at most {longest} characters, not {}", written.shown()))
        }
        text => Ok(text.to_owned()),
    }
}

/// The public key in a file.
pub(super) fn escrow_key(written: &Written<'_>) -> Result<EscrowKey, String> {
    let path = path(written)?;
    let text = file::text(&path, LONGEST_CERTIFICATE)?;
    EscrowKey::parse(&text).map_err(|rule| format!("{rule}: see {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_duration_is_a_whole_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        for text in ["500ms", "0s", "10s", "2m", "60m"] {
            assert_eq!(parse_duration(text).map(spell_duration).as_deref(), Some(text));
        }
        for text in ["", "10", "s", "1.5s", "-1s", " 1s", "1 s", "1d", "99999999999s", "1S", "10sm"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_complaint_repeats_only_the_beginning_of_a_long_value() {
        let value = Value::new(None, "x".repeat(10_000));
        let complaint = number::<u32>(1..=2)(&Written { value: &value, base: Path::new("/") }).unwrap_err();
        assert!(complaint.len() < 200, "{complaint}");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in any::<String>()) {
            let variable = "KEYWAY__X".to_owned();
            let value = Value::new(Some(&variable), text);
            let written = Written { value: &value, base: Path::new("/nowhere") };
            let _ = number::<u32>(0..=9)(&written);
            let _ = duration(Duration::ZERO..=Duration::MAX)(&written);
            let _ = (truth(&written), list::<String>(&written), path(&written));
        }
    }
}
