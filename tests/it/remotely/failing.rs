//! HSMs that fail on hosts of their own.

use crate::failing::{node, ready};

#[path = "../failing/ceremony.rs"]
mod ceremony;
#[path = "../failing/death.rs"]
mod death;
#[path = "../failing/keys.rs"]
mod keys;
#[path = "../failing/login.rs"]
mod login;
#[path = "../failing/overload.rs"]
mod overload;
#[path = "../failing/sessions.rs"]
mod sessions;
#[path = "../failing/slow.rs"]
mod slow;
#[path = "../failing/token.rs"]
mod token;
