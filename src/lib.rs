//! dunlin, a message broker for the edge: durable, replicated topics over QUIC.
//!
//! Modules stand in layer order: each may use only those above it, as ARCHITECTURE.md says and `tests/tidy.rs` checks.

pub mod limits;
pub mod types;

pub mod net;

pub mod client;
#[cfg(feature = "server")]
pub mod config;

#[cfg(feature = "server")]
pub mod cli;
