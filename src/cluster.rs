//! What a site agrees on: its nodes, its topics, who leads which shard.
//!
//! Layer 3. The state machine is pure and checks everything when a command is applied, so that a proposal that comes
//! late fails by itself. A Raft group orders the commands; `server` gives it the links to other nodes.

mod command;
mod group;
mod node;
mod placement;
mod raft;
mod reject;
mod site;

pub use command::{BootClaim, MetaCommand, MetaOutcome};
pub use group::{GroupError, GroupStatus, MetaGroup, MetaTiming, NoLinks};
pub use node::{InviteId, InviteRecord, NodeInfo, NodeRecord, NodeRole, RemovedNode};
pub use placement::place;
pub use raft::{BoxFuture, MetaTransport, Unreachable};
pub use reject::MetaReject;
pub use site::{FOUNDER, SiteState, Tombstone, TopicRecord};
