//! What is generated from `proto/`: the public contract's messages, clients, servers and descriptor set, and the services
//! that daemons use of `keyway node`.
//!
//! A leaf. Servers of the public contract are in the door alone, its clients in `cli`; the node's are both in `host`.

#[allow(missing_docs, clippy::pedantic, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("keyway.v1");
}

/// Between daemons and `keyway node`.
#[allow(missing_docs, clippy::pedantic, clippy::all, rustdoc::all)]
pub mod node {
    tonic::include_proto!("keyway.node.v1");
}

/// Every file of the public contract, with `google/rpc` and what they import, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keyway.v1.bin"));
