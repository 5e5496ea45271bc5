//! Raft as openraft runs it, over our store and our links. Nothing outside `cluster` knows of openraft.

mod disk;
mod log_store;
mod message;
mod network;
mod state_machine;
mod type_config;

pub(super) use disk::Disk;
pub(super) use log_store::LogStore;
pub(super) use message::{GroupAnswer, GroupRequest, MemberChange};
pub(super) use network::Links;
pub use network::{BoxFuture, MetaTransport, Unreachable};
pub(super) use state_machine::{SiteView, StateMachine};
pub(super) use type_config::{TypeConfig, decode, encode};

#[cfg(test)]
mod tests;
