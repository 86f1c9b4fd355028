//! Keys of crypto users' own, as callers and tokens name them: `hsm:<cluster id>/<label>`, or by `CKA_ID`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{ClusterId, Invalid, Username};

/// How such a name begins.
const SCHEME: &str = "hsm:";
/// What stands before a `CKA_ID`. A label that begins so is written with `%3D`.
const BY_ID: &str = "id=";
/// What a worker searches for at most, in bytes.
const LONGEST_LABEL: usize = 128;
const LONGEST_CKA_ID: usize = 64;
/// How the labels of keyway's own objects begin.
const KEYWAYS_OWN: &str = "keyway:";

/// A crypto user of a cluster: who has a token on each of its HSMs, with what is his in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CryptoUser {
    pub cluster: ClusterId,
    pub username: Username,
}

impl CryptoUser {
    /// In whose tokens the keys of the cluster's key store are.
    pub fn kmsuser(cluster: ClusterId) -> Self {
        Self { cluster, username: Username::kmsuser() }
    }
}

/// A key's `CKA_LABEL`: 1 to 128 bytes of UTF-8 without control characters, and not one of keyway's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HsmLabel(Arc<str>);

impl HsmLabel {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the label of one of keyway's own objects, which no key of a user's has.
    pub fn is_keyways_own(label: &str) -> bool {
        label.starts_with(KEYWAYS_OWN)
    }
}

impl FromStr for HsmLabel {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if !(1..=LONGEST_LABEL).contains(&text.len()) || text.chars().any(char::is_control) {
            return Err(Invalid::new(format!("a label is 1 to {LONGEST_LABEL} bytes without control characters")));
        }
        // Stands for bytes that are no UTF-8: nobody could say which.
        if text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(Invalid::new("a label is UTF-8"));
        }
        if Self::is_keyways_own(text) {
            return Err(Invalid::new(format!("a label that begins with `{KEYWAYS_OWN}` is keyway's own")));
        }
        Ok(Self(text.into()))
    }
}

/// What singles a key out among a user's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HsmKeyMark {
    Label(HsmLabel),
    /// Its `CKA_ID`, 1 to 64 bytes.
    Id(Arc<[u8]>),
}

impl HsmKeyMark {
    /// `None` for one that is too short or too long to be searched for.
    pub fn id(cka_id: &[u8]) -> Option<Self> {
        (1..=LONGEST_CKA_ID).contains(&cka_id.len()).then(|| Self::Id(cka_id.into()))
    }
}

/// A key of a crypto user's own. Whose, the caller's login for the cluster says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HsmKeyName {
    pub cluster: ClusterId,
    pub mark: HsmKeyMark,
}

impl HsmKeyName {
    /// Whether the text means to be such a name, right or wrong.
    pub fn is_meant_by(text: &str) -> bool {
        text.starts_with(SCHEME)
    }
}

impl FromStr for HsmKeyName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let form = || {
            Invalid::new("an HSM's own key is hsm:<cluster id>/<label>, percent-encoded, or hsm:<cluster id>/id=<hex>")
        };
        let (cluster, mark) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(form)?;
        Ok(Self { cluster: cluster.parse()?, mark: mark.parse()? })
    }
}

impl FromStr for HsmKeyMark {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix(BY_ID) {
            Some(hex) => from_hex(hex).as_deref().and_then(Self::id).ok_or_else(|| {
                Invalid::new(format!("a CKA_ID is 1 to {LONGEST_CKA_ID} bytes, in pairs of hexadecimal digits"))
            }),
            None => {
                let label = percent_decoded(text).ok_or_else(|| Invalid::new("a label is UTF-8, percent-encoded"))?;
                label.parse().map(Self::Label)
            }
        }
    }
}

impl fmt::Display for HsmKeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.mark)
    }
}

impl fmt::Display for HsmKeyMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => percent_encode(label.as_str(), f),
            Self::Id(bytes) => {
                f.write_str(BY_ID)?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// RFC 3986's unreserved characters stand for themselves.
fn percent_encode(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => write!(f, "{}", char::from(byte))?,
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

/// What is not percent-encoded, and need not be for us to read it, stands for itself.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(byte_of(digits)?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(byte_of).collect()
}

fn byte_of(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? * 16 + digit(*low)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster() -> ClusterId {
        "cluster-2abcdefghij".parse().unwrap()
    }

    fn read(mark: &str) -> Result<HsmKeyMark, Invalid> {
        format!("hsm:cluster-2abcdefghij/{mark}").parse::<HsmKeyName>().map(|name| name.mark)
    }

    fn label(text: &str) -> HsmKeyMark {
        HsmKeyMark::Label(text.parse().unwrap())
    }

    #[test]
    fn a_key_is_named_by_its_label_percent_encoded_or_by_its_cka_id() {
        assert_eq!(read("orders"), Ok(label("orders")));
        assert_eq!(read("a%20b%2Fc"), Ok(label("a b/c")));
        assert_eq!(read("a/b c"), Ok(label("a/b c")), "what needs no encoding to be read");
        assert_eq!(read("id=00fF"), Ok(HsmKeyMark::Id([0, 255].as_slice().into())));
        assert_eq!(read("id%3D00ff"), Ok(label("id=00ff")));
    }

    #[test]
    fn what_names_no_key_is_refused() {
        let (long, id) = ("a".repeat(129), format!("id={}", "00".repeat(65)));
        for mark in ["", "%", "%2", "%zz", "%ff", "id=", "id=0", "id=xx", "a%00b", "keyway%3Akek", &long, &id] {
            assert!(read(mark).is_err(), "{mark:?} was accepted");
        }
        for text in ["hsm:", "hsm:orders", "hsm:cluster-1/orders", "orders"] {
            assert!(text.parse::<HsmKeyName>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_read_as_it_was_written(text in "[^\\p{Cc}]{1,32}", id in prop::collection::vec(any::<u8>(), 1..=64)) {
            let labels = text.parse().ok().map(HsmKeyMark::Label);
            for mark in labels.into_iter().chain(HsmKeyMark::id(&id)) {
                let name = HsmKeyName { cluster: cluster(), mark };
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in ".{0,40}") {
            let _ = text.parse::<HsmKeyName>();
            let _ = read(&text);
        }
    }
}
