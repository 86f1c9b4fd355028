//! What a process tells of itself: its log, on standard error, and the instruments and words of its metrics.
//!
//! A leaf. Whoever logs uses `tracing` and knows nothing of this room. Rooms count what they do ([`Count`], [`Durations`])
//! and put it on a [`Page`] under a name of the [`catalogue`], when they are asked: nothing here knows who they are.

pub mod catalogue;
mod count;
mod metric;
mod page;
pub mod process;
mod settings;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

pub use count::{Count, Durations};
pub use page::{Form, Page};
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
