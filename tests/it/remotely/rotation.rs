//! Passwords of HSMs on hosts of their own, changed by connecting.

use crate::rotation::{HSMS, node, versions};

#[path = "../rotation/crash.rs"]
mod crash;
#[path = "../rotation/refusal.rs"]
mod refusal;
