//! What a site agrees on: its nodes, its topics, who leads which shard.
//!
//! Layer 3. The state machine is pure and checks everything when a command is applied, so that a proposal that comes
//! late fails by itself. The group that orders commands has one member in this version; its log and snapshot lie where
//! a replicated group's would.

mod command;
mod group;
mod site;

pub use command::{BootClaim, MetaCommand, MetaOutcome, MetaReject};
pub use group::{GroupError, MetaGroup};
pub use site::{NodeRecord, SiteState, Tombstone, TopicRecord};
