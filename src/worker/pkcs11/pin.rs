//! A PIN on its way from the link into the library.

use cryptoki::types::{AuthPin, RawAuthPin};
use zeroize::Zeroizing;

use super::Fault;

/// A user's or an SO's PIN, as the token wants it. Wiped when dropped.
pub struct Pin(Zeroizing<Vec<u8>>);

impl Pin {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn for_login(&self) -> RawAuthPin {
        RawAuthPin::new(Box::new(self.0.to_vec()))
    }

    /// For the calls that take text only.
    pub(super) fn for_setting(&self) -> Result<AuthPin, Fault> {
        let text = std::str::from_utf8(&self.0).map_err(|_| Fault::bad_input("a PIN to set is UTF-8 text"))?;
        if text.is_empty() {
            return Err(Fault::bad_input("a PIN to set is not empty"));
        }
        Ok(AuthPin::new(text.into()))
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pin(…)")
    }
}
