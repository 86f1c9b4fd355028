//! Why a command failed: read once from whatever went wrong, shown as text or as JSON.
//!
//! It tells a daemon that said no from one that could not be asked, because scripts treat them differently.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::address::Address;
use super::table::printable;

/// gRPC's codes by number, as grpcurl names them.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Boxed inside, so that the way of those that succeed stays light.
#[derive(Debug)]
pub(super) struct Failure {
    ending: Ending,
    account: Box<Account>,
}

/// What is told of a failure; its JSON form is what programs read on stderr.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Account {
    code: String,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    field_violations: Vec<Violation>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_seconds")]
    retry_after: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// What to do about it, each a sentence or a command.
    #[serde(rename = "try", skip_serializing_if = "Vec::is_empty")]
    tries: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Violation {
    field: String,
    description: String,
}

/// What a failure means for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Whoever read our output has enough of it; nothing went wrong.
    ReaderLeft,
    /// The daemon said no, or its answer could not be used.
    Refused,
    /// The command cannot be meant like this.
    Usage,
    /// No daemon was there.
    Unreachable,
    /// It was there, and vanished before it answered.
    Lost,
}

impl Failure {
    fn new(ending: Ending, code: &str, reason: &str, message: impl Into<String>) -> Self {
        let (code, reason, message) = (code.to_owned(), reason.to_owned(), message.into());
        Self { ending, account: Box::new(Account { code, reason, message, ..Account::default() }) }
    }

    /// The command line, an environment variable or a file it names is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Ending::Usage, "INVALID_ARGUMENT", "USAGE", message)
    }

    /// Something on this machine does not work.
    pub(super) fn local(message: impl Into<String>) -> Self {
        Self::new(Ending::Refused, "INTERNAL", "LOCAL", message)
    }

    /// What the daemon answered says that the command did not succeed.
    pub(super) fn refused(code: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(Ending::Refused, code, reason, message)
    }

    /// The command's own time is up.
    pub(super) fn late(message: impl Into<String>) -> Self {
        Self::refused("DEADLINE_EXCEEDED", "DEADLINE", message)
    }

    pub(super) fn unreachable(address: &Address, why: &str) -> Self {
        Self::new(
            Ending::Unreachable,
            "UNAVAILABLE",
            "UNREACHABLE",
            format!("the daemon at {address} cannot be reached: {why}"),
        )
        .with("address", address)
        .advise("name another with --addr or KEYWAY_ADDR, or start one with `keyway dev`")
    }

    fn lost(why: &str) -> Self {
        Self::new(Ending::Lost, "UNAVAILABLE", "UNREACHABLE", format!("the daemon was lost before it answered: {why}"))
    }

    /// Writing to stdout failed. A reader that left, as `head` does, is no failure of ours.
    pub(super) fn output(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Ending::ReaderLeft, "OK", "", ""),
            _ => Self::local(format!("the output cannot be written: {error}")),
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.account.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    pub(super) fn advise(mut self, what: impl Into<String>) -> Self {
        self.account.tries.push(what.into());
        self
    }

    /// The same, said of this.
    pub(super) fn about(mut self, what: &str) -> Self {
        self.account.message = format!("{what}: {}", self.account.message);
        self
    }

    pub(super) fn message(&self) -> &str {
        &self.account.message
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.account.retry_after
    }

    /// True when the same call may go well a moment later, and repeating it is safe if it is repeatable at all.
    pub(super) fn is_passing(&self) -> bool {
        self.account.code == "UNAVAILABLE"
    }

    /// True when the daemon gave this reason.
    pub(super) fn is(&self, reason: &str) -> bool {
        self.account.reason == reason
    }

    pub(super) fn is_late(&self) -> bool {
        self.account.code == "DEADLINE_EXCEEDED"
    }

    /// True when nothing answered: not even a refusal.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self.ending, Ending::Unreachable | Ending::Lost)
    }

    pub(super) fn is_advised(&self) -> bool {
        !self.account.tries.is_empty()
    }

    /// True when a connection was made and then broke.
    pub(super) fn is_lost(&self) -> bool {
        self.ending == Ending::Lost
    }

    /// True when the work may have been done although no answer says so.
    pub(super) fn leaves_doubt(&self) -> bool {
        self.is_unreachable()
            || matches!(self.account.code.as_str(), "DEADLINE_EXCEEDED" | "CANCELLED" | "ABORTED" | "UNKNOWN")
    }

    pub(super) fn is_worth_telling(&self) -> bool {
        self.ending != Ending::ReaderLeft
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_number())
    }

    fn exit_number(&self) -> u8 {
        match self.ending {
            Ending::ReaderLeft => 0,
            Ending::Refused => 1,
            Ending::Usage => 2,
            Ending::Unreachable | Ending::Lost => 3,
        }
    }

    /// A line for the failure and one for each thing that helps.
    pub(super) fn text(&self) -> String {
        let mut text = format!("error: {}\n", printable(&self.account.message));
        let mut line = |label: &str, value: &str| text.push_str(&format!("  {label}: {}\n", printable(value)));
        for violation in &self.account.field_violations {
            let known = self.account.message.contains(&violation.description);
            let why = if known { String::new() } else { format!(": {}", violation.description) };
            line("field", &format!("{}{why}", violation.field));
        }
        for advice in &self.account.tries {
            line("try", advice);
        }
        if let Some(delay) = self.account.retry_after {
            line("try", &format!("again in {}", seconds(delay)));
        }
        if let Some(help) = &self.account.help {
            line("try", &format!("read {help}"));
        }
        if !matches!(self.account.reason.as_str(), "" | "USAGE" | "LOCAL" | "UNREACHABLE") {
            line("reason", &self.account.reason);
        }
        if let Some(id) = &self.account.request_id {
            line("request", id);
        }
        text
    }

    pub(super) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: &'a Account,
        }
        serde_json::to_string(&Envelope { error: &self.account }).expect("strings, and maps of them, have a JSON form")
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A status from the wire has no source; one that tonic made up here, because the wire failed, has.
        if let Some(source) = status.source() {
            return if chain(source).any(<dyn Error>::is::<tonic::TimeoutExpired>) {
                Self::late("no answer came in time").advise("allow more with --timeout")
            } else {
                Self::lost(&root_cause(source))
            };
        }
        let code = CODES.get(status.code() as usize).copied().unwrap_or("UNKNOWN");
        let details = status.get_error_details();
        // Ours always say a reason; a bare UNAVAILABLE is a proxy's, or a server's that is going away.
        let Some(info) = details.error_info() else {
            return if code == "UNAVAILABLE" {
                Self::lost(status.message())
            } else {
                Self::refused(code, "", status.message())
            };
        };
        let mut failure = Self::refused(code, &info.reason, status.message());
        failure.account.take_in(details);
        failure
    }
}

impl Account {
    /// What the daemon told beside its sentence.
    fn take_in(&mut self, details: ErrorDetails) {
        self.metadata =
            details.error_info().map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default();
        self.tries.extend(self.metadata.get("remedy").cloned());
        self.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        self.request_id = details.request_info().map(|request| request.request_id.clone());
        self.help = details.help().and_then(|help| help.links.first()).map(|link| link.url.clone());
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        self.field_violations.extend(
            violations.into_iter().map(|wrong| Violation { field: wrong.field, description: wrong.description }),
        );
    }
}

/// What lies at the bottom of an error: the layers above only say that something failed.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// A duration as proto3 JSON has it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

fn as_seconds<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_str(&seconds(*duration)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic::Code;

    fn refusal() -> Status {
        let metadata = HashMap::from([("keyId".to_owned(), "k1".to_owned())]);
        let mut details = ErrorDetails::with_error_info("VALIDATION", "keyway", metadata);
        details.add_bad_request_violation("key_id", "is empty");
        details.set_retry_info(Some(Duration::from_millis(1500)));
        details.add_help_link("what it means", "https://kms.example/docs/errors#VALIDATION");
        Status::with_error_details(Code::InvalidArgument, "the request is wrong", details)
    }

    #[test]
    fn a_refusal_reads_as_a_sentence_and_what_to_do() {
        assert_eq!(
            Failure::from(refusal()).text(),
            "error: the request is wrong\n  field: key_id: is empty\n  try: again in 1.5s\n  \
             try: read https://kms.example/docs/errors#VALIDATION\n  reason: VALIDATION\n"
        );
    }

    #[test]
    fn a_refusal_in_json_holds_every_detail() {
        let json: serde_json::Value = serde_json::from_str(&Failure::from(refusal()).json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "error": {
                "code": "INVALID_ARGUMENT",
                "reason": "VALIDATION",
                "message": "the request is wrong",
                "metadata": { "keyId": "k1" },
                "fieldViolations": [{ "field": "key_id", "description": "is empty" }],
                "retryAfter": "1.5s",
                "help": "https://kms.example/docs/errors#VALIDATION",
            }})
        );
    }

    #[test]
    fn a_daemon_that_says_it_cannot_is_not_a_daemon_out_of_reach() {
        let details = ErrorDetails::with_error_info("NO_NODE", "keyway", HashMap::new());
        let said = Failure::from(Status::with_error_details(Code::Unavailable, "no HSM answers", details));
        assert_eq!((said.exit_number(), said.is_passing(), said.is_unreachable()), (1, true, false));
        let bare = Failure::from(Status::unavailable("upstream connect error"));
        assert_eq!((bare.exit_number(), bare.is_passing(), bare.is_unreachable()), (3, true, true));
    }

    #[test]
    fn a_wire_that_broke_is_a_daemon_out_of_reach() {
        let status = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        let failure = Failure::from(status);
        assert_eq!(failure.exit_number(), 3);
        assert!(failure.message().contains("connection reset"), "{}", failure.message());
    }

    #[test]
    fn an_answer_that_came_too_late_says_so() {
        let failure = Failure::from(Status::from_error(Box::new(tonic::TimeoutExpired(()))));
        assert_eq!((failure.exit_number(), failure.account.reason.as_str()), (1, "DEADLINE"));
    }

    #[test]
    fn a_message_cannot_move_the_cursor() {
        let failure = Failure::from(Status::not_found("no key \u{1b}[2J"));
        assert!(!failure.text().contains('\u{1b}'));
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let failure = Failure::output(&std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!((failure.exit_number(), failure.is_worth_telling()), (0, false));
    }
}
