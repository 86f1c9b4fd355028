//! The product, tested from outside: the real daemon, real SoftHSM2, the real network, real `kill -9`.
//!
//! One binary, so that everything is linked once. Tests run in parallel, each with a daemon and tokens of its own.

mod rig;

mod crash;
mod lifecycle;
mod main_job;
mod worker_process;
