//! Requests become the core's types here, once, with an error that names the field.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::clock;
use crate::keys::{DeletionWindow, RotationPeriod};
use crate::keystore;
use crate::model::{
    EncryptionContext, KeyDescription, KeyRef, KeyStoreId, Password, Plaintext, Tags, TrustAnchor, Username,
};
use crate::proto::v1 as pb;
use crate::users::{self, LoginToken, ShownLogins};

use super::status;

/// AWS's bound on what Encrypt takes.
const MAX_PLAINTEXT: usize = 4_096;
/// AWS's bound on what Decrypt and ReEncrypt take.
const MAX_CIPHERTEXT: usize = 6_144;
/// AWS's bound on data keys and random bytes.
const MAX_RANDOM: i32 = 1_024;
const DEFAULT_PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1_000;
/// The metadata in which login tokens travel, one for each cluster.
const LOGIN: &str = "x-keyway-login";
const MOST_LOGINS: usize = 16;
const LOGIN_TTL: Duration = Duration::from_secs(15 * 60);
const SHORTEST_LOGIN: Duration = Duration::from_secs(1);
const LONGEST_LOGIN: Duration = Duration::from_secs(12 * 60 * 60);

/// Parses one field.
pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Status> {
    if text.is_empty() {
        return Err(status::field(field, "is required"));
    }
    text.parse().map_err(|why| status::field(field, why))
}

/// A certificate that is shown now, as a cluster's trust anchor, or what is wrong with it.
pub(super) fn trust_anchor(pem: &str) -> Result<TrustAnchor, String> {
    let anchor = TrustAnchor::parse(pem).map_err(|rule| rule.to_string())?;
    anchor.is_valid_at(clock::now()).map_err(|why| why.to_string())?;
    Ok(anchor)
}

/// Parses a field that may be left out.
pub(super) fn parse_optional<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// Parses a field that is told apart from an empty one.
pub(super) fn parse_given<T: FromStr<Err: std::fmt::Display>>(
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, Status> {
    text.map(|text| parse(field, text)).transpose()
}

pub(super) fn key_store_password(text: String) -> Result<Password, Status> {
    Password::for_key_store(text).map_err(|why| status::field("key_store_password", why))
}

pub(super) fn crypto_user_password(field: &str, user: &Username, text: String) -> Result<Password, Status> {
    Password::for_crypto_user(user, text).map_err(|why| status::field(field, why))
}

/// How long a login is to last.
pub(super) fn login_ttl(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(asked) = asked else { return Ok(LOGIN_TTL) };
    match Duration::try_from(asked) {
        Ok(ttl) if (SHORTEST_LOGIN..=LONGEST_LOGIN).contains(&ttl) => Ok(ttl),
        Ok(_) | Err(_) => Err(status::field("ttl", "is 1 second to 12 hours")),
    }
}

/// The login tokens that came along.
pub(super) fn shown_logins(metadata: &MetadataMap) -> Result<ShownLogins, Status> {
    let values = metadata.get_all(LOGIN).iter().take(MOST_LOGINS + 1);
    let tokens = values.map(|value| {
        let token = value.to_str().ok().and_then(|text| text.parse().ok());
        token.ok_or_else(|| status::field(LOGIN, "is not a login token"))
    });
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    if tokens.len() > MOST_LOGINS {
        return Err(status::field(LOGIN, format!("stands at most {MOST_LOGINS} times")));
    }
    Ok(ShownLogins(tokens))
}

/// The metadata that says who is logged in, for requests within a request.
pub(super) fn login_metadata(metadata: &MetadataMap) -> MetadataMap {
    let mut logins = MetadataMap::new();
    for login in metadata.get_all(LOGIN) {
        logins.append(LOGIN, login.clone());
    }
    logins
}

/// The one login token that came along.
pub(super) fn login_token(metadata: &MetadataMap) -> Result<LoginToken, Status> {
    let token = login_token_if_any(metadata)?;
    token.ok_or_else(|| status::users(users::Error::LoginRequired))
}

/// The same, when there need not be one.
pub(super) fn login_token_if_any(metadata: &MetadataMap) -> Result<Option<LoginToken>, Status> {
    let ShownLogins(mut tokens) = shown_logins(metadata)?;
    match (tokens.pop(), tokens.is_empty()) {
        (token, true) => Ok(token),
        (_, false) => Err(status::field(LOGIN, "stands once in this call")),
    }
}

pub(super) fn key_ref(text: &str) -> Result<KeyRef, Status> {
    key_ref_in("key_id", text)
}

/// In a request that names its keys otherwise.
pub(super) fn key_ref_in(field: &str, text: &str) -> Result<KeyRef, Status> {
    if text.starts_with("arn:") {
        return text.parse().map_err(|why| status::field_reason(field, "INVALID_ARN", why));
    }
    parse(field, text)
}

/// The same, where a ciphertext names its key as well.
pub(super) fn key_ref_if_any(field: &str, text: &str) -> Result<Option<KeyRef>, Status> {
    if text.is_empty() { Ok(None) } else { key_ref_in(field, text).map(Some) }
}

pub(super) fn context(pairs: HashMap<String, String>) -> Result<EncryptionContext, Status> {
    context_in("encryption_context", pairs)
}

pub(super) fn context_in(field: &str, pairs: HashMap<String, String>) -> Result<EncryptionContext, Status> {
    EncryptionContext::new(pairs).map_err(|why| status::field(field, why))
}

/// What Encrypt takes, its checksum verified when one came along.
pub(super) fn plaintext(bytes: Vec<u8>, crc32c: Option<u32>) -> Result<Plaintext, Status> {
    let plaintext = Plaintext::new(bytes);
    if plaintext.is_empty() || plaintext.len() > MAX_PLAINTEXT {
        let why = format!("has 1 to {MAX_PLAINTEXT} bytes, not {}; for more, use a data key", plaintext.len());
        return Err(status::field("plaintext", why));
    }
    checksum("plaintext", plaintext.expose(), crc32c)?;
    Ok(plaintext)
}

/// What Decrypt and ReEncrypt take, its checksum verified when one came along.
pub(super) fn ciphertext(bytes: Vec<u8>, crc32c: Option<u32>) -> Result<Vec<u8>, Status> {
    if bytes.is_empty() {
        return Err(status::field("ciphertext", "is required"));
    }
    if bytes.len() > MAX_CIPHERTEXT {
        let why = format!("has 1 to {MAX_CIPHERTEXT} bytes, not {}", bytes.len());
        return Err(status::field("ciphertext", why));
    }
    checksum("ciphertext", &bytes, crc32c)?;
    Ok(bytes)
}

pub(super) fn checksum(field: &str, bytes: &[u8], expected: Option<u32>) -> Result<(), Status> {
    match expected {
        Some(expected) if expected != crc32c::crc32c(bytes) => Err(status::field_reason(
            &format!("{field}_crc32c"),
            "CHECKSUM_MISMATCH",
            format!("is not the CRC-32C of {field}: the bytes changed on their way here"),
        )),
        Some(_) | None => Ok(()),
    }
}

/// How long a data key is to be.
pub(super) fn data_key_length(spec: Option<i32>, number_of_bytes: Option<i32>) -> Result<u32, Status> {
    match (spec.map(pb::DataKeySpec::try_from), number_of_bytes) {
        (Some(Ok(pb::DataKeySpec::Aes128)), _) => Ok(16),
        (Some(Ok(pb::DataKeySpec::Aes256)), _) => Ok(32),
        (Some(_), _) => Err(status::field("data_key_spec", "is AES_128 or AES_256")),
        (None, Some(number)) => number_of_random_bytes(number),
        (None, None) => Err(status::field("data_key_spec", "or number_of_bytes is required")),
    }
}

pub(super) fn number_of_random_bytes(number: i32) -> Result<u32, Status> {
    match u32::try_from(number) {
        Ok(bytes) if (1..=MAX_RANDOM).contains(&number) => Ok(bytes),
        _ => Err(status::field("number_of_bytes", format!("is 1 to {MAX_RANDOM}, not {number}"))),
    }
}

pub(super) fn description(text: String) -> Result<String, Status> {
    KeyDescription::new(text).map(KeyDescription::into_string).map_err(|why| status::field("description", why))
}

/// Why an HSM is drained.
pub(super) fn note(text: String) -> Result<String, Status> {
    if text.chars().count() > 256 || text.chars().any(char::is_control) {
        return Err(status::field("note", "has at most 256 characters, and no control characters"));
    }
    Ok(text)
}

pub(super) fn tags(tags: HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    Tags::new(tags).map(Tags::into_map).map_err(|why| status::field_reason("tags", "TAG", why))
}

/// Names of tags that are to go.
pub(super) fn tag_keys(keys: Vec<String>) -> Result<Vec<String>, Status> {
    let bad = |why: &str| Err(status::field_reason("tag_keys", "TAG", why));
    if keys.is_empty() || keys.len() > 50 {
        return bad("are 1 to 50");
    }
    if keys.iter().any(|key| key.is_empty() || key.chars().count() > 128) {
        return bad("have 1 to 128 characters each");
    }
    if keys.iter().any(|key| key.to_ascii_lowercase().starts_with("aws:")) {
        return bad("have none among them that start with aws:");
    }
    Ok(keys)
}

/// How long a key waits for its deletion.
pub(super) fn deletion_window(days: i32) -> Result<DeletionWindow, Status> {
    let why = || status::field("pending_window_days", format!("is 7 to 30 days, or 0 for 30, not {days}"));
    DeletionWindow::of_days(days).ok_or_else(why)
}

/// How many days lie between automatic rotations.
pub(super) fn rotation_period(days: i32) -> Result<RotationPeriod, Status> {
    let why = || status::field("rotation_period_days", format!("is 90 to 2,560 days, or 0 for 365, not {days}"));
    RotationPeriod::of_days(days).ok_or_else(why)
}

pub(super) fn request_id(text: &str) -> Result<Option<String>, Status> {
    match text.chars().count() {
        0 => Ok(None),
        1..=36 if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(text.to_owned())),
        _ => Err(status::field("request_id", "has at most 36 visible ASCII characters")),
    }
}

/// How many entries a page has.
pub(super) fn page_size(asked: i32) -> Result<u32, Status> {
    match u32::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(LARGEST_PAGE)),
        Err(_) => Err(status::field("page_size", "is not negative")),
    }
}

/// Where the last page ended. Opaque to callers, so what they made up is refused.
pub(super) fn page_token<T: FromStr>(token: &str) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let cursor = token.strip_prefix("after:").and_then(|cursor| cursor.parse().ok());
    cursor.map(Some).ok_or_else(strange_page_token)
}

/// It belongs to another list, or to none.
pub(super) fn strange_page_token() -> Status {
    status::field_reason("page_token", "INVALID_MARKER", "was not given out here")
}

pub(super) fn next_page_token(last: impl ToString) -> String {
    format!("after:{}", last.to_string())
}

/// How long the caller waits, if it says.
pub(super) fn asked_timeout(headers: &http::HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout)
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

pub(super) fn drain_timeout(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(asked) = asked else { return Ok(keystore::DRAIN_TIMEOUT) };
    match (u64::try_from(asked.seconds), u32::try_from(asked.nanos)) {
        (Ok(seconds @ 0..=600), Ok(nanos @ 0..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(status::field("drain_timeout", "is 0 to 600 seconds")),
    }
}

/// A key store's id among the fields of a request.
pub(super) fn key_store_id(text: &str) -> Result<KeyStoreId, Status> {
    parse("key_store_id", text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use tonic_types::StatusExt as _;

    use super::super::kinds;
    use super::*;

    /// Whatever comes in, the answer to it is a value or a refusal that names one of these fields.
    fn takes<T>(converted: Result<T, Status>, fields: &[&str]) -> Option<T> {
        let refused = match converted {
            Ok(value) => return Some(value),
            Err(refused) => refused,
        };
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
        let details = refused.get_error_details();
        let named = details.bad_request().expect("a field is wrong").field_violations[0].field.clone();
        assert!(fields.contains(&named.as_str()), "{named}: {refused:?}");
        assert!(refused.message().len() < 1_000, "it repeats what came in: {refused:?}");
        None
    }

    /// As the handlers convert it.
    fn convert(request: pb::ReEncryptRequest) {
        takes(ciphertext(request.ciphertext, request.ciphertext_crc32c), &["ciphertext", "ciphertext_crc32c"]);
        takes(key_ref_if_any("source_key_id", &request.source_key_id), &["source_key_id"]);
        takes(key_ref_in("destination_key_id", &request.destination_key_id), &["destination_key_id"]);
        for (field, pairs) in [
            ("source_encryption_context", request.source_encryption_context),
            ("destination_encryption_context", request.destination_encryption_context),
        ] {
            if let Some(context) = takes(context_in(field, pairs), &[field]) {
                assert!(context.canonical().len() <= EncryptionContext::LONGEST_CANONICAL);
            }
        }
        let field = "source_encryption_algorithm";
        takes(kinds::asked_symmetric_algorithm(field, request.source_encryption_algorithm), &[field]);
    }

    proptest! {
        #[test]
        fn bytes_that_are_a_request_are_converted_or_refused_by_field(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = pb::ReEncryptRequest::decode(&*bytes) {
                convert(request);
            }
            if let Ok(request) = pb::EncryptRequest::decode(&*bytes) {
                takes(plaintext(request.plaintext, request.plaintext_crc32c), &["plaintext", "plaintext_crc32c"]);
            }
        }

        #[test]
        fn requests_of_any_fields_are_converted_or_refused_by_field(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            crc32c in any::<Option<u32>>(),
            key in prop_oneof![any::<String>(), "(arn:aws:kms:|alias/|hsm:|arn:)[a-z0-9:/%=-]{0,60}", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"],
            pairs in prop::collection::hash_map(any::<String>(), any::<String>(), 0..5),
            algorithm in any::<i32>(),
        ) {
            convert(pb::ReEncryptRequest {
                ciphertext: bytes,
                ciphertext_crc32c: crc32c,
                source_key_id: key.clone(),
                destination_key_id: key,
                source_encryption_context: pairs.clone(),
                destination_encryption_context: pairs,
                source_encryption_algorithm: algorithm,
                ..Default::default()
            });
        }

        #[test]
        fn lengths_names_and_pages_of_any_kind_are_converted_or_refused_by_field(
            number in any::<i32>(),
            spec in any::<Option<i32>>(),
            text in any::<String>(),
            tagged in prop::collection::hash_map(any::<String>(), any::<String>(), 0..5),
        ) {
            if let Some(length) = takes(data_key_length(spec, Some(number)), &["data_key_spec", "number_of_bytes"]) {
                prop_assert!((1..=1_024).contains(&length));
            }
            if let Some(size) = takes(page_size(number), &["page_size"]) {
                prop_assert!((1..=LARGEST_PAGE).contains(&size));
            }
            takes(page_token::<crate::model::KeyId>(&text), &["page_token"]);
            takes(request_id(&text), &["request_id"]);
            takes(key_store_id(&text), &["key_store_id"]);
            takes(tags(tagged), &["tags"]);
            let _ = timeout(&text);
        }
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        for text in ["", "m", "123456789S", "5x", "-1S", "é"] {
            assert_eq!(timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn pages_have_bounds_and_tokens_are_ours() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!(page_size(5_000).unwrap(), 1_000);
        assert!(page_size(-1).is_err());
        let token = next_page_token("alias/x");
        assert_eq!(page_token::<String>(&token).unwrap().as_deref(), Some("alias/x"));
        assert!(page_token::<String>("made up").is_err());
    }

    #[test]
    fn a_ciphertext_has_1_to_6144_bytes() {
        assert!(ciphertext(vec![0; 6_144], None).is_ok());
        for length in [0, 6_145, 1 << 20] {
            let refused = ciphertext(vec![0; length], None).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().starts_with("ciphertext: "), "{}", refused.message());
        }
        assert!(ciphertext(vec![0; 6_145], None).unwrap_err().message().contains("6144"), "the bound is told");
    }

    #[test]
    fn a_plaintext_has_1_to_4096_bytes_and_the_checksum_it_came_with() {
        assert!(plaintext(Vec::new(), None).is_err());
        assert!(plaintext(vec![0; MAX_PLAINTEXT + 1], None).is_err());
        assert!(plaintext(vec![0; MAX_PLAINTEXT], None).is_ok());
        assert!(plaintext(b"x".to_vec(), Some(crc32c::crc32c(b"x"))).is_ok());
        let refused = plaintext(b"x".to_vec(), Some(0)).unwrap_err();
        assert!(refused.message().starts_with("plaintext_crc32c: "), "{}", refused.message());
    }
}
