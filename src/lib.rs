//! dunlin, a message broker for the edge: durable, replicated topics over QUIC.
//!
//! Modules stand in layer order: each may use only those above it, as ARCHITECTURE.md says and `tests/tidy.rs` checks.

pub mod limits;
#[cfg(feature = "server")]
pub mod storage;
pub mod types;
pub mod wire;

pub mod broker;
pub mod replication;

pub mod net;
