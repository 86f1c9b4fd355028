//! `keyway node`: the HSMs of this host, for daemons on others.

pub(super) mod init;

use std::path::Path;
use std::process::ExitCode;

use crate::app::Node;
use crate::config;
use crate::telemetry;

use super::serve::{BAD_CONFIGURATION, on_a_runtime};

pub(super) fn run(file: &Path) -> ExitCode {
    let config = match config::load_node(file, std::env::vars()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    telemetry::start(&config.log);
    on_a_runtime(async {
        Node::start(config).await?.run().await;
        Ok(ExitCode::SUCCESS)
    })
}
