//! The one table that reads what a PKCS#11 function returned, in terms of what the daemon does next.
//!
//! A fault never carries a PIN, a plaintext or a ciphertext: only the function, its `CKR_*` value
//! and a text of our own.

use std::borrow::Cow;

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv, RvError};
use cryptoki_sys::*;

use crate::link::v1;
pub use crate::link::v1::fault::{Bucket, Kind};

/// Above every `CKR_*` value that the standard names.
const LAST_STANDARD_CKR: CK_RV = 0x3ff;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{function} returned 0x{ckr:x} ({detail})")]
pub struct Fault {
    pub bucket: Bucket,
    pub kind: Kind,
    /// 0 when the library was not asked.
    pub ckr: CK_RV,
    pub function: Cow<'static, str>,
    pub detail: Cow<'static, str>,
    pub session: After,
}

/// What becomes of the session that the fault happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Keep,
    /// It may be dead, or have an operation left active: close it and open another.
    Reopen,
}

impl Fault {
    /// What it means that `function` returned `ckr`.
    pub fn read(function: Function, ckr: CK_RV) -> Self {
        let (bucket, kind, session) = meaning(function, ckr);
        let undecided = leaves_something_behind(function) && may_have_been_done(ckr);
        Self {
            bucket: if undecided { Bucket::Unknown } else { bucket },
            kind,
            ckr,
            function: format!("C_{function:?}").into(),
            detail: name(ckr).into(),
            session,
        }
    }

    /// Our own refusal, before the library was asked.
    pub fn refused(bucket: Bucket, kind: Kind, why: &'static str) -> Self {
        Self { bucket, kind, ckr: 0, function: "".into(), detail: why.into(), session: After::Keep }
    }

    pub fn bad_input(why: &'static str) -> Self {
        Self::refused(Bucket::Input, Kind::BadInput, why)
    }

    /// The daemon sent what does not belong here.
    pub fn protocol(why: &'static str) -> Self {
        Self::refused(Bucket::Input, Kind::Protocol, why)
    }

    /// The object behind a handle is gone; the key may be there under another.
    pub fn is_stale_handle(&self) -> bool {
        matches!(
            self.ckr,
            CKR_KEY_HANDLE_INVALID
                | CKR_OBJECT_HANDLE_INVALID
                | CKR_WRAPPING_KEY_HANDLE_INVALID
                | CKR_UNWRAPPING_KEY_HANDLE_INVALID
        )
    }

    /// Bad input and a bad node look alike: some libraries say this of a wrong GCM tag.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.ckr, CKR_GENERAL_ERROR | CKR_FUNCTION_FAILED)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(rv, function) => Self::read(function, number(rv)),
            Error::LibraryLoading(why) => {
                Self { detail: why.to_string().into(), ..Self::refused(Bucket::Node, Kind::Module, "") }
            }
            Error::NotSupported | Error::NullFunctionPointer | Error::MissingSymbol(_) => {
                Self::refused(Bucket::Node, Kind::Module, "the library lacks a function")
            }
            Error::TryFromInt(_)
            | Error::TryFromSlice(_)
            | Error::ParseInt(_)
            | Error::Utf8(_)
            | Error::NulError(_)
            | Error::InvalidValue
            | Error::PinNotSet => Self {
                session: After::Reopen,
                ..Self::refused(Bucket::Node, Kind::Device, "the library's answer makes no sense")
            },
        }
    }
}

impl From<Fault> for v1::Fault {
    fn from(fault: Fault) -> Self {
        Self {
            bucket: fault.bucket.into(),
            kind: fault.kind.into(),
            ckr: fault.ckr,
            function: fault.function.into_owned(),
            detail: fault.detail.into_owned(),
        }
    }
}

fn meaning(function: Function, ckr: CK_RV) -> (Bucket, Kind, After) {
    use After::{Keep, Reopen};
    use Bucket::{Input, Node, Session};
    match ckr {
        CKR_ENCRYPTED_DATA_INVALID | CKR_ENCRYPTED_DATA_LEN_RANGE | CKR_AEAD_DECRYPT_FAILED => {
            (Input, Kind::BadCiphertext, Keep)
        }
        CKR_DATA_INVALID
        | CKR_DATA_LEN_RANGE
        | CKR_SIGNATURE_INVALID
        | CKR_SIGNATURE_LEN_RANGE
        | CKR_WRAPPED_KEY_INVALID
        | CKR_WRAPPED_KEY_LEN_RANGE => (Input, Kind::BadInput, Keep),

        CKR_KEY_SIZE_RANGE
        | CKR_KEY_TYPE_INCONSISTENT
        | CKR_KEY_FUNCTION_NOT_PERMITTED
        | CKR_KEY_NOT_WRAPPABLE
        | CKR_KEY_UNEXTRACTABLE
        | CKR_WRAPPING_KEY_SIZE_RANGE
        | CKR_WRAPPING_KEY_TYPE_INCONSISTENT
        | CKR_UNWRAPPING_KEY_SIZE_RANGE
        | CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT
        | CKR_MECHANISM_INVALID
        | CKR_MECHANISM_PARAM_INVALID
        | CKR_CURVE_NOT_SUPPORTED
        | CKR_DOMAIN_PARAMS_INVALID
        | CKR_ATTRIBUTE_READ_ONLY
        | CKR_ATTRIBUTE_SENSITIVE
        | CKR_ATTRIBUTE_TYPE_INVALID
        | CKR_ATTRIBUTE_VALUE_INVALID
        | CKR_TEMPLATE_INCOMPLETE
        | CKR_TEMPLATE_INCONSISTENT
        | CKR_ACTION_PROHIBITED
        | CKR_FUNCTION_NOT_SUPPORTED => (Input, Kind::Unsupported, Keep),
        // At its limit of sessions CloudHSM says ARGUMENTS_BAD.
        CKR_ARGUMENTS_BAD if matches!(function, Function::OpenSession) => (Node, Kind::Capacity, Keep),
        CKR_ARGUMENTS_BAD => (Input, Kind::Unsupported, Reopen),

        CKR_PIN_INCORRECT => (Input, Kind::PinIncorrect, Reopen),
        CKR_PIN_LOCKED => (Input, Kind::PinLocked, Reopen),
        CKR_PIN_INVALID
        | CKR_PIN_LEN_RANGE
        | CKR_PIN_EXPIRED
        | CKR_PIN_TOO_WEAK
        | CKR_USER_PIN_NOT_INITIALIZED
        | CKR_USER_TYPE_INVALID => (Input, Kind::PinRefused, Reopen),
        // Never a success: a library says this even when the PIN that came with it is wrong.
        CKR_USER_ALREADY_LOGGED_IN => (Node, Kind::UserLoggedIn, Keep),
        CKR_USER_ANOTHER_ALREADY_LOGGED_IN | CKR_USER_TOO_MANY_TYPES => (Node, Kind::UserLoggedIn, Reopen),
        CKR_USER_NOT_LOGGED_IN => (Node, Kind::LoginLost, Keep),

        CKR_SESSION_HANDLE_INVALID
        | CKR_SESSION_CLOSED
        | CKR_SESSION_READ_ONLY
        | CKR_OPERATION_ACTIVE
        | CKR_OPERATION_NOT_INITIALIZED
        | CKR_BUFFER_TOO_SMALL
        | CKR_FUNCTION_CANCELED
        | CKR_CANCEL => (Session, Kind::Device, Reopen),

        CKR_KEY_HANDLE_INVALID
        | CKR_OBJECT_HANDLE_INVALID
        | CKR_WRAPPING_KEY_HANDLE_INVALID
        | CKR_UNWRAPPING_KEY_HANDLE_INVALID => (Node, Kind::KeyMissing, Keep),
        CKR_HOST_MEMORY | CKR_DEVICE_MEMORY | CKR_SESSION_COUNT => (Node, Kind::Capacity, Keep),
        CKR_SLOT_ID_INVALID | CKR_DEVICE_REMOVED | CKR_TOKEN_NOT_PRESENT | CKR_TOKEN_NOT_RECOGNIZED => {
            (Node, Kind::TokenAbsent, Reopen)
        }
        CKR_CANT_LOCK
        | CKR_MUTEX_BAD
        | CKR_MUTEX_NOT_LOCKED
        | CKR_NEED_TO_CREATE_THREADS
        | CKR_CRYPTOKI_NOT_INITIALIZED
        | CKR_CRYPTOKI_ALREADY_INITIALIZED
        | CKR_LIBRARY_LOAD_FAILED
        | CKR_SESSION_PARALLEL_NOT_SUPPORTED
        | CKR_SESSION_EXISTS
        | CKR_SESSION_READ_ONLY_EXISTS
        | CKR_SESSION_READ_WRITE_SO_EXISTS => (Node, Kind::Module, Reopen),
        // GENERAL_ERROR, FUNCTION_FAILED, DEVICE_ERROR, RANDOM_NO_RNG, a failed self test, whatever a vendor made up.
        _ => (Node, Kind::Device, Reopen),
    }
}

/// Calls whose effect outlives them, so that doing them again is not harmless. A login spends an attempt.
fn leaves_something_behind(function: Function) -> bool {
    matches!(
        function,
        Function::GenerateKey
            | Function::GenerateKeyPair
            | Function::UnwrapKey
            | Function::CreateObject
            | Function::CopyObject
            | Function::DestroyObject
            | Function::InitToken
            | Function::InitPIN
            | Function::SetPIN
            | Function::Login
    )
}

/// Answers that a library also gives after the work was done, or half done.
fn may_have_been_done(ckr: CK_RV) -> bool {
    matches!(
        ckr,
        CKR_GENERAL_ERROR
            | CKR_FUNCTION_FAILED
            | CKR_DEVICE_ERROR
            | CKR_DEVICE_REMOVED
            | CKR_HOST_MEMORY
            | CKR_FUNCTION_CANCELED
            | CKR_CANCEL
            | CKR_SESSION_CLOSED
    ) || ckr > LAST_STANDARD_CKR
}

/// The number behind cryptoki's name for it, which cryptoki itself does not tell.
fn number(error: RvError) -> CK_RV {
    match error {
        RvError::VendorDefined(ckr) | RvError::UnknownErrorCode(ckr) => ckr,
        named => (1..=LAST_STANDARD_CKR).find(|&ckr| Rv::from(ckr) == Rv::Error(named)).unwrap_or(CKR_GENERAL_ERROR),
    }
}

fn name(ckr: CK_RV) -> String {
    match Rv::from(ckr) {
        Rv::Ok => "OK".to_owned(),
        Rv::Error(RvError::VendorDefined(_) | RvError::UnknownErrorCode(_)) => "a vendor's own code".to_owned(),
        Rv::Error(named) => format!("{named:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_return_value_is_read_as_the_table_says() {
        use After::{Keep, Reopen};
        use Bucket::{Input, Node, Session};
        let decrypt = Function::Decrypt;
        let rows = [
            (decrypt, 0x40, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x41, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x42, Input, Kind::BadCiphertext, Keep),
            (Function::Encrypt, 0x20, Input, Kind::BadInput, Keep),
            (Function::Encrypt, 0x21, Input, Kind::BadInput, Keep),
            (Function::Verify, 0xc0, Input, Kind::BadInput, Keep),
            (Function::Verify, 0xc1, Input, Kind::BadInput, Keep),
            (Function::UnwrapKey, 0x110, Input, Kind::BadInput, Keep),
            (Function::UnwrapKey, 0x112, Input, Kind::BadInput, Keep),
            (Function::WrapKey, 0x114, Input, Kind::Unsupported, Keep),
            (Function::WrapKey, 0x115, Input, Kind::Unsupported, Keep),
            (Function::UnwrapKey, 0xf1, Input, Kind::Unsupported, Keep),
            (Function::UnwrapKey, 0xf2, Input, Kind::Unsupported, Keep),
            (Function::EncryptInit, 0x62, Input, Kind::Unsupported, Keep),
            (Function::EncryptInit, 0x63, Input, Kind::Unsupported, Keep),
            (Function::EncryptInit, 0x68, Input, Kind::Unsupported, Keep),
            (Function::WrapKey, 0x69, Input, Kind::Unsupported, Keep),
            (Function::WrapKey, 0x6a, Input, Kind::Unsupported, Keep),
            (Function::EncryptInit, 0x70, Input, Kind::Unsupported, Keep),
            (Function::EncryptInit, 0x71, Input, Kind::Unsupported, Keep),
            (Function::GenerateKeyPair, 0x140, Input, Kind::Unsupported, Keep),
            (Function::GenerateKeyPair, 0x130, Input, Kind::Unsupported, Keep),
            (Function::SetAttributeValue, 0x10, Input, Kind::Unsupported, Keep),
            (Function::GetAttributeValue, 0x11, Input, Kind::Unsupported, Keep),
            (Function::GetAttributeValue, 0x12, Input, Kind::Unsupported, Keep),
            (Function::GenerateKey, 0x13, Input, Kind::Unsupported, Keep),
            (Function::CopyObject, 0x1b, Input, Kind::Unsupported, Keep),
            (Function::GenerateKey, 0xd0, Input, Kind::Unsupported, Keep),
            (Function::GenerateKey, 0xd1, Input, Kind::Unsupported, Keep),
            (Function::GenerateKey, 0x54, Input, Kind::Unsupported, Keep),
            (Function::WrapKey, 0x07, Input, Kind::Unsupported, Reopen),
            (Function::OpenSession, 0x07, Node, Kind::Capacity, Keep),
            (Function::Login, 0xa0, Input, Kind::PinIncorrect, Reopen),
            (Function::Login, 0xa1, Input, Kind::PinRefused, Reopen),
            (Function::SetPIN, 0xa2, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0xa3, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0xa4, Input, Kind::PinLocked, Reopen),
            (Function::SetPIN, 0x1b8, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0x102, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0x103, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0x100, Node, Kind::UserLoggedIn, Keep),
            (Function::Login, 0x104, Node, Kind::UserLoggedIn, Reopen),
            (Function::Login, 0x105, Node, Kind::UserLoggedIn, Reopen),
            (Function::EncryptInit, 0x101, Node, Kind::LoginLost, Keep),
            (decrypt, 0xb3, Session, Kind::Device, Reopen),
            (decrypt, 0xb0, Session, Kind::Device, Reopen),
            (Function::GenerateKey, 0xb3, Session, Kind::Device, Reopen),
            (Function::GenerateKey, 0xb5, Session, Kind::Device, Reopen),
            (Function::EncryptInit, 0x90, Session, Kind::Device, Reopen),
            (Function::Encrypt, 0x91, Session, Kind::Device, Reopen),
            (Function::Encrypt, 0x150, Session, Kind::Device, Reopen),
            (Function::Encrypt, 0x50, Session, Kind::Device, Reopen),
            (Function::Encrypt, 0x01, Session, Kind::Device, Reopen),
            (Function::EncryptInit, 0x60, Node, Kind::KeyMissing, Keep),
            (Function::EncryptInit, 0x82, Node, Kind::KeyMissing, Keep),
            (Function::WrapKey, 0x113, Node, Kind::KeyMissing, Keep),
            (Function::UnwrapKey, 0xf0, Node, Kind::KeyMissing, Keep),
            (Function::Encrypt, 0x02, Node, Kind::Capacity, Keep),
            (Function::GenerateKey, 0x31, Node, Kind::Capacity, Keep),
            (Function::OpenSession, 0xb1, Node, Kind::Capacity, Keep),
            (Function::GetTokenInfo, 0x03, Node, Kind::TokenAbsent, Reopen),
            (decrypt, 0x32, Node, Kind::TokenAbsent, Reopen),
            (decrypt, 0xe0, Node, Kind::TokenAbsent, Reopen),
            (decrypt, 0xe1, Node, Kind::TokenAbsent, Reopen),
            (Function::Initialize, 0x0a, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x1a0, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x190, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x191, Node, Kind::Module, Reopen),
            (Function::Login, 0xb7, Node, Kind::Module, Reopen),
            (Function::Login, 0xb8, Node, Kind::Module, Reopen),
            (decrypt, 0x05, Node, Kind::Device, Reopen),
            (decrypt, 0x06, Node, Kind::Device, Reopen),
            (decrypt, 0x30, Node, Kind::Device, Reopen),
            (Function::GenerateRandom, 0x121, Node, Kind::Device, Reopen),
            (decrypt, 0x1b6, Node, Kind::Device, Reopen),
            (Function::GenerateKey, 0xe2, Node, Kind::Device, Reopen),
            (decrypt, 0x8000_0001, Node, Kind::Device, Reopen),
        ];
        for (function, ckr, bucket, kind, session) in rows {
            let fault = Fault::read(function, ckr);
            assert_eq!((fault.bucket, fault.kind, fault.session), (bucket, kind, session), "{fault}");
            assert_eq!(fault.ckr, ckr);
        }
    }

    #[test]
    fn what_may_have_been_done_is_unknown_when_it_leaves_something_behind() {
        for ckr in [0x01, 0x02, 0x05, 0x06, 0x30, 0x32, 0x50, 0xb0, 0x8000_0001] {
            assert_eq!(Fault::read(Function::GenerateKey, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
            assert_eq!(Fault::read(Function::Login, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
            assert_ne!(Fault::read(Function::Encrypt, ckr).bucket, Bucket::Unknown, "0x{ckr:x}");
        }
    }

    #[test]
    fn a_named_error_gives_its_number_back() {
        for ckr in [0x05, 0xa0, 0xb3, 0x113, 0x1b8, 0x8000_0123] {
            let Rv::Error(named) = Rv::from(ckr) else { panic!("0x{ckr:x} is no error") };
            assert_eq!(number(named), ckr);
        }
    }

    #[test]
    fn every_value_is_read_without_a_panic() {
        for ckr in (0..=LAST_STANDARD_CKR).chain([0x7fff_ffff, CK_RV::MAX]) {
            let _ = Fault::read(Function::UnwrapKey, ckr);
        }
    }
}
