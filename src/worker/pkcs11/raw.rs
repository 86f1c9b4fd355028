//! The one file with unsafe code: what cryptoki does not offer, or does with a call too many.
//!
//! cryptoki's `encrypt` and `decrypt` ask for the length of the answer first, a round trip wasted
//! on a network HSM: here the buffer is big enough, and one call does. It cannot express a template
//! inside a template, which a wrapping key needs to be kept from exporting what it wraps, and it
//! leaves out mechanism numbers that it does not know. And a process with vendor code in it must be
//! left without running that code's destructors.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::path::Path;

use cryptoki::context::Function;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::*;
use zeroize::Zeroizing;

use super::Fault;
use super::fault::{Bucket, Kind};
use super::session::{Nonce, TAG_LEN};

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Work = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;
type Generate = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_MECHANISM,
    *mut CK_ATTRIBUTE,
    CK_ULONG,
    *mut CK_OBJECT_HANDLE,
) -> CK_RV;
type Unwrap = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_MECHANISM,
    CK_OBJECT_HANDLE,
    *mut CK_BYTE,
    CK_ULONG,
    *mut CK_ATTRIBUTE,
    CK_ULONG,
    *mut CK_OBJECT_HANDLE,
) -> CK_RV;
type ReadAttributes = unsafe extern "C" fn(CK_SESSION_HANDLE, CK_OBJECT_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;
type FindInit = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;
type Find = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_OBJECT_HANDLE, CK_ULONG, *mut CK_ULONG) -> CK_RV;
type FindFinal = unsafe extern "C" fn(CK_SESSION_HANDLE) -> CK_RV;
type ListMechanisms = unsafe extern "C" fn(CK_SLOT_ID, *mut CK_MECHANISM_TYPE, *mut CK_ULONG) -> CK_RV;

/// More mechanisms than any token lists.
const MOST_MECHANISMS: usize = 4096;
/// Handles that one call of a search brings at most.
const HANDLES_AT_A_TIME: usize = 1024;

/// The library's functions that are called without cryptoki in between.
pub struct Calls {
    encrypt_init: Init,
    encrypt: Work,
    decrypt_init: Init,
    decrypt: Work,
    sign_init: Init,
    sign: Work,
    generate_key: Generate,
    unwrap_key: Unwrap,
    read_attributes: ReadAttributes,
    find_init: FindInit,
    find: Find,
    find_final: FindFinal,
    list_mechanisms: ListMechanisms,
    // Holds the library in memory, which the pointers above need.
    _library: cryptoki_sys::Pkcs11,
}

/// What a wrapping key is held to.
pub(super) struct Limits<'a> {
    /// Attributes that a key must have to be wrapped.
    pub(super) wraps: &'a [Attribute],
    /// Attributes that an unwrapped key must be given.
    pub(super) unwraps: &'a [Attribute],
}

impl Limits<'_> {
    /// The template with these limits in it, for the time of one call.
    fn added_to<T>(&self, template: &[Attribute], call: impl FnOnce(&mut [CK_ATTRIBUTE]) -> T) -> T {
        let [mut wraps, mut unwraps, mut whole] =
            [self.wraps, self.unwraps, template].map(|part| part.iter().map(CK_ATTRIBUTE::from).collect::<Vec<_>>());
        for (kind, inner) in [(CKA_WRAP_TEMPLATE, &mut wraps), (CKA_UNWRAP_TEMPLATE, &mut unwraps)] {
            let (start, length) = (inner.as_mut_ptr().cast::<c_void>(), size_of_val(inner.as_slice()));
            whole.push(CK_ATTRIBUTE { type_: kind, pValue: start, ulValueLen: length as CK_ULONG });
        }
        call(&mut whole)
    }
}

/// An operation of one part: what begins it, and what does it.
struct Direction {
    init: (Init, Function),
    work: (Work, Function),
}

impl Calls {
    /// Looks the functions up in the library at `path`, which cryptoki has loaded before: it is the same one in memory.
    pub(super) fn load(path: &Path) -> Result<&'static Self, Fault> {
        // SAFETY: the library's initialisers ran when cryptoki loaded it; this only counts a reference.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(cryptoki::error::Error::LibraryLoading)?;
        let get_list = *library.C_GetFunctionList.as_ref().map_err(|_| lacking())?;
        let mut list = std::ptr::null_mut();
        // SAFETY: the symbol is PKCS#11's C_GetFunctionList, and `list` a place for its answer.
        let ckr = unsafe { get_list(&raw mut list) };
        if ckr != CKR_OK || list.is_null() {
            return Err(Fault::read(Function::GetFunctionList, ckr));
        }
        // SAFETY: on CKR_OK the pointer is to the library's static list.
        let list = unsafe { *list };
        Ok(Box::leak(Box::new(Self {
            encrypt_init: list.C_EncryptInit.ok_or_else(lacking)?,
            encrypt: list.C_Encrypt.ok_or_else(lacking)?,
            decrypt_init: list.C_DecryptInit.ok_or_else(lacking)?,
            decrypt: list.C_Decrypt.ok_or_else(lacking)?,
            sign_init: list.C_SignInit.ok_or_else(lacking)?,
            sign: list.C_Sign.ok_or_else(lacking)?,
            generate_key: list.C_GenerateKey.ok_or_else(lacking)?,
            unwrap_key: list.C_UnwrapKey.ok_or_else(lacking)?,
            read_attributes: list.C_GetAttributeValue.ok_or_else(lacking)?,
            find_init: list.C_FindObjectsInit.ok_or_else(lacking)?,
            find: list.C_FindObjects.ok_or_else(lacking)?,
            find_final: list.C_FindObjectsFinal.ok_or_else(lacking)?,
            list_mechanisms: list.C_GetMechanismList.ok_or_else(lacking)?,
            _library: library,
        })))
    }

    /// AES-GCM: the ciphertext, then its tag. `nonce` holds afterwards what the library used.
    pub(super) fn encrypt_gcm(
        &self,
        session: &Session,
        key: ObjectHandle,
        nonce: &mut Nonce,
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let (init, work) = ((self.encrypt_init, Function::EncryptInit), (self.encrypt, Function::Encrypt));
        let encrypt = Direction { init, work };
        let mut sealed = gcm(&encrypt, session, key, nonce, aad, plaintext)?;
        Ok(std::mem::take(&mut *sealed))
    }

    /// AES-GCM: the plaintext of a ciphertext followed by its tag.
    pub(super) fn decrypt_gcm(
        &self,
        session: &Session,
        key: ObjectHandle,
        nonce: &Nonce,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        gcm(&self.decryption(), session, key, &mut nonce.clone(), aad, sealed)
    }

    /// The plaintext of a ciphertext, of at most `most` bytes.
    pub(super) fn decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        mechanism: &Mechanism<'_>,
        ciphertext: &[u8],
        most: usize,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        once(&self.decryption(), session, key, CK_MECHANISM::from(mechanism), ciphertext, most)
    }

    /// A signature or a MAC, of at most `most` bytes.
    pub(super) fn sign(
        &self,
        session: &Session,
        key: ObjectHandle,
        mechanism: &Mechanism<'_>,
        input: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, Fault> {
        let sign = Direction { init: (self.sign_init, Function::SignInit), work: (self.sign, Function::Sign) };
        let mut signature = once(&sign, session, key, CK_MECHANISM::from(mechanism), input, most)?;
        Ok(std::mem::take(&mut *signature))
    }

    fn decryption(&self) -> Direction {
        Direction { init: (self.decrypt_init, Function::DecryptInit), work: (self.decrypt, Function::Decrypt) }
    }

    /// Makes an AES key that wraps others within `limits`.
    pub(super) fn generate_wrapping_key(
        &self,
        session: &Session,
        template: &[Attribute],
        limits: &Limits<'_>,
    ) -> Result<ObjectHandle, Fault> {
        let mut mechanism = CK_MECHANISM::from(&Mechanism::AesKeyGen);
        limits.added_to(template, |whole| {
            let (start, count, mut made) = (whole.as_mut_ptr(), whole.len() as CK_ULONG, 0);
            // SAFETY: every pointer is to what lives until the call returns; the library copies what it keeps.
            let ckr = unsafe { (self.generate_key)(session.handle(), &raw mut mechanism, start, count, &raw mut made) };
            handle(Function::GenerateKey, ckr, made)
        })
    }

    /// Unwraps a key that wraps others within `limits`.
    pub(super) fn unwrap_wrapping_key(
        &self,
        session: &Session,
        (mechanism, under): (&Mechanism<'_>, ObjectHandle),
        wrapped: &[u8],
        template: &[Attribute],
        limits: &Limits<'_>,
    ) -> Result<ObjectHandle, Fault> {
        let mut mechanism = CK_MECHANISM::from(mechanism);
        limits.added_to(template, |whole| {
            let (start, count, mut made) = (whole.as_mut_ptr(), whole.len() as CK_ULONG, 0);
            // SAFETY: as in `generate_wrapping_key`; PKCS#11 only reads the wrapped key.
            let ckr = unsafe {
                let (bytes, length) = (wrapped.as_ptr().cast_mut(), wrapped.len() as CK_ULONG);
                let mechanism = &raw mut mechanism;
                (self.unwrap_key)(
                    session.handle(),
                    mechanism,
                    under.handle(),
                    bytes,
                    length,
                    start,
                    count,
                    &raw mut made,
                )
            };
            handle(Function::UnwrapKey, ckr, made)
        })
    }

    /// Whether a wrapping key was made with limits as many as these.
    pub(super) fn is_limited(&self, session: &Session, key: ObjectHandle, limits: &Limits<'_>) -> Result<bool, Fault> {
        for (kind, inner) in [(CKA_WRAP_TEMPLATE, limits.wraps), (CKA_UNWRAP_TEMPLATE, limits.unwraps)] {
            let mut wanted = CK_ATTRIBUTE { type_: kind, pValue: std::ptr::null_mut(), ulValueLen: 0 };
            // SAFETY: without a buffer the library only tells the length.
            let ckr = unsafe { (self.read_attributes)(session.handle(), key.handle(), &raw mut wanted, 1) };
            let expected = (inner.len() * size_of::<CK_ATTRIBUTE>()) as CK_ULONG;
            match ckr {
                CKR_OK if wanted.ulValueLen == expected => {}
                CKR_OK | CKR_ATTRIBUTE_TYPE_INVALID => return Ok(false),
                _ => return Err(Fault::read(Function::GetAttributeValue, ckr)),
            }
        }
        Ok(true)
    }

    /// The objects that match, `most` of them at most. The search is ended whatever comes of it, and if that fails, so does this.
    pub(super) fn find(
        &self,
        session: &Session,
        template: &[Attribute],
        most: usize,
    ) -> Result<Vec<ObjectHandle>, Fault> {
        let mut wanted: Vec<CK_ATTRIBUTE> = template.iter().map(CK_ATTRIBUTE::from).collect();
        // SAFETY: the template lives until the call returns, and the library copies what it keeps.
        let ckr = unsafe { (self.find_init)(session.handle(), wanted.as_mut_ptr(), wanted.len() as CK_ULONG) };
        if ckr != CKR_OK {
            return Err(Fault::read(Function::FindObjectsInit, ckr));
        }
        let found = self.found(session, most);
        // SAFETY: ends what `find_init` began.
        let ckr = unsafe { (self.find_final)(session.handle()) };
        match (found, ckr) {
            (found, CKR_OK) => found,
            (Err(fault), _) => Err(fault.with_an_operation_left()),
            (Ok(_), ckr) => Err(Fault::read(Function::FindObjectsFinal, ckr).with_an_operation_left()),
        }
    }

    fn found(&self, session: &Session, most: usize) -> Result<Vec<ObjectHandle>, Fault> {
        let (mut numbers, mut found) = ([0; HANDLES_AT_A_TIME], Vec::new());
        while found.len() < most {
            let (room, mut count) = (HANDLES_AT_A_TIME.min(most - found.len()), 0);
            // SAFETY: `numbers` has room for as many.
            let ckr = unsafe { (self.find)(session.handle(), numbers.as_mut_ptr(), room as CK_ULONG, &raw mut count) };
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            match ckr {
                CKR_OK if count == 0 => break,
                CKR_OK if count <= room => found.extend(numbers[..count].iter().copied().map(object)),
                CKR_OK => return Err(Fault::read(Function::FindObjects, CKR_GENERAL_ERROR)),
                _ => return Err(Fault::read(Function::FindObjects, ckr)),
            }
        }
        Ok(found)
    }

    pub(super) fn mechanisms(&self, slot: Slot) -> Result<Vec<u64>, Fault> {
        let mut numbers: Vec<CK_MECHANISM_TYPE> = vec![0; MOST_MECHANISMS];
        let mut count = MOST_MECHANISMS as CK_ULONG;
        // SAFETY: `numbers` has room for `count` of them.
        let ckr = unsafe { (self.list_mechanisms)(slot.into(), numbers.as_mut_ptr(), &raw mut count) };
        if ckr != CKR_OK {
            return Err(Fault::read(Function::GetMechanismList, ckr));
        }
        numbers.truncate(usize::try_from(count).unwrap_or(0));
        Ok(numbers)
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Calls")
    }
}

fn gcm(
    direction: &Direction,
    session: &Session,
    key: ObjectHandle,
    nonce: &mut Nonce,
    aad: &[u8],
    input: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let mut parameters = CK_GCM_PARAMS {
        pIv: nonce.as_mut_ptr(),
        ulIvLen: nonce.len() as CK_ULONG,
        ulIvBits: (nonce.len() * 8) as CK_ULONG,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: aad.len() as CK_ULONG,
        ulTagBits: (TAG_LEN * 8) as CK_ULONG,
    };
    let mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameters).cast::<c_void>(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    once(direction, session, key, mechanism, input, input.len() + 2 * TAG_LEN)
}

/// Begins an operation and does it, with room for `capacity` bytes of answer. What the mechanism points to must outlive
/// this call.
fn once(
    direction: &Direction,
    session: &Session,
    key: ObjectHandle,
    mut mechanism: CK_MECHANISM,
    input: &[u8],
    capacity: usize,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let (init, function) = direction.init;
    // SAFETY: the parameters and what they point to outlive the operation, which ends in this function;
    // PKCS#11 only reads them. Session and key are numbers that the library checks.
    let ckr = unsafe { init(session.handle(), &raw mut mechanism, key.handle()) };
    if ckr != CKR_OK {
        return Err(Fault::read(function, ckr));
    }
    let mut output = Zeroizing::new(Vec::with_capacity(capacity));
    let mut length = capacity as CK_ULONG;
    let (work, function) = direction.work;
    // SAFETY: `output` has room for `length` bytes, and PKCS#11 only reads the input.
    let ckr = unsafe {
        let input_length = input.len() as CK_ULONG;
        work(session.handle(), input.as_ptr().cast_mut(), input_length, output.as_mut_ptr(), &raw mut length)
    };
    if ckr != CKR_OK {
        return Err(Fault::read(function, ckr));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > capacity {
        return Err(Fault::read(function, CKR_GENERAL_ERROR));
    }
    // SAFETY: the library says that it wrote `length` bytes, which is within the capacity.
    unsafe { output.set_len(length) };
    Ok(output)
}

fn handle(function: Function, ckr: CK_RV, made: CK_OBJECT_HANDLE) -> Result<ObjectHandle, Fault> {
    if ckr != CKR_OK {
        return Err(Fault::read(function, ckr));
    }
    Ok(object(made))
}

/// A number that the library gave out, as a handle.
pub(super) fn object(number: CK_OBJECT_HANDLE) -> ObjectHandle {
    // SAFETY: only a number, which the library checks whenever it is used.
    unsafe { ObjectHandle::new_from_raw(number) }
}

fn lacking() -> Fault {
    Fault::refused(Bucket::Node, Kind::Module, "the library lacks a function")
}

unsafe extern "C" {
    safe fn _exit(code: c_int) -> !;
    fn signal(number: c_int, handler: usize) -> usize;
}

/// Ends the process at once: no exit handlers, no destructors, since a vendor's may hang or crash.
pub fn leave(code: i32) -> ! {
    _exit(code)
}

/// A worker ends when its link does. Signals to a whole terminal or service group are for the daemon: dying of one in
/// the middle of a login can destroy a token.
pub fn ignore_stop_signals() {
    const IGNORE: usize = 1;
    for stop in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::HUP] {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { signal(stop.as_raw(), IGNORE) };
    }
}
