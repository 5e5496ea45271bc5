//! The words of the product as parsed values: a value of one of these types cannot be wrong.
//!
//! Layer 0. No I/O, no clock, no randomness: time and ids are arguments.

mod acks;
mod address;
mod ids;
mod name;
mod partitioner;
mod position;
mod role;
mod secret;
mod time;
mod topic;
mod versions;

pub use acks::{AckLevel, Acks};
pub use address::{Address, BadAddress};
pub use ids::{
    Boot, Epoch, Incarnation, Lsn, NodeId, Offset, PartitionId, ProducerId, Sequence, ShardId,
    TopicId,
};
pub use name::{BadName, ClientName, NodeName, SiteName, TopicName};
pub use partitioner::partition_of_key;
pub use position::{BadPosition, Position};
pub use role::{BadRole, NodeRole};
pub use secret::{InviteSecret, InviteToken};
pub use time::Timestamp;
pub use topic::{Retention, TopicSettings};
pub use versions::{BadVersions, Versions};
