//! Reading rules from a control file. What cannot be read is refused whole: a fault that silently does not happen is a test that proves nothing.

use std::fmt;
use std::str::{FromStr, SplitWhitespace};
use std::time::Duration;

use crate::ckr::{self, CKR_SESSION_COUNT};
use crate::rule::{Effect, Moment, When};
use crate::{On, Rule};

/// The longest serial number that PKCS#11 has room for.
const MOST_SERIAL: usize = 16;

/// A line that is no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRule {
    /// Counted from 1; 0 where the line was given alone.
    pub line: usize,
    pub why: String,
}

impl fmt::Display for BadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for BadRule {}

/// Every rule of a control file.
pub(crate) fn rules(text: &str) -> Result<Vec<Rule>, BadRule> {
    let numbered = text.lines().enumerate().map(|(number, line)| (number + 1, without_comment(line)));
    let telling = numbered.filter(|(_, line)| !line.is_empty());
    telling.map(|(line, text)| text.parse().map_err(|bad: BadRule| BadRule { line, ..bad })).collect()
}

fn without_comment(line: &str) -> &str {
    line.split_once('#').map_or(line, |(rule, _)| rule).trim()
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(line: &str) -> Result<Self, BadRule> {
        read(line).map_err(|why| BadRule { line: 0, why: format!("{why} (in: {line})") })
    }
}

fn read(line: &str) -> Result<Rule, String> {
    let mut words = line.split_whitespace();
    let mut options = Options::default();
    let effect = effect(words.next().unwrap_or_default(), &mut words, &mut options)?;
    for word in words {
        options.take(word)?;
    }
    options.finish(effect)
}

fn effect(kind: &str, words: &mut SplitWhitespace<'_>, options: &mut Options) -> Result<Effect, String> {
    let mut next = |what: &str| words.next().ok_or(format!("{kind} needs {what}"));
    let on = "the functions it is about";
    Ok(match kind {
        "fail" => Effect::Fail { on: next(on)?.parse()?, ckr: answer(next("a CKR")?)? },
        "delay" => {
            let (on, by) = (next(on)?.parse()?, duration(next("a duration")?)?);
            Effect::Delay { on, by, jitter: Duration::ZERO }
        }
        "block" => Effect::Block { on: next(on)?.parse()? },
        "crash" => Effect::Crash { on: next(on)?.parse()? },
        "abort" => Effect::Abort { on: next(on)?.parse()? },
        "leak" => Effect::Leak { on: next(on)?.parse::<On>()?, bytes: bytes(next("a number of bytes")?)? },
        "journal" => Effect::Journal { on: next(on)?.parse()? },
        "find_wrong" => Effect::FindWrong,
        "slot_offset" => Effect::SlotOffset(number(next("a number")?)?),
        "idle" => Effect::Idle(duration(next("a duration")?)?),
        "max_sessions" => {
            let most = number(next("a number")?)?;
            let ckr = words.next().map_or(Ok(CKR_SESSION_COUNT), answer)?;
            Effect::MaxSessions { most, ckr }
        }
        "pin_lock" => Effect::PinLock(number(next("a number")?)?),
        "gcm_iv" => Effect::GcmIv,
        "serial" => Effect::Serial(serial(next("a serial number")?)?),
        "epoch" => Effect::Epoch(number(next("a number")?)?),
        "logout" => Effect::Logout(number(next("a number")?)?),
        "reassign" => Effect::Reassign(number(next("a number")?)?),
        other => return Err(format!("{other} is no kind of rule")),
    })
    .inspect(|_| options.kind = kind.to_owned())
}

/// What may follow, in any order.
#[derive(Default)]
struct Options {
    kind: String,
    moment: Option<Moment>,
    when: Option<When>,
    seed: Option<u64>,
    jitter: Option<Duration>,
    marker: Option<String>,
}

impl Options {
    fn take(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "before" => put(&mut self.moment, Moment::Before, word),
            "after" => put(&mut self.moment, Moment::After, word),
            "always" => put(&mut self.when, When::Always, word),
            "once" => put(&mut self.when, When::Once, word),
            "nth" => put(&mut self.when, When::Nth(from_one(value)?), word),
            "every" => put(&mut self.when, When::Every(from_one(value)?), word),
            "first" => put(&mut self.when, When::First(number(value)?), word),
            "chance" => put(&mut self.when, When::Chance { of_one: part(value)?, seed: 0 }, word),
            "seed" => put(&mut self.seed, number(value)?, word),
            "jitter" => put(&mut self.jitter, duration(value)?, word),
            "while" if !value.is_empty() => put(&mut self.marker, value.to_owned(), word),
            _ => Err(format!("{word} is no option")),
        }
    }

    fn finish(self, mut effect: Effect) -> Result<Rule, String> {
        let kind = &self.kind;
        let in_calls = effect.on().is_some();
        if self.moment.is_some() && !in_calls {
            return Err(format!("{kind} is about no call, and takes no before or after"));
        }
        if self.when.is_some() && !in_calls && effect != Effect::FindWrong {
            return Err(format!("{kind} is about no call, and takes none of nth, every, first, chance, once"));
        }
        if self.marker.is_some() && effect.is_counter() {
            return Err(format!("{kind} happens when its number grows, and takes no while"));
        }
        match (&mut effect, self.jitter) {
            (Effect::Delay { jitter, .. }, Some(given)) => *jitter = given,
            (_, Some(_)) => return Err(format!("{kind} takes no jitter")),
            (_, None) => {}
        }
        let when = match (self.when.unwrap_or(When::Always), self.seed) {
            (When::Chance { of_one, .. }, seed) => When::Chance { of_one, seed: seed.unwrap_or(0) },
            (_, Some(_)) => return Err("a seed goes with a chance".to_owned()),
            (when, None) => when,
        };
        Ok(Rule { effect, moment: self.moment.unwrap_or(Moment::Before), when, marker: self.marker })
    }
}

fn put<T>(place: &mut Option<T>, value: T, word: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{word} says again, or otherwise, what was said before")),
    }
}

fn answer(text: &str) -> Result<cryptoki_sys::CK_RV, String> {
    ckr::read(text).ok_or_else(|| format!("{text} is no CKR"))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn from_one(text: &str) -> Result<u64, String> {
    number(text).and_then(|number| if number == 0 { Err("calls are counted from 1".to_owned()) } else { Ok(number) })
}

fn part(text: &str) -> Result<f64, String> {
    number(text).and_then(|part| {
        if (0.0..=1.0).contains(&part) { Ok(part) } else { Err(format!("{text} is not between 0 and 1")) }
    })
}

fn serial(text: &str) -> Result<String, String> {
    if text.len() > MOST_SERIAL {
        Err(format!("{text} has more than {MOST_SERIAL} bytes"))
    } else {
        Ok(text.to_owned())
    }
}

/// `50us`, `200ms`, `2s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let (count, unit) = split(text);
    let count: u64 = count.parse().map_err(|_| format!("{text:?} is no duration"))?;
    match unit {
        "us" => Ok(Duration::from_micros(count)),
        "ms" => Ok(Duration::from_millis(count)),
        "s" => Ok(Duration::from_secs(count)),
        "m" => Ok(Duration::from_secs(count.saturating_mul(60))),
        _ => Err(format!("{text}: a duration is a number and us, ms, s or m")),
    }
}

/// `4096`, `64KiB`, `1MiB`.
fn bytes(text: &str) -> Result<usize, String> {
    let (count, unit) = split(text);
    let count: usize = count.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(format!("{text}: bytes are a number, or a number and KiB or MiB")),
    };
    count.checked_mul(unit).ok_or_else(|| format!("{text} is too much"))
}

/// Digits, and what follows.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_reads_back_as_it_was_written() {
        let lines = [
            "fail C_Encrypt CKR_DEVICE_ERROR",
            "fail C_Encrypt,C_Decrypt CKR_GENERAL_ERROR after nth=3",
            "fail *,!C_Login 0x80000001 chance=0.25 seed=7",
            "fail C_Encrypt* CKR_DEVICE_REMOVED first=3 while=away",
            "delay * 200ms",
            "delay C_Login 1500us jitter=2s after every=2",
            "block C_Encrypt once while=hang",
            "crash C_Encrypt nth=1",
            "abort C_Initialize",
            "leak C_Encrypt 1048576",
            "journal C_OpenSession",
            "find_wrong first=1",
            "slot_offset 1000",
            "idle 500ms",
            "max_sessions 4 CKR_ARGUMENTS_BAD",
            "pin_lock 3",
            "gcm_iv while=cloud",
            "serial 0123456789abcdef",
            "epoch 2",
            "logout 1",
            "reassign 1",
        ];
        let read = rules(&lines.join("\n")).unwrap();
        assert_eq!(read.iter().map(ToString::to_string).collect::<Vec<_>>(), lines);
    }

    #[test]
    fn what_may_be_left_out_has_a_sensible_meaning() {
        let read =
            rules("# all of it is a comment\n\n  leak C_Sign 1MiB  # so is this\nmax_sessions 2\nidle 1m\n").unwrap();
        let written: Vec<_> = read.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["leak C_Sign 1048576", "max_sessions 2 CKR_SESSION_COUNT", "idle 60s"]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_refused_with_its_number() {
        let refused = [
            "fial C_Encrypt CKR_DEVICE_ERROR",
            "fail C_Encript CKR_DEVICE_ERROR",
            "fail C_Enscript* CKR_DEVICE_ERROR",
            "fail C_Encrypt CKR_NO_SUCH_THING",
            "fail C_Encrypt",
            "fail C_Encrypt CKR_DEVICE_ERROR nth=0",
            "fail C_Encrypt CKR_DEVICE_ERROR nth=1 every=2",
            "fail C_Encrypt CKR_DEVICE_ERROR before after",
            "fail C_Encrypt CKR_DEVICE_ERROR chance=1.5",
            "fail C_Encrypt CKR_DEVICE_ERROR seed=7",
            "fail C_Encrypt CKR_DEVICE_ERROR jitter=1s",
            "delay C_Encrypt 200",
            "leak C_Encrypt 1GB",
            "epoch 1 nth=2",
            "epoch 1 while=x",
            "idle 1s after",
            "serial 0123456789abcdefg",
        ];
        for line in refused {
            let bad = rules(&format!("gcm_iv\n{line}\n")).expect_err(line);
            assert_eq!(bad.line, 2, "{bad}");
        }
    }
}
