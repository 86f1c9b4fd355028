//! `keyway serve`: the daemon, from a configuration file.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::app::{App, Source, StartError};
use crate::config;
use crate::door::grpc::Mode;
use crate::model::with_causes;
use crate::telemetry;

/// Bad configuration.
pub(super) const BAD_CONFIGURATION: u8 = 2;

pub(super) fn run(file: &Path) -> ExitCode {
    let config = match config::load(file, std::env::vars()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    telemetry::start(&config.log);
    let file = file.to_owned();
    let source: Source = Arc::new(move || config::load(&file, std::env::vars()));
    on_a_runtime(async {
        let app = App::start(config, Some(source), Mode::Serve).await?;
        app.run().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs a daemon's whole life, to what it ends with; an error is told with its causes.
pub(super) fn on_a_runtime(life: impl Future<Output = Result<ExitCode, StartError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(life) {
        Ok(ending) => ending,
        Err(error) => {
            eprintln!("error: {}", with_causes(&error));
            match error {
                // What the configuration says, though only the records could tell.
                StartError::Undeclarable(_) => ExitCode::from(BAD_CONFIGURATION),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
