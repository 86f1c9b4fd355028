//! What a caller shows to be taken for a login's owner: 32 random bytes that are kept nowhere else.
//!
//! The records know the login by the token's hash, and hold its password under a key that is made of the token in another
//! way: neither tells anything of the other.

use std::str::FromStr;

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::authz::Caller;
use crate::model::{ClusterId, Invalid, Password, Sealer, SealingKey, Username};

const BYTES: usize = 32;
/// As it travels: base64 without padding.
const TEXT: usize = (BYTES * 4).div_ceil(3);
/// What the key made of a token is for, and for nothing else.
const PASSWORD: &[u8] = b"keyway login password 1";

/// Whose login a token stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) cluster: &'a ClusterId,
    pub(super) username: &'a Username,
    pub(super) caller: &'a Caller,
}

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

    /// The user's password, as the records keep it: it opens with this token, for this login. `None` when the system has no
    /// random bytes.
    pub(super) fn seal(&self, whose: Whose<'_>, password: &Password) -> Option<Vec<u8>> {
        self.sealer().seal(&self.place(whose).each_ref().map(String::as_str), password.expose().as_bytes())
    }

    /// `None` for what was sealed with another token, or for another login.
    pub(super) fn open(&self, whose: Whose<'_>, sealed: &[u8]) -> Option<Password> {
        let opened = self.sealer().open(&self.place(whose).each_ref().map(String::as_str), sealed)?;
        std::str::from_utf8(&opened).ok().map(|text| Password::trusted(text.to_owned()))
    }

    fn sealer(&self) -> Sealer {
        let mut key = Zeroizing::new([0; BYTES]);
        let material = Salt::new(HKDF_SHA256, &[]).extract(&*self.0);
        let made = material.expand(&[PASSWORD], HKDF_SHA256).and_then(|made| made.fill(&mut *key));
        made.expect("HKDF has as many bytes");
        Sealer::new(&SealingKey::new(key.to_vec())).expect("a key of its length")
    }

    fn place(&self, Whose { cluster, username, caller }: Whose<'_>) -> [String; 5] {
        let token = self.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
        ["login".to_owned(), cluster.to_string(), username.to_string(), caller.name().to_owned(), token]
    }

    /// As it travels.
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(*self.0)
    }
}

impl FromStr for LoginToken {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() != TEXT {
            return Err(Invalid::new("is not a login token"));
        }
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
    fn a_password_opens_with_its_token_for_its_login_and_with_nothing_that_the_records_hold() {
        let (token, other) = (LoginToken::random(), LoginToken::random());
        let (cluster, elsewhere): (ClusterId, ClusterId) =
            ("cluster-2abcdefghij".parse().unwrap(), "cluster-2abcdefghik".parse().unwrap());
        let (alice, bob): (Username, Username) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (ops, dev) = (Caller::certificate("ops".to_owned()), Caller::certificate("dev".to_owned()));
        let whose = Whose { cluster: &cluster, username: &alice, caller: &ops };
        let sealed = token.seal(whose, &Password::trusted("hunter22".to_owned())).unwrap();
        assert_eq!(token.open(whose, &sealed).unwrap().expose(), "hunter22");
        assert!(other.open(whose, &sealed).is_none());
        for others in
            [Whose { cluster: &elsewhere, ..whose }, Whose { username: &bob, ..whose }, Whose { caller: &dev, ..whose }]
        {
            assert!(token.open(others, &sealed).is_none(), "{others:?}");
        }
        // The records have the hash, and nothing of the token beside it.
        let hash = LoginToken(Zeroizing::new(token.sha256()));
        assert!(hash.open(whose, &sealed).is_none());
        let place = token.place(whose);
        let plainly = Sealer::new(&SealingKey::new(token.0.to_vec())).unwrap();
        let by_hash = Sealer::new(&SealingKey::new(token.sha256().to_vec())).unwrap();
        for key in [plainly, by_hash] {
            assert!(key.open(&place.each_ref().map(String::as_str), &sealed).is_none());
        }
    }

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
