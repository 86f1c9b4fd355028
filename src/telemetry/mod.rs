//! The daemon's log, on standard error. A leaf: whoever logs uses `tracing` and knows nothing of this room.

mod settings;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

pub use settings::*;

/// Starts the log of this process.
pub fn start(settings: &Settings) {
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(settings.level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (a test's) keeps the first.
    let _ = match settings.format {
        Format::Text => log.with_target(false).try_init(),
        Format::Json => log.json().flatten_event(true).try_init(),
    };
}
