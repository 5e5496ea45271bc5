//! What can be asked of the site's state, and what comes of it.

use serde::{Deserialize, Serialize};

use super::site::TopicRecord;
use crate::{
    limits::{PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX, TOPICS_MAX},
    replication::{ConfigReject, ShardCommand, ShardReport},
    types::{
        Incarnation, NodeId, NodeName, ShardId, SiteName, Timestamp, TopicId, TopicName,
        TopicSettings,
    },
    wire::{Code, Detail, Fault, RetentionChange},
};

/// A change of the site's state. Stored in the metadata log: variants and fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// The first command of a site.
    Found {
        /// Its name.
        site: SiteName,
        /// Its number of shards, for ever.
        shards: u16,
    },
    /// A node has started. Its incarnation is the index of this command.
    Register {
        /// Its name.
        name: NodeName,
        /// The identity of its disk: a node whose disk is another one is another node.
        disk_id: u128,
        /// What the boot says of itself.
        claim: BootClaim,
    },
    /// A shard gets another primary or commit set.
    Shard(ShardCommand),
    /// Make a topic.
    CreateTopic {
        /// Its name.
        name: TopicName,
        /// Its settings, whole.
        settings: TopicSettings,
        /// The proposer's clock.
        now: Timestamp,
    },
    /// Change how long a topic keeps its records.
    SetTopic {
        /// Its name.
        name: TopicName,
        /// What changes.
        change: RetentionChange,
    },
    /// Delete a topic.
    DeleteTopic {
        /// Its name.
        name: TopicName,
    },
    /// The partitions of a deleted topic are gone from all shards.
    ForgetTopic {
        /// Its id.
        id: TopicId,
    },
}

/// What a boot says of itself and of its disk. Each boot writes its number and nonce to the disk before it registers: a
/// disk that does not know the boot that the site knows was put back from a copy, and has lost what came after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootClaim {
    /// Grows with each boot.
    pub boot: u64,
    /// Drawn anew at each boot: tells two boots of one number apart.
    pub nonce: u64,
    /// The nonces of the boots of this disk since the last one that is known to have registered, that one too. A number
    /// alone would not do: an old copy that starts a few times without registering counts up as well.
    pub before: Vec<u64>,
    /// The disk has failed, or was put back: what it holds is not to be relied on.
    pub suspect: bool,
    /// What it holds of each shard.
    pub shards: Vec<(ShardId, ShardReport)>,
}

impl BootClaim {
    pub(super) fn is_same_boot(&self, other: &Self) -> bool {
        (self.boot, self.nonce) == (other.boot, other.nonce)
    }

    /// Whether this boot's disk is one that the `last` registered boot has written to.
    pub(super) fn follows(&self, last: &Self) -> bool {
        self.boot > last.boot && (self.suspect || self.before.contains(&last.nonce))
    }

    pub(super) fn report(&self, shard: ShardId) -> Option<&ShardReport> {
        self.shards.iter().find(|(id, _)| *id == shard).map(|(_, report)| report)
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOutcome {
    /// It is done.
    Done,
    /// The node's number and boot.
    Registered(NodeId, Incarnation),
    /// The topic as it is now.
    Topic(TopicRecord),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    Retention(&'static str),
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
