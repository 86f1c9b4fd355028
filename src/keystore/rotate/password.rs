//! New passwords, as random as the system's generator.

use zeroize::Zeroizing;

use crate::model::Password;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// As long as a key store's password may be: 190 bits.
const LENGTH: usize = 32;
/// Bytes from here on would make the alphabet's beginning likelier than its end.
const FAIR: u8 = 248;

/// 32 letters and digits, each as likely as any other. `None` when the system gives no random bytes.
pub(super) fn random() -> Option<Password> {
    let mut text = String::with_capacity(LENGTH);
    let mut bytes = Zeroizing::new([0; 64]);
    while text.len() < LENGTH {
        aws_lc_rs::rand::fill(&mut *bytes).ok()?;
        take(&*bytes, &mut text);
    }
    Some(Password::trusted(text))
}

fn take(bytes: &[u8], text: &mut String) {
    let fair = bytes.iter().filter(|byte| **byte < FAIR);
    let letters = fair.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    text.extend(letters.take(LENGTH - text.len()));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_new_password_is_one_that_a_key_store_takes_and_never_the_same() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(one.expose().len(), LENGTH);
        assert!(Password::for_key_store(one.expose().to_owned()).is_ok());
    }

    #[test]
    fn every_letter_comes_from_as_many_bytes() {
        let mut counts = BTreeMap::new();
        for byte in 0..=u8::MAX {
            let mut text = String::new();
            take(&[byte], &mut text);
            for letter in text.chars() {
                *counts.entry(letter).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.len(), ALPHABET.len());
        assert!(counts.values().all(|count| *count == 4), "{counts:?}");
    }
}
