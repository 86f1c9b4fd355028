//! Ends a worker whose link has ended, when nothing else does: each thread that could see the end may be stuck in the
//! library, and no daemon may be left to kill it.
//!
//! It waits and leaves, and does nothing else.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::link::Patience;

use super::pkcs11::leave;
use super::{ENDED, PANICKED, log};

/// How long what was begun before the pool's time goes on without a daemon. Nobody waits for it; but a login that is cut
/// off can damage a token.
const BEFORE_LOGIN: Duration = Duration::from_secs(10);
/// Beyond its calls' patience a pool gets this long to leave by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How long the process outlives its link.
pub struct Leash(Arc<AtomicU64>);

impl Leash {
    /// Watches the link from a thread of its own. Nothing is read from it.
    pub fn on(link: OwnedFd) -> std::io::Result<Self> {
        let length = Arc::new(AtomicU64::new(millis(BEFORE_LOGIN)));
        let watched = length.clone();
        std::thread::Builder::new().name("leash".to_owned()).spawn(move || watch(&link, &watched))?;
        Ok(Self(length))
    }

    /// From now on calls run that have this patience.
    pub fn pool(&self, patience: Patience) {
        self.0.store(millis(patience.longest() + GRACE), Relaxed);
    }
}

fn watch(link: &OwnedFd, length: &AtomicU64) {
    if let Err(error) = until_ended(link) {
        log(format_args!("the link cannot be watched: {error}"));
        leave(PANICKED);
    }
    let ended = Instant::now();
    loop {
        let rest = (ended + Duration::from_millis(length.load(Relaxed))).saturating_duration_since(Instant::now());
        if rest.is_zero() {
            log(format_args!("leaving: stuck in the library, and its daemon is gone"));
            leave(ENDED);
        }
        std::thread::park_timeout(rest);
    }
}

fn until_ended(link: &OwnedFd) -> Result<(), Errno> {
    loop {
        // Hangups are told in any case.
        match poll(&mut [PollFd::new(&link.as_fd(), PollFlags::RDHUP)], None) {
            Ok(1..) => return Ok(()),
            Ok(0) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
