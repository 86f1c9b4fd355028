//! The one table of `CKR_*` values: what each means for whoever asked, and for the session it came from.
//!
//! A row for each value that the standard names, and exceptions for functions that mean something
//! else by it. Nothing here decides what to do: that is the daemon's.

use cryptoki::context::Function;
use cryptoki_sys::*;

use super::fault::{After, Bucket, Kind};

/// What a return value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) bucket: Bucket,
    pub(super) kind: Kind,
    pub(super) session: After,
    pub(super) work: Work,
}

/// Whether the work that a function was asked for may have been done all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// The value is given before anything is done, or once nothing of it is left.
    Undone,
    /// The value is also given when the answer was lost on its way.
    Unclear,
}

pub(super) struct Row {
    pub(super) ckr: CK_RV,
    pub(super) name: &'static str,
    reading: Reading,
}

/// Of values that nobody has named, and of vendors' own. A library says them of devices that were reset, too.
const UNNAMED: Reading =
    Reading { bucket: Bucket::Node, kind: Kind::Device, session: After::Renew, work: Work::Unclear };

/// What it means that `function` returned `ckr`.
pub(super) fn read(function: Function, ckr: CK_RV) -> Reading {
    let named = || row(ckr).map_or(UNNAMED, |row| row.reading);
    let reading = exception(function, ckr).unwrap_or_else(named);
    if reading.work == Work::Unclear && leaves_something_behind(function) {
        Reading { bucket: Bucket::Unknown, ..reading }
    } else {
        reading
    }
}

pub(super) fn name(ckr: CK_RV) -> &'static str {
    match row(ckr) {
        Some(row) => row.name,
        None if ckr >= CKR_VENDOR_DEFINED => "a vendor's own code",
        None => "a code without a name",
    }
}

fn row(ckr: CK_RV) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.ckr == ckr)
}

/// Where a function means something else than the table says.
fn exception(function: Function, ckr: CK_RV) -> Option<Reading> {
    use Function::{Decrypt, DecryptFinal, DecryptUpdate, OpenSession};
    let (bucket, kind) = match (function, ckr) {
        // At its limit of sessions CloudHSM says ARGUMENTS_BAD.
        (OpenSession, CKR_ARGUMENTS_BAD) => (Bucket::Node, Kind::Capacity),
        // What is given to a decryption is a ciphertext, by whatever name.
        (
            Decrypt | DecryptUpdate | DecryptFinal,
            CKR_DATA_INVALID | CKR_DATA_LEN_RANGE | CKR_SIGNATURE_INVALID | CKR_SIGNATURE_LEN_RANGE,
        ) => (Bucket::Input, Kind::BadCiphertext),
        _ => return None,
    };
    Some(Reading { bucket, kind, session: After::Keep, work: Work::Undone })
}

/// Bad input and a bad node look alike: some libraries say this of a wrong tag or signature. Not of an `Init`, which has
/// seen neither.
pub(super) fn is_ambiguous(function: Function, ckr: CK_RV) -> bool {
    use Function::{Decrypt, DecryptFinal, DecryptUpdate, UnwrapKey, Verify, VerifyFinal, VerifyRecover};
    matches!(ckr, CKR_GENERAL_ERROR | CKR_FUNCTION_FAILED)
        && matches!(function, Decrypt | DecryptUpdate | DecryptFinal | Verify | VerifyFinal | VerifyRecover | UnwrapKey)
}

/// Calls whose effect outlives them, so that doing them again is not harmless. A login spends an attempt.
fn leaves_something_behind(function: Function) -> bool {
    matches!(
        function,
        Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::UnwrapKey
            | Function::DeriveKey
            | Function::CreateObject
            | Function::CopyObject
            | Function::SetAttributeValue
            | Function::DestroyObject
            | Function::InitToken
            | Function::InitPIN
            | Function::SetPIN
            | Function::Login
            | Function::LoginUser
    )
}

macro_rules! table {
    ($($ckr:ident $bucket:ident $kind:ident $session:ident $work:ident)*) => {
        &[$(Row {
            ckr: $ckr,
            name: stringify!($ckr),
            reading: Reading {
                bucket: Bucket::$bucket,
                kind: Kind::$kind,
                session: After::$session,
                work: Work::$work,
            },
        }),*]
    };
}

#[rustfmt::skip]
pub(super) const TABLE: &[Row] = table! {
    // Not a failure, and read only when what came with it is impossible.
    CKR_OK                               Node    Device        Reopen  Unclear
    CKR_CANCEL                           Session Device        Reopen  Unclear
    CKR_HOST_MEMORY                      Node    Capacity      Keep    Unclear
    CKR_SLOT_ID_INVALID                  Node    TokenAbsent   Renew   Undone
    CKR_GENERAL_ERROR                    Node    Device        Renew   Unclear
    CKR_FUNCTION_FAILED                  Node    Device        Renew   Unclear
    CKR_ARGUMENTS_BAD                    Input   Unsupported   Reopen  Undone
    CKR_NO_EVENT                         Node    Module        Keep    Undone
    CKR_NEED_TO_CREATE_THREADS           Node    Module        Reopen  Undone
    CKR_CANT_LOCK                        Node    Module        Reopen  Undone

    // What was asked for does not go with this key or mechanism, on any node.
    CKR_ATTRIBUTE_READ_ONLY              Input   Unsupported   Keep    Undone
    CKR_ATTRIBUTE_SENSITIVE              Input   Unsupported   Keep    Undone
    CKR_ATTRIBUTE_TYPE_INVALID           Input   Unsupported   Keep    Undone
    CKR_ATTRIBUTE_VALUE_INVALID          Input   Unsupported   Keep    Undone
    CKR_ACTION_PROHIBITED                Input   Unsupported   Keep    Undone
    CKR_TEMPLATE_INCOMPLETE              Input   Unsupported   Keep    Undone
    CKR_TEMPLATE_INCONSISTENT            Input   Unsupported   Keep    Undone
    CKR_INFORMATION_SENSITIVE            Input   Unsupported   Keep    Undone
    CKR_FUNCTION_NOT_SUPPORTED           Input   Unsupported   Keep    Undone
    CKR_FUNCTION_REJECTED                Input   Unsupported   Keep    Undone
    CKR_MECHANISM_INVALID                Input   Unsupported   Keep    Undone
    CKR_MECHANISM_PARAM_INVALID          Input   Unsupported   Keep    Undone
    CKR_DOMAIN_PARAMS_INVALID            Input   Unsupported   Keep    Undone
    CKR_CURVE_NOT_SUPPORTED              Input   Unsupported   Keep    Undone
    CKR_PARAMETER_SET_NOT_SUPPORTED      Input   Unsupported   Keep    Undone
    CKR_RANDOM_SEED_NOT_SUPPORTED        Input   Unsupported   Keep    Undone
    CKR_SESSION_ASYNC_NOT_SUPPORTED      Input   Unsupported   Keep    Undone
    CKR_KEY_SIZE_RANGE                   Input   Unsupported   Keep    Undone
    CKR_KEY_TYPE_INCONSISTENT            Input   Unsupported   Keep    Undone
    CKR_KEY_FUNCTION_NOT_PERMITTED       Input   Unsupported   Keep    Undone
    CKR_KEY_NOT_WRAPPABLE                Input   Unsupported   Keep    Undone
    CKR_KEY_UNEXTRACTABLE                Input   Unsupported   Keep    Undone
    CKR_KEY_INDIGESTIBLE                 Input   Unsupported   Keep    Undone
    CKR_WRAPPING_KEY_SIZE_RANGE          Input   Unsupported   Keep    Undone
    CKR_WRAPPING_KEY_TYPE_INCONSISTENT   Input   Unsupported   Keep    Undone
    CKR_UNWRAPPING_KEY_SIZE_RANGE        Input   Unsupported   Keep    Undone
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT Input   Unsupported   Keep    Undone

    // The data is bad, on any node.
    CKR_DATA_INVALID                     Input   BadInput      Keep    Undone
    CKR_DATA_LEN_RANGE                   Input   BadInput      Keep    Undone
    CKR_SIGNATURE_INVALID                Input   BadInput      Keep    Undone
    CKR_SIGNATURE_LEN_RANGE              Input   BadInput      Keep    Undone
    CKR_WRAPPED_KEY_INVALID              Input   BadInput      Keep    Undone
    CKR_WRAPPED_KEY_LEN_RANGE            Input   BadInput      Keep    Undone
    CKR_PUBLIC_KEY_INVALID               Input   BadInput      Keep    Undone
    CKR_ENCRYPTED_DATA_INVALID           Input   BadCiphertext Keep    Undone
    CKR_ENCRYPTED_DATA_LEN_RANGE         Input   BadCiphertext Keep    Undone
    CKR_AEAD_DECRYPT_FAILED              Input   BadCiphertext Keep    Undone

    // The object behind a handle is gone; the key may be there under another.
    CKR_KEY_HANDLE_INVALID               Node    KeyMissing    Keep    Undone
    CKR_OBJECT_HANDLE_INVALID            Node    KeyMissing    Keep    Undone
    CKR_WRAPPING_KEY_HANDLE_INVALID      Node    KeyMissing    Keep    Undone
    CKR_UNWRAPPING_KEY_HANDLE_INVALID    Node    KeyMissing    Keep    Undone

    // The session is dead, or what it was in the middle of is in doubt.
    CKR_SESSION_HANDLE_INVALID           Session Device        Renew   Undone
    CKR_SESSION_CLOSED                   Session Device        Renew   Unclear
    CKR_SESSION_READ_ONLY                Session Device        Reopen  Undone
    CKR_OPERATION_ACTIVE                 Session Device        Reopen  Undone
    CKR_OPERATION_NOT_INITIALIZED        Session Device        Reopen  Undone
    CKR_OPERATION_CANCEL_FAILED          Session Device        Reopen  Undone
    CKR_BUFFER_TOO_SMALL                 Session Device        Reopen  Undone
    CKR_FUNCTION_CANCELED                Session Device        Reopen  Unclear

    // The login is lost.
    CKR_USER_NOT_LOGGED_IN               Node    LoginLost     Renew   Undone

    // The login is refused: the password, or what a person must see to. One more try may lock the user out.
    CKR_PIN_INCORRECT                    Input   PinIncorrect  Reopen  Undone
    CKR_PIN_LOCKED                       Input   PinLocked     Reopen  Undone
    CKR_PIN_INVALID                      Input   PinRefused    Reopen  Undone
    CKR_PIN_LEN_RANGE                    Input   PinRefused    Reopen  Undone
    CKR_PIN_EXPIRED                      Input   PinRefused    Reopen  Undone
    CKR_PIN_TOO_WEAK                     Input   PinRefused    Reopen  Undone
    CKR_NEW_PIN_MODE                     Input   PinRefused    Reopen  Undone
    CKR_NEXT_OTP                         Input   PinRefused    Reopen  Undone
    CKR_USER_PIN_NOT_INITIALIZED         Input   UserNotFound   Reopen  Undone
    CKR_USER_TYPE_INVALID                Input   PinRefused    Reopen  Undone
    // Never a success: a library says this even when the PIN that came with it is wrong.
    CKR_USER_ALREADY_LOGGED_IN           Node    UserLoggedIn  Keep    Undone
    CKR_USER_ANOTHER_ALREADY_LOGGED_IN   Node    UserLoggedIn  Reopen  Undone
    CKR_USER_TOO_MANY_TYPES              Node    UserLoggedIn  Reopen  Undone

    // The token is full, or has no session to give.
    CKR_SESSION_COUNT                    Node    Capacity      Keep    Undone
    CKR_DEVICE_MEMORY                    Node    Capacity      Keep    Undone
    CKR_TOKEN_RESOURCE_EXCEEDED          Node    Capacity      Keep    Undone

    // The token is gone, or another is in its place.
    CKR_TOKEN_NOT_PRESENT                Node    TokenAbsent   Renew   Undone
    CKR_TOKEN_NOT_RECOGNIZED             Node    TokenAbsent   Renew   Undone
    CKR_TOKEN_NOT_INITIALIZED            Node    TokenAbsent   Renew   Undone
    CKR_DEVICE_REMOVED                   Node    DeviceRemoved Renew   Unclear

    // The device is sick, or may have been reset.
    CKR_DEVICE_ERROR                     Node    Device        Renew   Unclear
    CKR_FIPS_SELF_TEST_FAILED            Node    Device        Renew   Undone
    CKR_OPERATION_NOT_VALIDATED          Node    Device        Reopen  Undone
    CKR_RANDOM_NO_RNG                    Node    Device        Reopen  Undone
    CKR_SEED_RANDOM_REQUIRED             Node    Device        Reopen  Undone
    CKR_TOKEN_WRITE_PROTECTED            Node    Device        Reopen  Undone
    CKR_EXCEEDED_MAX_ITERATIONS          Node    Device        Reopen  Undone
    CKR_KEY_EXHAUSTED                    Node    Device        Reopen  Undone

    // Of calls that keyway does not make.
    CKR_SAVED_STATE_INVALID              Node    Device        Reopen  Undone
    CKR_STATE_UNSAVEABLE                 Node    Device        Reopen  Undone
    CKR_KEY_CHANGED                      Node    Device        Reopen  Undone
    CKR_KEY_NEEDED                       Node    Device        Reopen  Undone
    CKR_KEY_NOT_NEEDED                   Node    Device        Reopen  Undone
    CKR_FUNCTION_NOT_PARALLEL            Node    Module        Reopen  Undone
    CKR_PENDING                          Node    Module        Reopen  Unclear

    // The library is not as it should be in this process.
    CKR_CRYPTOKI_NOT_INITIALIZED         Node    Module        Renew   Undone
    CKR_CRYPTOKI_ALREADY_INITIALIZED     Node    Module        Reopen  Undone
    CKR_LIBRARY_LOAD_FAILED              Node    Module        Reopen  Undone
    CKR_MUTEX_BAD                        Node    Module        Reopen  Undone
    CKR_MUTEX_NOT_LOCKED                 Node    Module        Reopen  Undone
    CKR_SESSION_PARALLEL_NOT_SUPPORTED   Node    Module        Reopen  Undone
    CKR_SESSION_EXISTS                   Node    Module        Reopen  Undone
    CKR_SESSION_READ_ONLY_EXISTS         Node    Module        Reopen  Undone
    CKR_SESSION_READ_WRITE_SO_EXISTS     Node    Module        Reopen  Undone

    // And above: `UNNAMED`.
    CKR_VENDOR_DEFINED                   Node    Device        Renew   Unclear
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The values in the source of the very crate that is linked here.
    fn named_by_cryptoki_sys() -> Vec<(String, CK_RV)> {
        let metadata = std::process::Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform"])
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .arg("--manifest-path")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .output()
            .unwrap();
        assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let package = packages.iter().find(|package| package["name"] == "cryptoki-sys").unwrap();
        let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
        let source = manifest.with_file_name("src").join("bindings/x86_64-unknown-linux-gnu.rs");
        let source = std::fs::read_to_string(source).unwrap();
        let constants = source.lines().filter_map(|line| line.strip_prefix("pub const CKR_")?.strip_suffix(';'));
        let parts = constants.map(|line| line.split_once(": CK_RV = ").unwrap());
        parts.map(|(name, value)| (format!("CKR_{name}"), value.parse().unwrap())).collect()
    }

    #[test]
    fn every_value_that_cryptoki_sys_names_has_a_row_of_its_own() {
        let named = named_by_cryptoki_sys();
        assert!(named.len() > 100, "{}", named.len());
        for (name, ckr) in &named {
            let rows = TABLE.iter().filter(|row| row.ckr == *ckr).map(|row| row.name).collect::<Vec<_>>();
            assert_eq!(rows, [name], "0x{ckr:x}");
        }
        assert_eq!(TABLE.len(), named.len());
    }

    #[test]
    fn what_nobody_named_may_have_been_done_by_a_device_that_was_reset() {
        for ckr in [0x04, 0x3ff, 0x7fff_ffff, 0x8000_0000, 0x8000_0123, CK_RV::MAX] {
            assert_eq!(read(Function::Encrypt, ckr), UNNAMED, "0x{ckr:x}");
            assert_eq!(read(Function::GenerateKey, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
        }
    }

    #[test]
    fn what_may_have_been_done_is_unknown_when_it_leaves_something_behind() {
        let unclear = [0x01, 0x02, 0x05, 0x06, 0x30, 0x32, 0x50, 0xb0, 0x204];
        for ckr in unclear {
            for function in [Function::GenerateKey, Function::UnwrapKey, Function::DestroyObject, Function::Login] {
                assert_eq!(read(function, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
            }
            // A repeated wrapping, encryption or look harms nobody, and an Init that failed has begun nothing.
            for function in [Function::WrapKey, Function::Encrypt, Function::EncryptInit, Function::FindObjects] {
                assert_ne!(read(function, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
            }
        }
        let clear = TABLE.iter().filter(|row| row.reading.work == Work::Undone);
        for row in clear {
            assert_ne!(read(Function::GenerateKey, row.ckr).bucket, Bucket::Unknown, "{}", row.name);
        }
    }

    #[test]
    fn only_what_has_seen_the_input_can_mean_it() {
        for ckr in [0x05, 0x06] {
            assert!(is_ambiguous(Function::Decrypt, ckr) && is_ambiguous(Function::Verify, ckr));
            assert!(is_ambiguous(Function::UnwrapKey, ckr));
            assert!(!is_ambiguous(Function::DecryptInit, ckr) && !is_ambiguous(Function::Encrypt, ckr));
        }
        assert!(!is_ambiguous(Function::Decrypt, 0x30));
    }

    #[test]
    fn after_whatever_may_be_a_reset_no_handle_is_trusted() {
        let resets = [0x03, 0x05, 0x06, 0x30, 0x32, 0xb0, 0xb3, 0xe0, 0xe1, 0x101, 0x190, 0x208, 0x8000_0001];
        for ckr in resets {
            assert_eq!(read(Function::EncryptInit, ckr).session, After::Renew, "0x{ckr:x}");
        }
        // Of one key or one request: the others keep what is known of theirs.
        for ckr in [0x07, 0x20, 0x31, 0x40, 0x60, 0x82, 0x90, 0xb1, 0x150] {
            assert_ne!(read(Function::Encrypt, ckr).session, After::Renew, "0x{ckr:x}");
        }
    }
}
