//! The functions as the program sees them: each enters the shim, and forwards with the real module's numbers in place of the caller's.
//!
//! An argument is written with its kind. `session`, `slot` and `object` are numbers of the shim's own
//! and are translated; `made` is a place where the module leaves an object's handle, and is translated on
//! the way back; the others are passed on untouched. A function that needs more than this names who does it.

#![allow(non_snake_case, reason = "they are PKCS#11's names")]

use std::ffi::c_void;

use cryptoki_sys::*;

use crate::Function;

use super::{Call, call, calls};

/// PKCS#11's type of a kind of argument.
macro_rules! kind {
    (session) => { CK_SESSION_HANDLE };
    (slot) => { CK_SLOT_ID };
    (object) => { CK_OBJECT_HANDLE };
    (made) => { *mut CK_OBJECT_HANDLE };
    (ulong) => { CK_ULONG };
    (length) => { *mut CK_ULONG };
    (bytes) => { *mut CK_BYTE };
    (mechanism) => { *mut CK_MECHANISM };
    (template) => { *mut CK_ATTRIBUTE };
    (flag) => { CK_BBOOL };
    (any) => { *mut c_void };
    (notify) => { CK_NOTIFY };
    (slots) => { *mut CK_SLOT_ID };
    (info) => { *mut CK_INFO };
    (slot_info) => { *mut CK_SLOT_INFO };
    (token_info) => { *mut CK_TOKEN_INFO };
    (session_info) => { *mut CK_SESSION_INFO };
    (mechanism_info) => { *mut CK_MECHANISM_INFO };
}

/// The argument for the real module.
macro_rules! to_real {
    ($call:ident, session, $value:expr) => {
        $call.session.real
    };
    ($call:ident, slot, $value:expr) => {
        $call.slot($value)
    };
    ($call:ident, object, $value:expr) => {
        $call.object($value)
    };
    ($call:ident, $kind:ident, $value:expr) => {
        $value
    };
}

/// What the real module left, for the caller.
macro_rules! to_caller {
    ($call:ident, made, $value:expr) => {
        translate_made($call, $value)
    };
    ($call:ident, $kind:ident, $value:expr) => {};
}

/// The session that a function is called in, which is its first argument if it has one.
macro_rules! session_of {
    () => {
        None
    };
    ($name:ident: session $($rest:tt)*) => {
        Some($name)
    };
    ($($rest:tt)*) => {
        None
    };
}

/// The call of the real function, or of the one that does it for us.
macro_rules! body {
    ($function:ident, $call:ident, ($($name:ident: $kind:ident),*)) => {{
        let Some(real) = $call.shim.real.list.$function else { return CKR_FUNCTION_NOT_SUPPORTED };
        // SAFETY: the module's own function, with what the caller gave, who answers for it; numbers are checked there.
        let ckr = unsafe { real($(to_real!($call, $kind, $name)),*) };
        if ckr == CKR_OK {
            $(to_caller!($call, $kind, $name);)*
        }
        ckr
    }};
    ($function:ident, $call:ident, ($($name:ident: $kind:ident),*), $instead:path) => {
        // SAFETY: the caller keeps PKCS#11's promises for these arguments, which are all that is asked for there.
        unsafe { $instead($call, $($name),*) }
    };
}

macro_rules! functions {
    ($($function:ident($($name:ident: $kind:ident),*) $(=> $instead:path)?;)*) => {
        $(
            unsafe extern "C" fn $function($($name: kind!($kind)),*) -> CK_RV {
                call(Function::$function, session_of!($($name: $kind),*), |call| {
                    body!($function, call, ($($name: $kind),*) $(, $instead)?)
                })
            }
        )*

        static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            C_GetFunctionList: Some(C_GetFunctionList),
            $($function: Some($function)),*
        };
    };
}

functions! {
    C_Initialize(args: any);
    C_Finalize(reserved: any) => calls::finalize;
    C_GetInfo(info: info);
    C_GetSlotList(present: flag, slots: slots, count: length) => calls::slot_list;
    C_GetSlotInfo(slot: slot, info: slot_info);
    C_GetTokenInfo(slot: slot, info: token_info) => calls::token_info;
    C_GetMechanismList(slot: slot, mechanisms: length, count: length);
    C_GetMechanismInfo(slot: slot, mechanism: ulong, info: mechanism_info);
    C_InitToken(slot: slot, pin: bytes, pin_len: ulong, label: bytes);
    C_InitPIN(session: session, pin: bytes, pin_len: ulong) => calls::init_pin;
    C_SetPIN(session: session, old: bytes, old_len: ulong, new: bytes, new_len: ulong) => calls::set_pin;
    C_OpenSession(slot: slot, flags: ulong, data: any, notify: notify, opened: length) => calls::open_session;
    C_CloseSession(session: session) => calls::close_session;
    C_CloseAllSessions(slot: slot) => calls::close_all_sessions;
    C_GetSessionInfo(session: session, info: session_info) => calls::session_info;
    C_GetOperationState(session: session, state: bytes, state_len: length);
    C_SetOperationState(session: session, state: bytes, state_len: ulong, encrypts: object, signs: object);
    C_Login(session: session, user: ulong, pin: bytes, pin_len: ulong) => calls::log_in;
    C_Logout(session: session) => calls::log_out;
    C_CreateObject(session: session, template: template, count: ulong, created: made);
    C_CopyObject(session: session, object: object, template: template, count: ulong, copy: made);
    C_DestroyObject(session: session, object: object) => calls::destroy;
    C_GetObjectSize(session: session, object: object, size: length);
    C_GetAttributeValue(session: session, object: object, template: template, count: ulong);
    C_SetAttributeValue(session: session, object: object, template: template, count: ulong);
    C_FindObjectsInit(session: session, template: template, count: ulong) => calls::find_init;
    C_FindObjects(session: session, found: length, most: ulong, count: length) => calls::find;
    C_FindObjectsFinal(session: session) => calls::find_final;
    C_EncryptInit(session: session, mechanism: mechanism, key: object) => calls::encrypt_init;
    C_Encrypt(session: session, data: bytes, data_len: ulong, out: bytes, out_len: length);
    C_EncryptUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_EncryptFinal(session: session, out: bytes, out_len: length);
    C_DecryptInit(session: session, mechanism: mechanism, key: object);
    C_Decrypt(session: session, data: bytes, data_len: ulong, out: bytes, out_len: length);
    C_DecryptUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_DecryptFinal(session: session, out: bytes, out_len: length);
    C_DigestInit(session: session, mechanism: mechanism);
    C_Digest(session: session, data: bytes, data_len: ulong, out: bytes, out_len: length);
    C_DigestUpdate(session: session, part: bytes, part_len: ulong);
    C_DigestKey(session: session, key: object);
    C_DigestFinal(session: session, out: bytes, out_len: length);
    C_SignInit(session: session, mechanism: mechanism, key: object);
    C_Sign(session: session, data: bytes, data_len: ulong, out: bytes, out_len: length);
    C_SignUpdate(session: session, part: bytes, part_len: ulong);
    C_SignFinal(session: session, out: bytes, out_len: length);
    C_SignRecoverInit(session: session, mechanism: mechanism, key: object);
    C_SignRecover(session: session, data: bytes, data_len: ulong, out: bytes, out_len: length);
    C_VerifyInit(session: session, mechanism: mechanism, key: object);
    C_Verify(session: session, data: bytes, data_len: ulong, signature: bytes, signature_len: ulong);
    C_VerifyUpdate(session: session, part: bytes, part_len: ulong);
    C_VerifyFinal(session: session, signature: bytes, signature_len: ulong);
    C_VerifyRecoverInit(session: session, mechanism: mechanism, key: object);
    C_VerifyRecover(session: session, signature: bytes, signature_len: ulong, out: bytes, out_len: length);
    C_DigestEncryptUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_DecryptDigestUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_SignEncryptUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_DecryptVerifyUpdate(session: session, part: bytes, part_len: ulong, out: bytes, out_len: length);
    C_GenerateKey(session: session, mechanism: mechanism, template: template, count: ulong, key: made);
    C_GenerateKeyPair(session: session, mechanism: mechanism, public: template, public_count: ulong,
        private: template, private_count: ulong, public_key: made, private_key: made);
    C_WrapKey(session: session, mechanism: mechanism, under: object, key: object, out: bytes, out_len: length);
    C_UnwrapKey(session: session, mechanism: mechanism, under: object, wrapped: bytes, wrapped_len: ulong,
        template: template, count: ulong, key: made);
    C_DeriveKey(session: session, mechanism: mechanism, from: object, template: template, count: ulong, key: made);
    C_SeedRandom(session: session, seed: bytes, seed_len: ulong);
    C_GenerateRandom(session: session, out: bytes, out_len: ulong);
    C_GetFunctionStatus(session: session);
    C_CancelFunction(session: session);
    C_WaitForSlotEvent(flags: ulong, slot: slots, reserved: any) => calls::slot_event;
}

/// The library's one symbol.
///
/// # Safety
///
/// `list` is null or points to a place for the answer, as PKCS#11 has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    if super::shim().is_none() {
        return CKR_GENERAL_ERROR;
    }
    // SAFETY: not null, and the caller's. PKCS#11 gives the list out as mutable, and nobody may write to it.
    unsafe { *list = (&raw const FUNCTIONS).cast_mut() };
    CKR_OK
}

/// Where the real module left an object's handle, the caller finds its number.
fn translate_made(call: &Call<'_>, made: *mut CK_OBJECT_HANDLE) {
    // SAFETY: the real module has just written there, or it is null.
    if let Some(handle) = unsafe { made.as_mut() } {
        *handle = call.object_number(*handle);
    }
}
