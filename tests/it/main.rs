//! The product, tested from outside: the real daemon, real SoftHSM2, the real network, real `kill -9`.
//!
//! One binary, so that everything is linked once. Tests run in parallel, each with a daemon and tokens of its own.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]
#![allow(clippy::duplicate_mod, reason = "`remotely` has the same tests run with nodes on other hosts")]

mod rig;

mod bad_input;
mod checking;
mod command_line;
mod concurrency;
mod connection_errors;
mod containers;
mod contract;
mod crash;
mod crypto_users;
mod desk;
mod dev;
mod disconnecting;
mod documents;
mod drift;
mod failing;
mod faulty_library;
mod formats;
#[path = "../gameday/mod.rs"]
mod gameday;
mod key_life;
mod lifecycle;
mod main_job;
mod making_clusters;
mod membership;
mod prerequisites;
mod reflection;
mod reload;
mod remote_nodes;
mod remotely;
mod rotation;
mod seeding;
mod serve;
mod soak;
mod states;
mod update;
mod worker_process;
