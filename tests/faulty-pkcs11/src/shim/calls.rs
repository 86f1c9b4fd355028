//! The functions that are more than forwarded: slots, sessions, logins, searches, IVs.
//!
//! Each takes the arguments of its PKCS#11 function as they came, the session's number included; the
//! caller's promises about them are PKCS#11's, and the only ones that are relied on.

#![allow(clippy::missing_safety_doc, reason = "one sentence above says it for all")]

use std::ffi::c_void;

use cryptoki_sys::*;

use super::pins::Pins;
use super::sessions::Login;
use super::{Call, lock};

/// The real function, or the answer that there is none.
macro_rules! real {
    ($call:ident, $function:ident) => {
        match $call.shim.real.list.$function {
            Some(real) => real,
            None => return CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

pub(super) unsafe fn finalize(call: &Call<'_>, reserved: *mut c_void) -> CK_RV {
    // SAFETY: the caller's argument, passed on.
    let ckr = unsafe { real!(call, C_Finalize)(reserved) };
    if ckr == CKR_OK {
        *lock(&call.shim.sessions) = Default::default();
        lock(&call.shim.objects).forget_all();
    }
    ckr
}

pub(super) unsafe fn slot_list(
    call: &Call<'_>,
    present: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    // SAFETY: the caller's arguments, passed on. On CKR_OK the module has written `count` slots, unless there was no room given.
    unsafe {
        let ckr = real!(call, C_GetSlotList)(present, slots, count);
        if ckr == CKR_OK && !slots.is_null() {
            for slot in std::slice::from_raw_parts_mut(slots, *count as usize) {
                *slot = call.slot_number(*slot);
            }
        }
        ckr
    }
}

pub(super) unsafe fn slot_event(
    call: &Call<'_>,
    flags: CK_FLAGS,
    slot: *mut CK_SLOT_ID,
    reserved: *mut c_void,
) -> CK_RV {
    // SAFETY: the caller's arguments, passed on. On CKR_OK the module has written a slot.
    unsafe {
        let ckr = real!(call, C_WaitForSlotEvent)(flags, slot, reserved);
        if let (CKR_OK, Some(slot)) = (ckr, slot.as_mut()) {
            *slot = call.slot_number(*slot);
        }
        ckr
    }
}

pub(super) unsafe fn token_info(call: &Call<'_>, slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let slot = call.slot(slot);
    // SAFETY: the caller's place for the answer, which is written on CKR_OK.
    unsafe {
        let ckr = real!(call, C_GetTokenInfo)(slot, info);
        if let (CKR_OK, Some(info)) = (ckr, info.as_mut()) {
            if let Some(serial) = call.armed.serial() {
                let padded = serial.bytes().chain(std::iter::repeat(b' '));
                info.serialNumber.iter_mut().zip(padded).for_each(|(place, byte)| *place = byte);
            }
            info.flags |= pin_flags(call, slot);
        }
        ckr
    }
}

/// What `pin_lock` has made of the user.
fn pin_flags(call: &Call<'_>, slot: CK_SLOT_ID) -> CK_FLAGS {
    let Some((pins, most)) = pins(call, slot, CKU_USER) else { return 0 };
    match pins.wrong_in_a_row() {
        0 => 0,
        wrong if wrong >= most => CKF_USER_PIN_LOCKED,
        wrong if wrong + 1 == most => CKF_USER_PIN_FINAL_TRY | CKF_USER_PIN_COUNT_LOW,
        _ => CKF_USER_PIN_COUNT_LOW,
    }
}

pub(super) unsafe fn open_session(
    call: &Call<'_>,
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    data: *mut c_void,
    notify: CK_NOTIFY,
    opened: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    let open = real!(call, C_OpenSession);
    let slot = call.slot(slot);
    let (most, refusal) = call.armed.max_sessions().unwrap_or((usize::MAX, CKR_SESSION_COUNT));
    if !lock(&call.shim.sessions).reserve(most) {
        return refusal;
    }
    // SAFETY: the caller's arguments, passed on. On CKR_OK the module has written a session.
    unsafe {
        let ckr = open(slot, flags, data, notify, opened);
        let real = opened.as_mut().filter(|_| ckr == CKR_OK);
        let number = lock(&call.shim.sessions).opened(slot, real.as_deref().copied());
        if let Some(place) = real {
            *place = number;
        }
        ckr
    }
}

pub(super) unsafe fn close_session(call: &Call<'_>, _session: CK_SESSION_HANDLE) -> CK_RV {
    // SAFETY: a number, which the module checks.
    let ckr = unsafe { real!(call, C_CloseSession)(call.session.real) };
    if ckr == CKR_OK {
        lock(&call.shim.sessions).closed(call.session.number);
    }
    ckr
}

pub(super) unsafe fn close_all_sessions(call: &Call<'_>, slot: CK_SLOT_ID) -> CK_RV {
    let slot = call.slot(slot);
    // SAFETY: a number, which the module checks.
    let ckr = unsafe { real!(call, C_CloseAllSessions)(slot) };
    if ckr == CKR_OK {
        lock(&call.shim.sessions).all_closed(slot);
    }
    ckr
}

pub(super) unsafe fn session_info(call: &Call<'_>, _session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) -> CK_RV {
    let lost = lock(&call.shim.sessions).login_is_lost(call.session.slot);
    // SAFETY: the caller's place for the answer, which is written on CKR_OK.
    unsafe {
        let ckr = real!(call, C_GetSessionInfo)(call.session.real, info);
        if let (CKR_OK, Some(info)) = (ckr, info.as_mut()) {
            info.slotID = call.slot_number(info.slotID);
            if lost {
                let writes = info.flags & CKF_RW_SESSION != 0;
                info.state = if writes { CKS_RW_PUBLIC_SESSION } else { CKS_RO_PUBLIC_SESSION };
            }
        }
        ckr
    }
}

pub(super) unsafe fn log_in(
    call: &Call<'_>,
    _session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_BYTE,
    pin_len: CK_ULONG,
) -> CK_RV {
    let slot = call.session.slot;
    if is_locked(call, slot, user) {
        return CKR_PIN_LOCKED;
    }
    let real = real!(call, C_Login);
    // SAFETY: the caller's PIN, as long as it is said to be.
    let (ckr, pin) = unsafe {
        let given = copy(pin, pin_len);
        let ckr = match real(call.session.real, user, pin, pin_len) {
            CKR_USER_ALREADY_LOGGED_IN | CKR_USER_ANOTHER_ALREADY_LOGGED_IN
                if lock(&call.shim.sessions).login_is_lost(slot) =>
            {
                if is_same_login(call, user, &given) {
                    CKR_OK
                } else {
                    call.shim.real.log_out(call.session.real);
                    real(call.session.real, user, pin, pin_len)
                }
            }
            ckr => ckr,
        };
        (ckr, given)
    };
    note_pin(call, slot, user, ckr);
    if ckr == CKR_OK && user != CKU_CONTEXT_SPECIFIC {
        lock(&call.shim.sessions).logged_in(slot, Login { user, pin, lost: false });
    }
    ckr
}

/// Whether it is the login that the real module still has, though the caller was told that it is lost.
fn is_same_login(call: &Call<'_>, user: CK_USER_TYPE, pin: &[u8]) -> bool {
    lock(&call.shim.sessions).login(call.session.slot).is_some_and(|login| login.user == user && login.pin == pin)
}

pub(super) unsafe fn log_out(call: &Call<'_>, _session: CK_SESSION_HANDLE) -> CK_RV {
    let slot = call.session.slot;
    let lost = lock(&call.shim.sessions).login_is_lost(slot);
    // SAFETY: a number, which the module checks.
    let ckr = unsafe { real!(call, C_Logout)(call.session.real) };
    if ckr == CKR_OK {
        lock(&call.shim.sessions).logged_out(slot);
    }
    if lost { CKR_USER_NOT_LOGGED_IN } else { ckr }
}

pub(super) unsafe fn init_pin(call: &Call<'_>, _session: CK_SESSION_HANDLE, pin: *mut CK_BYTE, len: CK_ULONG) -> CK_RV {
    // SAFETY: the caller's PIN, passed on.
    let ckr = unsafe { real!(call, C_InitPIN)(call.session.real, pin, len) };
    if ckr == CKR_OK {
        note_pin(call, call.session.slot, CKU_USER, ckr);
    }
    ckr
}

pub(super) unsafe fn set_pin(
    call: &Call<'_>,
    _session: CK_SESSION_HANDLE,
    old: *mut CK_BYTE,
    old_len: CK_ULONG,
    new: *mut CK_BYTE,
    new_len: CK_ULONG,
) -> CK_RV {
    let slot = call.session.slot;
    let user = lock(&call.shim.sessions).login(slot).map_or(CKU_USER, |login| login.user);
    if is_locked(call, slot, user) {
        return CKR_PIN_LOCKED;
    }
    // SAFETY: the caller's PINs, as long as they are said to be.
    let (ckr, new) = unsafe {
        let ckr = real!(call, C_SetPIN)(call.session.real, old, old_len, new, new_len);
        (ckr, copy(new, new_len))
    };
    note_pin(call, slot, user, ckr);
    if let (CKR_OK, Some(login)) = (ckr, lock(&call.shim.sessions).login(slot)) {
        login.pin = new;
    }
    ckr
}

/// A PIN may be null, where the token has a way of its own to ask for it.
unsafe fn copy(pin: *const CK_BYTE, len: CK_ULONG) -> Vec<u8> {
    if pin.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller promises that it is so long.
    unsafe { std::slice::from_raw_parts(pin, len as usize) }.to_vec()
}

/// The count of a user's wrong PINs and how many are too many, while a rule has it counted.
fn pins(call: &Call<'_>, slot: CK_SLOT_ID, user: CK_USER_TYPE) -> Option<(Pins, usize)> {
    let most = call.armed.pin_lock()?;
    call.armed.control().map(|control| (Pins::of(control, slot, user), most))
}

fn is_locked(call: &Call<'_>, slot: CK_SLOT_ID, user: CK_USER_TYPE) -> bool {
    pins(call, slot, user).is_some_and(|(pins, most)| pins.wrong_in_a_row() >= most)
}

fn note_pin(call: &Call<'_>, slot: CK_SLOT_ID, user: CK_USER_TYPE, ckr: CK_RV) {
    match (pins(call, slot, user), ckr) {
        (Some((pins, _)), CKR_OK) => pins.note_right(),
        (Some((pins, _)), CKR_PIN_INCORRECT) => pins.note_wrong(),
        _ => {}
    }
}

pub(super) unsafe fn destroy(call: &Call<'_>, _session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> CK_RV {
    // SAFETY: numbers, which the module checks.
    let ckr = unsafe { real!(call, C_DestroyObject)(call.session.real, call.object(object)) };
    if ckr == CKR_OK {
        lock(&call.shim.objects).forget(object);
    }
    ckr
}

pub(super) unsafe fn find_init(
    call: &Call<'_>,
    _session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    let wanted = if template.is_null() {
        &mut []
    } else {
        // SAFETY: the caller's template, as long as it is said to be.
        unsafe { std::slice::from_raw_parts_mut(template, count as usize) }
    };
    let by_name = wanted.iter().any(|wanted| matches!(wanted.type_, CKA_ID | CKA_LABEL));
    if by_name && call.armed.finds_wrong() {
        let others = find_others(call, wanted);
        if let Some(found) = lock(&call.shim.sessions).found(call.session.number) {
            *found = Some(others);
        }
        return CKR_OK;
    }
    // SAFETY: the caller's template, passed on.
    unsafe { real!(call, C_FindObjectsInit)(call.session.real, template, count) }
}

/// As many other objects of the same class as there are right ones, those with the most similar labels first.
fn find_others(call: &Call<'_>, wanted: &mut [CK_ATTRIBUTE]) -> Vec<CK_OBJECT_HANDLE> {
    let (real, session) = (&call.shim.real, call.session.real);
    let right = real.search(session, wanted);
    let Some(asked) = right.first().and_then(|object| real.identity(session, *object)) else { return right };
    let all = real.search(session, &mut []).into_iter().filter(|object| !right.contains(object));
    let known = all.filter_map(|object| Some((object, real.identity(session, object)?)));
    let mut others: Vec<_> = known.filter(|(_, other)| other.class == asked.class).collect();
    let alike = |label: &[u8]| label.iter().zip(&asked.label).take_while(|(one, other)| one == other).count();
    others.sort_by_key(|(_, other)| std::cmp::Reverse(alike(&other.label)));
    others.into_iter().map(|(object, _)| object).take(right.len()).collect()
}

pub(super) unsafe fn find(
    call: &Call<'_>,
    _session: CK_SESSION_HANDLE,
    found: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    let wrong = lock(&call.shim.sessions).found(call.session.number).and_then(|found| {
        let rest = found.as_mut()?;
        Some(rest.drain(..rest.len().min(most as usize)).collect::<Vec<_>>())
    });
    // SAFETY: the caller has room for `most` handles and for their count; as many as are counted are written.
    unsafe {
        let ckr = match wrong {
            None => real!(call, C_FindObjects)(call.session.real, found, most, count),
            Some(_) if found.is_null() || count.is_null() => CKR_ARGUMENTS_BAD,
            Some(wrong) => {
                std::ptr::copy_nonoverlapping(wrong.as_ptr(), found, wrong.len());
                *count = wrong.len() as CK_ULONG;
                CKR_OK
            }
        };
        if ckr == CKR_OK {
            if lock(&call.shim.sessions).login_is_lost(call.session.slot) {
                *count = 0;
            }
            for handle in std::slice::from_raw_parts_mut(found, *count as usize) {
                *handle = call.object_number(*handle);
            }
        }
        ckr
    }
}

pub(super) unsafe fn find_final(call: &Call<'_>, _session: CK_SESSION_HANDLE) -> CK_RV {
    if lock(&call.shim.sessions).found(call.session.number).is_some_and(|found| found.take().is_some()) {
        return CKR_OK;
    }
    // SAFETY: a number, which the module checks.
    unsafe { real!(call, C_FindObjectsFinal)(call.session.real) }
}

pub(super) unsafe fn encrypt_init(
    call: &Call<'_>,
    _session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if call.armed.makes_gcm_ivs() {
        // SAFETY: the caller's mechanism, with the parameters that belong to it.
        let ckr = unsafe { make_gcm_iv(call, mechanism) };
        if ckr != CKR_OK {
            return ckr;
        }
    }
    // SAFETY: the caller's mechanism, passed on.
    unsafe { real!(call, C_EncryptInit)(call.session.real, mechanism, call.object(key)) }
}

/// Fills the IV of AES-GCM's parameters, which must be zero; another mechanism is left alone.
unsafe fn make_gcm_iv(call: &Call<'_>, mechanism: *mut CK_MECHANISM) -> CK_RV {
    // SAFETY: the mechanism is the caller's, its parameters are of the type that goes with it, and the IV as long as they say.
    unsafe {
        let Some(mechanism) = mechanism.as_ref().filter(|mechanism| mechanism.mechanism == CKM_AES_GCM) else {
            return CKR_OK;
        };
        let whole = mechanism.ulParameterLen as usize == size_of::<CK_GCM_PARAMS>();
        let parameters = mechanism.pParameter.cast::<CK_GCM_PARAMS>().as_ref().filter(|_| whole);
        let Some(parameters) = parameters.filter(|it| !it.pIv.is_null() && it.ulIvLen > 0) else {
            return CKR_MECHANISM_PARAM_INVALID;
        };
        let iv = std::slice::from_raw_parts_mut(parameters.pIv, parameters.ulIvLen as usize);
        if iv.iter().any(|byte| *byte != 0) {
            return CKR_MECHANISM_PARAM_INVALID;
        }
        call.shim.real.random(call.session.real, iv)
    }
}
