//! The public contract as generated from `proto/keyway/v1`: messages, clients, servers, and its descriptor set.
//!
//! A leaf. Servers use it in the door alone, clients in `cli`.

#[allow(missing_docs, clippy::pedantic, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("keyway.v1");
}

/// Every file of the public contract, with `google/rpc` and what they import, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keyway.v1.bin"));
