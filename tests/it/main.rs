//! The product, tested from outside: the real daemon, real SoftHSM2, the real network, real `kill -9`.
//!
//! One binary, so that everything is linked once. Tests run in parallel, each with a daemon and tokens of its own.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod rig;

mod bad_input;
mod command_line;
mod contract;
mod crash;
mod documents;
mod drift;
mod failing;
mod faulty_library;
mod formats;
mod lifecycle;
mod main_job;
mod reflection;
mod rotation;
mod serve;
mod soak;
mod worker_process;
