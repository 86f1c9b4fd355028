//! What only a test may do to a daemon: shift its clock, and stop it at a named point until it is killed.
//!
//! Debug builds alone contain this room. Both work through files in a directory that the test
//! makes before the daemon starts (`seams` in the data directory), so that nothing on the
//! command line or in the environment reaches them:
//!
//! - `clock-offset`: seconds to add to the wall clock, read at each use;
//! - `stop-<name>`: whoever passes the point of that name writes `reached-<name>` and blocks for as long as the file is
//!   there.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

const LOOK_AGAIN: Duration = Duration::from_millis(10);

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Turns the seams on when `<data_dir>/seams` exists.
pub fn watch(data_dir: &Path) {
    let directory = data_dir.join("seams");
    if directory.is_dir() {
        let _ = DIRECTORY.set(directory);
    }
}

pub fn clock_offset_seconds() -> i64 {
    DIRECTORY
        .get()
        .and_then(|directory| std::fs::read_to_string(directory.join("clock-offset")).ok())
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Blocks this thread when the test asked for it, until it is let pass: a crash at this very line is then a `kill -9` away.
pub fn stop_point(name: &str) {
    let Some(directory) = DIRECTORY.get() else { return };
    let stop = directory.join(format!("stop-{name}"));
    if stop.exists() {
        let _ = std::fs::write(directory.join(format!("reached-{name}")), b"");
        while stop.exists() {
            std::thread::park_timeout(LOOK_AGAIN);
        }
    }
}
