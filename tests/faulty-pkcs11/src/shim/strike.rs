//! Faults in a call: the wait, the growth, the death, the answer.

use std::path::Path;
use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::Outcome;
use crate::rule::{Effect, Moment};

use super::watch::{Fired, part};

/// How often a call that blocks looks whether its marker is still there.
const LOOK: Duration = Duration::from_millis(10);
const SIGSEGV: i32 = 11;

unsafe extern "C" {
    safe fn raise(signal: i32) -> i32;
}

/// Does what this call meets, in the order of the rules, until one gives an answer. What may not come back is told first.
pub(super) fn strike(fired: &[Fired], moment: Moment, tell: impl Fn(Outcome)) -> Option<CK_RV> {
    for Fired { effect, marker, number, .. } in fired.iter().filter(|fired| fired.moment == moment) {
        match effect {
            Effect::Fail { ckr, .. } => return Some(*ckr),
            Effect::Delay { by, jitter, .. } => std::thread::sleep(*by + jitter.mul_f64(part(*number))),
            Effect::Leak { bytes, .. } => leak(*bytes),
            Effect::Block { .. } => {
                tell(Outcome::Blocked);
                block(marker.as_deref());
            }
            Effect::Crash { .. } => {
                tell(Outcome::Crashed);
                crash();
            }
            Effect::Abort { .. } => {
                tell(Outcome::Aborted);
                std::process::abort();
            }
            Effect::Journal { .. } | Effect::FindWrong | Effect::SlotOffset(_) | Effect::Idle(_) => {}
            Effect::MaxSessions { .. } | Effect::PinLock(_) | Effect::GcmIv | Effect::Serial(_) => {}
            Effect::Epoch(_) | Effect::Logout(_) | Effect::Reassign(_) => {}
        }
    }
    None
}

/// Whether a rule has this call written down.
pub(super) fn is_journalled(fired: &[Fired]) -> bool {
    fired.iter().any(|fired| matches!(fired.effect, Effect::Journal { .. }))
}

fn block(marker: Option<&Path>) {
    while marker.is_none_or(Path::exists) {
        std::thread::sleep(LOOK);
    }
}

/// Not zeros: pages that hold nothing else need not be in memory.
fn leak(bytes: usize) {
    std::mem::forget(std::hint::black_box(vec![0x5a_u8; bytes]));
}

/// A handler may catch the first and take itself away, as Rust's own does.
fn crash() -> ! {
    loop {
        raise(SIGSEGV);
    }
}
