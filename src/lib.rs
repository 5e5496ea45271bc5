//! dunlin, a message broker for the edge: durable, replicated topics over QUIC.
//!
//! Modules stand in layer order: each may use only those above it, as ARCHITECTURE.md says and `tests/tidy.rs` checks.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "the bans are for the product; tests may use a clock"
    )
)]

pub mod limits;
pub mod types;
pub mod wire;

pub mod balance;
pub mod broker;
pub mod replication;

pub mod discovery;
pub mod net;
// The fuzzer builds without the server, and reads what peers send.
#[cfg(any(feature = "server", fuzzing))]
pub mod peer;
#[cfg(feature = "server")]
pub mod storage;

pub mod client;
#[cfg(feature = "server")]
pub mod cluster;
#[cfg(feature = "server")]
pub mod config;

#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "server")]
pub mod cli;

#[cfg(feature = "server")]
pub use config::Config;
#[cfg(feature = "server")]
pub use server::Server;

/// Name and version of this program, as peers are told.
pub const SOFTWARE: &str = concat!("dunlin/", env!("CARGO_PKG_VERSION"));

/// The cluster simulator. It is compiled with the library's own tests, because only these know the seeded bugs.
#[cfg(all(test, feature = "server"))]
#[path = "../tests/sim/mod.rs"]
mod sim;
