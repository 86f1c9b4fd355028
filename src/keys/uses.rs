//! Counting what a key version has encrypted, without writing each use down.
//!
//! AES-GCM with random IVs is safe for 2^32 encryptions under one key (NIST SP 800-38D). Uses are
//! reserved ahead in blocks; what a crash leaves of a block counts as spent. An encryption that is given to a second HSM,
//! or once more to the same, takes another: nobody knows whether the first made an IV.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::{KeyId, KeyVersion};
use crate::records::{Records, Reserved, Unavailable};

/// How many uses are reserved at a time.
const BLOCK: u64 = 65_536;
/// After this many a key version encrypts no more.
pub const LIMIT: u64 = 1 << 32;

/// Why a use was not granted.
#[derive(Debug, thiserror::Error)]
pub enum NoUse {
    #[error("the key version has been used {LIMIT} times")]
    Exhausted,
    #[error("the records cannot be reached")]
    Records(#[from] Unavailable),
}

/// What is left of the block that this daemon has reserved.
#[derive(Debug)]
pub struct Uses {
    left: AtomicU64,
    reserving: tokio::sync::Mutex<()>,
}

impl Uses {
    /// Nothing reserved yet: the first use reserves a block.
    pub fn none() -> Self {
        Self { left: AtomicU64::new(0), reserving: tokio::sync::Mutex::default() }
    }

    /// Takes one use, reserving another block when none is left.
    pub async fn take(&self, records: &Records, key: KeyId, version: KeyVersion) -> Result<(), NoUse> {
        if self.try_take() {
            return Ok(());
        }
        let _one_reserves = self.reserving.lock().await;
        if self.try_take() {
            return Ok(());
        }
        match records.reserve_uses(key, version, BLOCK, LIMIT).await? {
            Reserved::Block { from, to } => {
                self.left.store(to - from - 1, Relaxed);
                Ok(())
            }
            Reserved::Exhausted => Err(NoUse::Exhausted),
        }
    }

    /// Whether [`Uses::take`] would take one. Reserves nothing.
    pub async fn look(&self, records: &Records, key: KeyId, version: KeyVersion) -> Result<(), NoUse> {
        if self.left.load(Relaxed) > 0 {
            return Ok(());
        }
        let versions = records.key(key).await?.map(|record| record.versions).unwrap_or_default();
        let known = versions.iter().find(|known| known.version == version);
        if known.is_some_and(|known| known.uses_reserved < LIMIT) { Ok(()) } else { Err(NoUse::Exhausted) }
    }

    fn try_take(&self) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}
