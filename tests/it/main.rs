//! The product, tested from outside: the real daemon, real SoftHSM2, the real network, real `kill -9`.
//!
//! One binary, so that everything is linked once. Tests run in parallel, each with a daemon and tokens of its own.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod rig;

mod bad_input;
mod checking;
mod command_line;
mod concurrency;
mod connection_errors;
mod contract;
mod crash;
mod crypto_users;
mod disconnecting;
mod documents;
mod drift;
mod failing;
mod faulty_library;
mod formats;
mod lifecycle;
mod main_job;
mod prerequisites;
mod reflection;
mod reload;
mod rotation;
mod serve;
mod soak;
mod update;
mod worker_process;
