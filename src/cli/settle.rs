//! `--wait`: watches a key store until it is connected or disconnected, telling each step as it comes.
//!
//! A daemon that restarts meanwhile goes on where it was; so does the watching, within the command's time.

use std::collections::HashMap;

use tokio::time::timeout_at;
use tonic::{Request, Streaming};

use crate::proto::v1::{
    CheckStatus, ConnectStep, ConnectionState, KeyStore, WatchKeyStoreRequest, WatchKeyStoreResponse,
};

use super::backoff::Backoff;
use super::connect::{Client, Daemon};
use super::failure::Failure;
use super::output::{self, Output};
use super::table::{Paint, Tone, printable};
use super::{key_store, words};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Connected,
    Disconnected,
}

/// What a key store's state means for a goal.
#[derive(Debug)]
enum Approach {
    Going,
    Reached,
    Missed(Failure),
}

/// Why a watch ended before the store settled.
enum Ended {
    /// The stream broke off; another may tell the rest.
    Broken(Failure),
    /// There is nothing more to learn.
    Settled(Result<(), Failure>),
}

pub(super) async fn until(client: &Client, daemon: &Daemon, key_store_id: String, goal: Goal) -> Result<(), Failure> {
    let mut progress = Progress::new(client.output);
    let mut backoff = Backoff::until(daemon.deadline);
    loop {
        let failure = match watch(client, daemon, &key_store_id, goal, &mut progress).await {
            Ended::Settled(result) => return result,
            Ended::Broken(failure) => failure,
        };
        if !failure.is_passing() {
            return Err(failure);
        }
        if backoff.pause(failure.retry_after()).await.is_err() {
            return Err(failure);
        }
        progress.note("the daemon went away; watching again");
    }
}

async fn watch(client: &Client, daemon: &Daemon, id: &str, goal: Goal, progress: &mut Progress) -> Ended {
    let late = || {
        Ended::Settled(Err(Failure::late("the key store has not settled in time; the daemon goes on without us")
            .advise(format!("see how it is: keyway key-store describe {id}"))))
    };
    let request = Request::new(WatchKeyStoreRequest { key_store_id: id.to_owned() });
    let mut client_stub = daemon.key_stores();
    let mut news: Streaming<WatchKeyStoreResponse> =
        match timeout_at(daemon.deadline, client_stub.watch_key_store(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::Broken(status.into()),
            Err(_) => return late(),
        };
    loop {
        let response = match timeout_at(daemon.deadline, news.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return Ended::Broken(Failure::refused("UNAVAILABLE", "", "the daemon ended the watch")),
            Ok(Err(status)) => return Ended::Broken(status.into()),
            Err(_) => return late(),
        };
        progress.tell(&response);
        if let Err(failure) = print_json(client.output, &response) {
            return Ended::Settled(Err(failure));
        }
        match response.key_store.as_ref().map_or(Approach::Going, |store| approach(goal, store)) {
            Approach::Going => {}
            Approach::Missed(failure) => return Ended::Settled(Err(failure)),
            Approach::Reached => return Ended::Settled(print_table(client.output, &response)),
        }
    }
}

/// JSON tells every message; people see progress lines instead, and a table at the end.
fn print_json(output: Output, response: &WatchKeyStoreResponse) -> Result<(), Failure> {
    match output {
        Output::Json => output.show_next(response, |_, _| String::new()),
        Output::Table => Ok(()),
    }
}

fn print_table(output: Output, response: &WatchKeyStoreResponse) -> Result<(), Failure> {
    match output {
        Output::Json => Ok(()),
        Output::Table => output.show(response, |response, paint| key_store::table(&response.key_store, paint)),
    }
}

fn approach(goal: Goal, store: &KeyStore) -> Approach {
    use ConnectionState as S;
    match (goal, store.connection_state()) {
        (Goal::Connected, S::Connected) | (Goal::Disconnected, S::Disconnected) => Approach::Reached,
        (Goal::Connected, S::Connecting) | (Goal::Disconnected, S::Disconnecting) | (_, S::Unspecified) => {
            Approach::Going
        }
        (Goal::Connected, S::Failed) => Approach::Missed(not_connected(store)),
        (Goal::Connected, S::Disconnected | S::Disconnecting) => {
            Approach::Missed(Failure::refused("ABORTED", "CONFLICT", "somebody disconnected the key store meanwhile"))
        }
        (Goal::Disconnected, S::Connecting | S::Connected | S::Failed) => Approach::Missed(Failure::refused(
            "ABORTED",
            "CONFLICT",
            "somebody connected the key store again meanwhile",
        )),
    }
}

/// A FAILED store's own account of itself.
pub(super) fn not_connected(store: &KeyStore) -> Failure {
    let code = words::connection_error(store.connection_error_code);
    let last = store.last_connection_error.as_ref();
    let place = last.map(|error| error.hsm_id.as_str()).filter(|hsm| !hsm.is_empty());
    let message = match (store.connection_error_message.as_str(), place) {
        ("", _) => format!("the key store could not be connected: {code}"),
        (message, None) => format!("the key store could not be connected: {message}"),
        (message, Some(hsm)) => format!("the key store could not be connected: {hsm}: {message}"),
    };
    let mut failure = Failure::refused("FAILED_PRECONDITION", &code, message)
        .with("keyStoreId", &store.key_store_id)
        .with("remedy", &store.connection_error_remedy);
    if let Some(hsm) = place {
        failure = failure.with("hsmId", hsm);
    }
    match store.connection_error_remedy.as_str() {
        "" => failure,
        remedy => failure.advise(remedy),
    }
}

/// Tells people each step once, also when a second watch begins with all of them.
struct Progress {
    output: Output,
    told: HashMap<(String, i32), i32>,
    symbols: bool,
    paint: Paint,
}

impl Progress {
    fn new(output: Output) -> Self {
        let (symbols, paint) = (output::stderr_is_watched(), output::paint(&std::io::stderr()));
        Self { output, told: HashMap::new(), symbols, paint }
    }

    fn note(&self, line: &str) {
        if self.output == Output::Table {
            output::note(line);
        }
    }

    fn tell(&mut self, response: &WatchKeyStoreResponse) {
        for step in &response.steps {
            if self.told.insert((step.hsm_id.clone(), step.phase), step.status) != Some(step.status) {
                self.note(&self.line(step));
            }
        }
    }

    fn line(&self, step: &ConnectStep) -> String {
        let (symbol, tone) = match step.status() {
            CheckStatus::Passed => ("✓", Tone::Good),
            CheckStatus::Warning => ("!", Tone::Passing),
            CheckStatus::Failed => ("✗", Tone::Bad),
            CheckStatus::Running => ("⟳", Tone::Neutral),
            CheckStatus::Skipped | CheckStatus::Unspecified => ("·", Tone::Neutral),
        };
        let mark = if self.symbols {
            symbol.to_owned()
        } else {
            format!("{:<8}", words::check_status(step.status).to_lowercase())
        };
        let place = if step.hsm_id.is_empty() { "cluster" } else { &step.hsm_id };
        let phase = words::connect_phase(step.phase).to_lowercase().replace('_', " ");
        let mut line = format!("{} {}  {phase}", tone.paint(&mark, self.paint), printable(place));
        for text in [&step.problem, &step.remedy].into_iter().filter(|text| !text.is_empty()) {
            line.push_str(&format!("\n    {}", printable(text)));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{ConnectPhase, ConnectionError, ConnectionErrorCode};

    fn store(state: ConnectionState) -> KeyStore {
        KeyStore {
            connection_state: state.into(),
            connection_error_code: ConnectionErrorCode::InvalidCredentials.into(),
            connection_error_message: "the token refused the password".to_owned(),
            connection_error_remedy: "give keyway the right one".to_owned(),
            last_connection_error: Some(ConnectionError { hsm_id: "hsm-1".to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn only_its_goal_or_a_dead_end_stops_the_waiting() {
        use ConnectionState as S;
        let is_going = |goal, state| matches!(approach(goal, &store(state)), Approach::Going);
        let is_reached = |goal, state| matches!(approach(goal, &store(state)), Approach::Reached);
        assert!(is_going(Goal::Connected, S::Connecting) && is_reached(Goal::Connected, S::Connected));
        assert!(is_going(Goal::Disconnected, S::Disconnecting) && is_reached(Goal::Disconnected, S::Disconnected));
        assert!(!is_going(Goal::Connected, S::Disconnected) && !is_going(Goal::Disconnected, S::Connected));
    }

    #[test]
    fn a_failed_store_tells_code_message_hsm_and_remedy() {
        let Approach::Missed(failure) = approach(Goal::Connected, &store(ConnectionState::Failed)) else {
            panic!("FAILED is a dead end");
        };
        assert_eq!(
            failure.text(),
            "error: the key store could not be connected: hsm-1: the token refused the password\n  \
             try: give keyway the right one\n  reason: INVALID_CREDENTIALS\n"
        );
    }

    #[test]
    fn a_step_is_a_line_with_its_problem_and_remedy_below() {
        let step = |status: CheckStatus| ConnectStep {
            hsm_id: "hsm-1".to_owned(),
            phase: ConnectPhase::LogIn.into(),
            status: status.into(),
            problem: if status == CheckStatus::Failed { "refused".to_owned() } else { String::new() },
            remedy: String::new(),
        };
        let watched = Progress { output: Output::Table, told: HashMap::new(), symbols: true, paint: Paint::Plain };
        assert_eq!(watched.line(&step(CheckStatus::Passed)), "✓ hsm-1  log in");
        let logged = Progress { symbols: false, ..watched };
        assert_eq!(logged.line(&step(CheckStatus::Failed)), "failed   hsm-1  log in\n    refused");
    }
}
