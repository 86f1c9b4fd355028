//! Between columns and the words of the model.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::model::{HsmId, KeyId, KeyKind, KeySpec, KeyUsage};

use super::Unavailable;

pub(super) fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub(super) fn time(row: &SqliteRow, column: &'static str) -> Result<SystemTime, Unavailable> {
    let millis: i64 = row.try_get(column)?;
    Ok(UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
}

pub(super) fn time_if_any(row: &SqliteRow, column: &'static str) -> Result<Option<SystemTime>, Unavailable> {
    let known: Option<i64> = row.try_get(column)?;
    known.map(|_| time(row, column)).transpose()
}

/// A text column as one of the model's types.
pub(super) fn parsed<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, Unavailable> {
    let text: String = row.try_get(column)?;
    text.parse().map_err(|_| Unavailable::row(column))
}

/// A text column as one of the model's enums.
pub(super) fn named<T>(
    row: &SqliteRow,
    column: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, Unavailable> {
    let text: String = row.try_get(column)?;
    parse(&text).ok_or(Unavailable::row(column))
}

/// What a row of `keys` says the key is.
pub(super) fn key_kind(row: &SqliteRow) -> Result<KeyKind, Unavailable> {
    let (spec, usage) = (named(row, "spec", KeySpec::parse)?, named(row, "usage", KeyUsage::parse)?);
    KeyKind::new(spec, usage).ok_or(Unavailable::row("usage"))
}

pub(super) fn key_id(row: &SqliteRow, column: &'static str) -> Result<KeyId, Unavailable> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map(KeyId::from_bytes).map_err(|_| Unavailable::row(column))
}

pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u32, Unavailable> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number).map_err(|_| Unavailable::row(column))
}

/// For `json_each`. The alphabet of ids needs no escapes.
pub(super) fn json(hsms: &[HsmId]) -> String {
    format!("[{}]", hsms.iter().map(|hsm| format!("\"{hsm}\"")).collect::<Vec<_>>().join(","))
}
