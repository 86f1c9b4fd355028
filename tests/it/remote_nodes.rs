//! Nodes on other hosts, and what a network adds to what can go wrong.

mod hostile;
mod network;
mod program;
mod trust;
mod users;
