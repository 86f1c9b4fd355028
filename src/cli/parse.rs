//! Values on the command line that are more than text.

use std::collections::HashMap;
use std::time::Duration;

use crate::keys::DAY;

use super::failure::Failure;

/// `name=value`; the value may hold further `=` and may be empty.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the name before `=` is missing".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("give name=value".to_owned()),
    }
}

/// Pairs as the map a request carries. A name given twice is more likely a mistake than a wish.
pub(super) fn distinct(flag: &str, pairs: Vec<(String, String)>) -> Result<HashMap<String, String>, Failure> {
    let mut map = HashMap::new();
    for (name, value) in pairs {
        if map.contains_key(&name) {
            return Err(Failure::usage(format!("{flag} {name}=… is given twice")));
        }
        map.insert(name, value);
    }
    Ok(map)
}

/// A length of time with a unit (ms, s, m, h); a bare number means seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let explain = || "give a whole number and a unit, for instance 500ms, 30s, 5m or 1h".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().map_err(|_| explain())?;
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(explain()),
    };
    let length = Duration::from_millis(u64::from(number) * unit_ms);
    if length > Duration::from_secs(30 * 24 * 3600) { Err("at most 720h".to_owned()) } else { Ok(length) }
}

/// A [`duration`] in which something can happen.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("nothing can be done in no time".to_owned()),
        length => Ok(length),
    }
}

/// How long a day of a deletion window is.
pub(super) fn deletion_day(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        day if (Duration::from_millis(10)..=DAY).contains(&day) => Ok(day),
        _ => Err("10ms to 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_split_at_its_first_equals_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
    }

    #[test]
    fn half_a_pair_is_refused() {
        for text in ["", "a", "=", "=b"] {
            assert!(pair(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_given_twice_is_refused_by_name() {
        let twice = vec![pair("team=a").unwrap(), pair("team=b").unwrap()];
        let failure = distinct("--context", twice).unwrap_err();
        assert_eq!(failure.message(), "--context team=… is given twice");
    }

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in ["", "s", "-1s", "1.5s", "5 m", "5d", "99999999999s", "4294967295h", "５s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert!(timeout("0").is_err());
    }
}
