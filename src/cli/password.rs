//! Where a password comes from: a file, stdin, or a prompt that does not echo. Never the command line.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::model::Password;

use super::bytes::is_standard;
use super::failure::Failure;

/// No password file is longer.
const MAX_FILE: usize = 4096;

/// A key store's password from `file` (`-` is stdin), or asked for on the terminal.
pub(super) fn for_key_store(file: Option<&Path>) -> Result<Password, Failure> {
    let mut text = from_file(file).unwrap_or_else(|| prompt("Password of kmsuser (not shown): "))?;
    Password::for_key_store(std::mem::take(&mut *text)).map_err(|error| Failure::usage(error.to_string()))
}

/// The password that a crypto user has, in the same way. What a password may be is for the daemon to judge.
pub(super) fn present_of_crypto_user(file: Option<&Path>, user: &str) -> Result<Password, Failure> {
    let ask = || prompt(&format!("Present password of {user} (not shown): "));
    from_file(file).unwrap_or_else(ask).map(trusted)
}

/// One that a crypto user is to have. On the terminal it is typed twice.
pub(super) fn new_of_crypto_user(file: Option<&Path>, user: &str) -> Result<Password, Failure> {
    let ask = || {
        let first = prompt(&format!("New password of {user} (not shown): "))?;
        let second = prompt("The same again: ")?;
        if first == second { Ok(first) } else { Err(Failure::usage("the two passwords are not the same")) }
    };
    from_file(file).unwrap_or_else(ask).map(trusted)
}

/// One that is made for a machine: 32 letters and digits.
pub(super) fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn trusted(mut text: Zeroizing<String>) -> Password {
    Password::trusted(std::mem::take(&mut *text))
}

/// `None` when no file was named.
fn from_file(file: Option<&Path>) -> Option<Result<Zeroizing<String>, Failure>> {
    let path = file?;
    if is_standard(Some(path)) {
        let line = first_line(std::io::stdin().lock());
        return Some(line.map_err(|error| Failure::usage(format!("stdin: {error}"))));
    }
    let line = File::open(path).and_then(first_line);
    Some(line.map_err(|error| Failure::usage(format!("{}: {error}", path.display()))))
}

fn prompt(what: &str) -> Result<Zeroizing<String>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask for the password on")
            .advise("give --password-file FILE, or `-` to read it from stdin"));
    }
    rpassword::prompt_password(what)
        .map(Zeroizing::new)
        .map_err(|error| Failure::usage(format!("no password was typed: {error}")))
}

fn first_line(from: impl Read) -> std::io::Result<Zeroizing<String>> {
    let invalid = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE + 64));
    from.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        return Err(invalid("too long for a password"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("not UTF-8"))?;
    let line = text.split('\n').next().unwrap_or_default();
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        for text in ["hunter22", "hunter22\n", "hunter22\r\n", "hunter22\nnot this\n"] {
            assert_eq!(*first_line(text.as_bytes()).unwrap(), "hunter22");
        }
    }

    #[test]
    fn a_file_that_is_no_password_is_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for content in [&b""[..], b"short", &[0xff; 8], &[b'a'; MAX_FILE + 1], b"has a space1"] {
            std::fs::write(&path, content).unwrap();
            let failure = for_key_store(Some(&path)).unwrap_err();
            let text = failure.text();
            assert!(!text.contains("short\n") && !text.contains("has a space"), "{text}");
        }
    }
}
