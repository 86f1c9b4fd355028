//! The bench's own children: this same program in another role. They end when their standard input does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::Error;
use super::machine::TICKS;

/// Killed when dropped.
pub struct Own {
    process: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Own {
    /// Starts this program again, in the role that `configure` names.
    pub fn start(configure: impl FnOnce(&mut Command)) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        configure(&mut command);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let say = process.stdin.take().ok_or("standard input was asked for")?;
        let hear = process.stdout.take().ok_or("standard output was asked for")?;
        Ok(Self { process, say, hear: BufReader::new(hear) })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn tell(&mut self, line: &str) -> Result<(), Error> {
        Ok(writeln!(self.say, "{line}")?)
    }

    /// The next line it says.
    pub fn hear(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        if self.hear.read_line(&mut line)? == 0 {
            return Err("a child of the bench ended; its reason stands above".into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// CPU time of a process so far, in user and in kernel mode; none when it is gone.
pub fn cpu_time(pid: u32) -> Duration {
    time_in(pid, 2)
}

/// With that of its children, also of those that have ended.
pub fn cpu_time_of_family(pid: u32) -> Duration {
    time_in(pid, 4) + children(pid).into_iter().map(cpu_time).sum::<Duration>()
}

/// The first of its times: user, kernel, and both again of the children that it has waited for.
fn time_in(pid: u32, times: usize) -> Duration {
    let (_, fields) = stat(pid).unwrap_or_default();
    let ticks: u64 = fields.iter().skip(11).take(times).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// The processes that `parent` started and that still run.
pub fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|(its_parent, _)| its_parent == parent))
        .collect()
}

/// The parent, and the fields from the state on: those after the name, which may hold anything.
fn stat(pid: u32) -> Option<(u32, Vec<String>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<_> = after_name.split_whitespace().map(str::to_owned).collect();
    let parent = fields.get(1)?.parse().ok()?;
    Some((parent, fields))
}
