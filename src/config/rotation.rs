//! How a cluster's password is rotated.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{Profile, Program, Rotation, Strategy, StrategyName};

use super::file;
use super::section::Section;
use super::value::{Written, duration, escrow_key, list, text};

const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const INTERVALS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10_000 * 3600);

/// A program that is there, and its arguments.
type Words = (PathBuf, Vec<String>);

/// `None`, too, when the strategy is left to a profile that is not known.
pub(super) fn rotation(cluster: &mut Section<'_>, profile: Option<Profile>) -> Option<Rotation> {
    let name = cluster.optional("password_rotation", text::<StrategyName>);
    let interval = cluster.defaulted("rotation_interval", Duration::ZERO, duration(INTERVALS));
    let words = cluster.optional("rotation_command", words);
    let timeout = cluster.optional("rotation_timeout", duration(TIMEOUTS));
    let escrow = cluster.optional("password_escrow", escrow_key);
    let name = match name? {
        Some(name) => name,
        None => default(profile?),
    };
    let strategy = strategy(cluster, name, words?, timeout?);
    Some(Rotation { strategy: strategy?, interval: interval?, escrow: escrow? })
}

fn default(profile: Profile) -> StrategyName {
    match profile {
        Profile::SoftHsm2 => StrategyName::SetPin,
    }
}

/// The program goes with the strategy that runs it, and with no other.
fn strategy(
    cluster: &mut Section<'_>,
    name: StrategyName,
    words: Option<Words>,
    timeout: Option<Duration>,
) -> Option<Strategy> {
    const ALONE: &str = "goes with password_rotation = \"command\" alone: remove it";
    let strategy = match (name, words) {
        (StrategyName::Command, Some((path, arguments))) => {
            return Some(Strategy::Command(Program { path, arguments, timeout: timeout.unwrap_or(TIMEOUT) }));
        }
        (StrategyName::Command, None) => {
            cluster.complain_of("rotation_command", "is missing: give a program and its arguments, [\"/path\", …]");
            return None;
        }
        (_, Some(_)) => {
            cluster.complain_of("rotation_command", ALONE);
            return None;
        }
        (StrategyName::None, None) => Strategy::None,
        (StrategyName::SetPin, None) => Strategy::SetPin,
    };
    if timeout.is_some() {
        cluster.complain_of("rotation_timeout", ALONE);
        return None;
    }
    Some(strategy)
}

fn words(written: &Written<'_>) -> Result<Words, String> {
    let mut words: Vec<String> = list(written)?;
    if words.iter().any(|word| word.contains('\0')) {
        return Err("no argument has a NUL in it".to_owned());
    }
    if words.first().is_none_or(String::is_empty) {
        return Err("must begin with the program's path".to_owned());
    }
    let path = written.base.join(words.remove(0));
    file::exists(&path)?;
    Ok((path, words))
}
