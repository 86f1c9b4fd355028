//! Bad input gets an answer that names the field and the way out, and changes nothing: no record, no object in an HSM,
//! no node's health.
//!
//! Rows are cases: what is wrong in words, the request, the reason, and the field that is named.

mod ciphertext;
mod crypto;
mod extremes;
mod keys;
mod password;
mod stores;
mod updates;
mod wire;
