//! What every refusal promises, checked on every refusal a test meets.

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The code that goes with each reason, as the public contract has it.
const CODES: [(&str, Code); 41] = [
    ("VALIDATION", Code::InvalidArgument),
    ("INVALID_ARN", Code::InvalidArgument),
    ("INVALID_MARKER", Code::InvalidArgument),
    ("INVALID_ALIAS_NAME", Code::InvalidArgument),
    ("INVALID_CIPHERTEXT", Code::InvalidArgument),
    ("INCORRECT_KEY", Code::InvalidArgument),
    ("INVALID_KEY_USAGE", Code::InvalidArgument),
    ("INCORRECT_TRUST_ANCHOR", Code::InvalidArgument),
    ("CHECKSUM_MISMATCH", Code::InvalidArgument),
    ("TAG", Code::InvalidArgument),
    ("REQUEST_ID_REUSED", Code::InvalidArgument),
    ("NOT_FOUND", Code::NotFound),
    ("CUSTOM_KEY_STORE_NOT_FOUND", Code::NotFound),
    ("CLOUD_HSM_CLUSTER_NOT_FOUND", Code::NotFound),
    ("ALREADY_EXISTS", Code::AlreadyExists),
    ("CUSTOM_KEY_STORE_NAME_IN_USE", Code::AlreadyExists),
    ("CLOUD_HSM_CLUSTER_IN_USE", Code::AlreadyExists),
    ("CLOUD_HSM_CLUSTER_NOT_ACTIVE", Code::FailedPrecondition),
    ("CLOUD_HSM_CLUSTER_NOT_RELATED", Code::FailedPrecondition),
    ("CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION", Code::FailedPrecondition),
    ("CLOUD_HSM_INVALID_REQUEST", Code::FailedPrecondition),
    ("LIMIT_EXCEEDED", Code::ResourceExhausted),
    ("CUSTOM_KEY_STORE_INVALID_STATE", Code::FailedPrecondition),
    ("CUSTOM_KEY_STORE_HAS_CMKS", Code::FailedPrecondition),
    ("KMS_INVALID_STATE", Code::FailedPrecondition),
    ("DISABLED", Code::FailedPrecondition),
    ("DRY_RUN_OPERATION", Code::FailedPrecondition),
    ("ACCESS_DENIED", Code::PermissionDenied),
    ("DEADLINE", Code::DeadlineExceeded),
    ("UNSUPPORTED_OPERATION", Code::Unimplemented),
    ("NO_CALLER_IDENTITY", Code::Unauthenticated),
    ("INVALID_CREDENTIALS", Code::Unauthenticated),
    ("LOGIN_REQUIRED", Code::Unauthenticated),
    ("LOGIN_EXPIRED", Code::Unauthenticated),
    ("USER_LOGGED_IN", Code::FailedPrecondition),
    ("THROTTLING", Code::ResourceExhausted),
    ("NO_NODE", Code::Unavailable),
    ("KEY_UNAVAILABLE", Code::Unavailable),
    ("AMBIGUOUS_LABEL", Code::FailedPrecondition),
    ("CONFLICT", Code::Aborted),
    ("OUTCOME_UNKNOWN", Code::Aborted),
];

/// The answer must be a refusal with this reason, which names this field (none when empty), and all else a refusal owes its caller.
#[track_caller]
pub fn refused<T>(what: &str, answer: Result<T, Status>, reason: &str, field: &str) -> Status {
    let Err(status) = answer else { panic!("{what} was accepted") };
    let details = status.get_error_details();
    let told = format!("{what}: {:?} {:?} {details:?}", status.code(), status.message());
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {told}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "keyway"), "{told}");
    let (_, code) = CODES.iter().find(|(listed, _)| *listed == reason).expect("listed");
    assert_eq!(status.code(), *code, "{told}");
    let violations = details.bad_request().map_or(&[][..], |bad| &bad.field_violations);
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    let wanted: Vec<_> = [field].into_iter().filter(|field| !field.is_empty()).collect();
    assert_eq!(fields, wanted, "{told}");
    assert!(violations.iter().all(|violation| !violation.description.is_empty()), "{told}");
    assert!(!status.message().is_empty(), "{told}");
    let links = details.help().map_or(&[][..], |help| &help.links);
    let anchor = format!("#{reason}");
    assert!(links.iter().any(|link| link.url.ends_with(&anchor)), "no help: {told}");
    let request = details.request_info().map(|info| info.request_id.as_str());
    let echoed = status.metadata().get("x-request-id").and_then(|id| id.to_str().ok());
    assert!(request.is_some_and(|id| !id.is_empty()) && request == echoed, "no request id: {told}");
    status
}
