//! Names and ids, parsed once at the edge.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use super::HsmKeyName;

/// Why a value was refused: what is wrong with it, in words a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A text id that has passed its own rule; cheap to clone.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let rule: fn(&str) -> Result<(), Invalid> = $rule;
                rule(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_id!(
    /// `cluster-` and 11 to 16 characters of `2-7a-z`, as AWS CloudHSM writes them. Lower case
    /// only, so that environment variables (which have no case here) can name one.
    ClusterId,
    |text| {
        let tail = text.strip_prefix("cluster-").unwrap_or_default();
        let alphabet = tail.bytes().all(|b| matches!(b, b'2'..=b'7' | b'a'..=b'z'));
        if (11..=16).contains(&tail.len()) && alphabet {
            Ok(())
        } else {
            Err(Invalid::new(
                "a cluster id is `cluster-` and 11 to 16 characters of 2-7 and a-z",
            ))
        }
    }
);

impl ClusterId {
    pub fn random() -> Self {
        Self(format!("cluster-{}", base32_tail()).into())
    }
}

text_id!(
    /// Names one HSM node within its cluster: `hsm-` and 1 to 32 lower-case letters and digits.
    HsmId,
    |text| {
        let tail = text.strip_prefix("hsm-").unwrap_or_default();
        let alphabet = tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if (1..=32).contains(&tail.len()) && alphabet {
            Ok(())
        } else {
            Err(Invalid::new(
                "an HSM id is `hsm-` and 1 to 32 lower-case letters or digits",
            ))
        }
    }
);

impl HsmId {
    pub fn random() -> Self {
        Self(format!("hsm-{}", base32_tail()).into())
    }
}

/// 11 characters of `2-7a-z`, as AWS CloudHSM's ids end.
fn base32_tail() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // The bytes of a UUID that tell its version and variant are left out.
    let random = Uuid::new_v4().into_bytes();
    let bytes = random[..6].iter().chain(&random[9..14]);
    bytes.map(|byte| char::from(ALPHABET[usize::from(*byte % 32)])).collect()
}

text_id!(
    /// An availability zone: 1 to 64 lower-case letters, digits and hyphens.
    Zone,
    |text| short_name(text, "an availability zone")
);

text_id!(
    /// A region: 1 to 64 lower-case letters, digits and hyphens.
    Region,
    |text| short_name(text, "a region")
);

text_id!(
    /// An account: twelve digits.
    AccountId,
    |text| {
        if text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit()) {
            Ok(())
        } else {
            Err(Invalid::new("an account is 12 digits"))
        }
    }
);

text_id!(
    /// A crypto user: 1 to 31 letters, digits or `_`, as CloudHSM has them. Key stores use `kmsuser`.
    Username,
    |text| {
        let alphabet = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if (1..=31).contains(&text.len()) && alphabet {
            Ok(())
        } else {
            Err(Invalid::new("a crypto user's name is 1 to 31 letters, digits or underscores"))
        }
    }
);

impl Username {
    /// The crypto user that every key store logs in as.
    pub fn kmsuser() -> Self {
        Self("kmsuser".into())
    }

    /// Under which the security officer's logins to the declared tokens, which are kmsuser's, are counted among the others'.
    /// No crypto user's name is like this.
    pub fn security_officer() -> Self {
        Self("(security officer)".into())
    }

    /// The security officer of the token of a crypto user, who has one for himself.
    pub fn security_officer_of(user: &Self) -> Self {
        if *user == Self::kmsuser() {
            Self::security_officer()
        } else {
            Self(format!("(security officer of {user})").into())
        }
    }

    /// Whose password nobody has: who logs in as a user that is not there is refused by this one's token, which takes as
    /// long as any other. No crypto user's name is like this.
    pub fn nobody() -> Self {
        Self("(nobody)".into())
    }

    /// Whoever may have a token: a crypto user, or nobody.
    pub fn of_a_token(text: &str) -> Result<Self, Invalid> {
        let nobody = Self::nobody();
        if text == nobody.as_str() { Ok(nobody) } else { text.parse() }
    }
}

text_id!(
    /// `cks-` and 17 lower-case hexadecimal digits.
    KeyStoreId,
    |text| {
        let tail = text.strip_prefix("cks-").unwrap_or_default();
        let alphabet = tail.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if tail.len() == 17 && alphabet {
            Ok(())
        } else {
            Err(Invalid::new(
                "a key store id is `cks-` and 17 lower-case hexadecimal digits",
            ))
        }
    }
);

impl KeyStoreId {
    pub fn random() -> Self {
        let digits = Uuid::new_v4().simple().to_string();
        Self(format!("cks-{}", &digits[..17]).into())
    }
}

text_id!(
    /// A key store's name: 1 to 256 characters, no control characters, no space at either end.
    KeyStoreName,
    |text| {
        if text.is_empty() || text.chars().count() > 256 {
            return Err(Invalid::new("a key store name has 1 to 256 characters"));
        }
        if text.chars().any(char::is_control) || text.trim() != text {
            return Err(Invalid::new(
                "a key store name has no control characters and no space at either end",
            ));
        }
        Ok(())
    }
);

text_id!(
    /// `alias/` and 1 to 250 letters, digits, `/`, `_` or `-`; `alias/aws/` is reserved.
    AliasName,
    |text| {
        let Some(tail) = text.strip_prefix("alias/") else {
            return Err(Invalid::new("an alias name starts with `alias/`"));
        };
        let alphabet = tail.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-'));
        if !(1..=250).contains(&tail.len()) || !alphabet {
            return Err(Invalid::new(
                "an alias name is `alias/` and 1 to 250 letters, digits, `/`, `_` or `-`",
            ));
        }
        if tail.starts_with("aws/") {
            return Err(Invalid::new("alias names under `alias/aws/` are reserved"));
        }
        Ok(())
    }
);

/// A key's id, a UUID in its hyphenated lower-case form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Uuid);

impl KeyId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for KeyId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Uuid also accepts braces, URNs and bare hex: one spelling is enough for an id that is compared as text elsewhere.
        if text.len() != 36 {
            return Err(Invalid::new("a key id is a UUID such as 1234abcd-12ab-34cd-56ef-1234567890ab"));
        }
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| Invalid::new("a key id is a UUID such as 1234abcd-12ab-34cd-56ef-1234567890ab"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The ways a request can name a key: its id, its ARN, an alias, an alias ARN; or as an HSM's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRef {
    Id(KeyId),
    Alias(AliasName),
    /// A crypto user's.
    Hsm(HsmKeyName),
}

impl FromStr for KeyRef {
    type Err = Invalid;

    /// The region and account of an ARN are not compared: a daemon's clusters may span several,
    /// and a key id is unique without them.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if HsmKeyName::is_meant_by(text) {
            return text.parse().map(Self::Hsm);
        }
        let resource = if text.starts_with("arn:") {
            let mut parts = text.splitn(6, ':');
            let (_, _, service) = (parts.next(), parts.next(), parts.next());
            let (region, account, resource) = (parts.next(), parts.next(), parts.next());
            match (service, region, account, resource) {
                (Some("kms"), Some(_), Some(_), Some(resource)) => resource,
                _ => {
                    return Err(Invalid::new("a key ARN is arn:aws:kms:<region>:<account>:key/<id> or …:alias/<name>"));
                }
            }
        } else {
            text
        };
        if resource.starts_with("alias/") {
            return resource.parse().map(Self::Alias);
        }
        let id = match resource.strip_prefix("key/") {
            Some(id) if text.starts_with("arn:") => id,
            _ => resource,
        };
        id.parse()
            .map(Self::Id)
            .map_err(|_| Invalid::new("name a key by its id (a UUID), its ARN, alias/<name>, an alias ARN, or under a login hsm:<cluster id>/<label>"))
    }
}

fn short_name(text: &str, what: &str) -> Result<(), Invalid> {
    let alphabet = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if (1..=64).contains(&text.len()) && alphabet {
        Ok(())
    } else {
        Err(Invalid::new(format!("{what} is 1 to 64 lower-case letters, digits or hyphens")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_twelve_digits() {
        assert!("000000000000".parse::<AccountId>().is_ok());
        for text in ["", "12345678901", "1234567890123", "12345678901a", "١٢٣٤٥٦"] {
            assert!(text.parse::<AccountId>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_key_is_named_by_id_arn_alias_or_alias_arn() {
        let id = KeyId::random();
        let alias: AliasName = "alias/orders".parse().unwrap();
        assert_eq!(id.to_string().parse(), Ok(KeyRef::Id(id)));
        assert_eq!(format!("arn:aws:kms:us-east-1:000000000000:key/{id}").parse(), Ok(KeyRef::Id(id)));
        assert_eq!("alias/orders".parse(), Ok(KeyRef::Alias(alias.clone())));
        assert_eq!("arn:aws:kms:us-east-1:000000000000:alias/orders".parse(), Ok(KeyRef::Alias(alias)));
    }

    #[test]
    fn what_names_no_key_is_refused() {
        let nil = "00000000-0000-0000-0000-000000000000";
        for text in [
            "",
            "orders",
            "alias/",
            "alias/aws/x",
            "arn:aws:s3:::b",
            "key/",
            "arn:aws:kms:r:a",
            &format!("key/{nil}"),
            &nil.replace('-', ""),
        ] {
            assert!(text.parse::<KeyRef>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn ids_keep_to_their_alphabet_and_length() {
        assert!("cluster-2abcdefghij".parse::<ClusterId>().is_ok());
        assert!("cluster-1abcdefghij".parse::<ClusterId>().is_err());
        assert!("cluster-2abc".parse::<ClusterId>().is_err());
        assert!(ClusterId::random().as_str().parse::<ClusterId>().is_ok());
        assert!(HsmId::random().as_str().parse::<HsmId>().is_ok());
        assert!(KeyStoreId::random().as_str().parse::<KeyStoreId>().is_ok());
        assert!("cks-1".parse::<KeyStoreId>().is_err());
        assert!(" name".parse::<KeyStoreName>().is_err());
        assert!("a\u{7}b".parse::<KeyStoreName>().is_err());
        assert!("hsm-1".parse::<HsmId>().is_ok());
        assert!("hsm-../..".parse::<HsmId>().is_err());
    }
}
