//! The same tests with every node on a host of its own: `keyway node`, over TLS and a network. `Rig::new` asks whose test
//! it is built for.

#[path = "main_job.rs"]
mod main_job;

#[path = "lifecycle.rs"]
mod lifecycle;

mod crypto_users;
#[path = "membership.rs"]
mod membership;

mod failing;
mod rotation;
