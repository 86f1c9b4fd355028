//! A fault: what a PKCS#11 function returned, read once, in terms of what the daemon does next.
//!
//! What each value means stands in the table, [`super::ckr`]. A fault never carries a PIN, a plaintext or a ciphertext: only the function, its `CKR_*` value
//! and a text of our own.

use std::borrow::Cow;

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv, RvError};
use cryptoki_sys::*;

use super::ckr::{self, Reading};
use crate::link::v1;
pub use crate::link::v1::fault::{Bucket, Kind, User};

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
    /// Bad input and a bad node look alike: only the key's probe can tell them apart.
    pub is_ambiguous: bool,
    /// Whose login the library answered this to; `Unspecified` when it is no login's answer.
    pub login: User,
    /// Whose logins the same job made before, and the token accepted.
    pub accepted: Accepted,
}

/// Whose logins a token accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accepted {
    pub crypto_user: bool,
    pub security_officer: bool,
}

impl Accepted {
    pub(super) fn and(self, user: User) -> Self {
        match user {
            User::Unspecified => self,
            User::CryptoUser => Self { crypto_user: true, ..self },
            User::SecurityOfficer => Self { security_officer: true, ..self },
        }
    }
}

/// What becomes of the session that the fault happened in; the worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum After {
    Keep,
    /// It may be dead, or have an operation left active: close it and open another.
    Reopen,
    /// It is dead, its login is lost, or its device may have been reset: a handle may be another key's by now. Every
    /// handle is forgotten, for every thread, before another session is opened.
    Renew,
}

impl Fault {
    /// What it means that `function` returned `ckr`.
    pub fn read(function: Function, ckr: CK_RV) -> Self {
        let Reading { bucket, kind, session, work: _ } = ckr::read(function, ckr);
        Self {
            bucket,
            kind,
            ckr,
            function: format!("C_{function:?}").into(),
            detail: ckr::name(ckr).into(),
            session,
            is_ambiguous: ckr::is_ambiguous(function, ckr),
            login: User::Unspecified,
            accepted: Accepted::default(),
        }
    }

    /// Our own refusal, before the library was asked.
    pub fn refused(bucket: Bucket, kind: Kind, why: &'static str) -> Self {
        Self {
            bucket,
            kind,
            ckr: 0,
            function: "".into(),
            detail: why.into(),
            session: After::Keep,
            is_ambiguous: false,
            login: User::Unspecified,
            accepted: Accepted::default(),
        }
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

    /// The object has no such attribute; or, as SoftHSM2 says it, is of no class yet, and has none at all.
    pub(super) fn is_of_no_attribute(&self) -> bool {
        matches!(self.ckr, CKR_ATTRIBUTE_TYPE_INVALID | CKR_ATTRIBUTE_VALUE_INVALID)
    }

    /// The session still has an operation going, which would meet the next request.
    pub(super) fn with_an_operation_left(self) -> Self {
        Self { session: self.session.max(After::Reopen), ..self }
    }

    /// The object under a handle does not do what our keys do: it is another.
    pub fn is_of_another_object(&self) -> bool {
        matches!(self.ckr, CKR_KEY_TYPE_INCONSISTENT | CKR_KEY_FUNCTION_NOT_PERMITTED | CKR_KEY_SIZE_RANGE)
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
        let Accepted { crypto_user, security_officer } = fault.accepted;
        let accepted = [(crypto_user, User::CryptoUser), (security_officer, User::SecurityOfficer)];
        Self {
            bucket: fault.bucket.into(),
            kind: fault.kind.into(),
            ckr: fault.ckr,
            function: fault.function.into_owned(),
            detail: fault.detail.into_owned(),
            login: fault.login.into(),
            accepted: accepted.into_iter().filter(|(accepted, _)| *accepted).map(|(_, user)| user.into()).collect(),
        }
    }
}

/// The number behind cryptoki's name for it, which cryptoki itself does not tell.
fn number(error: RvError) -> CK_RV {
    match error {
        RvError::VendorDefined(ckr) | RvError::UnknownErrorCode(ckr) => ckr,
        named => {
            let values = ckr::TABLE.iter().map(|row| row.ckr);
            values.into_iter().find(|&ckr| Rv::from(ckr) == Rv::Error(named)).unwrap_or(CKR_GENERAL_ERROR)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_return_value_is_read_as_the_table_says() {
        use After::{Keep, Renew, Reopen};
        use Bucket::{Input, Node, Session};
        let decrypt = Function::Decrypt;
        let rows = [
            (decrypt, 0x40, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x41, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x42, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x20, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0x21, Input, Kind::BadCiphertext, Keep),
            (decrypt, 0xc0, Input, Kind::BadCiphertext, Keep),
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
            (Function::Login, 0x102, Input, Kind::UserNotFound, Reopen),
            (Function::Login, 0x103, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0x100, Node, Kind::UserLoggedIn, Keep),
            (Function::Login, 0x104, Node, Kind::UserLoggedIn, Reopen),
            (Function::Login, 0x105, Node, Kind::UserLoggedIn, Reopen),
            (Function::EncryptInit, 0x101, Node, Kind::LoginLost, Renew),
            (decrypt, 0xb3, Session, Kind::Device, Renew),
            (decrypt, 0xb0, Session, Kind::Device, Renew),
            (Function::GenerateKey, 0xb3, Session, Kind::Device, Renew),
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
            (Function::GetTokenInfo, 0x03, Node, Kind::TokenAbsent, Renew),
            (decrypt, 0x32, Node, Kind::DeviceRemoved, Renew),
            (decrypt, 0xe0, Node, Kind::TokenAbsent, Renew),
            (decrypt, 0xe1, Node, Kind::TokenAbsent, Renew),
            (Function::Initialize, 0x0a, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x1a0, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x190, Node, Kind::Module, Renew),
            (Function::Initialize, 0x191, Node, Kind::Module, Reopen),
            (Function::Login, 0xb7, Node, Kind::Module, Reopen),
            (Function::Login, 0xb8, Node, Kind::Module, Reopen),
            (decrypt, 0x05, Node, Kind::Device, Renew),
            (decrypt, 0x06, Node, Kind::Device, Renew),
            (decrypt, 0x30, Node, Kind::Device, Renew),
            (Function::GenerateRandom, 0x121, Node, Kind::Device, Reopen),
            (decrypt, 0x1b6, Node, Kind::Device, Renew),
            (Function::GenerateKey, 0xe2, Node, Kind::Device, Reopen),
            (decrypt, 0x8000_0001, Node, Kind::Device, Renew),
            (Function::GetTokenInfo, 0x208, Node, Kind::TokenAbsent, Renew),
            (Function::GenerateKey, 0x201, Node, Kind::Capacity, Keep),
            (Function::FindObjectsFinal, 0x202, Session, Kind::Device, Reopen),
            (Function::Login, 0x1b0, Input, Kind::PinRefused, Reopen),
            (Function::Login, 0x1b1, Input, Kind::PinRefused, Reopen),
            (Function::Initialize, 0x1b7, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x09, Node, Kind::Module, Reopen),
            (Function::Initialize, 0x1a1, Node, Kind::Module, Reopen),
            (Function::SetOperationState, 0x160, Node, Kind::Device, Reopen),
            (Function::GetOperationState, 0x180, Node, Kind::Device, Reopen),
            (Function::DigestKey, 0x67, Input, Kind::Unsupported, Keep),
            (Function::SeedRandom, 0x120, Input, Kind::Unsupported, Keep),
            (Function::OpenSession, 0xb4, Node, Kind::Module, Reopen),
        ];
        for (function, ckr, bucket, kind, session) in rows {
            let fault = Fault::read(function, ckr);
            assert_eq!((fault.bucket, fault.kind, fault.session), (bucket, kind, session), "{fault}");
            assert_eq!(fault.ckr, ckr);
        }
    }

    #[test]
    fn an_operation_that_could_not_be_ended_costs_the_session() {
        let kept = Fault::read(Function::FindObjects, CKR_DEVICE_MEMORY);
        assert_eq!(kept.session, After::Keep);
        assert_eq!(kept.with_an_operation_left().session, After::Reopen);
        let dead = Fault::read(Function::FindObjects, CKR_SESSION_HANDLE_INVALID);
        assert_eq!(dead.with_an_operation_left().session, After::Renew);
    }

    #[test]
    fn a_named_error_gives_its_number_back() {
        for ckr in ckr::TABLE.iter().map(|row| row.ckr).filter(|&ckr| ckr != CKR_OK).chain([0x8000_0123, 0x3ff]) {
            let Rv::Error(named) = Rv::from(ckr) else { panic!("0x{ckr:x} is no error") };
            assert_eq!(number(named), ckr);
        }
    }
}
