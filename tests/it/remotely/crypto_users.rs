//! Crypto users of HSMs on hosts of their own, and a network that fails in the middle of what is done for one.

use tonic::Status;

use crate::crypto_users::{FIRST, SECOND, WRONG, all_done, logs_in, present_on};
use crate::rig::{Clients, Rig, pb, refused};

#[path = "../crypto_users/absence.rs"]
mod absence;
#[path = "../crypto_users/crash.rs"]
mod crash;
#[path = "../crypto_users/life.rs"]
mod life;
#[path = "../crypto_users/logins.rs"]
mod logins;
