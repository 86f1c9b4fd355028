//! What a caller shows to be taken for a login's owner: 32 random bytes that are kept nowhere else.

use std::str::FromStr;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::model::Invalid;

const BYTES: usize = 32;

/// A login's token. A secret: who has it, and is the caller it was given to, is logged in.
pub struct LoginToken(Zeroizing<[u8; BYTES]>);

impl LoginToken {
    pub(super) fn random() -> Self {
        let mut bytes = Zeroizing::new([0; BYTES]);
        rand::fill(&mut *bytes).expect("the system has random bytes");
        Self(bytes)
    }

    /// Under which the records know the login.
    pub(super) fn sha256(&self) -> [u8; 32] {
        digest::digest(&digest::SHA256, &*self.0).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// As it travels.
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(*self.0)
    }
}

impl FromStr for LoginToken {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new);
        let bytes = decoded.ok().and_then(|decoded| <[u8; BYTES]>::try_from(decoded.as_slice()).ok());
        bytes.map(|bytes| Self(Zeroizing::new(bytes))).ok_or_else(|| Invalid::new("is not a login token"))
    }
}

impl std::fmt::Debug for LoginToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_given_and_does_not_print_itself() {
        let token = LoginToken::random();
        let read: LoginToken = token.expose().parse().unwrap();
        assert_eq!(read.sha256(), token.sha256());
        assert_ne!(LoginToken::random().sha256(), token.sha256());
        assert_eq!(format!("{token:?}"), "LoginToken(…)");
        for text in ["", "x", "not base64!", &"A".repeat(42), &"A".repeat(44), &"A".repeat(10_000)] {
            assert!(text.parse::<LoginToken>().is_err(), "{text:?}");
        }
    }
}
