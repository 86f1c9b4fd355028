//! Secrets have types: they cannot be printed, cloned or serialised, and are wiped when dropped.
//!
//! Reading one is always spelt `expose`, so that a reviewer can count the places.

use std::fmt;

use zeroize::Zeroizing;

use super::{Invalid, Username};

macro_rules! secret_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Zeroizing<Vec<u8>>);

        impl $name {
            pub fn new(bytes: Vec<u8>) -> Self {
                Self(Zeroizing::new(bytes))
            }

            pub fn expose(&self) -> &[u8] {
                &self.0
            }

            /// Gives the bytes away, unwiped: for the last step into a transport's buffer.
            pub fn into_exposed(mut self) -> Vec<u8> {
                std::mem::take(&mut *self.0)
            }

            pub fn len(&self) -> usize {
                self.0.len()
            }

            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret_bytes!(
    /// What a caller wants encrypted, what a decryption gives back, a data key in the clear, or
    /// random bytes from an HSM.
    Plaintext
);

secret_bytes!(
    /// The 32 bytes under which passwords are sealed in the records.
    SealingKey
);

/// A crypto user's password. How it becomes a PIN is `host`'s business.
pub struct Password(Zeroizing<String>);

impl Password {
    /// AWS's rule for a key store's password: 7 to 32 letters and digits.
    pub fn for_key_store(text: String) -> Result<Self, Invalid> {
        let text = Zeroizing::new(text);
        if !(7..=32).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Invalid::new("a key store password is 7 to 32 letters and digits"));
        }
        Ok(Self(text))
    }

    /// CloudHSM's rule for a crypto user's password: 7 to 32 characters, here ones that can be seen and typed. Key stores
    /// must be able to use kmsuser's.
    pub fn for_crypto_user(user: &Username, text: String) -> Result<Self, Invalid> {
        if *user == Username::kmsuser() {
            return Self::for_key_store(text)
                .map_err(|_| Invalid::new("kmsuser's password is 7 to 32 letters and digits: key stores use it"));
        }
        let text = Zeroizing::new(text);
        if !(7..=32).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Invalid::new("a crypto user's password is 7 to 32 visible ASCII characters"));
        }
        Ok(Self(text))
    }

    /// A password that was checked when it was first given: one read back from the records, or
    /// an SO PIN of our own making.
    pub fn trusted(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print_itself() {
        let password = Password::for_key_store("hunter2hunter2".into()).unwrap();
        assert_eq!(format!("{password:?}"), "Password(…)");
        assert_eq!(format!("{:?}", Plaintext::new(b"attack at dawn".to_vec())), "Plaintext(…)");
    }

    #[test]
    fn a_key_store_password_is_7_to_32_letters_and_digits() {
        for text in ["short1", "", "has space1", "ünicode123", &"a".repeat(33), "semi;colon1"] {
            assert!(Password::for_key_store(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(Password::for_key_store("a".repeat(7)).is_ok());
        assert!(Password::for_key_store("Z9".repeat(16)).is_ok());
    }

    #[test]
    fn a_crypto_users_password_may_have_more_kinds_of_characters_and_kmsusers_may_not() {
        let alice: Username = "alice".parse().unwrap();
        for text in ["short1", "", "has space1", "ünicode123", &"a".repeat(33), "tab\tcharacter"] {
            assert!(Password::for_crypto_user(&alice, text.to_owned()).is_err(), "{text:?}");
        }
        for text in ["a".repeat(7), "Z9".repeat(16), "co:lon;$%&".to_owned()] {
            assert!(Password::for_crypto_user(&alice, text).is_ok());
        }
        assert!(Password::for_crypto_user(&Username::kmsuser(), "co:lon;$%&".to_owned()).is_err());
        assert!(Password::for_crypto_user(&Username::kmsuser(), "letters4".to_owned()).is_ok());
    }
}
