//! The real module: finding it, and the calls that the shim makes to it for itself.

use std::path::{Path, PathBuf};

use cryptoki_sys::*;
use libloading::Library;

/// Names the real module's file.
const MODULE: &str = "FAULTY_PKCS11_MODULE";
/// Where SoftHSM2 is usually.
const USUAL: [&str; 6] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
/// Room for an id or a label. An object with a longer one is not told from others.
const ROOM: usize = 256;
/// Handles fetched from a search at a time.
const AT_A_TIME: usize = 64;

type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;

/// The real module's functions. It is never unloaded.
pub(super) struct Real {
    pub(super) list: &'static CK_FUNCTION_LIST,
}

/// What an object stays the same by when its handle changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) class: CK_OBJECT_CLASS,
    pub(super) label: Vec<u8>,
    pub(super) id: Vec<u8>,
}

impl Real {
    pub(super) fn load() -> Result<Self, String> {
        let named = std::env::var_os(MODULE).map(PathBuf::from);
        let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.is_file());
        let path = named.or_else(usual).ok_or(format!("no SoftHSM2 in a usual place; name a module in {MODULE}"))?;
        Self::load_from(&path).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn load_from(path: &Path) -> Result<Self, String> {
        // SAFETY: the module's initialisers run, as they would if the program had loaded it itself.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let library = Box::leak(Box::new(library));
        // SAFETY: PKCS#11 gives the symbol this type.
        let get =
            unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList\0") }.map_err(|error| error.to_string())?;
        let mut list = std::ptr::null_mut();
        // SAFETY: `list` is a place for the answer.
        let ckr = unsafe { get(&raw mut list) };
        // SAFETY: on CKR_OK it points to the module's own list, which is there as long as the module.
        let list = if ckr == CKR_OK { unsafe { list.as_ref() } } else { None };
        list.map(|list| Self { list }).ok_or(format!("C_GetFunctionList answered {ckr:#x}"))
    }

    /// A session of the shim's own, to look around with.
    pub(super) fn open(&self, slot: CK_SLOT_ID) -> Option<CK_SESSION_HANDLE> {
        let (mut session, nothing) = (0, std::ptr::null_mut());
        // SAFETY: `session` is a place for the answer, and no callback is given.
        let ckr = unsafe { self.list.C_OpenSession?(slot, CKF_SERIAL_SESSION, nothing, None, &raw mut session) };
        (ckr == CKR_OK).then_some(session)
    }

    pub(super) fn close(&self, session: CK_SESSION_HANDLE) {
        if let Some(close) = self.list.C_CloseSession {
            // SAFETY: a number, which the module checks.
            unsafe { close(session) };
        }
    }

    pub(super) fn log_out(&self, session: CK_SESSION_HANDLE) {
        if let Some(log_out) = self.list.C_Logout {
            // SAFETY: a number, which the module checks.
            unsafe { log_out(session) };
        }
    }

    pub(super) fn random(&self, session: CK_SESSION_HANDLE, bytes: &mut [u8]) -> CK_RV {
        let Some(random) = self.list.C_GenerateRandom else { return CKR_FUNCTION_NOT_SUPPORTED };
        // SAFETY: the buffer is as long as it is said to be.
        unsafe { random(session, bytes.as_mut_ptr(), bytes.len() as CK_ULONG) }
    }

    /// Every object that the template fits. The session must have no search under way.
    pub(super) fn search(&self, session: CK_SESSION_HANDLE, template: &mut [CK_ATTRIBUTE]) -> Vec<CK_OBJECT_HANDLE> {
        self.try_search(session, template).unwrap_or_default()
    }

    fn try_search(&self, session: CK_SESSION_HANDLE, template: &mut [CK_ATTRIBUTE]) -> Option<Vec<CK_OBJECT_HANDLE>> {
        let (init, find, end) = (self.list.C_FindObjectsInit?, self.list.C_FindObjects?, self.list.C_FindObjectsFinal?);
        let mut all = Vec::new();
        // SAFETY: the template is as long as it is said to be, and each page has room for what is asked for.
        unsafe {
            if init(session, template.as_mut_ptr(), template.len() as CK_ULONG) != CKR_OK {
                return None;
            }
            loop {
                let (mut page, mut count) = ([0; AT_A_TIME], 0);
                let ckr = find(session, page.as_mut_ptr(), AT_A_TIME as CK_ULONG, &raw mut count);
                let found = page.get(..count as usize).filter(|found| ckr == CKR_OK && !found.is_empty());
                let Some(found) = found else { break };
                all.extend_from_slice(found);
            }
            end(session);
        }
        Some(all)
    }

    /// Who a token's object is; none for what ends with its session.
    pub(super) fn identity(&self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> Option<Identity> {
        let (mut class, mut token): (CK_OBJECT_CLASS, CK_BBOOL) = (0, CK_FALSE);
        let (mut id, mut label) = ([0_u8; ROOM], [0_u8; ROOM]);
        let mut template = [
            attribute(CKA_CLASS, (&raw mut class).cast(), size_of::<CK_OBJECT_CLASS>()),
            attribute(CKA_TOKEN, (&raw mut token).cast(), size_of::<CK_BBOOL>()),
            attribute(CKA_ID, id.as_mut_ptr().cast(), ROOM),
            attribute(CKA_LABEL, label.as_mut_ptr().cast(), ROOM),
        ];
        let count = template.len() as CK_ULONG;
        // SAFETY: each attribute has room for as much as it says.
        let ckr = unsafe { self.list.C_GetAttributeValue?(session, object, template.as_mut_ptr(), count) };
        // An attribute that this class of object lacks says so in its length, and the others are there.
        if !matches!(ckr, CKR_OK | CKR_ATTRIBUTE_TYPE_INVALID) || token == CK_FALSE {
            return None;
        }
        let [.., id_told, label_told] = template;
        Some(Identity { class, id: value(&id, id_told.ulValueLen), label: value(&label, label_told.ulValueLen) })
    }

    /// The handle that an object has now.
    pub(super) fn handle_of(&self, session: CK_SESSION_HANDLE, identity: &Identity) -> Option<CK_OBJECT_HANDLE> {
        let mut wanted = identity.clone();
        let mut template = [
            attribute(CKA_CLASS, (&raw mut wanted.class).cast(), size_of::<CK_OBJECT_CLASS>()),
            attribute(CKA_LABEL, wanted.label.as_mut_ptr().cast(), identity.label.len()),
        ];
        let found = self.search(session, &mut template);
        found.into_iter().find(|object| self.identity(session, *object).as_ref() == Some(identity))
    }
}

fn attribute(kind: CK_ATTRIBUTE_TYPE, value: *mut std::ffi::c_void, room: usize) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_: kind, pValue: value, ulValueLen: room as CK_ULONG }
}

fn value(room: &[u8], told: CK_ULONG) -> Vec<u8> {
    usize::try_from(told).ok().and_then(|length| room.get(..length)).unwrap_or_default().to_vec()
}
