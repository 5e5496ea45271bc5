//! Why a command changed nothing.

use serde::{Deserialize, Serialize};

use super::node::InviteId;
use crate::{
    limits::{
        INVITES_MAX, NODE_WEIGHT_MAX, NODES_MAX, PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX,
        TOPICS_MAX,
    },
    replication::ConfigReject,
    types::{NodeId, NodeName, ShardId, SiteName, TopicName},
    wire::{Code, Detail, Fault},
};

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MetaReject {
    /// The state belongs to a site already.
    #[error("this node's data belongs to site '{0}'")]
    OtherSite(SiteName),
    /// Shards cannot be added or taken away.
    #[error("this site has {have} shards, the configuration says {want}")]
    OtherShards {
        /// As founded.
        have: u16,
        /// As asked.
        want: u16,
    },
    /// No command can come before the founding.
    #[error("the site is not founded yet")]
    NotFounded,
    /// The name belongs to a node with another disk.
    #[error("node '{0}' is registered with another disk")]
    OtherDisk(NodeName),
    /// The boot does not follow the one that is registered: the disk was put back from a copy. Registered again as suspect,
    /// with a greater number, the node may go on as one that has lost data.
    #[error("boot {claimed} does not follow boot {have}, which is registered")]
    StaleBoot {
        /// The number that is registered.
        have: u64,
        /// The number that was claimed.
        claimed: u64,
    },
    /// No node of this name was added.
    #[error("node '{0}' is not a node of this site; it must join first")]
    UnknownNode(NodeName),
    /// There is no node of this number.
    #[error("there is no node {0}")]
    NoNode(NodeId),
    /// The node has left for ever.
    #[error("node '{0}' was removed from the site; its disk cannot come back")]
    Removed(NodeName),
    /// The disk is another node's.
    #[error("the disk is the one of node '{0}'")]
    DiskInUse(NodeName),
    /// The site is full of nodes.
    #[error("the site has {max} nodes, the most it may have", max = NODES_MAX)]
    TooManyNodes,
    /// The node still has data that is needed.
    #[error("node {node} still holds shard {shard}; drain it first")]
    NodeInUse {
        /// The node.
        node: NodeId,
        /// A shard that it holds.
        shard: ShardId,
    },
    /// The node cannot take over what another one holds.
    #[error("node {node} cannot take over: {why}")]
    Heir {
        /// The node.
        node: NodeId,
        /// Why.
        why: String,
    },
    /// Nobody could change anything any more.
    #[error("node {0} is the last one that orders the site's metadata")]
    LastVoter(NodeId),
    /// An address, a name of software or a range that is none.
    #[error("the node's {0}")]
    NodeInfo(String),
    /// The node's program is too old for what the others write by now, or too new to understand it.
    #[error(
        "this program speaks versions {speaks}, and the site is at {level}: install one that speaks {level}; of a newer \
         one, first a release in between"
    )]
    Protocol {
        /// What it speaks.
        speaks: String,
        /// What all nodes of the site understand.
        level: u16,
    },
    /// A weight outside its range.
    #[error("a node's weight is 0 to {max}, not {0}", max = NODE_WEIGHT_MAX)]
    Weight(u32),
    /// There is no such invite: it was used, has ended, or is for something else.
    #[error("the invite was used, has ended, or is for another role")]
    NoInvite(InviteId),
    /// Another invite has this number.
    #[error("invite {0} is there already")]
    InviteExists(InviteId),
    /// Too many invites wait.
    #[error("{max} invites are open, the most there may be", max = INVITES_MAX)]
    TooManyInvites,
    /// There is no such shard.
    #[error("shard {0} does not exist")]
    UnknownShard(ShardId),
    /// The change does not fit the shard as it is.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: ConfigReject,
    },
    /// There is no such topic.
    #[error("topic '{0}' does not exist")]
    UnknownTopic(TopicName),
    /// There is one of this name, and it is different.
    #[error("topic '{0}' exists with other settings")]
    TopicExists(TopicName),
    /// A number outside its range.
    #[error("a topic has 1 to {max} partitions, not {0}", max = PARTITIONS_PER_TOPIC_MAX)]
    Partitions(u32),
    /// A retention that keeps nothing.
    #[error("retention by {0} must be at least 1")]
    Retention(String),
    /// The site is full of topics.
    #[error("the site has {max} topics, the most it may have", max = TOPICS_MAX)]
    TooManyTopics,
    /// The site is full of partitions.
    #[error("the site would have {0} partitions, limit is {max}", max = PARTITIONS_MAX)]
    TooManyPartitions(u32),
}

impl MetaReject {
    /// The error as it travels.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let message = self.to_string();
        match self {
            Self::UnknownTopic(name) => Fault::new(Code::UnknownTopic, message)
                .with_hint(format!("make it: dunlin topic create {name}")),
            Self::TopicExists(name) => Fault::new(Code::TopicExists, message)
                .with_hint(format!("see its settings: dunlin topic show {name}")),
            Self::Partitions(_) | Self::Retention(_) => Fault::new(Code::Invalid, message),
            Self::NodeInfo(_)
            | Self::Protocol { .. }
            | Self::Weight(_)
            | Self::UnknownNode(_)
            | Self::NoNode(_)
            | Self::Removed(_)
            | Self::DiskInUse(_)
            | Self::NodeInUse { .. }
            | Self::Heir { .. }
            | Self::LastVoter(_)
            | Self::NoInvite(_)
            | Self::InviteExists(_) => Fault::new(Code::Invalid, message),
            Self::TooManyNodes => Fault::new(Code::LimitReached, message)
                .with_detail(Detail { limit: Some(NODES_MAX as u64), ..Detail::default() }),
            Self::TooManyInvites => Fault::new(Code::LimitReached, message)
                .with_detail(Detail { limit: Some(INVITES_MAX as u64), ..Detail::default() }),
            Self::TooManyTopics => Fault::new(Code::LimitReached, message)
                .with_detail(Detail { limit: Some(TOPICS_MAX as u64), ..Detail::default() }),
            Self::TooManyPartitions(_) => {
                Fault::new(Code::LimitReached, message).with_detail(Detail {
                    limit: Some(u64::from(PARTITIONS_MAX)),
                    ..Detail::default()
                })
            }
            Self::OtherSite(_)
            | Self::OtherShards { .. }
            | Self::NotFounded
            | Self::OtherDisk(_)
            | Self::StaleBoot { .. }
            | Self::UnknownShard(_)
            | Self::Shard { .. } => Fault::new(Code::Internal, message),
        }
    }
}
