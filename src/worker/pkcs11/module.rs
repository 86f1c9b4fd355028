//! One vendor library: loaded and initialised exactly once, never finalised, never unloaded.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::slot::{Slot, TokenInfo};

use super::Fault;
use super::raw::Calls;

/// A loaded PKCS#11 library. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Module {
    pub(super) library: Pkcs11,
    pub(super) calls: &'static Calls,
}

impl Module {
    /// Loads the library and initialises it for use by many threads.
    pub fn load(path: &Path) -> Result<Self, Fault> {
        let library = Pkcs11::new(path)?;
        // Unloading runs vendor code that is known to crash or hang: this reference is kept for ever.
        std::mem::forget(library.clone());
        let calls = Calls::load(path)?;
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        Ok(Self { library, calls })
    }

    /// Every slot whose token tells of itself. One that fails does not hide the others.
    pub(super) fn tokens(&self) -> Result<Vec<(Slot, TokenInfo)>, Fault> {
        let slots = self.library.get_all_slots()?;
        Ok(slots.into_iter().filter_map(|slot| Some((slot, self.library.get_token_info(slot).ok()?))).collect())
    }
}
